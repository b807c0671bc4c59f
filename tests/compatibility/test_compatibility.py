"""The unit tests pass where users may run the package: on the lowest versions of its dependencies,
and on each Python that it supports.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deploy.local.paths import REPOSITORY
from tests.compatibility.environments import OWN, SUITES

# On this Python every test runs anyway.
ELSEWHERE = ["lowest", *(version for version in SUITES if version != OWN)]


# Its environment is made on first use.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("where", ELSEWHERE)
def test_the_unit_tests_pass(where: str) -> None:
    # One worker: these tests wait for most of their time, and the rest of the run goes on beside.
    command = [sys.executable, "-m", "tests.compatibility", where, "--workers", "1"]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    finished = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=ours,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-20_000:]
