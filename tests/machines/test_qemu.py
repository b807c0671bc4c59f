"""Machines on this host, for real: created, found, destroyed and reaped, in whichever order things
go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from bridge.errors import MachineRejected, MachineUnavailable, SettingsError
from bridge.machines.order import name_of
from bridge.machines.reaping import reap
from tests.machines.host import NOTHING, TIMEOUT, Host, host_in, said_on
from tests.support.harness import eventually
from tests.support.small_disk import small_disk
from tests.support.standin import Ends, Standin

pytestmark = pytest.mark.timeout(1200)


async def has_ended(_: str) -> bool:
    return True


async def still_runs(_: str) -> bool:
    return False


@contextmanager
def served() -> Iterator[int]:
    """A service on this host's loopback that says `hello` to each connection; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"hello\n")

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


class Shared(NamedTuple):
    """A machine, as the command that made it printed it, and the host on which it runs."""

    host: Host
    said: dict[str, Any]


@pytest.fixture(scope="module")
def shared(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A machine that runs, for tests that change nothing."""
    with host_in(tmp_path_factory.mktemp("shared"), image) as host:
        yield Shared(host, host.create("3xAbC", "--wait"))


async def test_a_machine_runs_a_command_as_an_ordinary_user(shared: Shared) -> None:
    command = "whoami; hostname; git --version >/dev/null && python3 -c 'print(6*7)'"
    assert await said_on(shared.said, command) == f"job\n{shared.said['name']}\n42\n"


async def test_the_command_prints_everything_that_a_program_needs_to_log_in(
    shared: Shared,
) -> None:
    assert await said_on(shared.said, "echo $HOME") == "/home/job\n"


async def test_the_settings_choose_the_user(host: Host) -> None:
    machine = await host.machines(machine_user="analyst").create("3xAbC", "job", 600, wait=True)
    assert await said_on(machine, "id -un; touch ~/mine && echo written") == "analyst\nwritten\n"


async def test_a_machine_keeps_its_host_key_from_the_user(shared: Shared) -> None:
    command = (
        "cat /run/keys/host /sys/firmware/qemu_fw_cfg/by_name/opt/machine/host_key/raw 2>&1 "
        "| grep -c denied"
    )
    assert await said_on(shared.said, command) == "2\n"


async def test_a_full_disk_of_this_host_is_an_error_on_the_machine_which_goes_on(
    image: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "size=32m") as disk, host_in(disk, image) as host:
        machine = await host.machines().create("3xAbC", "job", 600, wait=True)
        fill = "head -c 60M /dev/urandom >a; sync a 2>/dev/null || echo failed"
        assert await said_on(machine, fill) == "failed\n"


async def test_a_machine_reaches_the_named_addresses_and_nothing_else_of_this_host(
    host: Host,
) -> None:
    read = "timeout {} bash -c 'head -n1 </dev/tcp/{}/{}' 2>/dev/null || echo refused"
    with served() as named, served() as other:
        machines = host.machines(machine_reach=[f"127.0.0.1:{named}"])
        machine = await machines.create("3xAbC", "job", 600, wait=True)
        open_to_it = [(200, "host.internal", named), (200, "host.internal", named)]
        # What isn't answers nothing, however long one waits.
        closed_to_it = [(2, "host.internal", other), (2, "10.0.2.2", other)]
        said = [
            await said_on(machine, read.format(*place)) for place in (*open_to_it, *closed_to_it)
        ]
    assert said == ["hello\n", "hello\n", "refused\n", "refused\n"]


async def test_an_open_network_reaches_this_host(host: Host) -> None:
    with served() as port:
        machine = await host.machines(machine_network="open").create("3xAbC", "job", 600, wait=True)
        command = f"timeout 200 bash -c 'head -n1 </dev/tcp/host.internal/{port}'"
        assert await said_on(machine, command) == "hello\n"


async def test_the_size_decides_processors_and_memory(host: Host) -> None:
    machine = await host.machines().create("3xAbC", "job", 600, size="medium", wait=True)
    said = await said_on(machine, "nproc; free -m | awk '/^Mem:/ { print ($2 > 1500) }'")
    assert said == "2\n1\n"


def test_another_process_destroys_a_machine_without_a_trace(host: Host) -> None:
    host.create("3xAbC")
    assert len(host.processes) == 1
    assert host("destroy", "--execution", "3xAbC").returncode == 0
    assert host.left == NOTHING


def test_destroying_twice_is_fine(host: Host) -> None:
    said = host.create("3xAbC")
    answers = [host("destroy", "--name", said["name"], "--json") for _ in range(2)]
    assert [answer.returncode for answer in answers] == [0, 0]
    assert [json.loads(answer.stdout)["destroyed"] for answer in answers] == [[said["name"]], []]


def test_two_processes_that_create_at_once_come_to_one_machine(host: Host) -> None:
    words = ("create", "--execution", "3xAbC", "--deadline", "600", "--json")
    children = [host.start(*words) for _ in range(2)]
    assert [child.wait(TIMEOUT) for child in children] == [0, 0]
    first, second = ({**json.loads(child.log.read_text()), "state": None} for child in children)
    assert first == second
    assert len(host.processes) == 1


def test_a_second_create_finds_the_first_ones_machine(host: Host) -> None:
    assert host.create("3xAbC") == host.create("3xAbC")


def test_machines_of_several_executions_live_side_by_side(host: Host) -> None:
    ports = {host.create(execution)["port"] for execution in ("a", "A", "b")}
    assert len(ports) == len(host.processes) == 3
    listed = json.loads(host("list", "--json").stdout)
    assert {machine["execution"] for machine in listed} == {"a", "A", "b"}


def test_a_machine_that_died_is_replaced(host: Host) -> None:
    host.create("3xAbC")
    (process,) = host.processes
    process.kill()
    process.wait(TIMEOUT)
    host.create("3xAbC")
    assert len(host.processes) == 1


async def test_reap_destroys_the_machine_of_an_execution_that_has_ended(host: Host) -> None:
    await host.machines().create("3xAbC", "job", 600)
    sweep = await reap(host.machines(), has_ended)
    assert [row.reason for row in sweep.reaped] == ["execution 3xAbC has ended"]
    assert host.left == NOTHING


async def test_reap_leaves_the_machine_of_an_execution_that_runs(host: Host) -> None:
    await host.machines().create("3xAbC", "job", 600)
    assert (await reap(host.machines(), still_runs)).kept == 1
    assert len(host.processes) == 1


async def test_five_machines_end_at_their_deadlines_though_all_that_made_them_is_gone(
    host: Host,
) -> None:
    creates = [
        host.start("create", "--execution", f"e{number}", "--deadline", "90", "--wait")
        for number in range(5)
    ]

    def running() -> int:
        # QEMU writes this file once it runs by itself.
        return len(list(host.folder.glob("*/pid")))

    await eventually(lambda: running() == 5, "five machines run", timeout=TIMEOUT)
    for create in creates:
        create.kill()
    await eventually(lambda: host.left == NOTHING, "none is left", timeout=TIMEOUT)


async def test_a_dry_run_destroys_nothing(host: Host) -> None:
    await host.machines().create("3xAbC", "job", 600)
    assert len((await reap(host.machines(), has_ended, dry_run=True)).reaped) == 1
    assert len(host.processes) == 1


async def test_reaps_twice_and_side_by_side_are_fine(host: Host) -> None:
    for execution in ("a", "b", "c"):
        await host.machines().create(execution, "job", 600)
    sweeps = await asyncio.gather(*(reap(host.machines(), has_ended) for _ in range(3)))
    sweeps.append(await reap(host.machines(), has_ended))
    assert [list(sweep.troubles) for sweep in sweeps] == [[], [], [], []]
    assert host.left == NOTHING


async def test_another_bridges_machines_are_never_touched(host: Host) -> None:
    await host.machines(machine_secret="another bridge's own secret").create("3xAbC", "job", 600)
    sweep = await reap(host.machines(), has_ended)
    assert (len(sweep.reaped), sweep.kept) == (0, 0)
    assert len(host.processes) == 1


async def test_the_reap_command_asks_kestra(host: Host) -> None:
    async with Standin() as kestra:
        kestra.flow("bridge.jobs", "example", Ends())
        created = await _execution(kestra)
        await host.machines().create(created, "job", 600)
        done = await asyncio.to_thread(
            host,
            "reap",
            kestra_url=kestra.url,
            kestra_username=kestra.username,
            kestra_password=kestra.password,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"destroyed {name_of(created)}: execution {created} has ended\n"
    assert host.left == NOTHING


async def test_reap_without_kestra_still_keeps_deadlines_and_says_what_it_could_not_ask(
    host: Host,
) -> None:
    late = await host.machines().create("late", "job", 600)
    # The machine itself goes by the deadline that it was made with.
    node = await host.machines().inventory.node(late.id)
    assert node
    node.driver.ex_tag(node, "kestra-deadline", "1000")
    await host.machines().create("early", "job", 600)
    done = await asyncio.to_thread(host, "reap", "--json", kestra_url="http://127.0.0.1:1")
    told = json.loads(done.stdout)
    assert (done.returncode, [row["execution"] for row in told["reaped"]]) == (1, ["late"])
    assert "can't reach Kestra" in told["troubles"][0]
    assert host.folders == [name_of("early")]


async def test_what_a_killed_creator_leaves_is_reaped(host: Host) -> None:
    child = host.start("create", "--execution", "3xAbC", "--deadline", "600", "--wait")
    await eventually(
        lambda: host.folders, "the machine's folder appears", timeout=TIMEOUT, every=0.001
    )
    child.signal(signal.SIGKILL)
    sweep = await reap(host.machines(), has_ended)
    assert sweep.troubles == []
    # What was being started when the folder went has nowhere to be.
    await eventually(lambda: host.left == NOTHING, "nothing is left", timeout=TIMEOUT)


async def test_a_draft_whose_writer_was_killed_is_removed(host: Host) -> None:
    folder = host.folder / f".{name_of('3xAbC')}"
    folder.mkdir(parents=True)
    (folder / "host_key").touch()
    await reap(host.machines(), has_ended)
    assert host.left == NOTHING


async def test_a_stop_in_the_middle_leaves_nothing(host: Host) -> None:
    child = host.start("create", "--execution", "3xAbC", "--deadline", "600", "--wait")
    await eventually(
        lambda: host.folders, "the machine's folder appears", timeout=TIMEOUT, every=0.001
    )
    child.signal(signal.SIGTERM)
    assert await asyncio.to_thread(child.wait, TIMEOUT) == 143
    assert host.left == NOTHING


async def test_a_stop_while_the_machine_boots_leaves_nothing(host: Host) -> None:
    child = host.start("create", "--execution", "3xAbC", "--deadline", "600", "--wait")
    await eventually(lambda: host.processes, "the machine's process runs", timeout=TIMEOUT)
    child.signal(signal.SIGTERM)
    assert await asyncio.to_thread(child.wait, TIMEOUT) == 143
    assert host.left == NOTHING


async def test_a_stopped_create_that_only_found_a_machine_leaves_it_alone(host: Host) -> None:
    machines = host.machines()
    await machines.create("3xAbC", "job", 600)
    task = asyncio.create_task(host.machines().create("3xAbC", "job", 600, wait=True))
    await asyncio.wait([task], timeout=0.5)
    task.cancel()
    await asyncio.wait([task])
    assert await machines.find("3xAbC")


def test_a_machine_that_never_answers_is_reported_and_destroyed(host: Host) -> None:
    done = host(
        "create", "--execution", "3xAbC", "--deadline", "600", "--wait", machine_boot_timeout="0.3"
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "did not answer by SSH within 0.3 s (BRIDGE_MACHINE_BOOT_TIMEOUT)" in done.stderr
    assert host.left == NOTHING


async def test_a_machine_that_dies_while_it_boots_is_reported_and_destroyed(host: Host) -> None:
    task = asyncio.create_task(host.machines().create("3xAbC", "job", 600, wait=True))
    await eventually(lambda: host.machines().find("3xAbC"), "the machine runs", timeout=TIMEOUT)
    (process,) = host.processes
    process.kill()
    with pytest.raises(MachineUnavailable, match="has ended by itself"):
        await task
    assert host.left == NOTHING


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--image", "windows"), "no image 'windows' here; there is debian"),
        (("--size", "enormous"), "no size 'enormous' here; there is large, medium, small"),
    ],
)
def test_a_wrong_image_or_size_makes_one_line_and_no_machine(
    host: Host, words: tuple[str, str], said: str
) -> None:
    done = host("create", "--execution", "3xAbC", "--deadline", "600", *words)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert said in done.stderr
    assert host.left == NOTHING


@pytest.mark.parametrize("execution", ["", "../../etc", "a b", "x" * 34, "$(id)"])
async def test_an_execution_with_an_invalid_id_gets_no_machine(host: Host, execution: str) -> None:
    with pytest.raises(SettingsError, match="is not a valid execution id"):
        await host.machines().create(execution, "job", 600)
    assert host.left == NOTHING


async def test_an_image_that_qemu_can_not_use_leaves_nothing(
    host: Host, image: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "images" / "debian"
    broken.mkdir(parents=True)
    for name in ("kernel", "initrd"):
        shutil.copy(image / name, broken / name)
    (broken / "disk.qcow2").write_bytes(b"no disk")
    with pytest.raises(MachineUnavailable, match=r"^qemu-img failed: .*not in qcow2 format"):
        await host.machines(machine_image_directory=broken.parent).create("3xAbC", "job", 600)
    assert host.left == NOTHING


async def test_without_an_image_the_error_says_so(host: Host, tmp_path: Path) -> None:
    with pytest.raises(MachineRejected, match="no image 'debian' here; there is none at all"):
        await host.machines(machine_image_directory=tmp_path / "nowhere").create(
            "3xAbC", "job", 600
        )


def test_without_qemu_the_error_names_the_packages(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = host("create", "--execution", "3xAbC", "--deadline", "600")
    assert (done.returncode, host.left) == (1, NOTHING)
    assert "qemu-img is not installed (Debian: qemu-system-x86, qemu-utils)" in done.stderr


async def test_a_folder_that_can_not_be_made_is_named(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineUnavailable, match=f"can't use {tmp_path}/file/machines"):
        await host.machines(machine_directory=tmp_path / "file" / "machines").create(
            "3xAbC", "job", 600
        )


def test_other_users_can_read_no_secret_of_a_machine(shared: Shared) -> None:
    folder = shared.host.folder
    places = (folder, folder / shared.said["name"] / "host_key")
    assert [place.stat().st_mode & 0o077 for place in places] == [0, 0]


def test_a_machine_outlives_the_process_that_created_it(shared: Shared) -> None:
    (process,) = shared.host.processes
    assert os.getsid(process.pid) != os.getsid(0)


async def _execution(kestra: Standin) -> str:
    """The id of an execution that has ended."""
    async with httpx.AsyncClient(auth=(kestra.username, kestra.password)) as http:
        answer = await http.post(f"{kestra.url}/api/v1/main/executions/bridge.jobs/example")
    execution = str(answer.json()["id"])
    await eventually(lambda: kestra.executions[execution].ended is not None, "the execution ends")
    return execution
