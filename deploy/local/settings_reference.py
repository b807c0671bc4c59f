"""The table of all settings in `bridge/settings/README.md`, made from the models.

`python -m deploy.local.settings_reference` writes it. A test fails while the file is out of date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from bridge.machines.settings import MachineSettings
from bridge.settings.base import CommandSettings
from bridge.settings.broker import BrokerSettings
from bridge.settings.kestra import KestraSettings
from bridge.settings.secret_files import names_in_files
from bridge.settings.service import Settings
from bridge.settings.variables import FILE, variable
from deploy.local.paths import REPOSITORY

FILE_WITH_THE_TABLE = REPOSITORY / "bridge" / "settings" / "README.md"

_SECTIONS: tuple[tuple[str, str, type[CommandSettings]], ...] = (
    ("RabbitMQ", "RabbitMQ's address and login, and the queues.", BrokerSettings),
    ("Kestra", "Kestra's address and login, and how its executions are judged.", KestraSettings),
    ("Jobs", "The rest of `kestra-bridge run`.", Settings),
    ("Logs", "Every command has these.", CommandSettings),
    ("Machines", "Only `kestra-bridge machine` has these, on Kestra's workers.", MachineSettings),
)
"""Title, sentence, and the model whose own fields a section shows."""

_HEAD = "| setting | values | default | meaning |\n|---|---|---|---|"
_INTRODUCTION = """\
<!-- Made from the models by `python -m deploy.local.settings_reference`. Change those. -->

# Settings

Settings are environment variables, or lines of a file `.env` in the current folder. The environment
takes precedence. In `.env`, `${NAME}` stands for another variable's value, so a password that holds
`${` belongs in a file of its own. An empty variable means the default. Times are in seconds.

A setting with `…_FILE` beside it can stand in a file instead: that variable then names the file,
which holds the value as its one line of UTF-8. A line break at its end doesn't count. Files are
read again for each connection to RabbitMQ and each request to Kestra.

A command names every faulty setting at its start and exits with status 2. It warns of each variable
that begins with `BRIDGE_` and is not a setting. `kestra-bridge run --help` prints this list too,
without the settings of machines.
"""


def reference() -> str:
    """The text of the file."""
    parts = [_INTRODUCTION]
    shown = set(CommandSettings.model_fields)
    for title, sentence, section in _SECTIONS:
        own = section.model_fields.keys() - shown
        if section is CommandSettings:
            own = set(section.model_fields)
        rows = [_row(section, name) for name in section.model_fields if name in own]
        parts.append(f"## {title}\n\n{sentence}\n\n{_HEAD}\n" + "".join(rows))
        shown |= own
    return "\n".join(parts)


def _row(section: type[CommandSettings], name: str) -> str:
    """The row of a setting and of the `_FILE` beside it; empty for that one itself."""
    in_files = names_in_files(section)
    if name.removesuffix(FILE) in in_files and name.endswith(FILE):
        return ""
    setting = f"`{variable(name)}`"
    if name in in_files:
        setting += f" or `{variable(name + FILE)}`"
    field = section.model_fields[name]
    values = _values(section.model_json_schema()["properties"][name])
    return f"| {setting} | {values} | {_default(field)} | {field.description} |\n"


def _default(field: FieldInfo) -> str:
    """The default as a variable would hold it; empty where the description says it."""
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value == () or field.default_factory is not None:
        return ""
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{json.dumps(value)}`"


def _values(schema: Mapping[str, Any]) -> str:
    """The values that a setting takes, by its JSON Schema."""
    for alternative in schema.get("anyOf", ()):
        if alternative["type"] != "null":
            return _values(alternative)
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    if schema["type"] in ("integer", "number"):
        return _limits(schema)
    if schema.get("format") == "path":
        return "path"
    words = {
        "boolean": "`true`, `false`",
        "array": "JSON list",
        "object": "JSON object",
        "string": "text",
    }
    return words[schema["type"]]


def _limits(schema: Mapping[str, Any]) -> str:
    # Beside a validator of ours, pydantic writes a limit under the name that Python gives it.
    highest = schema.get("maximum", schema.get("le"))
    if "exclusiveMinimum" in schema:
        return f"above {schema['exclusiveMinimum']:g}, to {highest:,}"
    lowest = schema.get("minimum", schema.get("ge"))
    return f"{lowest:g} to {highest:,}"


if __name__ == "__main__":
    FILE_WITH_THE_TABLE.write_text(reference())
