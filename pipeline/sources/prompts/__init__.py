"""Corpora of prompts with answers."""
