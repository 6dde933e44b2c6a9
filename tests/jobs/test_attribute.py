"""Attributions by label equal loops over prompts by hand, and select features; what cannot be is reported."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from matplotlib import rc_context
from scipy import stats

from jobs import cli
from jobs.evaluation.attribute import attribute
from jobs.evaluation.external_scores import read_scores
from jobs.figures.attribution import draw_attribution_map
from jobs.figures.style import STYLE
from jobs.lake.extract import extract
from jobs.lake.tokenize import tokenize
from jobs.tables.stats import stats as stats_job
from pipeline.store import FeatureStore
from pipeline.tasks import Processes
from schemas.errors import InputError
from schemas.run.file import parse_run_file
from schemas.tables.attribution import ATTRIBUTION_PROMPTS, ATTRIBUTION_SELECTION, ATTRIBUTIONS
from tests.kit import WORDS_VOCAB, dense_activations, mild_lm, write_sae, write_tiny_tokenizer

pytestmark = pytest.mark.slow

MILD = "tests.kit:mild_lm"
PROMPTS = 22
D_SAE = 64


def prompt_rows(seed=0):
    """Prompts of 3 to 9 words; the last one's answers begin with the same word."""
    rng, rows = np.random.default_rng(seed), []
    for n in range(PROMPTS):
        words = rng.integers(0, 60, rng.integers(3, 10))
        first, other = rng.choice(60, 2, replace=False)
        same = n == PROMPTS - 1
        rows.append(
            {
                "text": " ".join(f"w{w}" for w in words),
                "job": None if n == 4 else ["cook", "nurse", "farmer"][n % 3],
                "age": "old" if n % 2 else "young",
                "yes": f"w{first} w1",
                "no": f"w{first} w2" if same else f" w{other}",
            }
        )
    return rows


def made(folder, **changes):
    """A store of prompts: site last (gated, last_token) and site mean (standard, mean)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in prompt_rows())
    (folder / "prompts.jsonl").write_text(lines)
    write_tiny_tokenizer(folder / "tokenizer")
    sites = []
    for name, architecture, pooling in (("last", "gated", "last_token"), ("mean", "standard", "mean")):
        sae = write_sae(folder / f"sae-{name}", architecture, d_sae=D_SAE, context_size=16, seed=3)
        sites.append({"name": name, "sae": str(sae), "pooling": pooling})
    corpus = {"path": str(folder / "prompts.jsonl"), "label_columns": ["job", "age"]}
    content = {
        "corpus": {"kind": "prompts", **corpus, "prompts": {"answers": ["yes", "no"]}},
        "tokens": {"shard_tokens": 60, "tokenizer": str(folder / "tokenizer"), "separator": "none"},
        "model": {"loader": "torch_module", "path": MILD},
        "sites": sites,
        "store": {"root": str(folder / "store")},
        "extract": {"executor": "in_process", "batch_contexts": 4, "check_sae": "off"},
    }
    for section, values in changes.items():
        content[section] = content[section] | values
    run = parse_run_file(content, "run.yaml")
    tokenize(run)
    extract(run)
    return FeatureStore.open(run.store.root)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return made(tmp_path_factory.mktemp("prompts"))


def by_hand(store, site, nodes=150):
    """Of each prompt but the last: labels, gap, baseline, and [F] each: ig, ig2, gap without the feature."""
    module = mild_lm().double().eval()
    sae = next(s.sae for s in store.plans[store.site(site).pass_name].sites if s.name == site)
    weights = store.site_weights(site)[0]
    decoder = torch.from_numpy(weights["W_dec"]).double()
    known = {f"w{n}": n + 3 for n in range(WORDS_VOCAB - 3)}
    result = []
    for row in prompt_rows()[:-1]:
        ids = torch.tensor([0, *(known[word] for word in row["text"].split())])
        answers = [known[row[name].split()[0]] for name in ("yes", "no")]
        with torch.no_grad():
            x = module.layers[1](module.layers[0](module.embed(ids)[None]))[0]
        places = [len(ids) - 1] if site == "last" else list(range(1, len(ids)))
        f = torch.tensor(
            dense_activations(Path(sae), x[places].mean(0, keepdim=True).float().numpy())
        ).double()

        def gap(latents, x=x, places=places, f=f, answers=answers):
            """Of latents [n, F]: [n]."""
            y = x.repeat(len(latents), 1, 1)
            y[:, places] += ((latents - f) @ decoder)[:, None]
            chances = module.head(module.layers[2](y))[:, -1].softmax(1)
            return chances[:, answers[0]] - chances[:, answers[1]]

        latents = (torch.arange(nodes)[:, None] + 0.5) / nodes * f
        latents.requires_grad_(True)
        values = gap(latents)  # by the midpoint rule, another than that of the job
        (slopes,) = torch.autograd.grad(values.sum(), latents)
        ig = (f * slopes).mean(0)
        ig2 = (2 * values.detach()[:, None] * f * slopes).mean(0)
        with torch.no_grad():
            without = gap(f * (1 - torch.eye(D_SAE))).numpy()
            ends = float(gap(f)), float(gap(0 * f))
        result.append((row, *ends, ig.numpy(), ig2.numpy(), without, f[0].numpy()))
    return result


@pytest.mark.parametrize("site", ["last", "mean"])
def test_attributions_and_ablations_are_those_of_loops_over_prompts(store, site):
    selection = attribute(store, site, model=MILD, k=4, by="ig")
    prompts, hand = store.scan_table(site, "attribution_prompts").collect(), by_hand(store, site)
    assert prompts.schema == pl.Schema(ATTRIBUTION_PROMPTS)
    assert prompts["document"].to_list() == list(range(PROMPTS - 1))
    for name, place in (("gap", 1), ("baseline", 2)):
        np.testing.assert_allclose(prompts[name], [one[place] for one in hand], atol=1e-6)
    for name, power in (("ig_sum", 1), ("ig2_sum", 2)):
        gaps = [one[1] ** power - one[2] ** power for one in hand]
        np.testing.assert_allclose(prompts[name], gaps, atol=1e-6)
    assert prompts["complete"].all()
    table = store.scan_table(site, "attributions").collect()
    assert table.schema == pl.Schema(ATTRIBUTIONS)
    for label in ("job", "age"):
        for value in sorted({row[label] for row, *_ in hand} - {None}):
            mine = [one for one in hand if one[0][label] == value]
            rows = table.filter(label=label, value=value)
            assert rows["feature"].to_list() == np.flatnonzero(sum(one[6] != 0 for one in mine)).tolist()
            for row in rows.iter_rows(named=True):
                f = row["feature"]
                assert (row["prompts"], row["active"]) == (len(mine), sum(one[6][f] != 0 for one in mine))
                for name, place in (("ig", 3), ("ig2", 4)):
                    numbers = [one[place][f] for one in mine]
                    assert row[name] == pytest.approx(np.mean(numbers), rel=2e-3, abs=2e-7)
                    assert row[f"{name}_se"] == pytest.approx(stats.sem(numbers), rel=2e-3, abs=2e-7)
            chosen = selection.filter(label=label, value=value).drop_nulls("rank").sort("rank")
            best = sorted(range(D_SAE), key=lambda f: -abs(sum(one[3][f] for one in mine)))[:4]
            assert chosen["feature"].to_list() == best
            for row in chosen.iter_rows(named=True):
                effects = [one[1] - one[5][row["feature"]] for one in mine]
                ends = stats.t.interval(0.95, len(mine) - 1, np.mean(effects), stats.sem(effects))
                assert row["effect"] == pytest.approx(np.mean(effects), abs=1e-6)
                assert (row["effect_low"], row["effect_high"]) == pytest.approx(ends, abs=1e-6)
                assert row["holds"] == (ends[0] * ends[1] > 0 and np.mean(effects) * row["score"] > 0)


def test_the_union_has_every_values_first_features_and_the_command_prints_the_map(store, capsys):
    arguments = ["attribute", str(store.layout.root), "--site", "last", "-k", "3", "--model", MILD]
    arguments += ["--label", "age", "--label", "age"]
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert not stop.value.code
    selection = store.scan_table("last", "attribution_selection").collect()
    assert selection.schema == pl.Schema(ATTRIBUTION_SELECTION)
    assert selection["label"].unique().to_list() == ["age"]
    chosen = {
        value: selection.filter(pl.col("value") == value).drop_nulls("rank").sort("rank")["feature"].to_list()
        for value in ("old", "young")
    }
    union = sorted({*chosen["old"], *chosen["young"]})
    assert selection.filter(pl.col("value") == "old")["feature"].to_list() == union
    printed = " ".join(capsys.readouterr().out.split())
    assert "21 prompts" in printed
    assert "left out: 1 prompts whose answers begin with the same token" in printed
    assert f"{len(union)} features in the union" in printed
    held = selection.filter(pl.col("holds"))
    for value, features in chosen.items():
        stars = [f"{f}{'*' if held.filter(value=value, feature=f).height else ''}" for f in features]
        assert re.search("(?: “[^”]*”)?, ".join(map(re.escape, stars)), printed), stars
    scores = store.scan_table("last", "attributions").collect().filter(pl.col("value") == "old")
    best = scores.sort(pl.col("ig2").abs(), descending=True)["feature"].head(3).to_list()
    assert chosen["old"] == best


def test_any_number_of_processes_gives_the_same_tables(store, monkeypatch):
    monkeypatch.setattr("jobs.evaluation.attribute.CONTEXTS", 5)
    names = ("attributions", "attribution_prompts", "attribution_selection")
    attribute(store, "mean", model=MILD, k=2)
    one = [store.scan_table("mean", name).collect() for name in names]
    with Processes(2) as tasks:
        attribute(store, "mean", tasks, model=MILD, k=2)
    assert all(
        store.scan_table("mean", name).collect().equals(table) for name, table in zip(names, one, strict=True)
    )


def test_scores_of_another_method_select_and_may_be_ablated(store, tmp_path, monkeypatch):
    scores = pl.DataFrame({"value": ["old", "old", "young"], "feature": [5, 9, 5], "score": [-2.0, 1.0, 0.5]})
    scores.with_columns(label=pl.lit("age")).write_csv(tmp_path / "scores.csv")
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.plans.reopen.use_of", None)  # the model is not asked for
        result = attribute(store, "last", model=MILD, scores=tmp_path / "scores.csv", k=1)
    assert result.drop_nulls("rank").select("value", "feature", "score").rows() == [
        ("old", 5, -2.0),
        ("young", 5, 0.5),
    ]
    assert result["holds"].null_count() == 2
    ablated = attribute(
        store, "last", model=MILD, scores=tmp_path / "scores.csv", k=2, ablate=True
    )  # on the gap
    assert ablated.drop_nulls("rank").drop_nulls("effect").height == 3
    hand = [one for one in by_hand(store, "last", nodes=1) if one[0]["age"] == "old"]
    effects = [one[1] - one[5][9] for one in hand]
    row = ablated.filter(value="old", feature=9).row(0, named=True)
    assert (row["effect"], row["prompts"]) == (pytest.approx(np.mean(effects), abs=1e-6), len(hand))
    assert row["active"] == sum(one[6][9] != 0 for one in hand)
    scores.drop("value").head(2).write_parquet(tmp_path / "plain.parquet")
    assert read_scores(tmp_path / "plain.parquet", D_SAE).select("label", "value").unique().rows() == [
        ("scores", "all")
    ]
    every = attribute(store, "last", model=MILD, scores=tmp_path / "plain.parquet", ablate=True)
    hand = by_hand(store, "last", nodes=1)
    for feature in (5, 9):  # in all prompts, those without a value of a label too
        effects = [one[1] - one[5][feature] for one in hand]
        row = every.filter(feature=feature).row(0, named=True)
        assert (row["effect"], row["prompts"]) == (pytest.approx(np.mean(effects), abs=1e-6), PROMPTS - 1)


@pytest.mark.parametrize(
    ("options", "killed_in"),
    [({"model": MILD, "k": 3}, "attribute_part"), ({"model": MILD, "k": 3, "by": "ig"}, "ablate_part")],
)
def test_a_killed_job_goes_on_after_the_parts_it_had_done(store, monkeypatch, capsys, options, killed_in):
    from pipeline.evaluation import attribution

    monkeypatch.setattr("jobs.evaluation.attribute.CONTEXTS", 5)
    names = ("attributions", "attribution_prompts", "attribution_selection")
    attribute(store, "last", **options)
    expected = [store.layout.table("last", name).read_bytes() for name in names]
    folder, done, own = store.layout.table("last", "x").parent, [], getattr(attribution, killed_in)
    assert not list(folder.glob(".*"))

    def few(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments[-1].name)
        return own(*arguments)

    monkeypatch.setattr(attribution, killed_in, few)
    with pytest.raises(KeyboardInterrupt):
        attribute(store, "last", **options)
    left = list(folder.glob(".attribute.*.tmp"))
    assert left

    def rest(*arguments):
        assert arguments[-1].name not in done
        return own(*arguments)

    monkeypatch.setattr(attribution, killed_in, own)
    for other in (
        dict(options, tolerance=0.02),
        dict(options, labels=("age",)),
        dict(options, answers="no,yes"),
    ):
        capsys.readouterr()
        attribute(store, "last", **other)
        assert "continues after" not in capsys.readouterr().out
    assert list(folder.glob(".attribute.*.tmp")) == left
    monkeypatch.setattr(attribution, killed_in, rest)
    attribute(store, "last", **options)
    assert "continues after 2 of" in " ".join(capsys.readouterr().out.split())
    assert [store.layout.table("last", name).read_bytes() for name in names] == expected
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("columns", "ablate", "message"),
    [
        ({"feature": [1.5], "score": [1.0]}, False, "features must be whole numbers"),
        ({"feature": [1], "score": [1.0], "label": ["age"]}, True, "only one of the columns label and value"),
        (
            {"feature": [1], "score": [1.0], "label": ["age"], "value": ["odl"]},
            True,
            "no prompt has the value 'odl'",
        ),
    ],
)
def test_scores_of_no_feature_or_of_no_value_are_refused(store, tmp_path, columns, ablate, message):
    pl.DataFrame(columns).write_parquet(tmp_path / "scores.parquet")
    with pytest.raises(InputError, match=message):
        attribute(store, "last", model=MILD, scores=tmp_path / "scores.parquet", k=1, ablate=ablate)


def test_the_map_has_a_dot_where_an_effect_holds():
    rows = [
        ("age", "old", 5, 0.5, 0, 10, 3, 0.4, 0.3, 0.5, True),
        ("age", "old", 9, 0.0, None, 10, 0, None, None, None, None),
        ("age", "young", 5, -0.1, 1, 12, 2, 0.0, -0.1, 0.1, False),
        ("age", "young", 9, -0.9, 0, 12, 7, -0.8, -0.9, -0.7, True),
    ]
    table = pl.DataFrame(rows, schema=ATTRIBUTION_SELECTION, orient="row")
    with rc_context(STYLE):
        figure = draw_attribution_map(table, "l9")
        empty = draw_attribution_map(table.clear(), "l9")
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.0, 0.5], [-0.9, -0.1]])  # 9 first
    assert axes.collections[0].get_offsets().tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["age old", "age young"]
    output = " ".join(" ".join(text.get_text() for text in figure.texts).split())
    assert "2 label values × 2 features · n = 10 to 12 prompts a value" in output
    assert not empty.axes[0].images


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"feature": [1]}, "has no column 'score'"),
        ({"feature": [D_SAE], "score": [1.0]}, "a feature that does not exist: features are 0 to 63"),
        ({"feature": [1, 1], "score": [1.0, 2.0]}, "a feature twice for one value"),
        ({"feature": ["x"], "score": [1.0]}, "features must be whole numbers"),
    ],
)
def test_a_table_of_scores_of_another_form_is_refused(tmp_path, columns, message):
    pl.DataFrame(columns).write_parquet(tmp_path / "scores.parquet")
    with pytest.raises(InputError, match=message):
        read_scores(tmp_path / "scores.parquet", D_SAE)


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"model": MILD, "by": "ig3"}, "--by 'ig3' is not one of ig2, ig"),
        ({"model": MILD, "labels": ("age", "yes")}, "--label 'yes' is a column of answers"),
        (
            {"model": MILD, "labels": ("jobb",)},
            "--label 'jobb': the lake has no such label; it has age, job, no, yes",
        ),
        ({"model": MILD, "answers": "yes"}, "are not two columns"),
        ({"model": MILD, "answers": "job,job"}, "are not two columns"),
    ],
)
def test_what_cannot_be_requested_is_reported(store, requested, message):
    with pytest.raises(InputError, match=message):
        attribute(store, "last", **requested)


def test_a_store_of_packed_documents_and_one_without_answers_are_refused(tmp_path, monkeypatch):
    packed = made(tmp_path / "packed", tokens={"contexts": "packed"})
    with pytest.raises(InputError, match=r"share contexts.*tokens\.contexts: document"):
        attribute(packed, "last")
    monkeypatch.setattr("jobs.evaluation.attribute.read_links", lambda _: [])
    with pytest.raises(InputError, match="the corpus of this store has none: give --answers FIRST,OTHER"):
        attribute(packed, "last")


def test_the_heat_map_shows_the_selection(store, tmp_path):
    stats_job(store, "last")
    selection = attribute(store, "last", model=MILD, k=3, ablate=False)
    out = tmp_path / "h.png"
    with pytest.raises(SystemExit) as stop:
        cli.main(
            [
                "heatmap",
                str(store.layout.root),
                "--site",
                "last",
                "--selection",
                "--pool",
                "max",
                "--out",
                str(out),
            ]
        )
    assert not stop.value.code
    table = pl.read_parquet(out.with_suffix(".parquet"))
    union = selection["feature"].unique().sort().to_list()
    assert [name for name in table.columns if name.isdigit()] == [str(f) for f in union]
    assert table.height == PROMPTS
