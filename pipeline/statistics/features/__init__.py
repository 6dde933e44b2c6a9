"""Statistics of one feature over all tokens."""
