"""Commands that write tables of a site."""
