"""The recipe: what it spells, and what is wrong with it, in one sentence."""

from __future__ import annotations

import pytest

from pipeline.saes import load_sae, read_metadata, sae_digest
from pipeline.synthetic.recipe import parse
from schemas.errors import InputError


def test_all_keys_and_their_defaults():
    full = parse("synthetic:d_sae=65536,l0=62.5,exponent=1.0,burst=0.5,seed=0")
    assert full == parse("synthetic: l0=62.50 , d_sae=65536")
    assert (full.slots, parse("synthetic:d_sae=64,l0=8").slots, parse("synthetic:d_sae=9,l0=0.25").slots) == (
        256,
        32,
        1,
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("d_sae=64", "l0 is missing"),
        ("", "d_sae is missing"),
        ("d_sae=64,l0=8,brust=1", "unknown key 'brust'; did you mean 'burst'?"),
        ("d_sae=64,l0=8,zz=1", "unknown key 'zz'; known: d_sae, l0, exponent, burst, seed"),
        ("d_sae=64,l0=8,seed", "'seed' is not seed=VALUE"),
        ("d_sae=64,l0=8,l0=9", "l0 is given twice"),
        ("d_sae=many,l0=8", "d_sae is 'many': input should be a valid integer"),
        ("d_sae=64,l0=nan", "l0 is 'nan': "),
        ("d_sae=64,l0=8,burst=1.5", "burst is '1.5': input should be less than or equal to 1"),
        ("d_sae=64,l0=17", "l0=17 needs d_sae=128 at least"),
    ],
)
def test_a_wrong_spec_is_reported_in_one_sentence(spec, message):
    with pytest.raises(InputError) as error:
        parse(f"synthetic:{spec}")
    assert str(error.value).startswith(f"SAE synthetic:{spec}: {message}")
    assert "\n" not in str(error.value)


def test_the_digest_is_of_the_numbers_not_of_their_spelling():
    digest = sae_digest("synthetic:d_sae=64,l0=8")
    assert digest == sae_digest("synthetic:l0=8.0,seed=0,d_sae=64")
    for other in (
        "d_sae=65,l0=8",
        "d_sae=64,l0=8.1",
        *(f"d_sae=64,l0=8,{k}=0.25" for k in ("exponent", "burst")),
    ):
        assert sae_digest(f"synthetic:{other}") != digest


def test_it_is_an_sae_without_weights():
    about = read_metadata("synthetic:d_sae=64,l0=8")
    assert (about.architecture, about.d_sae, about.hook_name) == ("synthetic", 64, "synthetic")
    with pytest.raises(
        InputError, match=r"SAE synthetic:d_sae=64,l0=8 has no weights.*model\.loader: synthetic$"
    ):
        load_sae("synthetic:d_sae=64,l0=8")
