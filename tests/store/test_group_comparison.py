"""Two groups of documents against sums over dense activations, document by document."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from pipeline.statistics.documents.comparison import SUPPORT
from pipeline.store import FeatureStore
from pipeline.store.reading.comparison import Compared, Where, compare_groups
from pipeline.tasks import Processes
from schemas.errors import InputError
from schemas.tables.tables import DIFF
from tests.fixtures.store import Built, build


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("store"), shards=3, documents=20)


@pytest.fixture
def store(built: Built) -> FeatureStore:
    return FeatureStore.open(built.layout.root)


def documents(built: Built) -> pl.DataFrame:
    """A row per document with counted rows: its labels, number of counted rows n, and their places."""
    counted = built.tokens.with_row_index("place").filter(pl.col("token") != 0)
    return counted.group_by("document", maintain_order=True).agg(
        pl.col("year").first(), pl.col("party").first(), n=pl.len(), place=pl.col("place")
    )


def by_document(built: Built, fits: pl.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counted rows n [D], active rows x and sums of activations y [D, F] of the documents that fit."""
    chosen = documents(built).filter(fits)
    dense = built.dense["site"].astype(np.float64)
    x = np.array([(dense[place] != 0).sum(0) for place in chosen["place"].to_list()])
    y = np.array([dense[place].sum(0) for place in chosen["place"].to_list()])
    return chosen["n"].to_numpy().astype(np.float64), x, y


def expected(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...], measure: int) -> dict[str, np.ndarray]:
    """Difference, its error and p: the formulas of the module, written over documents."""
    (n_a, n_b), (x_a, x_b) = (a[0], b[0]), (a[measure], b[measure])
    p, variance = [], []
    for n, x in ((n_a, x_a), (n_b, x_b)):
        ratio = x.sum(0) / n.sum()
        d = len(n)
        residual = x - ratio * n[:, None]
        p.append(ratio)
        variance.append(d / (d - 1) * (residual**2).sum(0) / n.sum() ** 2)
    n, x = np.concatenate([n_a, n_b]), np.concatenate([x_a, x_b])
    d, common = len(n), x.sum(0) / n.sum()
    squares = ((x - common * n[:, None]) ** 2).sum(0) / (n**2).sum()
    share = (n_a**2).sum() / n_a.sum() ** 2 + (n_b**2).sum() / n_b.sum() ** 2
    pooled = squares * share * d / (d - 1)
    error = np.sqrt(np.maximum(variance[0] + variance[1], pooled))
    difference = p[1] - p[0]
    smaller = min(min(len(n_a), len(n_b)) / d, min(n_a.sum(), n_b.sum()) / n.sum())
    enough = (x != 0).sum(0) * smaller >= SUPPORT
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.where(enough & (error > 0), difference / error, np.nan)
        welch = (variance[0] + variance[1]) ** 2 / (
            variance[0] ** 2 / (len(n_a) - 1) + variance[1] ** 2 / (len(n_b) - 1)
        )
    freedom = np.where(variance[0] + variance[1] > 0, welch, d - 2)
    return {"difference": difference, "se": error, "z": z, "p": 2 * stats.t.sf(np.abs(z), freedom)}


RED, BLUE = pl.col("party") == "red", pl.col("party") == "blue"
CASES: list[tuple[Where, Where, pl.Expr, pl.Expr]] = [
    ("party == 'red'", "party=blue", RED, BLUE),
    (RED, "not party = 'red'", RED, BLUE),
    ("year < 1910", "year > 1915 and party = 'blue'", pl.col("year") < 1910, (pl.col("year") > 1915) & BLUE),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_every_number_is_that_of_sums_over_documents(built: Built, store: FeatureStore, case: int) -> None:
    where_a, where_b, of_a, of_b = CASES[case]
    table = documents(built)
    a, b = (by_document(built, table.select(of.fill_null(value=False)).to_series()) for of in (of_a, of_b))
    compared = compare_groups(store, "site", where_a, where_b)
    assert dict(compared.table.schema) == DIFF
    for side, sums, totals in (("a", a, compared.a), ("b", b, compared.b)):
        n, x, _ = sums
        assert (totals.documents, totals.rows) == (len(n), n.sum())
        assert compared.table[f"documents_{side}"].to_list() == (x != 0).sum(0).tolist()
        assert compared.table[f"n_active_{side}"].to_list() == x.sum(0).tolist()
    for place, name in ((1, "frequency"), (2, "mean_all")):
        for column, values in expected(a, b, place).items():
            got = compared.table[f"{name}_{column}"].fill_null(np.nan).to_numpy()
            np.testing.assert_allclose(got, values, rtol=1e-6, atol=1e-12, err_msg=f"{name}_{column}")
    tested = compared.table["frequency_p"].drop_nulls()
    assert tested.len() > 3
    q = stats.false_discovery_control(tested.to_numpy())
    np.testing.assert_allclose(compared.table["frequency_q"].drop_nulls().to_numpy(), q)


def test_no_bit_depends_on_the_workers(store: FeatureStore) -> None:
    where_a, where_b, _, _ = CASES[0]
    once: list[int] = []
    one = compare_groups(store, "site", where_a, where_b, advance=once.append)
    assert once == [1] * 3
    with Processes(2) as tasks:
        several: Compared = compare_groups(store, "site", where_a, where_b, tasks=tasks)
    assert several.table.equals(one.table)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (RED, r"of \d+ documents are in both groups"),
        ("party=nobody", "no document has that value of label party; the nearest .* 'blue', 'red'"),
        (pl.col("party") == "nobody", "no document fits"),
        (pl.col("nothing") == 1, "where names nothing; known labels: party, year"),
        (pl.col("party").str.slice(0, 1), "is not a condition on labels"),
        ("nothing == 1", "nothing"),
        ("year <", "year <"),
    ],
)
def test_groups_that_overlap_or_are_empty_are_refused(
    store: FeatureStore, where: Where, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        compare_groups(store, "site", "party = 'red'", where)
