"""The tokenizer wrapper: nothing added, nothing special in text, ids and pieces as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.tokens.tokenizer import LakeTokenizer, load_tokenizer
from schemas.errors import InputError
from tests.kit import write_tiny_tokenizer


@pytest.fixture
def words(tmp_path: Path) -> LakeTokenizer:
    return load_tokenizer(str(write_tiny_tokenizer(tmp_path / "words")))


@pytest.fixture
def letters(tmp_path: Path) -> LakeTokenizer:
    return load_tokenizer(str(write_tiny_tokenizer(tmp_path / "bytes", "bytes")))


def test_ids_are_those_of_the_words_with_nothing_added(words: LakeTokenizer) -> None:
    first, second = words.encode_batch(["w0 w60 w1", "w2"], "literal")
    assert (first.tolist(), second.tolist(), first.dtype) == ([3, 63, 4], [5], np.int32)


def test_an_empty_text_has_no_tokens_and_an_empty_batch_no_texts(words: LakeTokenizer) -> None:
    assert [ids.tolist() for ids in words.encode_batch(["", "  "], "literal")] == [[], []]
    assert words.encode_batch([], "literal") == []


def test_bos_may_have_id_0(words: LakeTokenizer) -> None:
    assert (words.bos_id, words.eos_id, words.special_ids) == (0, 1, (0, 1, 2))


def test_a_tokenizer_may_have_neither_bos_nor_eos(tmp_path: Path) -> None:
    result = load_tokenizer(str(write_tiny_tokenizer(tmp_path, bos=False, eos=False)))
    assert (result.bos_id, result.eos_id, result.special_ids) == (None, None, (2,))


def test_text_that_spells_a_special_token_is_text(letters: LakeTokenizer) -> None:
    (ids,) = letters.encode_batch(["<bos>a<eos>"], "literal")
    assert len(ids) == 11
    assert not set(ids.tolist()) & set(letters.special_ids)


def test_truncation_padding_and_post_processing_are_switched_off(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    folder = write_tiny_tokenizer(tmp_path)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 0)])
    backend.save(str(folder / "tokenizer.json"))
    (ids,) = load_tokenizer(str(folder)).encode_batch(["w0 w1 w2"], "literal")
    assert ids.tolist() == [3, 4, 5]


@pytest.mark.slow
def test_both_ways_of_loading_give_the_same_tokenizer(tmp_path: Path, words: LakeTokenizer) -> None:
    folder = write_tiny_tokenizer(tmp_path / "other")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": None}))
    other = load_tokenizer(str(folder))
    assert (other.digest, other.bos_id, other.eos_id, other.special_ids) == (words.digest, 0, 1, (0, 1, 2))


def test_a_plain_folder_is_read_without_transformers(tmp_path: Path) -> None:
    import subprocess
    import sys

    folder = write_tiny_tokenizer(tmp_path)
    code = (
        "import sys; from pipeline.tokens.tokenizer import load_tokenizer as f; "
        f"f({str(folder)!r}); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_digest_is_of_the_content_not_of_the_place(tmp_path: Path, words: LakeTokenizer) -> None:
    assert load_tokenizer(str(write_tiny_tokenizer(tmp_path / "copy"))).digest == words.digest


@pytest.mark.parametrize("change", [{"kind": "bytes"}, {"bos": False}, {"eos": False}])
def test_another_vocabulary_or_other_special_ids_have_another_digest(
    tmp_path: Path, words: LakeTokenizer, change: dict[str, bool]
) -> None:
    assert load_tokenizer(str(write_tiny_tokenizer(tmp_path / "new", **change))).digest != words.digest  # type: ignore[arg-type]


def test_pieces_join_to_the_text(letters: LakeTokenizer) -> None:
    (ids,) = letters.encode_batch([" a b  c"], "literal")
    assert "".join(letters.pieces(ids)) == " a b  c"


def test_pieces_show_special_tokens_half_characters_and_ids_beyond_the_vocabulary(
    letters: LakeTokenizer,
) -> None:
    (ids,) = letters.encode_batch(["é"], "literal")
    assert letters.pieces([0, *ids, 99_999]) == ["<bos>", "�", "�", "<99999>"]


def test_pieces_of_nothing_are_none(letters: LakeTokenizer) -> None:
    assert letters.pieces([]) == []


def test_pieces_keep_the_leading_space_that_a_decoder_drops_from_the_first_token(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<unk>": 0, "▁a": 1, "▁the": 2, "re": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    assert LakeTokenizer("made", backend, None, None, {0}).pieces([2, 3]) == [" the", "re"]


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=rf"{place}.*set tokens\.tokenizer"):
        load_tokenizer(str(tmp_path / place))


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    folder = write_tiny_tokenizer(tmp_path)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=str(tmp_path)):
        load_tokenizer(str(folder))
