"""Reconstruction by an SAE, and what may be wrong with it."""
