"""A lake without a model: features drawn from a recipe, by NumPy, and the truth about them.

`recipe` reads `synthetic:d_sae=…,l0=…`, `generator` draws, `planted` says where maxima were put, `truth`
counts what was drawn, without the store or the statistics. Nothing here imports torch.
"""
