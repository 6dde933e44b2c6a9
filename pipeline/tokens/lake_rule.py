"""The lake's record, as a run file and a tokenizer have it: what begins a context, what ends a document.

What the run file does not say is as in the lake that is there, else as SAEs are trained. A context begins
with the tokenizer's BOS; without one with CLS of an encoder, else with EOS, for TransformerLens sets
`bos_token = eos_token`, and SAELens runs `prepend_bos: true` so. After a text stands EOS, or SEP of an
encoder.
"""

from __future__ import annotations

import difflib

from pipeline.tokens.tokenizer import Tokenizer
from schemas.errors import InputError
from schemas.layout import StorePath
from schemas.names import SpecialText
from schemas.records import Inputs, Lake
from schemas.run.file import RunFile
from schemas.sentences import NOTE

WITHOUT_SEPARATOR = {"synthetic", "dictionary", "images", "prompts"}
"""Kinds of corpus after whose documents no EOS is put, unless that is requested."""

RESERVED = (
    *("document", "start", "offset", "row_offset", "token_ids", "segments", "counted"),
    *("shard", "context", "row", "row_start", "position", "feature", "activation"),
    *("document_offset", "first_position", "cluster", "similarity", "__path__"),
)
"""Columns that the store's tables and queries have themselves; of a corpus of vectors INPUTS too."""

INPUTS = "inputs"

KEYWORDS = ("eos", "bos", "cls", "sep", "none", "null", "no", "off", "false", "yes", "on", "true")
"""Words that vocabularies have too, and that are taken for a token only where it is a special one."""

_KEYS = {
    "tokenizer_digest": "tokens.tokenizer",
    "context_size": "tokens.context_size",
    "bos_id": "tokens.prepend_bos",
    "separator_id": "tokens.separator",
    "special_ids": "tokens.tokenizer (its special ids)",
    "special_tokens": "tokens.special_tokens",
    "special_text": "tokens.special_text",
    "label_columns": "corpus.label_columns",
    "contexts": "tokens.contexts",
    "inputs": "corpus (its vectors)",
}
"""Field of lake.json -> the key of the run file that it comes from."""


def requested_lake(
    run_file: RunFile,
    tokenizer: Tokenizer,
    label_dtypes: dict[str, str],
    inputs: Inputs | None = None,
    stored: Lake | None = None,
) -> Lake:
    """The lake's record as this run, with every default filled in, would write it; `stored`: the one there.

    InputError where tokenizer and run file don't fit.
    """
    tokens = run_file.tokens
    context_size, prepend_bos = tokens.context_size, tokens.prepend_bos
    assert context_size is not None
    assert prepend_bos is not None
    names = run_file.corpus.label_columns
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"corpus.label_columns names {twice[0]!r}, twice")
    reserved = (*RESERVED, *(() if inputs is None else (INPUTS,)))
    if taken := [name for name in (*names, *label_dtypes) if name in reserved]:
        where = "corpus.label_columns names" if taken[0] in names else "the corpus has the label"
        raise InputError(f"{where} {taken[0]!r}, a column of the store's own; rename it in the corpus")
    if context_size < 1 + prepend_bos:
        raise InputError(f"tokens.context_size is {context_size}: too small to hold a token; set at least 2")
    # of a tokenizer whose texts spell no special token parse and literal are the same
    special_text: SpecialText = "parse" if tokenizer.special_texts else "literal"
    if stored is not None:
        special_text = stored.special_text
    return Lake(
        tokenizer=tokenizer.name,
        tokenizer_digest=tokenizer.digest,
        context_size=context_size,
        bos_id=_bos(tokens.bos, tokenizer, stored) if prepend_bos else None,
        separator_id=_separator(tokens.separator, run_file.corpus.kind, tokenizer, stored),
        special_ids=tokenizer.special_ids,
        special_tokens=tokens.special_tokens,
        label_columns=label_dtypes,
        contexts=tokens.contexts or "packed",
        inputs=inputs,
        special_text=tokens.special_text or special_text,
    )


def default_bos(tokenizer: Tokenizer) -> int | None:
    """What a context begins with where no token is named; None: there is nothing to begin with."""
    ids = (tokenizer.bos_id, tokenizer.cls_id, tokenizer.eos_id)
    return next((token_id for token_id in ids if token_id is not None), None)


def _bos(named: str | None, tokenizer: Tokenizer, stored: Lake | None) -> int:
    if named is not None:
        return _named(named, "tokens.bos", tokenizer)
    known = default_bos(tokenizer) if stored is None or stored.bos_id is None else stored.bos_id
    if known is None:
        raise InputError(
            f"the tokenizer {tokenizer.name!r} has neither a BOS nor an EOS token: name a token that "
            "contexts begin with (tokens.bos), or set tokens.prepend_bos: false"
        )
    return known


def _separator(separator: str | None, kind: str, tokenizer: Tokenizer, stored: Lake | None) -> int | None:
    if separator is None and stored is not None:
        return stored.separator_id
    if separator is None:
        separator = "none" if kind in WITHOUT_SEPARATOR else "eos"
    if separator == "none":
        return None
    if separator != "eos":
        return _named(separator, "tokens.separator", tokenizer)
    known = tokenizer.sep_id if tokenizer.eos_id is None else tokenizer.eos_id
    if known is None:
        raise InputError(
            f"the tokenizer {tokenizer.name!r} has no EOS token; set tokens.separator: none, or name a token"
        )
    return known


def _named(token: str, key: str, tokenizer: Tokenizer) -> int:
    """The id of a token that the run file names; InputError with the nearest ones where there is none."""
    known = tokenizer.id_of(token)
    if known is not None and (known in tokenizer.special_ids or token.lower() not in KEYWORDS):
        return known
    if known is not None:
        keyword = "eos, none" if key == "tokens.separator" else "tokens.prepend_bos: false for none"
        raise InputError(
            f"{key} {token!r} is an ordinary word of the tokenizer {tokenizer.name!r}, which is probably "
            f"unintended: write {keyword}, or a special token as the vocabulary spells it"
        )
    near = difflib.get_close_matches(token, tokenizer.special_texts, n=3, cutoff=0.5)
    some = near or list(tokenizer.special_texts[:5])
    there = f"; {'near it are' if near else 'it has'} {', '.join(map(repr, some))}" if some else ""
    raise InputError(
        f"{key} {token!r} is not a token of the tokenizer {tokenizer.name!r}{there}: give one token as the "
        "vocabulary spells it"
    )


def notes(run_file: RunFile, lake: Lake, tokenizer: Tokenizer) -> list[str]:
    """What the run file does not say of a context's first token, and what is special of named ones."""
    sentences = []
    is_default = lake.bos_id == default_bos(tokenizer) and run_file.tokens.bos is None
    if lake.bos_id is not None and tokenizer.bos_id is None and is_default:
        (text,) = tokenizer.pieces([lake.bos_id])
        is_cls = lake.bos_id == tokenizer.cls_id
        as_decoder = "EOS, as in SAELens and TransformerLens"
        how = "CLS, as encoders expect" if is_cls else as_decoder
        sentences.append(
            f"{NOTE}the tokenizer {tokenizer.name!r} has no BOS token: contexts begin with {text!r}, its "
            f"{how} (tokens.bos names another)"
        )
    for key, token_id in (("bos", lake.bos_id), ("separator", lake.separator_id)):
        if token_id is not None and token_id not in lake.special_ids:
            named = getattr(run_file.tokens, key) or tokenizer.pieces([token_id])[0]
            sentences.append(
                f"{NOTE}tokens.{key} {named!r} is not a special token of the tokenizer: "
                "it is counted like any other token, wherever it occurs"
            )
    return sentences


def check_rule(root: StorePath, stored: Lake, run_file: RunFile, tokenizer: Tokenizer) -> None:
    """InputError where the store's tokens were made by another rule than a resolved run file's."""
    requested = requested_lake(run_file, tokenizer, stored.label_columns, stored.inputs, stored)
    require_rule(root, stored, requested)


def require_rule(root: StorePath, stored: Lake | None, requested: Lake) -> None:
    """The store's rule, if it has one, must be the one requested; wherever the tokenizer lies."""
    if stored is None:
        return
    keys = _KEYS if None in (stored.bos_id, requested.bos_id) else {**_KEYS, "bos_id": "tokens.bos"}
    differ = [
        f"{key} ({getattr(stored, name)} in the store, {getattr(requested, name)} now)"
        for name, key in keys.items()
        if getattr(stored, name) != getattr(requested, name)
    ]
    if differ:
        raise InputError(
            f"the store {root} was tokenized with other settings: {'; '.join(differ)}. Restore the "
            "old values, or set another store.root"
        )
