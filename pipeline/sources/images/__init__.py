"""Corpora of images."""
