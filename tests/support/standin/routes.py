"""The paths of Kestra's API, and the operations at them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

from tests.contract.flows import Series

Route = tuple[str, str, str]


_SHARED: tuple[Route, ...] = (
    ("HEAD", "/executions/search", "head"),
    ("GET", "/executions/search", "search"),
    ("GET", "/executions/([^/]+)", "get"),
    ("DELETE", "/executions/([^/]+)", "delete"),
    ("POST", "/executions/([^/]+)/([^/]+)", "create"),
    ("POST", "/executions/webhook/([^/]+)/([^/]+)/([^/]+)", "webhook"),
    ("GET", "/logs/([^/]+)", "logs"),
    ("GET", "/api/v1/configs", "configs"),
    ("POST", "/flows", "new_flow"),
    ("POST", "/flows/validate", "validate"),
    ("GET", "/flows/([^/]+)/([^/]+)", "flow"),
    ("PUT", "/flows/([^/]+)/([^/]+)", "save_flow"),
    ("DELETE", "/flows/([^/]+)/([^/]+)", "delete_flow"),
)


_ACTIONS = (("DELETE", "kill"), ("POST", "resume"), ("POST", "restart"), ("POST", "replay"))


_ROUTES: Mapping[Series, tuple[Route, ...]] = {
    "1.3": (
        *((method, f"/executions/([^/]+)/{name}", name) for method, name in _ACTIONS),
        *_SHARED,
    ),
    "2.0": (
        *((method, f"/executions/([^/]+)/actions/{name}", name) for method, name in _ACTIONS),
        *_SHARED,
    ),
}


OUTPUTS_APART: tuple[Route, ...] = (("GET", "/outputs/executions/([^/]+)", "outputs"),)


def operations_at(
    path: str, series: Series, routes: tuple[Route, ...] = ()
) -> dict[str, tuple[str, ...]]:
    """The operations at a path by their methods, each with what the path names."""
    below = re.sub(r"^/api/v1/[^/]+(?=/)", "", path)
    found: dict[str, tuple[str, ...]] = {}
    for method, pattern, operation in routes or _ROUTES[series]:
        if match := re.fullmatch(pattern, below):
            found.setdefault(method, (operation, *map(unquote, match.groups())))
    return found
