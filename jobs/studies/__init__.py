"""Complete studies that use the rest: the demo, digits, and features that are known."""
