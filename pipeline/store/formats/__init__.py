"""Data objects: Parquet, CSR and dense Zarr, postings."""
