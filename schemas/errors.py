"""How latentlake stops: the user can fix it; one node will not do; one shard cannot be done."""

from __future__ import annotations

from schemas.sentences import redacted, shorten


class InputError(ValueError):
    """Something that the user gave cannot be used: the message names the value, the place and the remedy.

    The command line prints the message alone and ends with exit code 2. It never holds a URL's password or
    signature, and has a few thousand characters at most, wherever it is printed, logged or stored.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shorten(redacted(message)))


class NodeError(InputError):
    """One node cannot be used (its storage, its GPU, its files); a worker elsewhere may do."""


class ShardError(InputError):
    """One shard cannot be processed and trying again will not help (NaN, overflow, damaged tokens)."""


class PassingError(InputError):
    """The system refused for now (a failing disk, a stale handle, too many files): the same may do later."""


class EndedBySignal(SystemExit):
    """A signal ends the process, with code 128 + its number; whoever catches SystemExit lets this pass."""
