"""The contract: run file, on-disk layout and records, table schemas, and the values that cross a boundary.

This package imports nothing else of latentlake; everything else may import it.
"""

__version__ = "0.7.0"
