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
from schemas.layout import Layout
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
    progress: Callable[[ShardRecord], None] | None = None,
    may_repeat: bool = False,
) -> CorpusLink:
    """Tokenize a resolved run file's corpus into the store: its link 0 or, with `append`, the next one.

    `stored` is what the store records now. A corpus that the store holds already (same content, columns and
    limit) is not read again: its link is returned. `progress` is called with every shard, in order.
    InputError for a source that can't be read, a rule that is not the store's, another corpus without
    `append`, files or texts all of an earlier link (unless they `may_repeat`, as in a probe), a corpus
    without a counted token.
    """
    run_file, links = _labels_by_name(run_file), stored.links
    _check_places(layout, stored, run_file)
    source = open_source(run_file.corpus)
    labels, inputs = source.label_dtypes(), source.inputs()
    lake = requested_lake(run_file, tokenizer, labels, inputs, stored.lake)
    require_rule(layout, stored.lake, lake)
    digest = _source_digest(source, run_file)
    for link in links:
        if link.source_digest == digest:
            _check_shard_tokens(layout, link, run_file.tokens)
            return link
    if links and not append:
        raise InputError(_other_corpus(layout, links, source, run_file))
    if not may_repeat:
        _refuse_known_documents(links, source)
    _refuse_other_classes(links, source)
    target = shard_target(source, run_file.tokens)
    # Documents of other kinds are known by their recipe, or by their vectors.
    has_texts = links and not may_repeat and run_file.corpus.kind in ("text", "prompts")
    known = KnownDocuments(layout, stored.lake, stored.shards) if has_texts and stored.lake else None
    tally = _Tally(known)
    shards, stream = list[ShardRecord](), encoded(source.documents(), tokenizer, lake.special_text)
    self_test(layout.root)
    with locked(layout.tokenize_lock, f"tokenize writes into {layout.root}"):
        if len(read_links(layout)) != len(links):
            raise InputError(f"another tokenize has just written to {layout.root}: run again")
        limit = run_file.tokens.limit
        for record in write_shards(layout, lake, stream, target, limit, stored.shards, tally.take):
            shards.append(record)
            if progress is not None:
                progress(record)
        _check_counted(shards, run_file)
        _refuse_repeated(tally, run_file)
        description = {**source.describe(), **tally.counts(), "limit": limit, "shard_tokens": target}
        link = CorpusLink(source=description, source_digest=digest, shards=tuple(shards))
        _write_vocabulary(layout, tokenizer)
        _commit(layout, lake, link, len(links))
    return link


def _check_places(layout: Layout, stored: StoredTokens, run_file: RunFile) -> None:
    """The store may not lie in the corpus folder, which would be read as corpus; its record must be there."""
    corpus = Path(run_file.corpus.path)
    root, is_folder = layout.root, bool(run_file.corpus.path) and corpus.is_dir()
    if isinstance(root, Path) and is_folder and root.resolve().is_relative_to(corpus.resolve()):
        raise InputError(f"store.root {root} is inside corpus.path {corpus}: put it elsewhere")
    if stored.links and stored.lake is None:
        raise InputError(
            f"{layout.lake} is missing next to a corpus chain: restore it from a copy of the store"
        )


def _labels_by_name(run_file: RunFile) -> RunFile:
    """Sort the label columns, as lake.json's canonical JSON does; their order means nothing."""
    columns = tuple(sorted(run_file.corpus.label_columns))
    corpus = run_file.corpus.model_copy(update={"label_columns": columns})
    return run_file.model_copy(update={"corpus": corpus})


def _source_digest(source: Source, run_file: RunFile) -> str:
    return digest_of([source.digest(), run_file.corpus.text_column, run_file.tokens.limit])


def _check_shard_tokens(layout: Layout, link: CorpusLink, tokens: Tokens) -> None:
    """Shards once cut stay: `auto` takes them as they are, another number cannot be had."""
    planned = link.source["shard_tokens"]
    if tokens.shard_tokens not in ("auto", planned):
        raise InputError(
            f"tokens.shard_tokens is {tokens.shard_tokens}, but the store {layout.root} was tokenized "
            f"with {planned}; set that or auto, or set another store.root"
        )


def _other_corpus(layout: Layout, links: list[CorpusLink], source: Source, run_file: RunFile) -> str:
    held = links[-1].source
    return (
        f"the store {layout.root} holds another corpus ({_named(held, held['limit'])}) than the run file "
        f"names ({_named(source.describe(), run_file.tokens.limit)}): add it with --append, "
        "or set another store.root"
    )


def _refuse_known_documents(links: list[CorpusLink], source: Source) -> None:
    """What an earlier link read may not be read again: its documents would count twice."""
    described = source.describe()
    for number, link in enumerate(links):
        if repeated := overlap(described, link.source):
            what, remedy = repeated
            place = f", from {link.source['path']}" if "path" in link.source else ""
            raise InputError(
                f"{what} already in the store (link {number}{place}), and would count twice: {remedy}"
            )


def _refuse_repeated(tally: _Tally, run_file: RunFile) -> None:
    """A corpus of which every text is there adds nothing; prompts may have other answers."""
    if run_file.corpus.kind == "text" and 0 < tally.repeated == tally.documents:
        raise InputError(
            f"all {tally.documents:,} documents of corpus.path {run_file.corpus.path!r} are already in "
            "the store, judged by their text, and would count twice: let corpus.path name new ones"
        )


def _refuse_other_classes(links: list[CorpusLink], source: Source) -> None:
    """The token of an image is its class's number in its own corpus: it must mean one class in all links."""
    described = source.describe() if links else {}
    for number, link in enumerate(links):
        pairs = enumerate(zip(described.get("classes", ()), link.source.get("classes", ()), strict=False))
        for token, (new, held) in pairs:
            if new != held:
                raise InputError(
                    f"token {token} would be class {new!r} of {described['path']}, and is {held!r} in the "
                    f"store (link {number}, from {link.source['path']}): give both corpora the same classes, "
                    "or set another store.root"
                )


def _named(source: dict[str, Any], limit: int | None) -> str:
    """Of what a source describes, as much as distinguishes it from another of its kind."""
    drawn = {**source, **source.get("dictionary", {})}
    parts = [str(source.get("path") or source["kind"])]
    parts += [f"{drawn[name]} {name}" for name in ("bytes", "documents", "prompts") if name in drawn]
    parts += [f"seed {drawn['seed']}"] if "seed" in drawn else []
    parts += [f"text column {source['text_column']!r}"] if "text_column" in source else []
    parts += [f"prompts.limit {source['prompts_limit']}"] if source.get("prompts_limit") else []
    parts += [f"answers {', '.join(source['answers'])}"] if "answers" in source else []
    return ", ".join([*parts, f"limit {limit}"])


def shard_target(source: Source, tokens: Tokens) -> int:
    """Tokens aimed at in a shard; `auto` makes a few shards of a small corpus, whoever will work on them."""
    if tokens.shard_tokens != "auto":
        return tokens.shard_tokens
    smallest, largest = (min(most, _most_vectors(source)) for most in _SHARD_TOKENS)
    size = source.estimated_bytes()
    estimates = [tokens.limit, None if size is None else size // BYTES_PER_TOKEN]
    known = [estimate for estimate in estimates if estimate is not None]
    if not known:
        return largest
    return min(max(min(known) // _SHARDS, smallest), largest)


def _most_vectors(source: Source) -> int:
    """Rows whose vectors a shard may hold, at least one."""
    inputs = source.inputs()
    each = 0 if inputs is None else inputs.width * np.dtype(inputs.dtype).itemsize
    return max(_SHARD_BYTES // max(each, 1), 1)


def _check_counted(shards: list[ShardRecord], run_file: RunFile) -> None:
    limit = f" within tokens.limit {run_file.tokens.limit}" if run_file.tokens.limit else ""
    if not shards:
        raise InputError(f"corpus.path {run_file.corpus.path!r} yields no tokens{limit}")
    if not any(record.counted_rows for record in shards):
        raise InputError(
            f"corpus.path {run_file.corpus.path!r} yields only special tokens{limit}, and "
            "tokens.special_tokens excludes them: nothing would be counted"
        )


def _write_vocabulary(layout: Layout, tokenizer: Tokenizer) -> None:
    """Keep the text of every token, so that a reader needs no tokenizer; it belongs to the lake's record."""
    if not layout.lake.exists():
        ids = range(tokenizer.size)
        columns = {"token_id": ids, "text": tokenizer.pieces(ids), "bytes": tokenizer.piece_bytes(ids)}
        frame = pl.DataFrame(columns, schema=VOCABULARY)
        write_frame(layout.vocabulary, frame)


def _commit(layout: Layout, lake: Lake, link: CorpusLink, number: int) -> None:
    """Put the records, the link last; who comes second must have written the same."""
    if not put_if_absent(layout.lake, lake.to_json()):
        require_rule(layout, read_lake(layout), lake)
    path = layout.corpus_link(number)
    if not put_if_absent(path, link.to_json()) and path.read_bytes() != link.to_json():
        raise InputError(
            f"another tokenize wrote {path} meanwhile, with a different corpus; run only one tokenize per "
            "store at a time, and start again in a new store.root"
        )
