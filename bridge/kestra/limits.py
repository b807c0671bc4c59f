"""How much the bridge asks of Kestra at once, and how long it waits for an answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Limits of one client of Kestra's API. Times are in seconds.

    `create_timeout` is shorter than the adopt grace, so that a create is over before another
    replica stops looking for its execution. Creates, questions about one job, and questions for all
    jobs together take turns apart. While creates hang, the bridge can still ask and kill; and while
    many jobs ask at once, the ends of others are told. `page_size` is how many executions a search
    asks for at once.
    """

    connect_timeout: float = 5.0
    read_timeout: float = 30.0
    create_timeout: float = 8.0
    concurrent_creates: int = 8
    concurrent_questions: int = 6
    concurrent_for_all: int = 4
    page_size: int = 500


DEFAULT_LIMITS = RequestLimits()
