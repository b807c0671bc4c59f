"""Names that a queue of jobs must not have: `bridge.rabbitmq.topology` gives them to other queues
and exchanges.
"""

from __future__ import annotations

import re

_SIDE_QUEUE = re.compile(r"(.+)\.(?:dead|dead\.lock|replay|ledger|reporter|retry\.\d+)", re.DOTALL)


def lane_of_side_queue(name: str) -> str | None:
    """The lane whose side queue would have that name; None if no lane's would."""
    match = _SIDE_QUEUE.fullmatch(name)
    if match is None:
        return None
    return match[1]


def not_an_exchange_of_ours(name: str) -> str:
    """The name of a queue of jobs; its exchange has the same name.

    Raises:
        ValueError: another exchange has that name.
    """
    if name == "kestra.replies":
        raise ValueError("must not be kestra.replies, which is the exchange for replies")
    return name
