"""The executor without Ray: one worker, in this process, with the same ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pipeline.executors.dispatch import ready_event
from pipeline.executors.ledger import Ledger
from pipeline.models.device import is_broken
from pipeline.monitor.heartbeat import OnEvent
from pipeline.worker import Worker
from schemas.errors import InputError, PassingError, ShardError
from schemas.records import Receipt
from schemas.values import Failure, Hello


def run_in_process(
    shards: Sequence[str],
    worker: Worker,
    *,
    max_attempts: int,
    check: Callable[[Hello], None],
    on_event: OnEvent,
) -> Iterator[Receipt | Failure]:
    """Process the shards one after another; yield each one's receipt or failure."""
    ledger = Ledger(shards, max_attempts)
    hello = worker.setup()
    check(hello)
    on_event(event="ready", slot="in_process", **ready_event(hello))
    while (shard := ledger.take()) is not None:
        try:
            receipt = worker.process(shard)
        except InputError as error:
            if not isinstance(error, ShardError | PassingError):
                raise
            released = ledger.release(shard, why := str(error), permanent=isinstance(error, ShardError))
        except Exception as error:  # as on Ray: whatever it was, it is reported and tried again
            if is_broken(error):
                raise InputError(
                    f"the GPU is in an error state ({error}): run again, what is committed stays"
                ) from error
            released = ledger.release(shard, why := f"{type(error).__name__}: {error}")
        else:
            ledger.complete(shard)
            yield receipt
            continue
        on_event(
            event="quarantined" if isinstance(released, Failure) else "retry",
            shard=shard,
            attempts=ledger.attempts(shard),
            why=why,
            slot="in_process",
            node=hello.node,
        )
        if isinstance(released, Failure):
            yield released
