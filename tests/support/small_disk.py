"""A disk with little room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, limits: str) -> Iterator[Path]:
    """A disk at that place, with those limits of a tmpfs, such as `size=4m`.

    Skips the test where nothing can be mounted.
    """
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", limits, "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
