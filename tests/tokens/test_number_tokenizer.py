"""The tokenizer of numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.tokens.number_tokenizer import NumberTokenizer
from pipeline.tokens.tokenizer import load_tokenizer
from schemas.errors import InputError


def test_ids_are_the_numbers() -> None:
    tokenizer = load_tokenizer("numbers:100")
    first, none, space, lines = tokenizer.encode_batch(["7 0 99", "", "  ", " 1\n02\t3 "])
    assert (first.tolist(), lines.tolist(), len(none), len(space)) == ([7, 0, 99], [1, 2, 3], 0, 0)
    assert first.dtype == none.dtype == np.int32
    assert tokenizer.encode_batch([]) == []


def test_nothing_is_special() -> None:
    tokenizer = load_tokenizer("numbers:100")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.special_ids, tokenizer.size) == (
        None,
        None,
        (),
        100,
    )
    assert tokenizer.pieces([3, 14]) == ["3 ", "14 "]


def test_the_digest_is_of_the_vocabulary() -> None:
    assert NumberTokenizer("numbers:64").digest == NumberTokenizer("numbers:064").digest
    assert NumberTokenizer("numbers:64").digest != NumberTokenizer("numbers:65").digest


@pytest.mark.parametrize("name", ["numbers:", "numbers:0", "numbers:-4", "numbers:many", "numbers:99999999"])
def test_a_vocabulary_is_a_number(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' names no vocabulary: in numbers:N, N is from 1 to"):
        load_tokenizer(name)


@pytest.mark.parametrize(
    ("text", "message"), [("1 two", "holds 'two'"), ("1 -2", "holds '-'"), ("½", "holds '½'")]
)
def test_other_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_tokenizer("numbers:100").encode_batch(["3", text])


@pytest.mark.parametrize("text", ["100", "3 12345678901234567890123"])
def test_a_number_beyond_the_vocabulary_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"holds the token \d+, beyond the vocabulary of 'numbers:100'"):
        load_tokenizer("numbers:100").encode_batch([text])


def test_it_needs_no_other_tokenizer_library() -> None:
    code = (
        "import sys; from pipeline.tokens.tokenizer import load_tokenizer; "
        "load_tokenizer('numbers:9').encode_batch(['1']); "
        "print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
