"""A run file resolved to passes and plans, and plans opened again."""
