"""The sections of a run file, and how it is read."""
