"""Training of small networks whose features are then looked at: an image classifier, SAEs, an image decoder."""
