"""A pipe between standard input and output and one TCP address: QEMU starts it for each connection
from a machine.

It runs as a file of its own, and imports nothing of ours, so that it starts at once.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys

SIZE = 65_536


def forward(host: str, port: int) -> None:
    """Pass on bytes both ways until the far end closes."""
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
                    if not _pass_back(far):
                        return
                elif data := os.read(0, SIZE):
                    far.sendall(data)
                else:
                    ready.unregister(sys.stdin)
                    far.shutdown(socket.SHUT_WR)


def _pass_back(far: socket.socket) -> bool:
    data = far.recv(SIZE)
    rest = data
    while rest:
        rest = rest[os.write(1, rest) :]
    return bool(data)


if __name__ == "__main__":
    try:
        forward(sys.argv[1], int(sys.argv[2]))
    except OSError:
        # Nothing listens there, or one of both has gone: the machine sees its connection closed.
        sys.exit(1)
