"""Every golden SAE, by the one way that all of them are found; test_gpu.py runs the same cases on a GPU."""

from __future__ import annotations

import pytest

from tests.saes.golden.check import CASES, DATA, assert_equals_golden, spec_of


@pytest.mark.parametrize("case", CASES)
def test_a_golden_sae_gives_what_its_own_package_gave(case: str) -> None:
    assert assert_equals_golden(DATA / case, spec_of(case)).metadata.format == case.partition("-")[0]


def test_every_golden_folder_is_a_case() -> None:
    assert sorted(CASES) == sorted(folder.name for folder in DATA.iterdir())
