"""Turn a corpus into token shards: read, encode, pack, write; each step works while the next one does.

A run that dies leaves a few token shards behind that no record names; the next run replaces them. The two
records, lake.json and the new link of the corpus chain, are put last; the vocabulary stands before them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.sharding import encoded, write_shards
from pipeline.sources import Source, open_source
from pipeline.sources.overlap import overlap
from pipeline.store.objects import locked, put_if_absent, self_test
from pipeline.store.parquet import write_frame
from pipeline.store.tokens import read_lake, read_links
from pipeline.tokenizer import Tokenizer
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import CorpusLink, Inputs, Lake, ShardRecord, digest_of
from schemas.run_file import RunFile, Tokens
from schemas.tables import VOCABULARY

BYTES_PER_TOKEN = 4
_SHARDS = 8
_SHARD_TOKENS = (1 << 14, 1 << 19)
"""Smallest and largest shard that `shard_tokens: auto` aims at."""

_SHARD_BYTES = 1 << 27
"""Of vectors in a shard, at most; the store's writer and each worker hold such shards whole."""

_KEYS = {
    "tokenizer_digest": "tokens.tokenizer",
    "context_size": "tokens.context_size",
    "bos_id": "tokens.prepend_bos",
    "separator_id": "tokens.separator",
    "special_ids": "tokens.tokenizer (its special ids)",
    "special_tokens": "tokens.special_tokens",
    "label_columns": "corpus.label_columns",
    "contexts": "tokens.contexts",
    "inputs": "corpus (its vectors)",
}
"""Field of lake.json -> the key of the run file that it comes from."""

RESERVED = (
    *("document", "start", "offset", "row_offset", "token_ids", "segments", "counted"),
    *("shard", "context", "row", "row_start", "position", "feature", "activation"),
    *("document_offset", "first_position", "cluster", "similarity", "__path__"),
)
"""Columns that the store's tables and queries have themselves; of a corpus of vectors INPUTS too."""

INPUTS = "inputs"


def tokenize(
    layout: Layout,
    run_file: RunFile,
    context_size: int,
    prepend_bos: bool,
    tokenizer: Tokenizer,
    append: bool = False,
    progress: Callable[[ShardRecord], None] | None = None,
    may_repeat: bool = False,
) -> CorpusLink:
    """Tokenize the run file's corpus into the store: link 0 of its chain or, with `append`, the next one.

    A corpus that the store holds already (same content, columns and limit) is not read again: its link is
    returned. `progress` is told of every shard, in order. InputError for a source that can't be read, a rule
    that is not the store's, another corpus without `append`, documents of an earlier link (unless they
    `may_repeat`, as in a probe), a corpus without a counted token.
    """
    run_file = _labels_by_name(run_file)
    _check_places(layout, run_file)
    source = open_source(run_file.corpus)
    lake = asked_lake(run_file, context_size, prepend_bos, tokenizer, source.label_dtypes(), source.inputs())
    _check_rule(layout, lake)
    links, digest = read_links(layout), _source_digest(source, run_file)
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
    before = [record for link in links for record in link.shards]
    shards = []
    stream = encoded(source.documents(), tokenizer)
    with _alone(layout, len(links)):
        for record in write_shards(layout, lake, stream, target, run_file.tokens.limit, before):
            shards.append(record)
            if progress is not None:
                progress(record)
        _check_counted(shards, run_file)
        asked = {**source.describe(), "limit": run_file.tokens.limit, "shard_tokens": target}
        link = CorpusLink(source=asked, source_digest=digest, shards=tuple(shards))
        _write_vocabulary(layout, tokenizer)
        _commit(layout, lake, link, len(links))
    return link


def _check_places(layout: Layout, run_file: RunFile) -> None:
    """The store may not lie in the corpus folder, which would be read as corpus; its record must be there."""
    corpus = Path(run_file.corpus.path)
    root, is_folder = layout.root, bool(run_file.corpus.path) and corpus.is_dir()
    if isinstance(root, Path) and is_folder and root.resolve().is_relative_to(corpus.resolve()):
        raise InputError(f"store.root {root} lies inside corpus.path {corpus}: put it elsewhere")
    if read_links(layout) and read_lake(layout) is None:
        raise InputError(
            f"{layout.lake} is missing beside a corpus chain: restore it from a copy of the store"
        )


@contextmanager
def _alone(layout: Layout, links: int) -> Iterator[None]:
    """Hold the store's lock; its chain must still have `links` links."""
    self_test(layout.root)
    with locked(layout.tokenize_lock, f"tokenize writes into {layout.root}"):
        if len(read_links(layout)) != links:
            raise InputError(f"another tokenize has just written into {layout.root}: run again")
        yield


def _labels_by_name(run_file: RunFile) -> RunFile:
    """Sort the label columns, as lake.json's canonical JSON does; their order means nothing."""
    columns = tuple(sorted(run_file.corpus.label_columns))
    corpus = run_file.corpus.model_copy(update={"label_columns": columns})
    return run_file.model_copy(update={"corpus": corpus})


def asked_lake(
    run_file: RunFile,
    context_size: int,
    prepend_bos: bool,
    tokenizer: Tokenizer,
    label_dtypes: dict[str, str],
    inputs: Inputs | None = None,
) -> Lake:
    """The lake's record as this run would write it; InputError where tokenizer and run file don't fit."""
    tokens = run_file.tokens
    _check_labels(run_file.corpus.label_columns, label_dtypes, inputs is not None)
    if prepend_bos and tokenizer.bos_id is None:
        raise InputError(f"the tokenizer {tokenizer.name!r} has no BOS token; set tokens.prepend_bos: false")
    if tokens.separator == "eos" and tokenizer.eos_id is None:
        raise InputError(f"the tokenizer {tokenizer.name!r} has no EOS token; set tokens.separator: none")
    if context_size < 1 + prepend_bos:
        raise InputError(f"tokens.context_size is {context_size}: too small to hold a token; set at least 2")
    return Lake(
        tokenizer=tokenizer.name,
        tokenizer_digest=tokenizer.digest,
        context_size=context_size,
        bos_id=tokenizer.bos_id if prepend_bos else None,
        separator_id=tokenizer.eos_id if tokens.separator == "eos" else None,
        special_ids=tokenizer.special_ids,
        special_tokens=tokens.special_tokens,
        label_columns=label_dtypes,
        contexts=tokens.contexts or "packed",
        inputs=inputs,
    )


def _check_labels(asked: tuple[str, ...], labels: Iterable[str], has_vectors: bool) -> None:
    """No label column is asked for twice, and none, asked for or of the corpus, is called as the store's."""
    if twice := [name for name in asked if asked.count(name) > 1]:
        raise InputError(f"corpus.label_columns names {twice[0]!r}, twice")
    reserved = (*RESERVED, INPUTS) if has_vectors else RESERVED
    if taken := [name for name in (*asked, *labels) if name in reserved]:
        where = "corpus.label_columns names" if taken[0] in asked else "the corpus has the label"
        raise InputError(f"{where} {taken[0]!r}, a column of the store's own; rename it in the corpus")


def check_rule(layout: Layout, run_file: RunFile, tokenizer: Tokenizer) -> None:
    """InputError where the store's tokens were made by another rule than a resolved run file's."""
    found, tokens = read_lake(layout), run_file.tokens
    if found is not None:
        assert tokens.context_size is not None
        assert tokens.prepend_bos is not None
        labels, inputs = found.label_columns, found.inputs
        asked = asked_lake(run_file, tokens.context_size, tokens.prepend_bos, tokenizer, labels, inputs)
        _check_rule(layout, asked)


def _check_rule(layout: Layout, asked: Lake) -> None:
    """The store's rule, if it has one, must be the one asked for; wherever the tokenizer lies."""
    found = read_lake(layout)
    if found is None:
        return
    differ = [
        f"{key} ({getattr(found, name)} in the store, {getattr(asked, name)} now)"
        for name, key in _KEYS.items()
        if getattr(found, name) != getattr(asked, name)
    ]
    if differ:
        raise InputError(
            f"the store {layout.root} was tokenized by another rule: {'; '.join(differ)}. Restore the old "
            "value, or set another store.root"
        )


def _source_digest(source: Source, run_file: RunFile) -> str:
    return digest_of([source.digest(), run_file.corpus.text_column, run_file.tokens.limit])


def _check_shard_tokens(layout: Layout, link: CorpusLink, tokens: Tokens) -> None:
    """Shards once cut stay: `auto` takes them as they are, another number can not be had."""
    found = link.source["shard_tokens"]
    if tokens.shard_tokens not in ("auto", found):
        raise InputError(
            f"tokens.shard_tokens is {tokens.shard_tokens}, but the store {layout.root} was cut with "
            f"{found}; set that or auto, or set another store.root"
        )


def _other_corpus(layout: Layout, links: list[CorpusLink], source: Source, run_file: RunFile) -> str:
    found = links[-1].source
    return (
        f"the store {layout.root} holds another corpus ({_named(found, found['limit'])}) than the run file "
        f"asks for ({_named(source.describe(), run_file.tokens.limit)}): add it with --append, "
        "or set another store.root"
    )


def _refuse_known_documents(links: list[CorpusLink], source: Source) -> None:
    """What an earlier link read may not be read again: its documents would count twice."""
    asked = source.describe()
    for number, link in enumerate(links):
        if found := overlap(asked, link.source):
            what, remedy = found
            place = f", from {link.source['path']}" if "path" in link.source else ""
            raise InputError(
                f"{what} in the store already (link {number}{place}), and would count twice: {remedy}"
            )


def _refuse_other_classes(links: list[CorpusLink], source: Source) -> None:
    """The token of an image is its class's number in its own corpus: it must mean one class in all links."""
    asked = source.describe() if links else {}
    for number, link in enumerate(links):
        pairs = enumerate(zip(asked.get("classes", ()), link.source.get("classes", ()), strict=False))
        for token, (mine, theirs) in pairs:
            if mine != theirs:
                raise InputError(
                    f"token {token} would be class {mine!r} of {asked['path']}, and is {theirs!r} in the "
                    f"store (link {number}, from {link.source['path']}): give both corpora the same classes, "
                    "or set another store.root"
                )


def _named(source: dict[str, Any], limit: int | None) -> str:
    """Of what a source says of itself, as much as tells it from another of its kind."""
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
        raise InputError(f"corpus.path {run_file.corpus.path!r} gives no token{limit}")
    if not any(record.counted_rows for record in shards):
        raise InputError(
            f"corpus.path {run_file.corpus.path!r} gives special tokens only{limit}, and "
            "tokens.special_tokens excludes them: nothing would be counted"
        )


def _write_vocabulary(layout: Layout, tokenizer: Tokenizer) -> None:
    """Keep the text of every token, so that a reader needs no tokenizer; it belongs to the lake's record."""
    if not layout.lake.exists():
        ids = range(tokenizer.size)
        frame = pl.DataFrame({"token_id": ids, "text": tokenizer.pieces(ids)}, schema=VOCABULARY)
        write_frame(layout.vocabulary, frame)


def _commit(layout: Layout, lake: Lake, link: CorpusLink, number: int) -> None:
    """Put the records, the link last; who comes second must have written the same."""
    put_if_absent(layout.lake, lake.to_json())
    _check_rule(layout, lake)
    path = layout.corpus_link(number)
    if not put_if_absent(path, link.to_json()) and path.read_bytes() != link.to_json():
        raise InputError(
            f"another tokenize wrote {path} meanwhile, with another corpus; tokenize into one store from one "
            "place at a time, and start again in a new store.root"
        )
