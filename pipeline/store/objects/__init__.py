"""Objects by path, on a file system or in object storage."""
