"""Tokens joined to text: whole characters of every script, whatever bytes the tokens hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.store.records.vocabulary import Span, Vocabulary, joined, shown
from pipeline.tokens.tokenizer import LakeTokenizer, load_tokenizer
from schemas.errors import InputError
from schemas.tables.tables import VOCABULARY
from tests.kit import write_tiny_tokenizer

TEXTS = {
    "korean": "안녕하세요, 세계는 넓다.",
    "japanese": "吾輩は猫である。名前はまだ無い。",
    "cyrillic": "Все счастливые семьи похожи",
    "emoji": "a 👨‍👩‍👧‍👦 b ❤️ 👍🏽 1️⃣ 🇰🇷 c",
    "mixed": "naïve 값 — ça 漢字🙂 end\n\tété",
    "a real replacement character": "a\ufffdb\ufffd",
}


def of(tokenizer: LakeTokenizer) -> Vocabulary:
    ids = range(tokenizer.size)
    columns = {"token_id": ids, "text": tokenizer.pieces(ids), "bytes": tokenizer.piece_bytes(ids)}
    return Vocabulary(pl.DataFrame(columns, schema=VOCABULARY))


def byte_level(folder: Path) -> LakeTokenizer:
    return load_tokenizer(str(write_tiny_tokenizer(folder, "bytes")))


def merged(folder: Path) -> LakeTokenizer:
    """Byte-level tokens of several bytes, some of which end within a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([text[n:] for text in TEXTS.values() for n in range(4)], trainer)
    backend.add_special_tokens(["<s>"])
    backend.add_tokens(["ça"])
    return LakeTokenizer("merged", backend, None, None, set())


def byte_fallback(folder: Path) -> LakeTokenizer:
    """As Llama 2 and Gemma have it: spaces are ▁, what the vocabulary lacks is bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmn안세c猫", "의"]
    vocabulary = {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    return LakeTokenizer("fallback", backend, None, None, {0})


@pytest.mark.parametrize("kind", [byte_level, merged, byte_fallback])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_window_shows_its_whole_characters(kind, text: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tokenizer = kind(tmp_path)
    vocabulary = of(tokenizer)
    ids = tokenizer.encode_batch([text], "parse")[0].tolist()
    assert "".join(vocabulary.pieces(ids)) == text
    assert len(vocabulary.pieces(ids)) == len(ids)
    assert not any(span.is_cut for span in vocabulary.spans(ids))
    data = tokenizer.piece_bytes(ids)
    for start in range(len(ids)):
        for stop in (start + 1, start + 5, start + 12):
            spans = vocabulary.spans(ids[start:stop])
            whole = b"".join(data[start:stop]).decode("utf-8", "ignore")
            assert "".join(span.text for span in spans if not span.is_cut) == whole.lstrip(
                "\u200d\ufe0f\u20e3🏽"
            )
            assert [span.start for span in spans[1:]] == [span.stop for span in spans[:-1]]


def test_some_tokens_of_the_test_do_end_within_a_character(tmp_path: Path) -> None:
    tokenizer = merged(tmp_path)
    vocabulary, ids = of(tokenizer), tokenizer.encode_batch([TEXTS["korean"]], "parse")[0].tolist()
    assert vocabulary.is_split(ids)
    assert len(ids) < len(TEXTS["korean"].encode())


def test_tokens_that_share_a_character_are_one_span() -> None:
    korean = "세".encode()
    assert joined([b"a", korean[:1], korean[1:2], korean[2:] + b" b", b"c"]) == [
        Span(0, 1, "a"),
        Span(1, 4, "세 b"),
        Span(4, 5, "c"),
    ]
    family = "👩‍👧".encode()
    assert joined([family[:4], family[4:7], family[7:9], family[9:], b"x"]) == [
        Span(0, 4, "👩‍👧"),
        Span(4, 5, "x"),
    ]


def test_a_character_that_a_window_cuts_is_one_mark_or_nothing() -> None:
    korean = "세".encode()
    assert joined([korean[1:2], korean[2:], b"a", korean[:1], korean[1:2]]) == [
        Span(0, 2, "\ufffd", is_cut=True),
        Span(2, 3, "a"),
        Span(3, 5, "\ufffd", is_cut=True),
    ]
    assert joined([korean[2:] + b" w"]) == [Span(0, 1, " w")]
    assert joined([]) == []


def test_a_strip_shows_the_strongest_activation_of_a_span_and_marks_the_firing_one() -> None:
    korean = "세".encode()
    tokens = [korean[2:], b"a", korean[:1], korean[1:2], korean[2:], korean[:1]]
    spans = joined(tokens)
    result = shown(spans, np.float32([0, 1, 0.5, -3, 0, 0]), 3)
    assert (result.texts, result.values.tolist(), result.firing) == (["a", "세"], [1, -3], 1)
    result = shown(spans, np.float32([2, 0, 0, 0, 0, 0]), 5)
    assert (result.texts, result.firing) == (["a", "세", "\ufffd"], 2)


def test_tokens_by_themselves_write_out_bytes_that_are_no_character(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    vocabulary, ids = of(tokenizer), tokenizer.encode_batch(["é a"], "parse")[0].tolist()
    assert vocabulary.alone(ids) == ["\\xc3", "\\xa9", " ", "a"]
    assert vocabulary.pieces(ids) == ["", "é", " ", "a"]
    assert [vocabulary.at(ids, place) for place in range(4)] == ["é", "é", " ", "a"]
    with pytest.raises(InputError, match="token ids must be 0 to 258"):
        vocabulary.alone([259])


def test_a_vocabulary_without_bytes_shows_the_texts_that_it_has() -> None:
    vocabulary = Vocabulary(pl.DataFrame({"token_id": [0, 1], "text": ["a", "\ufffd"]}))
    assert vocabulary.pieces([1, 0, 1]) == vocabulary.alone([1, 0, 1]) == ["\ufffd", "a", "\ufffd"]
