"""Files of an SAE: tensors, pickles, the hub."""
