"""The settings of machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import SettingsError
from bridge.machines.settings import MachineSettings
from bridge.settings import load
from deploy.local.paths import cache_directory
from tests.unit.machines.support import SECRET, settings


@pytest.mark.parametrize("user", ["root", "Job", "a b", "x; id", "", "-a", "$(id)"])
def test_a_user_that_can_not_be_an_ordinary_one_is_refused(
    user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_MACHINE_SECRET", SECRET)
    monkeypatch.setenv("BRIDGE_MACHINE_USER", user or " ")
    with pytest.raises(
        SettingsError, match="BRIDGE_MACHINE_USER must be the name of an ordinary user"
    ):
        load(MachineSettings)


@pytest.mark.parametrize("reach", ['["localhost"]', '[":80"]', '["a:0"]', '["a:70000"]', '["a:x"]'])
def test_what_machines_may_reach_must_be_host_and_port(
    reach: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_MACHINE_SECRET", SECRET)
    monkeypatch.setenv("BRIDGE_MACHINE_REACH", reach)
    with pytest.raises(SettingsError, match=r"BRIDGE_MACHINE_REACH\[0\] must be host:port"):
        load(MachineSettings)


def test_a_file_of_metrics_that_nobody_would_read_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BRIDGE_MACHINE_SECRET", SECRET)
    monkeypatch.setenv("BRIDGE_MACHINE_METRICS_FILE", "/var/lib/node/machines.txt")
    with pytest.raises(SettingsError, match=r"BRIDGE_MACHINE_METRICS_FILE must end with \.prom"):
        load(MachineSettings)


def test_the_images_are_looked_for_where_they_are_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KESTRA_BRIDGE_CACHE", str(tmp_path))
    assert settings().machine_image_directory == cache_directory("machine-images")
