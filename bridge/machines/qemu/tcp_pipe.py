"""A pipe between standard input and output and one TCP address.

QEMU starts it for each connection from a machine. It runs as a file of its own, and imports nothing
of the bridge, so that it starts at once.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys

BLOCK_SIZE = 65_536


def forward(host: str, port: int) -> None:
    """Pass bytes on in both directions until the far end closes."""
    with (
        socket.create_connection((host, port), timeout=10) as far,
        selectors.DefaultSelector() as ready,
    ):
        far.settimeout(None)
        ready.register(sys.stdin, selectors.EVENT_READ)
        ready.register(far, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is far:
                    data = far.recv(BLOCK_SIZE)
                    if not data:
                        return
                    _write_all(data)
                    continue
                data = os.read(0, BLOCK_SIZE)
                if data:
                    far.sendall(data)
                else:
                    ready.unregister(sys.stdin)
                    far.shutdown(socket.SHUT_WR)


def _write_all(data: bytes) -> None:
    """Write to standard output, which may take only a part at a time."""
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    try:
        forward(sys.argv[1], int(sys.argv[2]))
    except OSError:
        # Nothing listens there, or either end has gone: the machine sees its connection closed.
        sys.exit(1)
