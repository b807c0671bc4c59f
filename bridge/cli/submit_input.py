"""The jobs that `submit` is given, by options or in a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.errors import SettingsError
from bridge.operate.submission import drafts, files
from bridge.operate.submission.drafts import Draft
from bridge.operate.submission.files import Format
from bridge.text import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleJob:
    """The options that describe a single job."""

    inputs: Sequence[str] | None
    inputs_json: str | None
    labels: Sequence[str] | None
    job_id: str | None

    def draft(self, *, flow: str | None) -> Draft:
        """The job. The flow only counts as something to submit; it is filled in later.

        Raises:
            SettingsError: nothing is given, or an input twice.
            InvalidMessage: an option can't be read.
        """
        if flow is None and self.inputs_json is None and not self.inputs:
            raise SettingsError(
                "nothing to submit: give --flow, --input, --inputs-json or --file; --help has "
                "examples"
            )
        inputs: dict[str, Any] = dict(drafts.fields(self.inputs or (), option="--input"))
        more: dict[str, Any] = {}
        if self.inputs_json is not None:
            more = drafts.json_object(self.inputs_json, option="--inputs-json")
        both = sorted(inputs.keys() & more.keys())
        if both:
            raise SettingsError(f"input {both[0]} is given by --input and by --inputs-json")
        labels = drafts.fields(self.labels or (), option="--label")
        return Draft(id=self.job_id, body={"inputs": inputs | more, "labels": labels})


def read_file(path: str, style: Format, single: SingleJob) -> list[Draft]:
    """The jobs of a file, or of standard input for `-`.

    Raises:
        SettingsError: it can't be read, or there are options for a single job too.
        InvalidMessage: it isn't of that format.
    """
    misplaced = {
        "--input": single.inputs,
        "--inputs-json": single.inputs_json,
        "--label": single.labels,
        "--id": single.job_id,
    }
    for option, value in misplaced.items():
        if value:
            raise SettingsError(f"{option} is for a single job and can't be used with --file")
    name = path
    try:
        if path == "-":
            name = "standard input"
            data = sys.stdin.buffer.read()
        else:
            data = Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"can't read {printable(path)}: {error.strerror}") from error
    return files.read(data, name=name, style=style)
