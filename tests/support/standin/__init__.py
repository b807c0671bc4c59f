"""A stand-in for Kestra's web server: for faults that the real engine can't be made to show, and
for volume.

    async with Standin() as kestra:
        kestra.flow("bridge.jobs", "example", Ends("FAILED", after=0.2, error="disk full"))
        kestra.faults.add("create", status=504, worked=True)
        kestra.replies.on_end = publish
        ...
        assert kestra.per_attempt() == {("job-1", "1"): 1}

It speaks the dialect of 2.0 or, with `version="1.3.25"`, of 1.x, as far as the bridge uses it. What
it answers has the form, and a refusal the words, of what a real server of that series answered
(`contract/recorded.py`). The work of a request is done in one go, so that a fault comes either
before it or after it.
"""

from tests.support.standin.faults import KESTRA, Fault
from tests.support.standin.model import EMPTY, HTML, TRUNCATED, Answer, Call, Ends, Run
from tests.support.standin.server import Standin

__all__ = [
    "EMPTY",
    "HTML",
    "KESTRA",
    "TRUNCATED",
    "Answer",
    "Call",
    "Ends",
    "Fault",
    "Run",
    "Standin",
]
