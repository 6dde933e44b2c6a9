"""Tables of scores of another method, from which `latentlake attribute --scores` selects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.statistics.evaluation.attribution import EVERY_PROMPT
from pipeline.store import FeatureStore
from pipeline.store.reading.conditions import nearest
from pipeline.store.records.tokens import read_document_labels
from schemas.errors import InputError
from schemas.storage_failures import storage_failure
from schemas.tables.tables import Schema

if TYPE_CHECKING:
    from pipeline.evaluation.attribution import Part

SCORES: Schema = {"label": pl.String(), "value": pl.String(), "feature": pl.UInt32(), "score": pl.Float64()}


def read_scores(path: Path, d_sae: int) -> pl.DataFrame:
    """An external table of scores: `feature`, `score`, and perhaps `label` and `value`; parquet or csv.

    Without these two its scores are of EVERY_PROMPT. Columns of SCORES, and `prompts` and `active`, which are
    not known. InputError for another table.
    """
    if not path.is_file() or path.suffix not in (".parquet", ".csv"):
        problem = "is not" if path.exists() else "does not exist: give"
        raise InputError(f"--scores {path} {problem} a .parquet or .csv file")
    try:
        frame = _frame(path)
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise storage_failure(error, path, "read") or InputError(
            f"--scores {path} cannot be read: {reason}"
        ) from None
    if missing := {"feature", "score"} - set(frame.columns):
        raise InputError(
            f"--scores {path} has no column {min(missing)!r}; it has {', '.join(frame.columns)[:200]}"
        )
    if len({"label", "value"} & set(frame.columns)) == 1:
        raise InputError(
            f"--scores {path} has only one of the columns label and value: give both, or neither"
        )
    if "label" not in frame.columns:
        frame = frame.with_columns(
            pl.lit(text).alias(name) for name, text in zip(("label", "value"), EVERY_PROMPT, strict=True)
        )
    try:
        scores = frame.select(pl.col(name).cast(dtype) for name, dtype in SCORES.items())
        # A cast to whole numbers would silently cut 3.7 to 3.
        if (scores["feature"].cast(pl.Float64) != frame["feature"].cast(pl.Float64)).any():
            raise pl.exceptions.InvalidOperationError
    except pl.exceptions.PolarsError:
        raise InputError(f"--scores {path}: features must be whole numbers, and scores numbers") from None
    if scores["feature"].null_count() or (scores["feature"] >= d_sae).any():
        raise InputError(
            f"--scores {path} has a feature that does not exist: features are 0 to {d_sae - 1:,}"
        )
    if scores.select("label", "value", "feature").is_duplicated().any():
        raise InputError(f"--scores {path} has a feature twice for one value: give each one score")
    unknown = pl.lit(None, pl.Int64)
    return scores.with_columns(score=pl.col("score").fill_nan(None), prompts=unknown, active=unknown)


def _frame(path: Path) -> pl.DataFrame:
    """The columns that are wanted of a file, as they are; ValueError where it has one of them twice."""
    if path.suffix == ".csv":
        names = pl.read_csv(path, has_header=False, n_rows=1, infer_schema=False).row(0)
    else:
        names = pq.read_schema(path).names
    # polars would rename the second one of a CSV file, and take the first without a word.
    if twice := [name for name in SCORES if names.count(name) > 1]:
        raise ValueError(f"it has several columns {twice[0]!r}; rename all but one")
    if path.suffix == ".csv":
        return pl.read_csv(path)
    return pl.DataFrame(pq.read_table(path, columns=[name for name in names if names.count(name) == 1]))


def labels_of(selection: pl.DataFrame, known: tuple[str, ...]) -> tuple[str, ...]:
    """The labels of a selection, none where it is of every prompt; InputError where the lake lacks one."""
    # Scores without label and value are of EVERY_PROMPT, unless the lake has a label of that very name.
    names = selection["label"].unique(maintain_order=True).to_list()
    if names == [EVERY_PROMPT[0]] and EVERY_PROMPT[0] not in known:
        return ()
    if missing := [name for name in names if name not in known]:
        raise InputError(
            f"--ablate: the scores are of label {missing[0]!r}, which the lake does not have; it has "
            f"{', '.join(known)}"
        )
    return tuple(names)


def require_values(
    store: FeatureStore, parts: list[Part], selection: pl.DataFrame, names: tuple[str, ...]
) -> None:
    """InputError where external scores are of a value that no prompt has; `names` are their labels."""
    records = {part.record.name: part.record for part in parts}.values()
    tables = [read_document_labels(store.layout, record, names) for record in records]
    for name in names:
        known = set(pl.concat(table[name] for table in tables))
        for value in selection.filter(pl.col("label") == name)["value"].unique(maintain_order=True):
            if value not in known:
                near = nearest(str(value), (each for each in known if each is not None))
                hint = f"; the nearest is {near[0]!r}" if near else ""
                raise InputError(f"--scores: no prompt has the value {value!r} of label {name!r}{hint}")
