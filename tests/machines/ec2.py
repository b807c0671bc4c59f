"""A stand-in for EC2: moto, with its answers written as EC2 itself writes them, which is how
libcloud reads them.

Run as a program with a port: `python -m tests.machines.ec2 PORT`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

Start = Callable[..., Any]
App = Callable[[dict[str, Any], Start], Iterable[bytes]]

NAMESPACE = re.compile(rb'xmlns="http://ec2.amazonaws.com/doc/([0-9-]+)/?"')
ERROR = re.compile(
    rb"<(?:Error)?Response[^>]*>(\s*<Errors>.*</Errors>)(.*)</(?:Error)?Response>", re.DOTALL
)


def as_ec2_writes(body: bytes) -> bytes:
    """A namespace that ends with a slash, none in an error, and an error that has a code and a
    message alone."""
    if error := ERROR.search(body):
        return b"<Response>" + re.sub(rb"<Type>.*?</Type>", b"", error[1]) + b"</Response>"
    return NAMESPACE.sub(rb'xmlns="http://ec2.amazonaws.com/doc/\1/"', body)


def rewritten(app: App) -> App:
    def answer(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        head: list[Any] = []

        def note(status: str, headers: list[tuple[str, str]], *_: Any) -> None:
            head[:] = [status, headers]

        chunks = app(environ, note)
        body = as_ec2_writes(b"".join(chunks))
        status, headers = head
        kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start(status, [*kept, ("Content-Length", str(len(body)))])
        return [body]

    return answer


if __name__ == "__main__":
    application = rewritten(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True)
