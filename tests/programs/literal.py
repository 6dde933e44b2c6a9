"""The GPT-2 notebook's analysis, written down once more as it was: dense, in memory, with torch alone.

    python -m tests.programs.literal --contexts 2000 --context-size 128 --layer 9

makes a store of so many contexts with a bare-dict ReLU SAE, runs the formulas on the same tokens, and prints
how far each number of the store is from theirs. `test_literal.py` is its short form. Where definitions
differ, `compare` says so at the place.

B contexts of a batch, T positions, N rows, n rows of the control, D d_model, F d_sae.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from jobs.studies.demo.model import ensure_demo_model
from jobs.tables.rank import rank
from pipeline.store import FeatureStore
from schemas.run.file import parse_run_file
from tests.fixtures.runs import extracted

CORPUS = Path(__file__).parents[2] / "jobs" / "demo_data" / "sotu.parquet"
BATCH, CONTROL_CONTEXTS = 50, 10
THRESHOLDS = (0.0, 0.1, 0.2, 0.5, 2.0)
TOP, BEFORE, AFTER = 30, 30, 2
SITE = "resid"
NEAR = 5e-3
"""A pre-activation so near to 0 may fall on either side: x of another batch shape has other last bits."""


@dataclass(frozen=True)
class Setting:
    contexts: int = 60
    context_size: int = 64
    layer: int = 2
    d_sae: int = 512

    @property
    def hook_name(self) -> str:
        return f"blocks.{self.layer}.hook_resid_pre"


class Notebook(NamedTuple):
    """What the notebook held: `acts` float32 [N, F], `near` int64 [F] (pre-activations near 0), of the
    control's contexts `learnt` and `control` float32 [n, F]."""

    acts: Tensor
    near: Tensor
    learnt: Tensor
    control: Tensor


class _Stopped(Exception):  # noqa: N818
    pass


class Model:
    """transformers' own model; the forward stops at the hook."""

    def __init__(self, layer: int) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(ensure_demo_model(), dtype=torch.float32).eval()
        self._model.model.layers[layer].register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: Any, args: Any, kwargs: Any) -> None:
        self._x = args[0] if args else kwargs["hidden_states"]
        raise _Stopped

    def resid_pre(self, batch: list[list[int]]) -> Tensor:
        """x [B, T, D]; contexts that are shorter are padded at their end, which no token before it sees."""
        longest = max(map(len, batch))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
        with torch.inference_mode(), suppress(_Stopped):
            self._model(ids, use_cache=False)
        return self._x


def make_sae(path: Path, x: Tensor, d_sae: int, seed: int = 0) -> Path:
    """A bare dict of a ReLU SAE whose directions are rows of x [N, D], with frequencies from 0.0003 to 0.3.

    One feature in 32 never fires.
    """
    generator = torch.Generator().manual_seed(seed)
    b_dec = x.mean(dim=0)
    directions = (x - b_dec)[torch.randperm(len(x), generator=generator)[:d_sae]]
    w_dec = directions / directions.norm(dim=1, keepdim=True)
    w_enc = w_dec.T.contiguous()
    share = 10 ** (-3.5 + 3 * torch.rand(d_sae, generator=generator))
    pre = (x - b_dec) @ w_enc
    b_enc = -torch.stack([pre[:, f].quantile(1 - share[f]) for f in range(d_sae)])
    b_enc[::32] = -1e6
    torch.save({"W_enc": w_enc, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec}, path)
    return path


def make_store(folder: Path, sae: Path, setting: Setting) -> FeatureStore:
    """Ours: the same contexts in several shards, activations stored as float32."""
    tokens = setting.contexts * setting.context_size
    documents = pl.read_parquet(CORPUS, columns=["text"])  # beginnings of all, so that there are shards
    beginning = pl.col("text").str.slice(0, 6 * tokens // documents.height)
    documents.with_columns(beginning).write_parquet(folder / "corpus.parquet")
    content = {
        "corpus": {"path": str(folder / "corpus.parquet")},
        "tokens": {
            "context_size": setting.context_size,
            "prepend_bos": True,
            "limit": tokens,
            "shard_tokens": tokens // 4,
            "special_tokens": "zero_first",
        },
        "model": {"path": str(ensure_demo_model())},
        "sites": [
            {"name": SITE, "hook_name": setting.hook_name, "sae": str(sae), "control": "random_encoder"}
        ],
        "store": {"root": str(folder / "store"), "activation_dtype": "float32"},
        "extract": {"executor": "in_process", "check_sae": "off"},
    }
    store = extracted(parse_run_file(content, "literal"))
    rank(store, SITE, ("mean_all", "sigma_over_mu"), support=0)
    return store


def run_notebook(ids: list[list[int]], sae: Path, model: Model) -> Notebook:
    """The formulas, in batches of 50 contexts."""
    w = torch.load(sae, weights_only=True)
    drawn = np.random.default_rng(0).standard_normal(w["W_enc"].shape, dtype=np.float32)
    random_w_enc = torch.from_numpy(drawn)
    parts: list[Notebook] = []
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        x = model.resid_pre(batch)
        real = torch.arange(x.shape[1]) < torch.tensor([len(row) for row in batch])[:, None]
        pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        acts = torch.relu(pre)
        acts[:, 0] = 0
        pre[:, 0] = torch.inf
        some = slice(CONTROL_CONTEXTS)
        control = torch.relu((x[some] - w["b_dec"]) @ random_w_enc + w["b_enc"])
        control *= acts[some].norm(dim=-1, keepdim=True) / control.norm(dim=-1, keepdim=True)
        near = (pre[real].abs() < NEAR).sum(dim=0)
        parts.append(Notebook(acts[real], near, acts[some][real[some]], control[real[some]]))
    acts, near, learnt, control = zip(*parts, strict=True)
    return Notebook(torch.cat(acts), torch.stack(near).sum(dim=0), torch.cat(learnt), torch.cat(control))


class Line(NamedTuple):
    """One number, or table of numbers: how far the store's are from the notebook's, and may be."""

    what: str
    deviation: float
    allowed: float
    n: int
    unit: str = "relative"


def relative(ours: Any, theirs: Any) -> float:
    """Largest difference, relative to the notebook's number, or to a thousandth of the largest of them.

    Activations are differences: those of a feature that only just fires have lost digits on both sides.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    scale = np.maximum(np.abs(b), 1e-3 * np.abs(b).max(initial=0) + 1e-300)
    return float((np.abs(a - b) / scale).max(initial=0))


def compare(store: FeatureStore, ids: list[list[int]], result: Notebook) -> Iterator[Line]:
    """Every number of the analysis, the store's next to the notebook's."""
    table = store.scan_features(SITE).collect()
    acts = result.acts.double()
    n, fired = len(acts), result.acts.any(dim=0).numpy()
    yield Line("rows, position 0 among them", abs(int(table["counted_rows"][0]) - n), 0, 1, "rows")
    counts = (result.acts > 0).sum(dim=0).numpy()
    beyond = np.abs(table["n_active"].to_numpy() - counts) - result.near.numpy()
    yield Line("active rows, beyond near-ties at 0", max(beyond.max(), 0), 0, len(counts), "rows")
    yield Line("frequency", relative(table["frequency"], counts / n), 1e-3, len(counts))
    dead = float((counts == 0).mean())
    yield Line("share of dead features", abs((table["n_active"] == 0).mean() - dead), 0, 1, "share")
    mean, std = acts.mean(dim=0).numpy(), acts.std(dim=0).numpy()
    yield Line("mean_all", relative(table["mean_all"], mean), 1e-4, len(mean))
    # torch's std has ddof 1, ours 0
    ddof_1 = table["std_all"].to_numpy() * np.sqrt(n / (n - 1))
    yield Line("std_all, with ddof 1", relative(ddof_1, std), 1e-4, len(std))
    with np.errstate(invalid="ignore"):
        ratio = std / mean
    ours = table["sigma_over_mu"].to_numpy() * np.sqrt(n / (n - 1))
    # features that never fire: NaN there, null here
    yield Line("features without sigma/mu", abs(np.isnan(ratio).sum() - (~fired).sum()), 0, 1, "features")
    yield Line("sigma_over_mu, with ddof 1", relative(ours[fired], ratio[fired]), 1e-4, int(fired.sum()))
    yield from compare_rankings(store, mean, ratio)
    yield from compare_l0(store, result)
    yield from compare_examples(store, ids, result, np.argsort(-mean)[:50:5])
    yield from compare_control(store, result)


def compare_rankings(store: FeatureStore, mean: Any, ratio: Any) -> Iterator[Line]:
    """The order of features: torch.sort puts NaN first, so its windows begin after as many ranks."""
    rankings = store.scan_table(SITE, "rankings").collect()
    for by, values in (("mean_all", mean), ("sigma_over_mu", ratio)):
        order = torch.sort(torch.from_numpy(values), descending=True, stable=True).indices.numpy()
        order = order[np.isnan(values).sum() :]
        ours = rankings.filter(by=by)["feature"].to_numpy()
        assert len(ours) == len(order)
        # a feature on another rank must have the value of that rank
        yield Line(f"ranking by {by}", relative(values[ours], values[order]), 1e-4, len(order))


def compare_l0(store: FeatureStore, result: Notebook) -> Iterator[Line]:
    """Active features of each row at each threshold: how many rows have another number."""
    stored = store.scan_activations(SITE).select("row", "activation").collect()
    for threshold in THRESHOLDS:
        rows = stored.filter(pl.col("activation") > threshold)["row"].to_numpy().astype(np.int64)
        ours = np.bincount(rows, minlength=len(result.acts))
        theirs = (result.acts > threshold).sum(dim=1).numpy()
        differ = float((ours != theirs).mean())
        yield Line(f"rows with another L0 (> {threshold})", differ, 1e-3, len(theirs), "share")


def compare_examples(
    store: FeatureStore, ids: list[list[int]], result: Notebook, features: Any
) -> Iterator[Line]:
    """The 30 strongest rows of some features: values, rows, and the tokens around them."""
    context = np.repeat(np.arange(len(ids)), [len(row) for row in ids])
    position = np.concatenate([np.arange(len(row)) for row in ids])
    values, other_rows, other_tokens = 0.0, 0, 0
    for feature in features.tolist():
        ours = store.contexts(SITE, feature, TOP, before=BEFORE, after=AFTER)
        top = result.acts[:, feature].topk(TOP)
        assert ours.height == TOP
        values = max(values, relative(ours["activation"], top.values))
        other_rows += len(set(ours["row"].to_list()) - set(top.indices.tolist()))
        for row, tokens in ours.select("row", "token_ids").iter_rows():
            at = position[row]
            # the notebook's suffix left a context's last token out
            wanted = ids[context[row]][max(0, at - BEFORE) : at + AFTER + 1]
            other_tokens += tokens != wanted
    yield Line("top 30 activations", values, 1e-4, TOP * len(features))
    yield Line("top 30 rows that are others", other_rows, 0, TOP * len(features), "rows")
    yield Line("their tokens, 30 before, 2 after", other_tokens, 0, TOP * len(features), "windows")


def compare_control(store: FeatureStore, result: Notebook) -> Iterator[Line]:
    """Learnt features and control on the first 10 contexts of each batch of 50."""
    table = store.scan_table(SITE, "control_features").collect()
    l0 = store.scan_table(SITE, "control_l0").collect()
    for of, acts in (("learnt", result.learnt), ("control", result.control)):
        mine = table.filter(of=of)
        n, wide = len(acts), acts.double()
        yield Line(f"{of} rows of the control", abs(mine["counted_rows"][0] - n), 0, 1, "rows")
        counts = (acts > 0).sum(dim=0).numpy()
        near = result.near.numpy() if of == "learnt" else 1e-4 * n
        beyond = np.abs(mine["n_active"].to_numpy() - counts) - near
        yield Line(f"{of}: active rows, beyond near-ties", max(beyond.max(), 0), 0, len(counts), "rows")
        yield Line(f"{of}: mean_all", relative(mine["mean_all"], wide.mean(dim=0)), 1e-4, len(counts))
        ddof_1 = mine["std_all"].to_numpy() * np.sqrt(n / (n - 1))
        yield Line(f"{of}: std_all, with ddof 1", relative(ddof_1, wide.std(dim=0)), 1e-4, len(counts))
        for threshold in THRESHOLDS:
            theirs = (acts > threshold).sum(dim=1).bincount().numpy()
            counted = l0.filter(of=of, threshold=threshold)
            size = max(len(theirs), int(counted["l0"].max()) + 1)
            ours = np.zeros(size, np.int64)
            ours[counted["l0"].to_numpy()] = counted["rows"].to_numpy()
            moved = np.abs(np.cumsum(ours - np.pad(theirs, (0, size - len(theirs))))).sum()
            what = f"{of}: mean move of L0 (> {threshold})"
            yield Line(what, moved / n, 1e-3, n, "features a row")


def run(folder: Path, setting: Setting) -> list[Line]:
    """Both sides, and their comparison."""
    model = Model(setting.layer)
    sample = pl.read_parquet(CORPUS)["text"].head(4).to_list()
    sae = make_sae(folder / "sae.pt", _rows(model, sample, setting), setting.d_sae)
    store = make_store(folder, sae, setting)
    ids = store.scan_tokens().sort("context").collect()["token_ids"].to_list()
    assert len(ids) >= setting.contexts
    assert len(store.shards) > 2
    return list(compare(store, ids, run_notebook(ids, sae, model)))


def _rows(model: Model, texts: list[str], setting: Setting) -> Tensor:
    """Some x [N, D] to take directions from, position 0 left out."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ensure_demo_model())
    ids = [tokenizer(text)["input_ids"][: 16 * setting.context_size] for text in texts]
    size = setting.context_size
    batch = [row[i : i + size] for row in ids for i in range(0, len(row) - size, size)]
    return model.resid_pre(batch)[:, 1:].flatten(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="The notebook's numbers next to a store's.")
    for name, default in (("contexts", 2000), ("context-size", 128), ("layer", 9), ("d-sae", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    setting = Setting(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory() as folder:
        lines = run(Path(folder), setting)
    print(
        f"{setting.contexts} contexts of {setting.context_size} at {setting.hook_name}, d_sae {setting.d_sae}"
    )
    for line in lines:
        verdict = "" if line.deviation <= line.allowed else "  <-- MORE THAN ALLOWED"
        print(f"{line.what:42} {line.deviation:10.2g} {line.unit:15} over {line.n:,}{verdict}")


if __name__ == "__main__":
    main()
