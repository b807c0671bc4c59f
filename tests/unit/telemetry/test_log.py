"""A log line tells what happened, on one line, and never a secret."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import structlog

from bridge.telemetry.log import configure, hide

SECRET = "geheim/1"

Said = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Give other tests the logging back that they had: it belongs to the process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    quieted = ("aio_pika", "aiormq", "httpx", "httpcore", "asyncio", "opentelemetry")
    levels = {name: logging.getLogger(name).level for name in quieted}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class Stderr:
    """What was written to standard error so far."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capture.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Stderr:
    return Stderr(capsys)


def started(
    stderr: Stderr,
    *,
    style: Literal["auto", "json", "console"] = "json",
    level: str = "info",
    secrets: Any = (SECRET,),
) -> Said:
    """Set up logging; what comes back gives the lines written since."""
    configure(style=style, level=level, secrets=secrets)
    return lambda: [json.loads(line) for line in stderr.getvalue().splitlines()]


def fail() -> None:
    raise ValueError(f"it broke\nat {SECRET}")


class TestLines:
    def test_have_time_level_event_and_facts(self, stderr: Stderr) -> None:
        said = started(stderr)
        structlog.get_logger("bridge.x").info("settled", job="job-1", attempt=2)
        (line,) = said()
        assert line.pop("timestamp").endswith("Z")
        assert line == {"level": "info", "event": "settled", "job": "job-1", "attempt": 2}

    def test_carry_the_context(self, stderr: Stderr) -> None:
        said = started(stderr)
        with structlog.contextvars.bound_contextvars(job="job-1"):
            structlog.get_logger().info("settled")
        assert said()[0]["job"] == "job-1"

    def test_below_the_level_are_left_out(self, stderr: Stderr) -> None:
        said = started(stderr, level="warning")
        log = structlog.get_logger()
        log.info("news")
        log.warning("trouble")
        assert [line["event"] for line in said()] == ["trouble"]

    def test_are_for_people_on_a_console(self, stderr: Stderr) -> None:
        started(stderr, style="console")
        structlog.get_logger().info("settled", job="job-1")
        assert "settled" in stderr.getvalue()
        assert not stderr.getvalue().startswith("{")

    def test_are_json_where_there_is_no_terminal(self, stderr: Stderr) -> None:
        said = started(stderr, style="auto")
        structlog.get_logger().info("settled")
        assert said()[0]["event"] == "settled"

    def test_come_once_however_often_logging_is_set_up(self, stderr: Stderr) -> None:
        started(stderr)
        said = started(stderr)
        structlog.get_logger().info("settled")
        assert len(said()) == 1

    @pytest.mark.parametrize("text", ["\udcff", "two\nlines", "ü😀", "\x1b[31m", "\0"])
    def test_can_be_written_whatever_a_value_holds(self, stderr: Stderr, text: str) -> None:
        said = started(stderr)
        structlog.get_logger().info("settled", job=text)
        stderr.getvalue().encode()
        assert len(said()) == 1

    def test_show_bytes_that_are_no_text(self, stderr: Stderr) -> None:
        said = started(stderr)
        structlog.get_logger().info("settled", job="a\udcff")
        assert said()[0]["job"] == r"a\udcff"

    @pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", ValueError("x"), float("nan")])
    def test_can_hold_any_value(self, stderr: Stderr, value: Any) -> None:
        said = started(stderr)
        structlog.get_logger().info("settled", value=value)
        assert len(said()) == 1


class TestSecrets:
    @pytest.mark.parametrize(
        "facts",
        [
            {"url": f"amqp://user:{SECRET}@rabbit"},
            {"headers": {"inner": {"password": SECRET}}},
            {"urls": ["x", f"amqp://user:{SECRET}@rabbit"]},
            {"pair": ("x", SECRET)},
            {"error": ValueError(SECRET)},
            {"raw": SECRET.encode()},
            {"nested": [{"a": [SECRET]}]},
        ],
        ids=lambda facts: next(iter(facts)),
    )
    def test_are_masked_wherever_they_stand(self, stderr: Stderr, facts: dict[str, Any]) -> None:
        started(stderr)
        structlog.get_logger().info("connecting", **facts)
        assert SECRET not in stderr.getvalue()
        assert "***" in stderr.getvalue()

    def test_are_masked_in_the_event(self, stderr: Stderr) -> None:
        said = started(stderr)
        structlog.get_logger().info(f"connecting with {SECRET}")
        assert said()[0]["event"] == "connecting with ***"

    def test_are_masked_in_an_exception(self, stderr: Stderr) -> None:
        started(stderr, level="debug")
        try:
            fail()
        except ValueError:
            structlog.get_logger().exception("a bug")
        assert SECRET not in stderr.getvalue()

    def test_are_masked_in_what_libraries_log(self, stderr: Stderr) -> None:
        said = started(stderr)
        logging.getLogger("some.library").warning("connecting with %s", SECRET)
        assert said()[0]["event"] == "connecting with ***"

    def test_are_masked_in_the_spelling_of_a_repr(self, stderr: Stderr) -> None:
        said = started(stderr, secrets=("sehr\\geheim",))
        structlog.get_logger().info("connecting", error=ValueError("at sehr\\geheim"))
        assert said()[0]["error"] == "ValueError('at ***')"

    def test_that_turn_up_later_are_masked_too(self, stderr: Stderr) -> None:
        said = started(stderr)
        hide(["nagelneu"])
        structlog.get_logger().info(f"{SECRET} nagelneu")
        assert said()[0]["event"] == "*** ***"

    def test_that_hold_one_another_are_masked_whole(self, stderr: Stderr) -> None:
        said = started(stderr, secrets=("geheim-und-lang", "geheim-und"))
        structlog.get_logger().info("geheim-und-lang geheim-und")
        assert said()[0]["event"] == "*** ***"

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("amqp://bridge:a@rabbit:5672", "amqp://bridge:***@rabbit:5672"),
            ("amqp://bridge:a@b@rabbit and b", "amqp://bridge:***@rabbit and b"),
            ("amqp://bridge:12345/topsecret@host/", "amqp://bridge:***@host/"),
            ("at http://:x@proxy:3128 it ends", "at http://:***@proxy:3128 it ends"),
            ("Authorization: Bearer abc", "Authorization: Bearer ***"),
            ("(b'Authorization', b'Basic dTpw')", "(b'Authorization', b'Basic ***')"),
            ("http://kestra:8080/api", "http://kestra:8080/api"),
        ],
    )
    def test_are_masked_by_their_position(self, stderr: Stderr, text: str, shown: str) -> None:
        said = started(stderr, secrets=())
        structlog.get_logger().info(text)
        assert said()[0]["event"] == shown

    def test_are_masked_by_their_fields_name(self, stderr: Stderr) -> None:
        said = started(stderr, secrets=())
        structlog.get_logger().info("x", headers={"amqp_password": "a"})
        assert said()[0]["headers"] == {"amqp_password": "***"}

    def test_of_a_letter_or_two_leave_words_alone(self, stderr: Stderr) -> None:
        said = started(stderr, secrets=("a", "in", "bridge"))
        structlog.get_logger().info("a job in the bridge")
        assert said()[0]["event"] == "a job in the bridge"


class TestExceptions:
    def log_one(self, stderr: Stderr, level: str) -> dict[str, Any]:
        said = started(stderr, level=level, secrets=())
        try:
            fail()
        except ValueError:
            structlog.get_logger().exception("a bug")
        (line,) = said()
        return line

    def test_are_one_line_with_the_place(self, stderr: Stderr) -> None:
        line = self.log_one(stderr, "info")
        assert line["error"].startswith(f"ValueError: it broke at {SECRET} (test_log.py:")
        assert "Traceback" not in stderr.getvalue()

    def test_have_a_traceback_at_level_debug(self, stderr: Stderr) -> None:
        assert "Traceback" in self.log_one(stderr, "debug")["exception"]

    def test_of_libraries_are_one_line_too(self, stderr: Stderr) -> None:
        said = started(stderr)
        try:
            fail()
        except ValueError:
            logging.getLogger("some.library").exception("it failed")
        (line,) = said()
        assert line["error"].startswith("ValueError: it broke at *** (test_log.py:")

    def test_can_be_given_as_a_value(self, stderr: Stderr) -> None:
        said = started(stderr)
        structlog.get_logger().error("a bug", exc_info=ValueError("it broke"))
        assert said()[0]["error"] == "ValueError: it broke"


class TestLibraries:
    @pytest.mark.parametrize(
        "name", ["aio_pika.robust", "aiormq.connection", "httpx", "httpcore.http11", "asyncio"]
    )
    @pytest.mark.parametrize(("level", "heard"), [("info", False), ("debug", True)])
    def test_of_libraries_that_log_what_we_log_are_shown_at_debug_only(
        self, stderr: Stderr, name: str, level: str, heard: bool
    ) -> None:
        started(stderr, level=level)
        logging.getLogger(name).error("chatter")
        assert ("chatter" in stderr.getvalue()) is heard

    def test_are_named_in_their_lines(self, stderr: Stderr) -> None:
        said = started(stderr)
        logging.getLogger("some.library").warning("look")
        assert (said()[0]["logger"], said()[0]["level"]) == ("some.library", "warning")
