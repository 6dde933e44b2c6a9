"""Corpora of text: files, folders, the hub."""
