"""What a worker encodes with: a model and SAEs, or a recipe."""
