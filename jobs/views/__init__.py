"""Commands that show features and contexts of a store."""
