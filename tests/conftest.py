"""What holds for all tests: no setting leaks in, and in CI nothing is skipped unnoticed."""

from __future__ import annotations

import importlib
import os
import signal
import ssl
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests.support import given, scheduling

# How long an example takes says more of the machine than of the code.
settings.register_profile("any machine", deadline=None)
settings.register_profile("few examples", deadline=None, max_examples=10)
settings.load_profile("any machine")

# A run in the background of a shell ignores Ctrl-C, and would hand that on to every child that is
# to be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)


def share_default_contexts() -> None:
    """Let the clients of httpx share what they trust by default, which takes each 30 ms to read.

    The tests make thousands of clients, nearly all of them to speak plain HTTP.
    """
    transports: Any = importlib.import_module("httpx._transports.default")
    original = transports.create_ssl_context
    made: dict[tuple[str | None, str | None], ssl.SSLContext] = {}

    def shared(**options: Any) -> ssl.SSLContext:
        if options.get("verify", True) is not True or options.get("cert"):
            return cast("ssl.SSLContext", original(**options))
        trusted = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
        if trusted not in made:
            made[trusted] = original()
        return made[trusted]

    transports.create_ssl_context = shared


share_default_contexts()


def pytest_addoption(parser: pytest.Parser) -> None:
    given.add_options(parser)


def pytest_report_header(config: pytest.Config) -> list[str]:
    return given.described(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where units of tests run side by side, begin with the long ones."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: -scheduling.seconds_of(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, keep units together, which are not always files."""
    if config.getvalue("dist") != "loadfile":
        return None
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = scheduling.unit_of
    return scheduler


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the settings of whoever runs it, in the environment or in a `.env` file."""
    for name in [name for name in os.environ if name.startswith(("BRIDGE_", "OTEL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if (
        reporter
        and os.environ.get("CI")
        and skipped
        and not given.given(session.config)
        and exitstatus == pytest.ExitCode.OK
    ):
        reporter.write_line(f"CI: {len(skipped)} skipped tests count as failures", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
