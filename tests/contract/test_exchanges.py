"""Kestra's engine behind our web server, and the stand-in, answer what real servers of 1.3.25 and
of a 2.0 answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

import pytest

from tests.contract.exchanges import Replayer
from tests.contract.flows import Series
from tests.contract.recorded import VERSIONS, Exchange, recorded
from tests.support.given import Server, given

# The engine's jars are fetched on first use.
pytestmark = pytest.mark.timeout(600)

# The engine of 2.0 is 2.0.0's. The server that was recorded is of an older build.
_DRAFTS = "2.0.0 has drafts, and says of each flow whether it is one"
_OUTPUTS = "2.0.0 keeps outputs apart, at /outputs/executions/{id}"
_FIELDS = "2.0.0 has other fields to name"
_WORDS = "2.0.0 has other words for what is no number"
EXCEPTIONS: Mapping[str, Mapping[int, str]] = {
    "engine-2.0": {
        **dict.fromkeys((1, 2, 3, 76, 77, 78, 79, 83, 92, 93), _DRAFTS),
        **dict.fromkeys((25, 63, 64), _OUTPUTS),
        10: _WORDS,
        42: _FIELDS,
    }
}
"""What can't agree, by the server and the exchange's number, with the reason."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each exchange is tried with each server of its series."""
    cases = [
        pytest.param(
            kind, exchange, id=f"{kind}-{exchange.number}", marks=_skipped(metafunc.config, series)
        )
        for series in get_args(Series)
        for kind in _kinds(metafunc.config, series)
        for exchange in recorded(series)
    ]
    metafunc.parametrize(("server", "exchange"), cases, indirect=["server"], scope="package")


def _kinds(config: pytest.Config, series: Series) -> list[str]:
    return ["given"] if given(config) else [f"engine-{series}", f"standin-{VERSIONS[series]}"]


def _skipped(config: pytest.Config, series: Series) -> list[pytest.MarkDecorator]:
    server = given(config)
    if server is None or server.version == VERSIONS[series]:
        return []
    return [pytest.mark.skip(f"{VERSIONS[series]} was recorded, and this is {server.version}")]


@pytest.fixture
def replayer(server: Server, exchange: Exchange) -> Iterator[Replayer]:
    with Replayer(server.url, server.auth, exchange.series) as made:
        yield made


def test_agrees_with_what_was_recorded_unless_a_reason_says_why_not(
    request: pytest.FixtureRequest, replayer: Replayer, exchange: Exchange
) -> None:
    reason = EXCEPTIONS.get(request.node.callspec.params["server"], {}).get(exchange.number)
    found = replayer.disagreements(exchange)
    assert bool(found) == (reason is not None), (
        [exchange.name, *found] if found else f"no longer needed: {reason}"
    )
