"""What the commands for machines print, and the exit codes of `machine run`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cli.machine.exit_codes import OUTCOMES
from bridge.cli.machine.output import LineWriter
from bridge.cli.machine.run import EPILOG
from bridge.cli.machine.table import print_table
from bridge.machines.machine import Machine
from bridge.machines.run.report import EXIT_CODES
from bridge.machines.ssh import LoginDenied
from tests.unit.machines.support import TAGS


def _through(lines: Callable[[LineWriter], Any]) -> bytes:
    """The bytes at the other end of a pipe."""
    reader, writer = os.pipe()

    async def write_and_read() -> bytes:
        async def write() -> None:
            await lines(LineWriter(writer))
            os.close(writer)

        task = asyncio.create_task(write())
        content = b"".join([part async for part in _parts(reader)])
        await task
        return content

    try:
        return asyncio.run(write_and_read())
    finally:
        os.close(reader)


async def _parts(reader: int) -> Any:
    while part := await asyncio.to_thread(os.read, reader, 7_000):
        yield part


@given(st.lists(st.binary(max_size=20) | st.just(b"x" * 70_000), max_size=4))
def test_output_is_passed_on_byte_for_byte(pieces: list[bytes]) -> None:
    async def write(lines: LineWriter) -> None:
        for piece in pieces:
            await lines.write(piece)
        await lines.flush()

    assert _through(write) == b"".join(pieces)


def test_an_incomplete_line_is_held_back() -> None:
    async def write(lines: LineWriter) -> None:
        await lines.write(b"one\ntw")

    assert _through(write) == b"one\n"


def test_a_line_of_ours_starts_on_a_new_line() -> None:
    async def write(lines: LineWriter) -> None:
        await lines.write(b"unfinished")
        await lines.flush()
        await lines.line("ours")

    assert _through(write) == b"unfinished\nours\n"


def test_a_user_that_the_machine_refuses_has_the_exit_code_of_the_help() -> None:
    code = EXIT_CODES[OUTCOMES[LoginDenied]]
    assert code == 77
    assert f"{code}  the machine refuses the user or the key" in EPILOG


MACHINE = Machine(
    id="1",
    name="kestra-" + "n" * 56,
    state="running",
    host="2001:db8:1111:2222:3333:4444:5555:6666",
    port=22,
    user="job",
    host_key="",
    tags=replace(TAGS, execution="e" * 33, job="j" * 200),
    dead=False,
)


def test_a_table_of_machines_is_as_wide_in_a_pipe_as_it_needs_to_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table([MACHINE])
    _, row = capsys.readouterr().out.splitlines()
    cells = row.split()
    assert cells[:2] == [MACHINE.name, f"[{MACHINE.host}]:22"]
    assert cells[3:5] == [MACHINE.tags.execution, MACHINE.tags.job]


def test_a_terminal_gets_no_escape_code_of_a_jobs_name(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([replace(MACHINE, tags=replace(TAGS, job="a\x1b[31mb\r\n"))])
    assert r"a\x1b[31mb\r\n" in capsys.readouterr().out
