"""The HTTP endpoints `/metrics`, `/health/live` and `/health/ready`.

They are served from threads of their own, so they answer even while the event loop hangs, which is
what `/health/live` has to report.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from bridge.errors import SettingsError

Check = Callable[[], Mapping[str, bool]]
"""Named conditions: an endpoint answers 200 if all of them hold, else 503."""

log = structlog.get_logger(__name__)


class _Server(ThreadingWSGIServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what ended a request. The base class writes a traceback to standard error, among the
        lines of the log.
        """
        del request
        error = sys.exception()
        if isinstance(error, OSError):
            # It has hung up, or said nothing for too long.
            log.debug(
                "a client of the metrics was cut off", client=client_address, error=str(error)
            )
        else:
            log.error("a request for metrics failed", client=client_address, exc_info=error)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _SilentHandler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Scrapes and probes are not worth a line."""


@contextmanager
def serve(
    registry: CollectorRegistry, *, live: Check, ready: Check, host: str, port: int
) -> Iterator[int]:
    """Serve the endpoints within the block; yields the port.

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
        if path not in checks:
            return _send(start_response, "404 Not Found", {"paths": ["/metrics", *checks]})
        conditions = dict(checks[path]())
        if all(conditions.values()):
            return _send(start_response, "200 OK", conditions)
        return _send(start_response, "503 Service Unavailable", conditions)

    server_class = _Server6 if ":" in host else _Server
    try:
        server = make_server(host, port, app, server_class, _SilentHandler)
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


def _send(start_response: Callable[..., Any], status: str, body: dict[str, Any]) -> Iterable[bytes]:
    payload = json.dumps(body).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(payload)))]
    start_response(status, headers)
    return [payload]
