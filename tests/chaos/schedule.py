"""What goes wrong and when: streams of faults that run side by side, the same ones for the same
seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stream:
    """Faults of one kind, one after the other: seconds between two of them, and how long each
    lasts."""

    pause: tuple[float, float]
    lasts: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One fault: so many seconds after the last one of its stream; `target` is a number to choose a
    victim by."""

    pause: float
    name: str
    target: int
    seconds: float


# A create that is stalled on its way, by a replica that is paused, to a Kestra that is slow, stays
# invisible as long as all of that takes together, which must be less than the bridge's grace in
# trial.py.
REPLICAS = Stream(
    (5, 12), {"replica-kill": (0, 2), "replica-stop": (0, 1), "replica-pause": (0.5, 2.5)}
)
NETWORK = Stream(
    (2, 6),
    {
        "amqp-cut": (0, 0),
        "amqp-refuse": (0.5, 2),
        "amqp-stall": (0.5, 2.5),
        "amqp-slow": (1, 4),
        "kestra-cut": (0, 0),
        "kestra-stall": (0.5, 2.5),
        "kestra-slow": (1, 4),
        "publisher-cut": (1, 2),
    },
)
NODE = Stream((15, 30), {"broker-kill": (0, 1), "broker-restart": (0, 0), "broker-pause": (1, 4)})
CLUSTER = Stream(
    (12, 24),
    {
        "leader-kill": (0, 4),
        "node-kill": (0, 4),
        "node-restart": (0, 0),
        "leader-pause": (1, 4),
        "cluster-kill": (0, 1),
    },
)
API = Stream(
    (1, 3),
    dict.fromkeys(
        (
            "create-500",
            "create-504",
            "create-500-worked",
            "create-504-worked",
            "create-502-late",
            "create-slow",
            "create-hangs",
            "create-resets",
            "create-wrong-body",
            "questions-500",
            "questions-slow",
            "questions-reset",
            "questions-wrong-body",
            "refused",
        ),
        (1, 4),
    )
    | {"kestra-down": (0.5, 3)},
)
REPLIES = Stream(
    (0, 1),
    dict.fromkeys(
        (
            "replies-lost",
            "replies-all-lost",
            "replies-doubled",
            "replies-late",
            "replies-shuffled",
            "replies-early",
        ),
        (2, 5),
    ),
)
LANE = Stream((8, 16), {"lane-full": (0.5, 3)})
OPERATORS = Stream((1, 3), {"operator-restarts": (4, 8), "operator-changes": (4, 8)})
CLOCK = Stream((2, 6), {"date-ahead": (3, 8), "date-behind": (3, 8)})
LONGEST_HALT = 120.0
SHORTEST_HALT = 15.0
"""Longer than what most jobs may take."""
ENGINE = Stream((60, 120), {"engine-kill": (0, 1)})


def executor(seconds: float) -> Stream:
    """A Kestra that runs nothing, for two minutes in a trial whose jobs are published in eight, for
    less in a less."""
    down = min(max(seconds / 4, SHORTEST_HALT), LONGEST_HALT)
    return Stream((seconds / 5, seconds), {"executor-down": (down, down)})


def streams(*, cluster: bool, engine: bool, seconds: float) -> dict[str, Stream]:
    """The streams of a trial whose jobs are published in so many seconds, by name."""
    common = {
        "replicas": REPLICAS,
        "network": NETWORK,
        "broker": CLUSTER if cluster else NODE,
        "lane": LANE,
    }
    if engine:
        return common | {"engine": ENGINE}
    kestra = {
        "api": API,
        "replies": REPLIES,
        "operators": OPERATORS,
        "clock": CLOCK,
        "executor": executor(seconds),
    }
    return common | kestra


def chosen(available: Mapping[str, Stream], names: Sequence[str]) -> dict[str, Stream]:
    """Of the streams those parts that are named, by a stream's name or a fault's; all of them for
    no names.

    Raises:
        ValueError: there's none of that name.
    """
    if not names:
        return dict(available)
    known = {*available, *(fault for stream in available.values() for fault in stream.lasts)}
    if unknown := sorted(set(names) - known):
        raise ValueError(
            f"no such fault here: {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    found = {}
    for name, stream in available.items():
        lasts = {
            fault: span for fault, span in stream.lasts.items() if name in names or fault in names
        }
        if lasts:
            found[name] = Stream(stream.pause, lasts)
    return found


def steps(seed: int, name: str, stream: Stream) -> Iterator[Step]:
    """A stream's faults without end. Each of them comes once before any comes again."""
    chance = random.Random(f"{name} {seed}")  # noqa: S311
    scale = 0.3  # the first one soon, so that a short trial has some of each
    while True:
        for fault in chance.sample(sorted(stream.lasts), len(stream.lasts)):
            yield Step(
                pause=scale * chance.uniform(*stream.pause),
                name=fault,
                target=chance.randrange(1_000_000),
                seconds=chance.uniform(*stream.lasts[fault]),
            )
            scale = 1.0
