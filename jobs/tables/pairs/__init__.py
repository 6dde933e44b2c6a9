"""Pairs of features: counts, directions, association."""
