"""What hatch builds has the first page, the code and nothing that is only for readers of the
repository."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from deploy.local.paths import REPOSITORY


def test_the_wheel_shows_the_first_page_and_ships_no_other_document(tmp_path: Path) -> None:
    builder = WheelBuilder(str(REPOSITORY))
    (built,) = builder.build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        names = wheel.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        page = wheel.read(metadata).decode()
    assert (REPOSITORY / "README.md").read_text().strip() in page
    assert "bridge/__main__.py" in names
    assert [name for name in names if name.startswith("bridge/") and name.endswith(".md")] == [
        "bridge/_flows/README.md"
    ]


def test_the_source_distribution_has_every_document(tmp_path: Path) -> None:
    (built,) = SdistBuilder(str(REPOSITORY)).build(directory=str(tmp_path))
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    documents = {"README.md", "CHANGELOG.md", "bridge/README.md", "deploy/README.md"}
    assert documents <= names
