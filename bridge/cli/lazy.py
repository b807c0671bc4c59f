"""Groups that import a command only when somebody asks for it.

All commands together take half a second to import, which every command would pay for at its start.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup


class LazyCommands(Mapping[str, Any]):
    """Commands by their names. `load` brings the one that is in a module."""

    def __init__(self, modules: Mapping[str, str], load: Callable[[str], Any]) -> None:
        self._modules = modules
        self._load = load
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = self._load(self._modules[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


class LazyGroup(TyperGroup):
    """A group of commands, each the `app` of a module."""

    modules: ClassVar[Mapping[str, str]]
    """The module of each command, in the order of the help."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Neither typer nor click adds a command to a group that is made.
        self.commands: Any = LazyCommands(self.modules, self.load)

    def load(self, module: str) -> Any:
        """The command that is the `app` of a module."""
        return typer.main.get_command(importlib.import_module(module).app)
