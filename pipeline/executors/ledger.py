"""The ledger of a run: which shards wait, run, are done or quarantined. It knows neither workers nor Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from schemas.values import Failure


class Ledger:
    """Each shard ends exactly once: done, or failed after `max_attempts` charged attempts."""

    def __init__(self, shards: Iterable[str], max_attempts: int) -> None:
        self._waiting = deque(shards)
        self._total = len(self._waiting)
        self._attempts: Counter[str] = Counter()
        self._copies: Counter[str] = Counter()
        self._ended: set[str] = set()
        self._permanent_errors: dict[str, str] = {}
        """Permanent errors of shards of which another copy still runs."""
        self._max_attempts = max_attempts

    @property
    def remaining(self) -> int:
        """Shards that have not ended."""
        return self._total - len(self._ended)

    def attempts(self, shard: str) -> int:
        """Charged attempts at a shard so far."""
        return self._attempts[shard]

    def is_alone(self, shard: str) -> bool:
        """Whether exactly one worker runs this shard."""
        return self._copies[shard] == 1 and shard not in self._ended and shard not in self._permanent_errors

    def take(self) -> str | None:
        """The next shard for an idle worker, or None."""
        if not self._waiting:
            return None
        shard = self._waiting.popleft()
        self.start(shard)
        return shard

    def start(self, shard: str) -> None:
        """Count an attempt at `shard` (a second copy of a running one, or one just taken)."""
        self._attempts[shard] += 1
        self._copies[shard] += 1

    def complete(self, shard: str) -> bool:
        """A copy of `shard` was committed; true the first time."""
        self._copies[shard] -= 1
        if shard in self._ended:
            return False
        self._ended.add(shard)
        return True

    def release(
        self, shard: str, why: str, *, permanent: bool = False, charged: bool = True
    ) -> Failure | bool:
        """A copy of `shard` was lost or failed: its failure, else whether it waits for another try.

        While another copy runs neither is so: that one may still commit it, whatever the error of this copy.
        """
        # The copy is given back before anything is decided: whether another one runs is what decides it.
        self._copies[shard] -= 1
        self._attempts[shard] -= not charged
        if shard in self._ended:
            return False
        if permanent:
            self._permanent_errors.setdefault(shard, why)
        if self._copies[shard]:
            return False
        if shard in self._permanent_errors or self._attempts[shard] >= self._max_attempts:
            self._ended.add(shard)
            return Failure(shard, self._attempts[shard], self._permanent_errors.get(shard, why))
        self._waiting.append(shard)
        return True
