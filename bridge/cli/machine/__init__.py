"""`kestra-bridge machine`: the group of its commands.

The libraries that they need are imported only when one is used.
"""

from __future__ import annotations

from typing import Any, ClassVar

import typer

from bridge.cli.lazy import LazyGroup
from bridge.errors import SettingsError

_LIBRARIES = ("asyncssh", "cryptography", "libcloud")


class MachineCommands(LazyGroup):
    """The commands for machines, in the order of the help."""

    modules: ClassVar = {
        "run": "bridge.cli.machine.run",
        "create": "bridge.cli.machine.create",
        "list": "bridge.cli.machine.list",
        "destroy": "bridge.cli.machine.destroy",
        "reap": "bridge.cli.machine.reap",
    }

    def load(self, module: str) -> Any:
        """The command that is the `app` of a module.

        Raises:
            SettingsError: a library for machines isn't installed.
        """
        try:
            return super().load(module)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in _LIBRARIES:
                raise
            raise SettingsError(
                f"machines need {error.name}, which isn't installed: pip install "
                "'kestra-bridge[machines]'"
            ) from error


app = typer.Typer(
    cls=MachineCommands,
    help="Virtual machines for jobs: create one, run a script on it, destroy it.",
    short_help="Create, use and destroy virtual machines for jobs.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@app.callback()
def options() -> None:
    """Virtual machines for jobs: create one, run a script on it, destroy it."""
