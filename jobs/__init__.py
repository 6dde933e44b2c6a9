"""One module per command; `jobs.cli` is the command line."""
