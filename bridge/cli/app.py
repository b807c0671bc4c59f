"""The commands' common ground: the application, its errors as one line, and its exit codes.

0 done, 1 failed, 2 wrong usage or settings.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
