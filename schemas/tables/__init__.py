"""Columns of every derived table."""
