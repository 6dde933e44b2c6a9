"""Receipts as a worker would write them, for tests of what counts them."""

from __future__ import annotations

from schemas.records import DataObject, Receipt, SiteReceipt


def receipt(shard="000000", rows=100, nnz=700, seconds=2.0, explained=None, **changes) -> Receipt:
    """One site, `mid`: a CSR of 3 bytes and partials of 1 byte a nonzero."""
    fields = {
        "shard": shard,
        "attempt": "a",
        "plan_hash": "plan",
        "tokens_sha256": "tokens",
        "rows": rows,
        "sites": {"mid": SiteReceipt(nnz=nnz, underflow=1, rounding=0.0, explained_variance=explained)},
        "objects": (
            DataObject(path="mid/csr.zarr", bytes=3 * nnz, sha256="1"),
            DataObject(path="mid/partials.parquet", bytes=nnz, sha256="2"),
        ),
        "seconds": {"forward": seconds * 0.75, "write": seconds * 0.25},
        "peak_rss_bytes": 1,
        "environment": {"device_model": "cpu", "host": "n0"},
    }
    return Receipt(**(fields | changes))
