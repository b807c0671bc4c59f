"""`kestra-bridge dead-letters`: look at dead letters, put their jobs back, or remove them."""

from bridge.cli.dead_letters.commands import app

__all__ = ["app"]
