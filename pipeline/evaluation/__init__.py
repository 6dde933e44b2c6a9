"""The model run again over a stored lake: fidelity, attribution, typed text."""
