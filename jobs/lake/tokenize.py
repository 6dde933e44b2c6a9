"""`latentlake tokenize RUN.yaml`: documents become token shards, once."""

from __future__ import annotations

import time

from jobs.command.options import Append
from jobs.terminal.console import say, warn
from jobs.terminal.progress import counting
from pipeline.plans.plan import resolve
from pipeline.sources import open_source
from pipeline.store.objects.paths import store_path
from pipeline.store.records.tokens import read_stored_tokens, require_lake
from pipeline.tokens.lake_rule import notes
from pipeline.tokens.tokenize import BYTES_PER_TOKEN, REPEATED, SPECIAL_TEXTS
from pipeline.tokens.tokenize import tokenize as tokenize_corpus
from pipeline.tokens.tokenizer import load_tokenizer
from schemas.layout import Layout
from schemas.records import CorpusLink
from schemas.run.file import RunFile
from schemas.sentences import NOTE, several


def tokenize(run_file: RunFile, *, append: Append = False) -> CorpusLink:
    """Write the token shards of the run file's corpus; say how many, or that it was done."""
    resolved, warnings = resolve(run_file)
    warn(warnings)
    return tokenize_resolved(resolved, append=append)


def tokenize_resolved(run: RunFile, *, append: bool = False) -> CorpusLink:
    """The same for a run file that has every default filled in."""
    layout, began = Layout(store_path(run.store.root)), time.monotonic()
    assert run.tokens.tokenizer is not None
    stored = read_stored_tokens(layout)
    # How many tokens are to come, for the time left; None when neither limit nor size is known.
    size = open_source(run.corpus).estimated_bytes()
    known = [run.tokens.limit, None if size is None else size // BYTES_PER_TOKEN]
    expected = min((n for n in known if n is not None), default=None)
    with counting("tokenize", expected, "tokens") as advance:
        digest = None if stored.lake is None else stored.lake.tokenizer_digest
        tokenizer = load_tokenizer(run.tokens.tokenizer, digest)
        link = tokenize_corpus(
            layout, stored, run, tokenizer, append=append, progress=lambda record: advance(record.rows)
        )
    say(f"[bold]tokenize[/] {_summary(link, stored.links)} ({time.monotonic() - began:.1f} s)")
    lake, is_new = stored.lake or require_lake(layout), link not in stored.links
    sentences, documents = notes(run, lake, tokenizer), sum(shard.documents for shard in link.shards)
    if repeated := link.source.get(REPEATED):
        sentences.append(
            f"{repeated:,} of the {documents:,} documents {'are' if is_new else 'were'} already in "
            "the store, judged by their text: they count twice"
        )
    if n := link.source.get(SPECIAL_TEXTS):
        became = "became these tokens" if lake.special_text == "parse" else "was read as ordinary text"
        sentences.append(
            f"{NOTE}{n:,} of the {documents:,} documents contain the text of special tokens, which {became} "
            f"(tokens.special_text: {lake.special_text})"
        )
    warn(sentences)
    return link


def _summary(link: CorpusLink, before: list[CorpusLink]) -> str:
    """What a link holds, and whether it was there."""
    rows = sum(shard.rows for shard in link.shards)
    documents = sum(shard.documents for shard in link.shards)
    size = f"{several(documents, 'document')}, {several(rows, 'token')}, {several(len(link.shards), 'shard')}"
    if link in before:
        return f"nothing to do, the store holds this corpus (link {before.index(link)}): {size}"
    return f"{size}, link {len(before)} of the store's corpus" if before else size
