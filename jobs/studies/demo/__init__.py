"""The demo: a small model and SAE over the State of the Union addresses."""
