"""What is printed: lines, tables, progress, strips of tokens."""
