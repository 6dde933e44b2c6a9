"""Vectors made of features that are known: the known answer that measurements are compared with.

`vectors` makes directions of given cosines, `trees` who may fire where, `generator` draws rows, `truth` gives
in closed form what must come out, and keeps it in a file; `sae` makes an SAE of the dictionary. There is no
torch here: the generator of sae-lens is `pipeline.sources.generated.saelens_dictionary`.
"""
