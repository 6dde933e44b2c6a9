"""The line from documents to a store of sparse features: sources, packing, models, SAEs, store, statistics."""
