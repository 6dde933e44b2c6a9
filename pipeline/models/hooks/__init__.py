"""A model as PyTorch modules with hooks: x, losses, replays."""
