"""The line from documents to a store of sparse features, one room per step."""
