"""Compaction, verification, garbage, removal."""
