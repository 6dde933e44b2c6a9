"""Statistics whose unit is the document: differences, trends, intervals."""
