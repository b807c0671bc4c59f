"""Which names a queue of jobs must not have, beside those of others and of the bridge's own;
`topology` gives those.
"""

from __future__ import annotations

import re

_SIDE_QUEUE = re.compile(r"(.+)\.(?:dead|dead\.lock|replay|ledger|reporter|retry\.\d+)", re.DOTALL)


def lane_of_side_queue(name: str) -> str | None:
    """The lane that has a side queue of that name, if there is such a lane; None where no lane
    could have one.
    """
    match = _SIDE_QUEUE.fullmatch(name)
    return match[1] if match else None


def not_an_exchange_of_ours(name: str) -> str:
    """The name of a queue of jobs, whose exchange has the same name; raises `ValueError` where that
    is another's.
    """
    if name == "kestra.replies":
        raise ValueError("must not be kestra.replies, which is the exchange for replies")
    return name
