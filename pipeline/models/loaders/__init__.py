"""Ways to load a model, one module each."""
