"""Commands that run the model again over a store."""
