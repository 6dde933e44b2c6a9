"""A store in Python and in notebooks: questions in a line, and answers that show themselves."""
