"""`make bench`: speed as ratios, each measured in one process with both sides taking turns, so that a machine
whose speed drifts hurts both alike. Run it with nothing else running.

extraction: a whole shard against the bare forward and matmul. encode: an encoder against the matmul alone and
against SAELens. peers: a whole extraction against delphi and against a hand-written loop. memory: the peak of
an encoder of a million features.
Three more run only when they are named. shards: what a driver spends on each of 20,000 tiny shards. scale: a
billion activations made without a model, through the commands that make a store, against the truth. jobs:
every job over 100 million such activations.
"""
