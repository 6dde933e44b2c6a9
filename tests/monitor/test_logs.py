"""JSON lines of driver and workers."""

from __future__ import annotations

import io
import json
import logging

import pytest

from pipeline.monitor import logs


@pytest.fixture
def lines():
    """A function that reads what was written since `logs.start`."""
    stream, before = io.StringIO(), (logs.LOGGER.handlers, logs.LOGGER.level, logs.LOGGER.propagate)
    logs.start(stream, node="n0")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logs.LOGGER.handlers, logs.LOGGER.level, logs.LOGGER.propagate = before


def test_a_line_has_time_level_node_shard_and_event(lines):
    with logs.about(shard="000007"):
        logs.log_event("committed", rows=3)
    logs.log_event("ready", logging.WARNING)
    first, second = lines()
    assert first.pop("time") > 1.7e9
    assert first == {"level": "info", "node": "n0", "shard": "000007", "rows": 3, "event": "committed"}
    assert (second["level"], second["event"], "shard" in second) == ("warning", "ready", False)


def test_an_error_is_one_line_with_its_traceback(lines):
    try:
        raise KeyError("x")
    except KeyError as error:
        logs.log_event("failed", logging.ERROR, error=error)
    (line,) = lines()
    assert "Traceback" in line["error"]
    assert line["error"].endswith("KeyError: 'x'")


def test_what_json_does_not_know_is_text(lines):
    logs.log_event("odd", value={1}, path=io)
    assert lines()[0]["value"] == "{1}"


def test_nothing_is_written_before_a_process_starts_its_log(capsys):
    logs.log_event("quiet", logging.ERROR)
    assert capsys.readouterr().err == ""
