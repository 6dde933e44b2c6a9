"""The run file: its defaults, its errors, and the examples that are shipped."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from schemas.errors import InputError
from schemas.run.file import Extract, load_run_file, parse_run_file
from schemas.run.strict_yaml import parse_yaml

ROOT = Path(__file__).parents[2]
LEAST = {
    "corpus": {"path": "corpus.txt"},
    "model": {"path": "model"},
    "sites": [{"sae": "sae"}],
    "store": {"root": "out"},
}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_run_file(path):
    assert load_run_file(path).sites


def test_the_least_run_file_has_the_documented_defaults():
    run = parse_run_file(LEAST, "run.yaml")
    assert (run.tokens.special_tokens, run.tokens.shard_tokens, run.store.activation_dtype) == (
        "exclude",
        "auto",
        "float16",
    )
    assert run.store.layouts == ("token_major", "feature_major")
    assert (run.extract.executor, run.extract.workers, run.extract.cpus_per_worker) == ("ray", 1, 2)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("corpus", "txt_column", "x", "unknown key 'txt_column' in corpus; did you mean 'text_column'?"),
        ("extract", "wrokers", 2, "unknown key 'wrokers' in extract; did you mean 'workers'?"),
        ("derive", "job", ["stats"], "unknown key 'job' in derive; did you mean 'jobs'?"),
        ("store", "activation_dtype", "int8", "store.activation_dtype is 'int8'"),
        ("tokens", "context_size", 0, "tokens.context_size is 0: input should be greater than or equal to 1"),
        ("store", "root", "", "store.root is '': must be a path"),
        (
            "store",
            "layouts",
            [],
            "store.layouts is []: must name one or more of token_major, feature_major and dense",
        ),
    ],
)
def test_a_wrong_value_is_reported_with_its_place(section, key, value, message):
    content = {**LEAST, section: {**LEAST.get(section, {}), key: value}}
    with pytest.raises(InputError) as error:
        parse_run_file(content, "run.yaml")
    assert str(error.value).startswith("run.yaml: ")
    assert message in str(error.value)


def test_a_missing_section_and_an_unknown_one_are_reported():
    with pytest.raises(InputError, match=r"run\.yaml: model is missing"):
        parse_run_file({name: value for name, value in LEAST.items() if name != "model"}, "run.yaml")
    with pytest.raises(InputError, match="unknown key 'modle' in the run file; did you mean 'model'"):
        parse_run_file({**LEAST, "modle": {}}, "run.yaml")


def test_every_key_of_the_run_file_is_documented():
    from schemas.run import file as run_file

    for section in (run_file.Corpus, run_file.Tokens, run_file.Model, run_file.Site, run_file.Store):
        assert all(field.description for field in section.model_fields.values())
    for section in (run_file.Extract, run_file.Rank, run_file.Cluster):
        assert all(field.description for field in section.model_fields.values())


def test_a_folder_is_no_run_file(tmp_path):
    with pytest.raises(InputError, match="is a folder; give the run file"):
        load_run_file(tmp_path)


def test_off_without_quotes_is_off(tmp_path):
    content = parse_yaml("check_sae: off", "run.yaml")
    assert Extract.model_validate(content).check_sae == "off"
    with pytest.raises(ValueError, match="check_sae"):
        Extract.model_validate({"check_sae": True})


def test_what_is_wrong_inside_a_site_is_reported_once():
    content = {**LEAST, "sites": [{"sae": "", "name": "a"}]}
    with pytest.raises(InputError) as error:
        parse_run_file(content, "run.yaml")
    assert str(error.value) == "run.yaml: sites.0.sae is '': must be a path, not empty and without NUL"


@pytest.mark.parametrize(
    ("section", "text", "message"),
    [
        ("tokens", "context_size: yes", "tokens.context_size is 'yes': input should be a valid integer"),
        ("tokens", "shard_tokens: 1:30:00", "shard_tokens is '1:30:00': input should be a valid integer or"),
        ("tokens", "limit: 1e6", "tokens.limit is 1000000.0: input should be a valid integer: write 1000000"),
        (
            "tokens",
            "limit: '8'",
            "tokens.limit is '8': input should be a valid integer: leave the quotes out",
        ),
        ("tokens", "limit: 9223372036854775808", "tokens.limit is 9223372036854775808: numbers have 64 bits"),
        ("tokens", "limit: true", "tokens.limit is True: input should be a valid integer"),
        ("tokens", "limit: 1_000", "tokens.limit is '1_000': input should be a valid integer"),
        ("tokens", "limit: 2024-02-30", "tokens.limit is '2024-02-30': input should be a valid integer"),
        (
            "tokens",
            "prepend_bos: on",
            "tokens.prepend_bos is 'on': input should be a valid boolean: write true",
        ),
        ("tokens", "prepend_bos: 1", "tokens.prepend_bos is 1: input should be a valid boolean"),
        (
            "corpus",
            "text_column: 5",
            "corpus.text_column is 5: input should be a valid string: put it in quotes",
        ),
        ("corpus", "label_columns: [no, 5]", "corpus.label_columns.1 is 5: input should be a valid string"),
        (
            "extract",
            "shard_timeout_s: .inf",
            "extract.shard_timeout_s is inf: input should be a finite number",
        ),
        (
            "extract",
            "gpus_per_worker: .nan",
            "extract.gpus_per_worker is nan: input should be a finite number",
        ),
        (
            "model",
            "processing: {fold_ln: 1}",
            "model.processing.fold_ln is 1: input should be a valid boolean",
        ),
    ],
)
def test_a_value_of_another_type_is_refused_and_never_converted(section, text, message):
    content = {**LEAST, section: {**LEAST.get(section, {}), **parse_yaml(text, "run.yaml")}}
    with pytest.raises(InputError) as error:
        parse_run_file(content, "run.yaml")
    assert message in str(error.value)


def test_a_key_and_its_alias_are_not_both_taken():
    content = {**LEAST, "store": {"root": "out", "pass": "a", "pass_name": "b"}}
    with pytest.raises(InputError, match="unknown key 'pass_name' in store; did you mean 'pass'"):
        parse_run_file(content, "run.yaml")


def test_of_many_errors_the_first_five_and_the_number_of_the_others_are_reported():
    content = {**LEAST, "sites": [{"sae": number} for number in range(1000)]}
    with pytest.raises(InputError) as error:
        parse_run_file(content, "run.yaml")
    assert [f"sites.{n}.sae is {n}: " in str(error.value) for n in range(6)] == [True] * 5 + [False]
    assert str(error.value).endswith("; and 995 more")


def test_a_hundred_thousand_unknown_keys_are_refused_within_seconds(tmp_path):
    (path := tmp_path / "run.yaml").write_text("\n".join(f"key{n}: 1" for n in range(100_000)))
    began = time.monotonic()
    with pytest.raises(
        InputError, match=r"unknown key 'key0' in the run file; .*; and 99,995 more$"
    ) as error:
        load_run_file(path)
    assert time.monotonic() - began < 15
    assert len(str(error.value)) < 1_000
