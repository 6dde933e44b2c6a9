"""YAML 1.2's core scalars, unique keys, no tags, and the limits of a file."""

from __future__ import annotations

import time

import pytest
import yaml

from schemas.errors import InputError
from schemas.run.strict_yaml import MOST_BYTES, dump_yaml, parse_yaml, read_yaml

CORE = {
    "yes": "yes",
    "on": "on",
    "No": "No",
    "true": True,
    "FALSE": False,
    "~": None,
    "": None,
    "Null": None,
    "8": 8,
    "-3": -3,
    "+3": 3,
    "0": 0,
    "0o10": 8,
    "0x1F": 31,
    "1e3": 1000.0,
    "1.": 1.0,
    ".5": 0.5,
    "010.5": 10.5,
    "-.inf": float("-inf"),
    "1:30:00": "1:30:00",
    "1_000": "1_000",
    "0b1": "0b1",
    "2024-02-30": "2024-02-30",
    "2024-01-01": "2024-01-01",
    "=": "=",
    "'8'": "8",
    '"true"': "true",
}


@pytest.mark.parametrize(("text", "value"), CORE.items())
def test_a_scalar_is_what_the_core_schema_says(text, value):
    read = parse_yaml(f"key: {text}", "run.yaml")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\nb: 2\na: 3",
            "run.yaml, line 3: the key 'a' is given twice, first in line 1: keep one of them",
        ),
        ("x: {a: 1, a: 1}", "the key 'a' is given twice"),
        ("seed: 010", "line 1: 010 begins with 0, which YAML 1.1 reads as octal"),
        ("seed: -007", "-007 begins with 0"),
        ("a: !!int x", "the tag !!int is not read"),
        ("a: !!python/object/apply:os.system [ls]", "is not read"),
        ("a: !mine 3", "the tag !mine is not read"),
        ("a: &x {k: 1}\nb: {<<: *x}", "line 2: '<<' does not merge in YAML 1.2: write the keys out"),
        ("a: &x [*x]", "the alias *x refers to a value that contains it"),
        ("a: *x", "the alias *x refers to nothing"),
        ("? [1]\n: 2", "a key is a list or a mapping"),
        ("a: 1\n---\nb: 2", "a second document begins"),
        ("%YAML 1.1\n---\na: yes", "it is read as YAML 1.2"),
        ("a: " + "9" * 5000, "has 5,000 digits: numbers have 64 bits"),
        ("a:\n  [1", "run.yaml, line 3, is not YAML: while parsing a flow sequence; "),
        ("a: \x00", "is not YAML: "),
        ("[" * 100_000, "more than 256 lists and mappings inside each other"),
        ("a: " + "{a: " * 300 + "}" * 300, "more than 256 lists and mappings inside each other"),
    ],
)
def test_what_means_something_else_to_others_is_refused_with_its_line(text, message):
    with pytest.raises(InputError) as error:
        parse_yaml(text, "run.yaml")
    assert message in str(error.value)
    assert len(str(error.value)) < 400


def test_an_alias_is_what_it_stands_for_and_counts_as_that():
    assert parse_yaml("a: &x [1, 2]\nb: *x", "run.yaml") == {"a": [1, 2], "b": [1, 2]}
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    began = time.monotonic()
    with pytest.raises(InputError, match="line 6: it holds more than 524,288 keys and values"):
        parse_yaml("\n".join(lines), "run.yaml")
    assert time.monotonic() - began < 2


def test_a_file_that_is_too_large_or_not_utf8_is_refused(tmp_path):
    (path := tmp_path / "run.yaml").write_bytes(b"#" * (MOST_BYTES + 1))
    with pytest.raises(InputError, match="has more than 16 MB"):
        read_yaml(path)
    path.write_bytes(b"a: \xff")
    with pytest.raises(InputError, match=r"is not YAML: it is not UTF-8 \(invalid start byte at byte 3\)"):
        read_yaml(path)


@pytest.mark.parametrize(
    "value", [*CORE, *CORE.values(), "010", "1e5", "0o17", "<<", "a: b", "\u00e9\x1b", "1e5 ", 1e-8, 1e20]
)
def test_what_is_dumped_is_read_as_it_was_by_either_version(value):
    text = dump_yaml({"a": value, "b": [value]})
    assert parse_yaml(text, "run.yaml") == {"a": value, "b": [value]}
    assert yaml.safe_load(text) == {"a": value, "b": [value]}
