"""The command line, `kestra-bridge`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line.

    As process 1 of a container, a process that has no handler for SIGTERM is deaf to it. So there's
    one before anything else, also while the libraries are still being imported.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from bridge.cli.commands import main as run  # noqa: PLC0415 (after the handler is there)

    run()
