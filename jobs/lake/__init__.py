"""Commands that fill a store, plan it, watch it and keep it."""
