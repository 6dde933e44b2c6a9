"""One module per file format of SAEs; `pipeline.saes.FORMATS` lists them.

Each has LOOKS_FOR (what `matches` wants, for people), `matches(path)`, `read_metadata(path)`,
`weight_files(path)` (for the digest) and `read_weights(path, metadata)`, which gives the tensors by SAELens'
names as `pipeline.saes.encoding.weights` describes them. `path` is a folder or a file. A format in which more
than the weights and the metadata's recipe moves numbers has `settings(path)` too: JSON-able, for the digest.
"""
