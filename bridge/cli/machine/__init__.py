"""`kestra-bridge machine`: the group of its commands.

The commands and the libraries that they need are imported only when one is used.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, cast

import typer
from typer.core import TyperGroup

from bridge.errors import SettingsError

_LIBRARIES = ("asyncssh", "cryptography", "libcloud")


@functools.cache
def _loaded() -> TyperGroup:
    try:
        module = importlib.import_module("bridge.cli.machine.commands")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _LIBRARIES:
            raise
        raise SettingsError(
            f"machines need {error.name}, which isn't installed: pip install "
            "'kestra-bridge[machines]'"
        ) from error
    return cast("TyperGroup", typer.main.get_command(module.commands))


class _LazyGroup(TyperGroup):
    """A group whose commands are imported when somebody asks for them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return _loaded().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _loaded().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # Also for the suggestions that a mistyped name gets.
        self.commands = _loaded().commands
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_LazyGroup,
    help="Virtual machines for jobs: create one, run a script on it, destroy it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def options() -> None:
    """Virtual machines for jobs: create one, run a script on it, destroy it."""
