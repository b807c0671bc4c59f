"""What the unit tests share."""

from tests.support.console import console

__all__ = ["console"]
