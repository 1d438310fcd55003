"""Log lines are JSON, and name what they belong to."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from remuda_core.telemetry import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    text = io.StringIO()
    logs.configure(level="info", service="api", stream=text)
    yield text
    root.handlers[:], level = before[0], before[1]
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_time_level_service_and_bound_ids(stream: io.StringIO) -> None:
    with logs.bound(operation_id="op-1"):
        structlog.get_logger("x").info("step done", step="disks_prepared")
    structlog.get_logger("x").info("after")
    first, second = lines(stream)
    assert first["event"] == "step done"
    assert (first["service"], first["operation_id"], first["step"]) == ("api", "op-1", "disks_prepared")
    assert first["level"] == "info"
    assert str(first["timestamp"]).endswith("Z")
    assert "operation_id" not in second


def test_the_standard_librarys_loggers_go_the_same_way(stream: io.StringIO) -> None:
    logging.getLogger("grpc").warning("odd %s", "thing")
    (line,) = lines(stream)
    assert (line["event"], line["logger"], line["service"]) == ("odd thing", "grpc", "api")


def test_what_is_below_the_level_is_not_written(stream: io.StringIO) -> None:
    structlog.get_logger("x").debug("quiet")
    assert not stream.getvalue()


def test_an_exception_is_one_line(stream: io.StringIO) -> None:
    try:
        raise KeyError("gone")
    except KeyError:
        structlog.get_logger("x").exception("failed")
    (line,) = lines(stream)
    assert "KeyError" in json.dumps(line["exception"])


def test_a_traceback_does_not_show_what_the_frames_held(stream: io.StringIO) -> None:
    def handler(token: str, user_data: bytes) -> None:
        kept = [token, user_data]
        raise ValueError(f"{len(kept)} things")

    for log in (structlog.get_logger("x"), logging.getLogger("y")):
        try:
            handler("letmein", b"hunter2")
        except ValueError:
            log.exception("failed")
    text = stream.getvalue()
    assert text.count("2 things") == 2
    assert "test_logs.py" in text
    # The words stand in this very file, but source lines are not logged either.
    assert "letmein" not in text
    assert "hunter2" not in text


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="loud"):
        logs.configure(level="loud")
