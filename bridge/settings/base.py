"""What all settings have in common: where they are read from, and how their faults are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from bridge.errors import SettingsError
from bridge.settings.secret_files import SecretFile, SecretFiles, names_in_files
from bridge.settings.values import ANY_CASE, plain, spellings
from bridge.settings.variables import ENV_FILE, FILE, PREFIX, variable
from bridge.telemetry import log

Section = TypeVar("Section", bound="CommandSettings")


class CommandSettings(BaseSettings):
    """The settings of every command: how it logs."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    log_format: Annotated[Literal["auto", "json", "console"], ANY_CASE] = Field(
        default="auto", description="`auto` is console on a terminal, else JSON lines."
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], ANY_CASE] = Field(
        default="info", description="The least level that is logged; `debug` adds tracebacks."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (the base class gives it)
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources, the one with priority first."""
        sources = (init_settings, env_settings, dotenv_settings)
        return SecretFiles(settings_cls, sources), *sources

    @property
    def secrets(self) -> tuple[str, ...]:
        """The texts that must never be shown, in every spelling that a library might show, the
        longest first.
        """
        texts: set[str] = set()
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                texts |= spellings(value)
        return tuple(sorted(texts, key=len, reverse=True))

    def refreshed(self, section: type[Section]) -> Section:
        """That section of these settings, with files read again; the same object if no file has
        changed.

        New secrets are masked in the log from then on.

        Raises:
            SettingsError: a file of the section can't be used now.
        """
        if self._is_current(section):
            assert isinstance(self, section)
            return self
        others = (self.model_fields_set & section.model_fields.keys()) - self._in_files(section)
        found = _checked(lambda: section(**{name: getattr(self, name) for name in others}))
        log.hide(found.secrets)
        return found

    def origin(self, name: str) -> str:
        """The environment variable that a setting's value came from."""
        if name in self._in_files(type(self)):
            return variable(f"{name}{FILE}")
        return variable(name)

    def _is_current(self, section: type[CommandSettings]) -> bool:
        for name in self._in_files(section):
            file = SecretFile.read(getattr(self, f"{name}{FILE}"))
            if file.fault or file.line != plain(getattr(self, name)):
                return False
        return True

    def _in_files(self, section: type[CommandSettings]) -> set[str]:
        """The settings of the section whose values stand in files."""
        return {name for name in names_in_files(section) if getattr(self, f"{name}{FILE}")}


def load(section: type[Section]) -> Section:
    """That section of the settings, read from the environment.

    Raises:
        SettingsError: names every setting that can't be used, never with its value.
    """
    return _checked(section)


def _checked(made: Callable[[], Section]) -> Section:
    try:
        return made()
    except ValidationError as error:
        raise SettingsError("; ".join(_faults(error))) from None
    except UnicodeDecodeError:
        raise SettingsError(f"the file {ENV_FILE} is not UTF-8: save it as that") from None
    except OSError as error:
        raise SettingsError(f"the file {ENV_FILE} can't be read: {error.strerror}") from None


def in_env_file() -> list[str]:
    """The variables that the file `.env` sets."""
    return [name.upper() for name in DotEnvSettingsSource(CommandSettings).env_vars]


def _faults(error: ValidationError) -> list[str]:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    faulty = {fault["loc"][0] for fault in found if fault["loc"]}
    with_faulty_items = {fault["loc"][0] for fault in found if len(fault["loc"]) > 1}
    texts = []
    for fault in found:
        # A setting whose file can't be used is missing too; the file's fault says more.
        if fault["type"] == "missing" and f"{fault['loc'][0]}{FILE}" in faulty:
            continue
        # Items that can't be used don't count for pydantic.
        if fault["type"] == "too_short" and fault["loc"][0] in with_faulty_items:
            continue
        texts.append(_in_words(fault))
    return texts


def _in_words(fault: ErrorDetails) -> str:
    """A fault of pydantic's as `BRIDGE_LANES[0][queue] is not set`."""
    text = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "missing":
        text = "is not set"
    if not fault["loc"]:
        return text
    first, *rest = fault["loc"]
    name = variable(str(first)) + "".join(f"[{part}]" for part in rest)
    return f"{name} {text[0].lower()}{text[1:]}"
