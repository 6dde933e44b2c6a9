"""Which contexts show a feature."""
