"""What the comparison of two stores says, under a null that is true and one that is not.

Documents of these processes fire in bursts: a document is about a feature or not, and how much differs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy import stats

from pipeline.statistics.documents.clustered import CHANGES, SUMS, DocumentSums, DocumentTotals
from pipeline.statistics.documents.comparison import SUPPORT, compare
from schemas.tables.tables import DIFF

F = 1500


class Drawn(NamedTuple):
    """Counted rows of documents [D], active rows and sums of activations [D, F]."""

    n: NDArray[np.int64]
    active: NDArray[np.int64]
    total: NDArray[np.float64]


def draw(
    rng: np.random.Generator,
    documents: int,
    share: float | NDArray[Any],
    length: int = 400,
    burst: float = 0.1,
) -> Drawn:
    """Documents of log-normal length; `share` of them are about a feature, and it fires there in bursts."""
    n = np.maximum(1, rng.lognormal(np.log(length), 0.8, documents)).astype(np.int64)
    about = rng.random((documents, F)) < share
    rate = rng.beta(0.5, 0.5 * (1 - burst) / burst, (documents, F))
    active = rng.binomial(n[:, None], np.where(about, rate, 0))
    strength = rng.gamma(np.maximum(active, 1)) * rng.lognormal(0, 0.5, active.shape)
    return Drawn(n, active, np.where(active > 0, strength, 0))


def sums_of(drawn: Drawn) -> DocumentSums:
    n, active, total = drawn
    sums = DocumentSums(active.shape[1])
    columns = {"documents": (active > 0).sum(0)}
    for name, x in (("active", active), ("total", total)):
        columns |= {name: x.sum(0), f"{name}_squared": (x**2).sum(0), f"{name}_rows": (x * n[:, None]).sum(0)}
    frame = pl.DataFrame({"feature": np.arange(active.shape[1]), **columns})
    sums.add(frame.cast({"feature": pl.UInt32(), **SUMS}), totals_of(n))
    return sums


def totals_of(n: NDArray[np.int64]) -> DocumentTotals:
    return DocumentTotals(len(n), int(n.sum()), int((n**2).sum()))


def changes_of(a: Drawn, b: Drawn) -> DocumentSums:
    sums = DocumentSums(a.active.shape[1], CHANGES)
    columns = {}
    for name, change in (("active", b.active - a.active), ("total", b.total - a.total)):
        columns |= {f"{name}_changed": (change != 0).sum(0), f"{name}_change_squared": (change**2).sum(0)}
    frame = pl.DataFrame({"feature": np.arange(a.active.shape[1]), **columns})
    sums.add(frame.cast({"feature": pl.UInt32(), **CHANGES}), totals_of(a.n))
    return sums


def compared(a: Drawn, b: Drawn) -> pl.DataFrame:
    return compare(sums_of(a), sums_of(b))


def share_below(p: Any, level: float = 0.05) -> float:
    """Of the p that there are; 0 where there are none."""
    values = p.drop_nulls().to_numpy() if isinstance(p, pl.Series) else p
    return float((values < level).mean()) if len(values) else 0.0


def naive_p(a: Drawn, b: Drawn) -> NDArray[np.float64]:
    """Two proportions of rows, as if every row were drawn by itself."""
    x, y, n, m = a.active.sum(0), b.active.sum(0), a.n.sum(), b.n.sum()
    common = (x + y) / (n + m)
    z = (y / m - x / n) / np.sqrt(common * (1 - common) * (1 / n + 1 / m))
    p: NDArray[np.float64] = 2 * stats.norm.sf(np.abs(z[common > 0]))
    return p


@pytest.mark.parametrize("share", [0.1, pytest.param(0.5, marks=pytest.mark.slow)])
def test_under_the_null_one_p_in_twenty_is_below_a_twentieth(share: float) -> None:
    rng = np.random.default_rng(0)
    a, b = draw(rng, 800, share), draw(rng, 800, share)
    table = compared(a, b)
    for name in ("frequency", "mean_all"):
        assert share_below(table[f"{name}_p"]) == pytest.approx(0.05, abs=0.016)
        assert share_below(table[f"{name}_p"], 0.01) < 0.02
        assert (table[f"{name}_q"] < 0.05).sum() <= 3
    assert share_below(naive_p(a, b)) > 0.6  # rows that are not independent, taken as if they were


@pytest.mark.slow
@pytest.mark.parametrize("length", [400, 100])
@pytest.mark.parametrize(
    ("documents", "share"), [((800, 40), 0.5), ((800, 80), 0.1), ((15, 15), 0.5), ((800, 800), 0.01)]
)
def test_few_documents_and_unequal_stores_never_bring_too_many_small_p(
    documents: tuple[int, int], share: float, length: int
) -> None:
    rng = np.random.default_rng(1)
    a, b = draw(rng, documents[0], share), draw(rng, documents[1], share, length)
    table = compared(a, b)
    for name in ("frequency", "mean_all"):
        assert share_below(table[f"{name}_p"]) < 0.062
        assert share_below(table[f"{name}_p"], 0.01) < 0.016


def test_the_sum_of_two_variances_alone_would_call_a_small_stores_silence_a_change() -> None:
    """Why the pooled variance is needed: without it, far too many p are small."""
    rng = np.random.default_rng(2)
    a, b = draw(rng, 800, 0.1), draw(rng, 60, 0.1)
    estimates = [sums_of(side).estimate("active") for side in (a, b)]
    z = (estimates[1].p - estimates[0].p) / np.sqrt(estimates[0].variance() + estimates[1].variance())
    assert share_below(2 * stats.norm.sf(np.abs(z))) > 0.15
    assert share_below(compared(a, b)["frequency_p"]) < 0.06


@pytest.mark.slow
def test_features_that_differ_are_found_and_few_others() -> None:
    rng = np.random.default_rng(3)
    differs = np.arange(F) < 200
    a, b = draw(rng, 800, 0.1), draw(rng, 800, np.where(differs, 0.3, 0.1))
    table = compared(a, b)
    for name in ("frequency", "mean_all"):
        result = (table[f"{name}_q"] <= 0.05).to_numpy()
        assert result[differs].mean() > 0.8
        assert result[~differs].sum() / result.sum() < 0.1
    ratio = table.filter(differs)["frequency_log2_ratio"].median()
    assert ratio == pytest.approx(np.log2(3), abs=0.15)


def test_the_same_documents_are_compared_with_themselves() -> None:
    """Two models that agree but for noise: nothing changed in most features, a tenth more rows in some."""
    rng = np.random.default_rng(4)
    a = draw(rng, 300, 0.3)
    more = np.where(np.arange(F) < 150, 0.10, 0.0)
    lost = rng.binomial(a.active, 0.1)
    gained = rng.binomial(a.active, 0.1 + more)
    b = Drawn(a.n, a.active - lost + gained, a.total * rng.lognormal(0, 0.2, a.total.shape))
    table = compare(sums_of(a), sums_of(b), changes_of(a, b))
    same = table.filter(np.arange(F) >= 150)
    assert share_below(same["frequency_p"]) == pytest.approx(0.05, abs=0.016)
    assert (table["frequency_q"] <= 0.05).to_numpy()[:150].mean() > 0.9
    assert (compared(a, b)["frequency_q"] <= 0.05).to_numpy()[:150].mean() == 0  # unpaired it is lost


def test_numbers_are_those_of_the_formulas_by_hand() -> None:
    rng = np.random.default_rng(5)
    a, b = draw(rng, 60, 0.4), draw(rng, 50, 0.5, length=200)
    apart = compared(a, b)
    c = Drawn(a.n, b.active[rng.integers(0, 50, 60)], b.total[rng.integers(0, 50, 60)])
    paired = compare(sums_of(a), sums_of(c), changes_of(a, c))
    for name, measure in (("frequency", "active"), ("mean_all", "total")):
        for feature in range(0, F, 97):
            x, y, z = (getattr(side, measure)[:, feature] for side in (a, b, c))
            _same(apart.row(feature, named=True), name, by_hand_apart(x, a.n, y, b.n))
            _same(paired.row(feature, named=True), name, by_hand_paired(x, z, a.n))
        for table in (apart, paired):
            p = table[f"{name}_p"].drop_nulls().to_numpy()
            q = table[f"{name}_q"].drop_nulls().to_numpy()
            order = np.argsort(p)
            raised = [p[order][k:] * len(p) / np.arange(k + 1, len(p) + 1) for k in range(len(p))]
            np.testing.assert_allclose(q[order], [min(1, some.min()) for some in raised])


def _same(row: dict[str, Any], name: str, expected: tuple[float, ...]) -> None:
    for ending, value in zip(("a", "b", "difference", "se", "p"), expected, strict=True):
        assert row[f"{name}_{ending}"] == pytest.approx(value, rel=1e-9), ending


def residuals(x: Any, n: Any, p: float) -> float:
    return sum((float(x_d) - p * float(n_d)) ** 2 for x_d, n_d in zip(x, n, strict=True))


def by_hand_apart(x: Any, n: Any, y: Any, m: Any) -> tuple[float, ...]:
    p, q = x.sum() / n.sum(), y.sum() / m.sum()
    parts = [len(k) / (len(k) - 1) * residuals(v, k, r) / k.sum() ** 2 for v, k, r in ((x, n, p), (y, m, q))]
    common, d = (x.sum() + y.sum()) / (n.sum() + m.sum()), len(n) + len(m)
    squares = (residuals(x, n, common) + residuals(y, m, common)) / ((n**2).sum() + (m**2).sum())
    pooled = d / (d - 1) * squares * ((n**2).sum() / n.sum() ** 2 + (m**2).sum() / m.sum() ** 2)
    se = max(sum(parts), pooled) ** 0.5
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(n) - 1) + parts[1] ** 2 / (len(m) - 1))
    return p, q, q - p, se, float(2 * stats.t.sf(abs(q - p) / se, freedom))


def by_hand_paired(x: Any, y: Any, n: Any) -> tuple[float, ...]:
    p, q, d = x.sum() / n.sum(), y.sum() / n.sum(), len(n)
    se = (d / (d - 1) * residuals(y - x, n, q - p) / n.sum() ** 2) ** 0.5
    return p, q, q - p, se, float(2 * stats.t.sf(abs(q - p) / se, d - 1))


def fires(documents: int, where: list[int], rows: int = 100, of: int = 10) -> Drawn:
    """One feature, `of` active rows of 1.0 in some of the documents."""
    active = np.zeros((documents, 1), np.int64)
    active[where] = of
    return Drawn(np.full(documents, rows), active, active.astype(np.float64))


def test_a_feature_in_too_few_documents_has_no_p_rather_than_a_wrong_one() -> None:
    enough = 2 * SUPPORT
    for result, in_b in ((None, range(enough - 1)), (True, range(enough))):
        row = compared(fires(40, []), fires(40, list(in_b))).row(0, named=True)
        assert (row["frequency_p"] is not None) == (result is not None)
        assert row["frequency_b"] == len(in_b) * 10 / 4000
        assert row["frequency_se"] > 0
    assert compared(fires(400, list(range(60))), fires(20, [])).row(0, named=True)["frequency_p"] is None
    assert row["frequency_log2_ratio"] is None
    assert row["frequency_p"] == pytest.approx(0.0013, abs=0.0005)  # by counting: 2 * 0.5 ** 10 = 0.0020


def test_of_the_same_documents_those_that_changed_are_what_counts() -> None:
    a = fires(40, list(range(20)))
    few, many = fires(40, list(range(5, 20))), fires(40, list(range(10, 20)))
    assert compare(sums_of(a), sums_of(few), changes_of(a, few))["frequency_p"].to_list() == [None]
    (p,) = compare(sums_of(a), sums_of(many), changes_of(a, many))["frequency_p"].to_list()
    assert 0.0002 < p < 0.002
    (same,) = compare(sums_of(a), sums_of(a), changes_of(a, a)).to_dicts()
    assert (same["frequency_difference"], same["frequency_se"], same["frequency_p"]) == (0, 0, None)


def test_a_feature_of_every_row_on_one_side_alone_is_a_change() -> None:
    row = compared(fires(30, []), fires(30, list(range(30)), of=100)).row(0, named=True)
    assert row["frequency_difference"] == 1
    assert row["frequency_q"] < 1e-6


def test_dead_features_and_signed_means() -> None:
    a, b = fires(40, list(range(20))), fires(40, list(range(40)))
    a = a._replace(total=-a.total)
    row = compared(a, b).row(0, named=True)
    assert row["mean_all_a"] < 0 < row["mean_all_b"]
    assert row["mean_all_log2_ratio"] is None
    assert row["mean_all_q"] < 0.001
    dead = compared(fires(40, []), fires(40, [])).row(0, named=True)
    assert (dead["frequency_a"], dead["frequency_difference"], dead["frequency_p"]) == (0, 0, None)
    table = compared(a, b)
    assert table.schema == pl.Schema(DIFF)
    one = fires(1, [0])
    assert compared(one, b)["frequency_p"].to_list() == [None]
