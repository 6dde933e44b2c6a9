"""Events are kept in order, whoever dies, and can be read while a run is going."""

from __future__ import annotations

from pathlib import Path

from pipeline.store.events import EventLog, read_events
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
