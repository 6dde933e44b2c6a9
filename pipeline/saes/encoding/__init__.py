"""Encoders: one rule per architecture, and where they run."""
