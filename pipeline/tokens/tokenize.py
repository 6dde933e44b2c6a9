"""Turn a corpus into token shards: read, encode, pack, write; each step works while the next one does.

A run that dies leaves a few token shards that no record names; the next run replaces them. The two
records, lake.json and the new link of the corpus chain, are put last; the vocabulary stands before them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.sources import Source, open_source
from pipeline.sources.overlap import overlap
from pipeline.store.formats.parquet import write_frame
from pipeline.store.objects.verbs import locked, put_if_absent, self_test
from pipeline.store.records.tokens import StoredTokens, read_lake, read_links
from pipeline.tokens.lake_rule import requested_lake, require_rule
from pipeline.tokens.repeated import KnownDocuments
from pipeline.tokens.sharding import Encoded, encoded, write_shards
from pipeline.tokens.tokenizer import Tokenizer
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from schemas.records import CorpusLink, Lake, ShardRecord, digest_of
from schemas.run.file import RunFile, Tokens
from schemas.tables.tables import VOCABULARY

BYTES_PER_TOKEN = 4
_SHARDS = 8
_SHARD_TOKENS = (1 << 14, 1 << 19)
"""Smallest and largest shard that `shard_tokens: auto` aims at."""

_SHARD_BYTES = 1 << 27
"""Of vectors in a shard, at most; the store's writer and each worker hold such shards whole."""

SPECIAL_TEXTS, REPEATED = "special_texts", "repeated_documents"
"""Keys of a link's source: documents that spell a special token, or were there before, if there are some."""


@dataclass
class _Tally:
    """What is counted of the documents while they are taken."""

    known: KnownDocuments | None
    documents: int = 0
    """Those with tokens."""
    special_texts: int = 0
    repeated: int = 0

    def take(self, taken: Encoded) -> None:
        self.documents += len(taken.ids) > 0
        self.special_texts += taken.spells_special
        self.repeated += self.known is not None and self.known.holds(taken.ids)

    def counts(self) -> dict[str, int]:
        counts = {SPECIAL_TEXTS: self.special_texts, REPEATED: self.repeated}
        return {name: n for name, n in counts.items() if n}


def tokenize(
    layout: Layout,
    stored: StoredTokens,
    run_file: RunFile,
    tokenizer: Tokenizer,
    append: bool = False,
    progress: Callable[[ShardRecord], None] = lambda record: None,
    may_repeat: bool = False,
) -> CorpusLink:
    """Tokenize a resolved run file's corpus into the store: its link 0 or, with `append`, the next one.

    `stored` is what the store records now. A corpus that the store holds already (same content, columns and
    limits) is not read again: its link is returned. `progress` is called with every shard, in order.
    InputError for a source that can't be read, a rule that is not the store's, another corpus without
    `append`, files or texts all of an earlier link (unless they `may_repeat`, as in a probe), a corpus
    without a counted token.
    """
    links, tokens, root = stored.links, run_file.tokens, layout.root
    # Label columns are sorted, as lake.json's canonical JSON sorts them; their order means nothing.
    columns = {"label_columns": tuple(sorted(run_file.corpus.label_columns))}
    corpus = run_file.corpus.model_copy(update=columns)
    run_file = run_file.model_copy(update={"corpus": corpus})
    _check_places(root, corpus.path)
    if links and stored.lake is None:
        raise InputError(
            f"{layout.lake} is missing next to a corpus chain: restore it from a copy of the store"
        )
    source = open_source(corpus)
    lake = requested_lake(run_file, tokenizer, source.label_dtypes(), source.inputs(), stored.lake)
    require_rule(root, stored.lake, lake)
    cuts = _cuts(tokens)
    digest = digest_of([source.digest(), corpus.text_column, *cuts.values()])
    if (link := next((link for link in links if link.source_digest == digest), None)) is not None:
        # Shards once cut stay: `auto` takes them as they are, another number cannot be had.
        if tokens.shard_tokens not in ("auto", planned := link.source["shard_tokens"]):
            raise InputError(
                f"tokens.shard_tokens is {tokens.shard_tokens}, but the store {root} was tokenized "
                f"with {planned}; set that or auto, or set another store.root"
            )
        return link
    _check_addition(root, links, source, cuts, append=append, may_repeat=may_repeat)
    target = shard_target(source, tokens)
    # Documents of other kinds are known by their recipe, or by their vectors.
    has_texts = links and not may_repeat and corpus.kind in ("text", "prompts")
    known = KnownDocuments(layout, stored.lake, stored.shards) if has_texts and stored.lake else None
    tally = _Tally(known)
    documents, shards = source.documents(), list[ShardRecord]()
    stream = encoded(documents, tokenizer, lake.special_text, tokens.document_limit)
    self_test(root)
    with locked(layout.tokenize_lock, f"tokenize writes into {root}"):
        # Checked again inside of the lock: whoever held it last may have written after `stored` was read.
        if len(read_links(layout)) != len(links):
            raise InputError(f"another tokenize has just written to {root}: run again")
        for record in write_shards(layout, lake, stream, target, tokens.limit, stored.shards, tally.take):
            shards.append(record)
            progress(record)
        _check_written(shards, tally, run_file)
        description = {**source.describe(), **tally.counts(), **cuts, "shard_tokens": target}
        link = CorpusLink(source=description, source_digest=digest, shards=tuple(shards))
        _commit(layout, lake, tokenizer, link, len(links))
    return link


def _check_places(root: StorePath, path: str) -> None:
    """The store may not lie in the corpus folder, which would be read as corpus."""
    corpus = Path(path)
    is_folder = bool(path) and corpus.is_dir()
    if isinstance(root, Path) and is_folder and root.resolve().is_relative_to(corpus.resolve()):
        raise InputError(f"store.root {root} is inside corpus.path {corpus}: put it elsewhere")


def _check_addition(
    root: StorePath,
    links: list[CorpusLink],
    source: Source,
    cuts: dict[str, int | None],
    *,
    append: bool,
    may_repeat: bool,
) -> None:
    """InputError where a corpus that the store does not hold may not be added to those that it holds."""
    described = source.describe() if links else {}
    if links and not append:
        held = links[-1].source
        raise InputError(
            f"the store {root} holds another corpus ({_named(held)}) than the run file "
            f"names ({_named({**described, **cuts})}): add it with --append, or set another store.root"
        )
    for number, link in enumerate(links):
        # What an earlier link read may not be read again: its documents would count twice.
        if not may_repeat and (repeated := overlap(described, link.source)):
            what, remedy = repeated
            place = f", from {link.source['path']}" if "path" in link.source else ""
            raise InputError(
                f"{what} already in the store (link {number}{place}), and would count twice: {remedy}"
            )
    for number, link in enumerate(links):
        # The token of an image is its class's number in its own corpus: it must mean one class in all links.
        pairs = enumerate(zip(described.get("classes", ()), link.source.get("classes", ()), strict=False))
        for token, (new, held) in pairs:
            if new != held:
                raise InputError(
                    f"token {token} would be class {new!r} of {described['path']}, and is {held!r} in the "
                    f"store (link {number}, from {link.source['path']}): give both corpora the same classes, "
                    "or set another store.root"
                )


def _cuts(tokens: Tokens) -> dict[str, int | None]:
    """What limits the corpus, as a link describes it: `document_limit` only where it is set."""
    of_documents = {} if tokens.document_limit is None else {"document_limit": tokens.document_limit}
    return {"limit": tokens.limit, **of_documents}


def _named(source: dict[str, Any]) -> str:
    """Of what a source describes, as much as distinguishes it from another of its kind."""
    drawn = {**source, **source.get("dictionary", {})}
    parts = [str(source.get("path") or source["kind"])]
    parts += [f"{drawn[name]} {name}" for name in ("bytes", "documents", "prompts") if name in drawn]
    parts += [f"seed {drawn['seed']}"] if "seed" in drawn else []
    parts += [f"text column {source['text_column']!r}"] if "text_column" in source else []
    parts += [f"prompts.limit {source['prompts_limit']}"] if source.get("prompts_limit") else []
    parts += [f"answers {', '.join(source['answers'])}"] if "answers" in source else []
    parts += [f"limit {source['limit']}"]
    parts += [f"document_limit {source['document_limit']}"] if "document_limit" in source else []
    return ", ".join(parts)


def shard_target(source: Source, tokens: Tokens) -> int:
    """Tokens aimed at in a shard; `auto` makes a few shards of a small corpus, whoever will work on them."""
    if tokens.shard_tokens != "auto":
        return tokens.shard_tokens
    inputs = source.inputs()
    each = 0 if inputs is None else inputs.width * np.dtype(inputs.dtype).itemsize
    most_vectors = max(_SHARD_BYTES // max(each, 1), 1)
    smallest, largest = (min(most, most_vectors) for most in _SHARD_TOKENS)
    size = source.estimated_bytes()
    estimates = [tokens.limit, None if size is None else size // BYTES_PER_TOKEN]
    known = [estimate for estimate in estimates if estimate is not None]
    if not known:
        return largest
    return min(max(min(known) // _SHARDS, smallest), largest)


def _check_written(shards: list[ShardRecord], tally: _Tally, run_file: RunFile) -> None:
    """InputError for a corpus that adds nothing to the store; its shards are named by no record then."""
    path, most = run_file.corpus.path, run_file.tokens.limit
    limit = f" within tokens.limit {most}" if most else ""
    if not shards:
        raise InputError(f"corpus.path {path!r} yields no tokens{limit}")
    if not any(record.counted_rows for record in shards):
        raise InputError(
            f"corpus.path {path!r} yields only special tokens{limit}, and tokens.special_tokens excludes "
            "them: nothing would be counted"
        )
    # Every text is there; prompts may have other answers.
    if run_file.corpus.kind == "text" and 0 < tally.repeated == tally.documents:
        raise InputError(
            f"all {tally.documents:,} documents of corpus.path {path!r} are already in the store, judged by "
            "their text, and would count twice: let corpus.path name new ones"
        )


def _commit(layout: Layout, lake: Lake, tokenizer: Tokenizer, link: CorpusLink, number: int) -> None:
    """Put the records, the link last; who comes second must have written the same."""
    # The vocabulary, so that a reader needs no tokenizer, belongs to the lake's record and so precedes it:
    # a run that dies in between leaves no record without it.
    if not layout.lake.exists():
        ids = range(tokenizer.size)
        columns = {"token_id": ids, "text": tokenizer.pieces(ids), "bytes": tokenizer.piece_bytes(ids)}
        write_frame(layout.vocabulary, pl.DataFrame(columns, schema=VOCABULARY))
    if not put_if_absent(layout.lake, lake.to_json()):
        require_rule(layout.root, read_lake(layout), lake)
    # Only the link makes the shards part of the corpus: all that it names is in the store by now.
    path = layout.corpus_link(number)
    if not put_if_absent(path, link.to_json()) and path.read_bytes() != link.to_json():
        raise InputError(
            f"another tokenize wrote {path} meanwhile, with a different corpus; run only one tokenize per "
            "store at a time, and start again in a new store.root"
        )
