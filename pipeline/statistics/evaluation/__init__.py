"""Statistics of what the model does with features."""
