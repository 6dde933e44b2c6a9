"""Events are kept in order, whoever dies, and can be read while a run is going."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.monitor import events as module
from pipeline.monitor.events import EventLog, read_events
from pipeline.store.objects.paths import store_path
from pipeline.store.objects.verbs import read_many, write_atomic
from schemas.layout import Layout


def test_events_come_back_in_order_with_their_time(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with EventLog(layout, "p") as log:
        log.log(event="ready", node="a")
        assert [event["event"] for event in read_events(layout, "p")] == ["ready"]  # before it is closed
        log.log(event="retry", why=ValueError("no"))
    with EventLog(layout, "p") as log:
        log.log(event="ready", node="b")
    events = list(read_events(layout, "p"))
    assert [event["event"] for event in events] == ["ready", "retry", "ready"]
    assert events[1]["why"] == "no"
    assert events[0]["time"] <= events[2]["time"]


def test_a_line_that_a_dying_run_left_is_passed_over(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with EventLog(layout, "p") as log:
        log.log(event="ready")
    with layout.events("p").open("a") as file:
        file.write('{"event": "ret')
    with EventLog(layout, "p") as log:
        log.log(event="ready again")
    assert [event["event"] for event in read_events(layout, "p")] == ["ready", "ready again"]


def test_a_pass_without_a_log_has_no_events(tmp_path: Path) -> None:
    assert list(read_events(Layout(tmp_path), "p")) == []


def test_parts_in_an_object_store_are_fetched_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, requested = Layout(store_path("memory://events")), list[int]()
    for number in (2, 0, 1):
        write_atomic(layout.event_parts("p") / f"{number}.jsonl", b'{"n": %d}\n' % number)

    def remember(paths):
        requested.append(len(paths))
        return read_many(paths)

    monkeypatch.setattr(module, "read_many", remember)
    assert [event["n"] for event in read_events(layout, "p")] == [0, 1, 2]
    assert requested == [3]


def test_opening_a_long_log_does_not_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path)
    with EventLog(layout, "p") as log:
        log.log(event="ready")
    monkeypatch.delattr(Path, "read_bytes")
    EventLog(layout, "p").close()
