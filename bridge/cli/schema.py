"""`kestra-bridge schema`: what a job message's body may be."""

from __future__ import annotations

import json

from bridge.cli.app import Json, app
from bridge.job import json_schema


@app.command()
def schema(as_json: Json = True) -> None:
    """Print the JSON Schema of a job message's body."""
    print(json.dumps(json_schema(), indent=None if not as_json else 2))
