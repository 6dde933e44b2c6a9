"""Files of a model: which are read, how large they are, what they may not run."""
