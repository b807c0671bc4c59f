"""The QEMU driver, without QEMU."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.errors import MachineRejected, MachineUnavailable
from bridge.machines.qemu import driver as qemu
from bridge.machines.qemu.accelerator import choose_accelerator, probe_limit
from bridge.machines.qemu.command import GuestNetwork
from bridge.machines.qemu.folders import check_place
from bridge.machines.qemu.processes import run
from deploy.local import machine_image


def driver_in(directory: Path) -> qemu.QemuDriver:
    return qemu.QemuDriver(directory, images=directory, network=GuestNetwork(), accelerator="auto")


def create_in(directory: Path, name: str) -> None:
    """Create a machine there, of an image that isn't there."""
    driver = driver_in(directory)
    image: Any = SimpleNamespace(extra={"path": str(directory)})
    driver.create_node(
        name,
        driver.list_sizes()[0],
        image,
        ex_user="job",
        ex_authorized_key="",
        ex_host_key="",
        ex_tags={},
        ex_deadline=0.0,
    )


def test_the_default_image_is_the_one_that_is_made() -> None:
    assert machine_image.NAME == qemu.DEFAULT_IMAGE


def test_another_recipe_is_another_image() -> None:
    other = replace(machine_image.MACHINE, files=[("sbin/machine-init", "#!/bin/sh", "755")])
    assert other.digest != machine_image.MACHINE.digest


class Kernel:
    """A kernel that boots under KVM or doesn't, and counts how often it was tried."""

    def __init__(self, *, boots: bool) -> None:
        self.tries = 0
        self._boots = boots

    def __call__(self, _: Path) -> bool:
        self.tries += 1
        return self._boots


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A device that exists and opens."""
    device = tmp_path / "kvm"
    device.touch()
    return device


def test_a_kernel_that_never_boots_under_kvm_is_tried_once(tmp_path: Path, device: Path) -> None:
    kernel = Kernel(boots=False)
    chosen = [
        choose_accelerator("auto", tmp_path, tmp_path, device=device, boots=kernel)
        for _ in range(2)
    ]
    assert (chosen, kernel.tries) == (["tcg", "tcg"], 1)


def test_kvm_is_used_if_a_kernel_boots_under_it(tmp_path: Path, device: Path) -> None:
    kernel = Kernel(boots=True)
    assert choose_accelerator("auto", tmp_path, tmp_path, device=device, boots=kernel) == "kvm"


def test_a_kept_answer_that_is_none_is_found_out_anew(tmp_path: Path, device: Path) -> None:
    kernel = Kernel(boots=True)
    choose_accelerator("auto", tmp_path, tmp_path, device=device, boots=kernel)
    kept = tmp_path / ".accelerator"
    kept.write_text(kept.read_text().replace("kvm", "xen"))
    assert choose_accelerator("auto", tmp_path, tmp_path, device=device, boots=kernel) == "kvm"


def test_without_the_device_no_kernel_is_tried(tmp_path: Path) -> None:
    kernel = Kernel(boots=True)
    device = tmp_path / "no-device"
    assert choose_accelerator("auto", tmp_path, tmp_path, device=device, boots=kernel) == "tcg"
    assert kernel.tries == 0


def test_an_isolated_network_restricts_the_guest_and_forwards_what_is_named() -> None:
    network = GuestNetwork(reach=[("db,1", 5432)])
    netdev = network.netdev(2222)
    assert "restrict=on" in netdev
    assert "hostfwd=tcp:127.0.0.1:2222-:22" in netdev
    assert "guestfwd=tcp:10.0.2.100:5432-cmd:" in netdev
    assert netdev.endswith(" db,,1 5432")


def test_the_console_ends_with_its_last_line_that_is_not_blank(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "console").write_text("first\r\nlast \r\n\r\n")
    assert driver_in(tmp_path).console("m") == "last"


@pytest.mark.parametrize(
    ("load", "processors", "seconds"),
    [(0.1, 2, 5.0), (2.0, 2, 5.0), (20.0, 2, 50.0), (20.0, 64, 5.0), (500.0, 2, 60.0)],
)
def test_a_busy_host_gives_kvm_more_time_to_show_that_it_works(
    load: float, processors: int, seconds: float
) -> None:
    assert probe_limit(load, processors) == seconds


def test_the_programs_of_qemu_get_nothing_of_our_environment_that_they_need_not_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BRIDGE_MACHINE_SECRET", "hidden")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    run(["sh", "-c", f"env >{tmp_path}/seen"])
    seen = (tmp_path / "seen").read_text()
    assert ("PATH=" in seen, "hidden" in seen) == (True, False)


@pytest.mark.parametrize("name", ["../x", "A", "a_b", "", "-a", "a-", "a" * 64, "a/b"])
def test_a_name_that_could_lead_out_of_the_folder_is_rejected(name: str, tmp_path: Path) -> None:
    with pytest.raises(MachineRejected, match="is not a valid machine name"):
        create_in(tmp_path, name)


def test_folders_that_are_no_machines_are_left_alone(tmp_path: Path) -> None:
    ours = [tmp_path / name for name in ("documents/deep", ".ssh", "photos")]
    for folder in ours:
        folder.mkdir(parents=True)
    (tmp_path / ".ssh" / "known_hosts").touch()
    (tmp_path / "documents" / "thesis").touch()
    assert driver_in(tmp_path).list_nodes() == []
    assert all(folder.is_dir() for folder in ours)
    assert (tmp_path / ".ssh" / "known_hosts").exists()


def test_a_file_in_the_folder_s_place_is_not_taken_for_a_host_without_machines(
    tmp_path: Path,
) -> None:
    file = tmp_path / "machines"
    file.touch()
    with pytest.raises(MachineRejected, match=f"can't use {file}.*: Not a directory"):
        driver_in(file).list_nodes()


def test_a_folder_beside_a_hidden_one_of_its_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".config").mkdir()
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings").touch()
    driver_in(tmp_path).list_nodes()
    assert (tmp_path / "config" / "settings").exists()


def test_a_draft_that_a_killed_create_left_is_removed(tmp_path: Path) -> None:
    draft = tmp_path / ".kestra-a"
    draft.mkdir()
    (draft / "host_key").touch()
    driver_in(tmp_path).list_nodes()
    assert not draft.exists()


def state(**changes: object) -> str:
    """A machine's state as its file has it, with those changes."""
    fields = {
        "id": "one",
        "name": "kestra-a",
        "port": 2222,
        "size": "small",
        "created": 1.5,
        "tags": {"owner": "us"},
    }
    return json.dumps({**fields, **changes})


def test_a_machine_is_listed_with_what_its_state_says(tmp_path: Path) -> None:
    (tmp_path / "kestra-a").mkdir()
    (tmp_path / "kestra-a" / "machine.json").write_text(state())
    (node,) = driver_in(tmp_path).list_nodes()
    assert (node.id, node.extra["port"], node.extra["tags"]) == ("one", 2222, {"owner": "us"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        state()[:20],
        state(port="2222"),
        state(tags=[]),
        state(tags={"owner": 1}),
        state(created="now"),
    ],
)
def test_a_state_that_is_damaged_hides_its_machine_alone_and_ends_none(
    tmp_path: Path, text: str
) -> None:
    for name, content in (("kestra-a", state()), ("kestra-b", text)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "machine.json").write_text(content)
    (node,) = driver_in(tmp_path).list_nodes()
    assert node.name == "kestra-a"
    assert (tmp_path / "kestra-b" / "machine.json").read_text() == text


def test_a_state_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "kestra-a").mkdir()
    os.mkfifo(tmp_path / "kestra-a" / "machine.json")
    assert driver_in(tmp_path).list_nodes() == []


def test_a_folder_that_is_no_machines_gives_no_machine_its_place(tmp_path: Path) -> None:
    (tmp_path / "kestra-a").mkdir()
    (tmp_path / "kestra-a" / "mine").touch()
    with pytest.raises(MachineRejected, match="kestra-a is in the way, and is no machine's"):
        create_in(tmp_path, "kestra-a")
    assert (tmp_path / "kestra-a" / "mine").exists()


@pytest.mark.parametrize("left", ["machine.json", "disk.qcow2"])
def test_what_is_left_of_a_machine_gives_the_next_one_its_place(tmp_path: Path, left: str) -> None:
    (tmp_path / "kestra-a").mkdir()
    (tmp_path / "kestra-a" / left).touch()
    check_place(tmp_path, "kestra-a")


def test_a_machine_that_its_deadline_overtakes_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for program, status in (("qemu-img", 0), ("qemu-system-x86_64", 1)):
        (programs / program).write_text(f"#!/bin/sh\nexit {status}\n")
        (programs / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    with pytest.raises(MachineUnavailable, match="kestra-a had not started by its deadline"):
        create_in(tmp_path / "machines", "kestra-a")


def test_a_lock_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(MachineRejected, match=r"can't use .*\.lock: Is a directory"):
        driver_in(tmp_path).list_nodes()
