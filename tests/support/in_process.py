"""Commands run in the tests' own process, on another thread, so that the test's servers go on.

A process of its own would first import the package, which takes most of a second. What shows only
in a process, such as signals, terminals and pipes, is for `tests.support.harness.commanding`.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from unittest.mock import patch

import structlog

from bridge.cli import signals
from bridge.cli.commands import main
from tests.support.harness import Ended, surroundings


async def command(*words: str, stdin: str = "", **settings: str) -> Ended:
    """Run `kestra-bridge` with these words and settings; one at a time."""
    async with asyncio.timeout(60):
        return await asyncio.to_thread(_run, words, stdin, settings)


def command_and_wait(*words: str, **settings: str) -> Ended:
    """The same where nothing else has to go on meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_run, words, "", settings).result(60)


def _run(words: tuple[str, ...], stdin: str, settings: dict[str, str]) -> Ended:
    out, err = _stream(), _stream()
    argv = ["kestra-bridge", *words]
    with (
        _logging_as_before(),
        patch.dict(os.environ, surroundings(settings), clear=True),
        patch.multiple(sys, argv=argv, stdin=_stream(stdin.encode()), stdout=out, stderr=err),
        # Only a process's first thread may handle signals.
        patch.object(signals, "cancelling_signals", tuple),
    ):
        code = _exit_code()
    return Ended(code, _text(out), _text(err))


def _exit_code() -> int:
    try:
        main()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    return 0


@contextmanager
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()


def _stream(content: bytes = b"") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()
