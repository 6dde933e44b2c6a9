"""How latentlake stops: the user can mend it; one node will not do; one shard can not be done."""

from __future__ import annotations


class InputError(ValueError):
    """Something that the user gave can not be used: the message names the value, the place and the remedy.

    The command line prints the message alone and ends with exit code 2.
    """


class NodeError(InputError):
    """One node can not be used (its storage, its GPU, its files); a worker elsewhere may do."""


class ShardError(InputError):
    """One shard can not be processed and trying again will not help (NaN, overflow, damaged tokens)."""


class PassingError(InputError):
    """The system refused for now (a failing disk, a stale handle, too many files): the same may do later."""
