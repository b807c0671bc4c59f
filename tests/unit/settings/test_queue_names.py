"""Which names a queue of jobs must not have."""

from __future__ import annotations

import pytest

from bridge.rabbitmq import topology
from bridge.settings.queue_names import lane_of_side_queue, not_an_exchange_of_ours

PLANNED = topology.plan("q", kind="quorum", version=(4, 3), max_priority=10, retry_delays=(1, 300))


@pytest.mark.parametrize(
    "name",
    [
        *(queue.name for queue in (PLANNED.dead, *PLANNED.retries)),
        topology.plan_replay("q", version=(4, 3)).name,
        "q.ledger",
        "q.reporter",
        "q.dead.lock",
    ],
)
def test_every_side_queue_is_known_as_its_lanes(name: str) -> None:
    assert lane_of_side_queue(name) == "q"


@pytest.mark.parametrize(
    "name", ["q", "q.high", "q.retry", "q.retry.soon", "dead", ".dead", "q.dead.letters"]
)
def test_any_other_name_is_free(name: str) -> None:
    assert lane_of_side_queue(name) is None


def test_the_exchange_for_replies_is_taken() -> None:
    with pytest.raises(ValueError, match="exchange for replies"):
        not_an_exchange_of_ours(topology.REPLIES)
