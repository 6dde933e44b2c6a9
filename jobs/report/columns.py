"""The data of the feature table's page: columns as arrays of numbers in base64, tokens by place in a list.

Some 60 bytes a feature: a hundred thousand features are 6 MB, which a browser reads in a tenth of a second.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from jobs.report.tables import Tables
from jobs.report.work import Work
from pipeline.store.reading.feature_columns import COLUMNS

VARIABLE = "LATENTLAKE"


def table_data(tables: Tables, work: Work) -> dict[str, Any]:
    """What `static/table.js` reads."""
    columns = []
    for column in (column for column in COLUMNS if column.table in tables.names):
        frame = tables.scan(column.table).select("feature", value=pl.col(column.column)).collect()
        # What is null, and features that the table has not, are NaN.
        values = np.full(work.d_sae, np.nan)
        values[frame["feature"].to_numpy()] = frame["value"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        whole = frame["value"].dtype.is_integer()
        # float32 holds whole numbers below 2^24 exactly; larger counts take twice the bytes.
        exact = bool(whole and np.nanmax(values, initial=0) >= 1 << 24)
        columns.append(
            {
                "name": column.name,
                "title": column.title,
                "help": column.help,
                "whole": whole,
                "wide": exact,
                "data": packed(values.astype(np.float64 if exact else np.float32)),
            }
        )
    # Features share their tokens: each text is sent once, and named by its place.
    tokens, places = np.unique(work.names, return_inverse=True)
    return {
        "n": work.d_sae,
        "columns": columns,
        "tokens": [work.texts[token] if token >= 0 else "" for token in tokens.tolist()],
        "names": packed(places.reshape(work.names.shape).astype(np.uint32)),
        "width": work.names.shape[1],
        "pages": None if len(work.chosen) == work.d_sae else packed(work.chosen.astype(np.uint32)),
    }


def packed(values: NDArray[Any]) -> str:
    """Little-endian bytes in base64."""
    return base64.b64encode(
        np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()
    ).decode()
