"""The table of settings in bridge/settings/README.md says what the models say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bridge.machines.settings import MachineSettings
from bridge.settings import Settings
from deploy.local.paths import REPOSITORY
from deploy.local.settings_reference import FILE_WITH_THE_TABLE, reference

ROWS = [
    [cell.strip() for cell in line.split(" | ")]
    for line in reference().splitlines()
    if line.startswith("| `BRIDGE_")
]


def row(name: str) -> list[str]:
    """The cells of a setting: its names, values, default and meaning."""
    (found,) = [cells for cells in ROWS if f"`BRIDGE_{name.upper()}`" in cells[0]]
    return found


def test_the_file_is_what_the_models_make() -> None:
    assert FILE_WITH_THE_TABLE.read_text() == reference(), (
        "run: python -m deploy.local.settings_reference"
    )


@pytest.mark.parametrize(
    "name", sorted({*Settings.model_fields, *MachineSettings.model_fields}), ids=str
)
def test_each_setting_is_named_in_one_row(name: str) -> None:
    assert row(name)


@pytest.mark.parametrize(
    ("name", "values", "default"),
    [
        ("amqp_url", "text", "required"),
        ("amqp_username", "text", ""),
        ("kestra_ca", "path", ""),
        ("kestra_tenant", "text", "`main`"),
        ("prefetch", "1 to 65,535", "`8`"),
        ("job_timeout", "above 0, to 31,536,000", "`21600`"),
        ("consumer_timeout", "1 to 100,000,000", ""),
        ("retry_delays", "JSON list", "`[30, 300]`"),
        ("allowed_flows", "JSON list", ""),
        ("ack_warning", "`true`, `false`", "`true`"),
        ("queue_type", "`auto`, `classic`, `quorum`", "`auto`"),
        ("machine_secret", "text", "required"),
        ("machine_directory", "path", ""),
    ],
)
def test_a_row_has_the_values_and_the_default(name: str, values: str, default: str) -> None:
    assert row(name)[1:3] == [values, default]


def test_a_setting_and_its_file_share_a_row() -> None:
    assert row("kestra_token")[0] == "| `BRIDGE_KESTRA_TOKEN` or `BRIDGE_KESTRA_TOKEN_FILE`"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_meaning_fits_a_cell(row: list[str]) -> None:
    assert (len(row), row[3].endswith(". |")) == (4, True)


def test_the_consumer_does_not_load_machines_for_it() -> None:
    code = (
        "import sys, bridge.settings, bridge.consume.service; "
        "print([name for name in sys.modules if name.startswith('bridge.machines')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
