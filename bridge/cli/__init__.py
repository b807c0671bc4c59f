"""The command line, `kestra-bridge`."""

from __future__ import annotations

from bridge.cli.app import main

__all__ = ["main"]
