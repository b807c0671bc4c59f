"""`kestra-bridge schema`: the JSON Schema of a job message."""

from __future__ import annotations

import json

import typer

from bridge.cli.common import Json
from bridge.job.decode import json_schema

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(short_help="Print the JSON Schema of a job message.")
def schema(as_json: Json = False) -> None:
    """Print the JSON Schema of a job message's body. It is always JSON; with --json it is on one
    line.
    """
    print(json.dumps(json_schema(), indent=None if as_json else 2))
