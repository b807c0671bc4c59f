"""The command line, `kestra-bridge`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line.

    Process 1 of a container ignores SIGTERM unless it has a handler. So a handler comes before
    anything else, even before the imports of the libraries.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from bridge.cli.commands import main as run  # noqa: PLC0415 (after the handler is there)

    run()
