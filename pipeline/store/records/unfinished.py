"""What a `tokenize` that is at work, or was killed, has left in a store: token shards that no record names.

They do not exist for readers, and the next tokenize replaces them.
"""

from __future__ import annotations

import time

from pipeline.store.objects.paths import ObjectPath
from pipeline.store.objects.verbs import is_locked, walk
from schemas.layout import Layout
from schemas.names import NAME
from schemas.records import CorpusLink


def unfinished_tokens(layout: Layout, links: list[CorpusLink]) -> str | None:
    """In a sentence, what is unfinished and what to do; None where the chain names all that is there."""
    named = {f"{record.name}.parquet" for link in links for record in link.shards}
    there = walk(layout.token_shards) if layout.token_shards.is_dir() else ()
    files = [file for file in there if _is_token_shard(file[0]) or _is_ours(layout, file[0])]
    stray = [(size, at) for name, size, at in files if _is_token_shard(name) and name not in named]
    is_held = is_locked(layout.tokenize_lock)
    if not (stray or is_held) and (links or not files):
        return None
    return f"{_left(layout, stray)}: {_remedy(layout, is_held=is_held, is_append=bool(links))}"


def _is_token_shard(name: str) -> bool:
    """Whether a file in tokens/ is one, not a temporary file, nor a file manager's."""
    return name.endswith(".parquet") and NAME.fullmatch(name) is not None


def _is_ours(layout: Layout, name: str) -> bool:
    """Whether a file in tokens/ is the lock, or a temporary file."""
    return name == layout.tokenize_lock.name or (name.startswith(".") and name.endswith(".tmp"))


def _left(layout: Layout, stray: list[tuple[int, float]]) -> str:
    if not stray:
        return f"{layout.root} has no token shards that its corpus chain does not name"
    last = max(0.0, time.time() - max(at for _, at in stray))
    size = sum(size for size, _ in stray) / 1e6
    return (
        f"{layout.root} holds {len(stray):,} token shards ({size:,.1f} MB) that its corpus chain does not "
        f"name, the last {last:,.0f} s old"
    )


def _remedy(layout: Layout, *, is_held: bool, is_append: bool) -> str:
    again = "`latentlake tokenize RUN.yaml --append`" if is_append else "`latentlake tokenize RUN.yaml`"
    if not is_held:
        return f"a tokenize was interrupted; run {again} again, which starts over and replaces them"
    if isinstance(layout.tokenize_lock, ObjectPath):
        return (
            "a tokenize is running, or was killed; if it was killed, delete the object "
            f"{layout.tokenize_lock} and run {again} again"
        )
    return "a tokenize is running; wait until it ends"
