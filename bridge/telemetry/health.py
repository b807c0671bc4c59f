"""The HTTP endpoints: `/metrics`, `/health/live` and `/health/ready`.

They are served from a thread of their own, so that they answer also when the event loop does not,
which is what `/health/live` is there to tell.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from bridge.errors import SettingsError

Check = Callable[[], Mapping[str, bool]]
"""Named conditions; an endpoint answers 200 when all hold, else 503."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Scrapes and probes are no news."""


@contextmanager
def serve(
    registry: CollectorRegistry, *, live: Check, ready: Check, host: str, port: int
) -> Iterator[int]:
    """Serve the endpoints for as long as the context lasts; gives the port.

    Raises:
        SettingsError: the address can't be listened on.
    """
    metrics = make_wsgi_app(registry)
    checks = {"/health/live": live, "/health/ready": ready}

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            scraped: Iterable[bytes] = metrics(environ, start_response)
            return scraped
        if check := checks.get(path):
            return _answer(start_response, check())
        return _send(start_response, "404 Not Found", {"paths": ["/metrics", *checks]})

    try:
        server = make_server(
            host, port, app, server_class=_Server6 if ":" in host else _Server, handler_class=_Quiet
        )
    except (OSError, OverflowError) as error:
        raise SettingsError(
            f"can't listen on {host}:{port} (BRIDGE_HTTP_HOST, BRIDGE_HTTP_PORT): {error}"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def _answer(start_response: Callable[..., Any], conditions: Mapping[str, bool]) -> Iterable[bytes]:
    return _send(
        start_response,
        "200 OK" if all(conditions.values()) else "503 Service Unavailable",
        dict(conditions),
    )


def _send(start_response: Callable[..., Any], status: str, body: dict[str, Any]) -> Iterable[bytes]:
    payload = json.dumps(body).encode() + b"\n"
    start_response(
        status, [("Content-Type", "application/json"), ("Content-Length", str(len(payload)))]
    )
    return [payload]
