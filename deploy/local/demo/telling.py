"""Who tells of ends, as everybody can hear it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from bridge.rabbitmq.topology import REPLIES
from deploy.local.rabbitmq import RabbitMQ

QUEUE = "demo.replies"
MOST = 10_000

Replies = dict[str, set[str]]
"""By execution, who told of its end."""


class Listener:
    """A queue of the demo's own for replies."""

    def __init__(self, rabbit: RabbitMQ) -> None:
        self._rabbit = rabbit
        self._told: Replies = {}

    def open(self) -> None:
        """Listen from now on."""
        api = self._rabbit.api
        durable = {"durable": True}
        api(f"exchanges/%2F/{REPLIES}", method="PUT", body={"type": "topic", **durable})
        api(f"queues/%2F/{QUEUE}", method="PUT", body=durable)
        api(f"bindings/%2F/e/{REPLIES}/q/{QUEUE}", method="POST", body={"routing_key": "#"})

    def told(self) -> Replies:
        """Who has told of which end so far."""
        how = {"count": MOST, "ackmode": "ack_requeue_false", "encoding": "auto"}
        messages = self._rabbit.api(f"queues/%2F/{QUEUE}/get", method="POST", body=how)
        for execution, by in tellers(json.loads(message["payload"]) for message in messages):
            self._told.setdefault(execution, set()).add(by)
        return self._told


def tellers(bodies: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    """The execution and the teller of each message that tells of an end. What the reporter says to
    replicas alone is none.
    """
    for body in bodies:
        if "executionId" in body:
            yield body["executionId"], body.get("by", "notifier")
