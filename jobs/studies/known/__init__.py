"""A store of a known dictionary against its truth: `matching` of features, `counts` of rows, `compare`d."""
