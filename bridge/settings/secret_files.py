"""Settings whose values stand in files.

`BRIDGE_KESTRA_TOKEN_FILE` names a file that holds the value of `BRIDGE_KESTRA_TOKEN`: one line of
UTF-8. A field `x_file` beside a field `x` makes such a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from bridge.settings.variables import FILE, variable

LONGEST_SECRET = 65_536
"""Bytes. A longer file is not one that holds a setting."""


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A file as it was read once: its line, or the reason why the file can't be used.

    A reason never shows the path: somebody may have given the value in its place.
    """

    path: Path
    line: str = ""
    fault: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The file as it is now."""
        try:
            return cls(path, line=_line(path))
        except ValueError as error:
            return cls(path, fault=str(error))


def _line(path: Path) -> str:
    try:
        if not path.is_file():  # a pipe could be read only once
            raise ValueError("is no file")
        with path.open("rb") as file:
            data = file.read(LONGEST_SECRET + 1)
        text = data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError("is a file that is not UTF-8") from None
    except OSError as error:
        raise ValueError(f"is no file that can be read ({error.strerror})") from None
    if not text:
        raise ValueError("is an empty file")
    if len(data) > LONGEST_SECRET or not text.isprintable():
        raise ValueError("is a file of more than one line, or of what can't be printed")
    return text


class SecretFiles(PydanticBaseSettingsSource):
    """Source of the settings that stand in files which other sources name."""

    def __init__(
        self, section: type[BaseSettings], others: Sequence[PydanticBaseSettingsSource]
    ) -> None:
        super().__init__(section)
        self._others = others

    def __call__(self) -> dict[str, Any]:
        """The lines of files under the names of their settings, and under those of `_FILE` settings
        what was read.
        """
        given: dict[str, Any] = {}
        for source in reversed(self._others):  # the first has priority
            given |= source()
        found: dict[str, Any] = {}
        for name in names_in_files(self.settings_cls):
            path = given.get(f"{name}{FILE}")
            if path is None:
                continue
            file = SecretFile.read(Path(path))
            if given.get(name) is not None:
                fault = f"goes in place of {variable(name)}: give one of them"
                file = SecretFile(file.path, fault=fault)
            elif not file.fault:
                found[name] = file.line
            found[f"{name}{FILE}"] = file
        return found

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 (the base class asks for it)
        """The value of one field, its name, and that it needs no decoding."""
        return self().get(field_name), field_name, False


def _usable(value: Any) -> Any:
    if not isinstance(value, SecretFile):
        return value
    if value.fault:
        raise ValueError(value.fault)
    return value.path


SecretPath = Annotated[Path, BeforeValidator(_usable)]
"""The path of a file that holds the value of the setting before it."""


def in_a_file(what: str) -> Any:
    """The field that names the file of the setting before it."""
    return Field(default=None, description=f"A file that holds {what}, instead.")


@cache  # every request to Kestra looks for changed files
def names_in_files(section: type[BaseSettings]) -> tuple[str, ...]:
    """The fields of a section whose values can stand in files."""
    fields = section.model_fields
    return tuple(name for name in fields if f"{name}{FILE}" in fields)
