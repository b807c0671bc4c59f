"""What the unit tests share."""

from tests.console import console

__all__ = ["console"]
