"""Tables that are computed from partials by ranges of features."""
