"""Corpora that are computed: numbers and dictionaries."""
