"""The short form of `tests.programs.soak`: each kind of wound once, and the bytes of a calm run."""

from __future__ import annotations

import random

import pytest

from tests.programs import soak

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    with soak.raylets() as (cluster, nodes):
        yield soak.Arena(tmp_path_factory.mktemp("soak"), cluster, nodes, random.Random(0), shards=12)


def test_workers_killed_at_random_moments(arena):
    soak.workers_killed(arena, kills=3)
    assert arena.wounds["worker killed"] == 3


def test_a_node_and_then_a_driver_killed_at_random_moments(arena):
    soak.node_killed(arena)
    soak.drivers_killed(arena, kills=1)
    assert arena.wounds["node killed"] == 1


def test_two_drivers_race_for_every_commit(arena):
    soak.two_drivers(arena)


@pytest.mark.skipif(
    not soak.may_mount(), reason="needs root, to mount a small tmpfs; run by `python -m tests.programs.soak`"
)
def test_a_disk_that_is_full_and_then_is_not(arena):
    soak.disk_full(arena)
    assert arena.wounds["disk full"] == 1
