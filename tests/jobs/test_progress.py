"""Progress says how much is done, how fast, and what is left; in a log a line now and then."""

from __future__ import annotations

import pytest

from jobs.terminal import progress


class Clock:
    """A clock that stands until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_the_pace_is_that_of_the_last_two_minutes(clock):
    pace = progress.Pace(clock)
    for second in range(1, 601):  # 10 per second, then 1 a second
        clock.now = second
        rate = pace.update(min(second, 300) * 10 + max(0, second - 300))
        if second == 60:
            assert rate == 10
    assert rate == pytest.approx(1)


def test_a_log_gets_a_line_every_ten_seconds_with_rate_and_time_left(clock, capsys):
    with progress.Meter(clock=clock) as meter:
        advance = meter.begin("count", 400, "shards")
        for _ in range(15):
            clock.now += 2
            advance(4)
    assert capsys.readouterr().out.splitlines() == [
        "count: 24/400 shards, 2 per second, 3 min left",
        "count: 48/400 shards, 2 per second, 3 min left",
    ]


def test_tracked_items_pass_unchanged_and_quick_ones_say_nothing(capsys):
    assert list(progress.track(range(1000), "count", 1000)) == list(range(1000))
    assert capsys.readouterr().out == ""


def test_the_steps_of_a_command_are_reported_as_they_begin(capsys):
    with progress.Meter("check-sae") as meter:
        meter.begin("reading [the] corpus")
        meter.begin("losses")
    assert capsys.readouterr().out.splitlines() == ["check-sae: reading [the] corpus", "check-sae: losses"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (45, "45 s"), (720, "12 min"), (12_240, "3.4 h"), (181_440, "2.1 days")],
)
def test_times_in_words(seconds, words):
    assert progress.duration(seconds) == words
