"""`latentlake tokenize RUN.yaml`: documents become token shards, once."""

from __future__ import annotations

import time

from jobs.console import say, warn
from jobs.progress import counting
from pipeline.plan import resolve
from pipeline.store.object_path import store_path
from pipeline.tokenize import tokenize as tokenize_corpus
from pipeline.tokenizer import load_tokenizer
from schemas.layout import Layout
from schemas.records import CorpusLink, ShardRecord
from schemas.run_file import RunFile


def tokenize(run: RunFile, *, append: bool = False) -> CorpusLink:
    """Write the token shards of the run file's corpus; say how many, or that it was done."""
    resolved, warnings = resolve(run)
    warn(warnings)
    return tokenize_resolved(resolved, append=append)


def tokenize_resolved(run: RunFile, *, append: bool = False) -> CorpusLink:
    """The same for a run file that has every default filled in."""
    layout, began = Layout(store_path(run.store.root)), time.monotonic()
    size, bos, tokenizer_path = run.tokens.context_size, run.tokens.prepend_bos, run.tokens.tokenizer
    assert size is not None
    assert bos is not None
    assert tokenizer_path is not None
    with counting("tokenize", unit="tokens") as advance:

        def progress(record: ShardRecord) -> None:
            advance(record.rows)

        tokenizer = load_tokenizer(tokenizer_path)
        link = tokenize_corpus(layout, run, size, bos, tokenizer, append=append, progress=progress)
    rows = sum(shard.rows for shard in link.shards)
    documents = sum(shard.documents for shard in link.shards)
    say(
        f"[bold]tokenize[/] {documents:,} documents, {rows:,} tokens, {len(link.shards)} shards "
        f"({time.monotonic() - began:.1f} s)"
    )
    return link


if __name__ == "__main__":
    import sys

    from jobs.cli import main

    main(["tokenize", *sys.argv[1:]])
