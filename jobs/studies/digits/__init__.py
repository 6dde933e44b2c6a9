"""Images of digits: the networks, their SAE, and steering."""
