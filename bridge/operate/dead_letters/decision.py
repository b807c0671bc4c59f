"""What a replay does with a dead letter: pure decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bridge.errors import InvalidMessage
from bridge.job.decode import decode
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName, allowed
from bridge.job.message import Message
from bridge.job.settlement import Reason
from bridge.operate.dead_letters.letter import DeadLetter, Origin, to_replay
from bridge.text import visible

ANY_FLOW = FlowName("any", "flow")


class ReplayResult(StrEnum):
    """What a replay does with a letter."""

    REPLAY = "replayed"
    SUCCEEDED = "succeeded"
    RUNNING = "running"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayDecision:
    """What a replay does with a letter, and why, where it isn't put back."""

    letter: DeadLetter
    result: ReplayResult
    why: str = ""


def decide(
    letter: DeadLetter,
    *,
    obstacle: str | None = None,
    executions: Iterable[Execution] = (),
    ack_warning: bool = True,
) -> ReplayDecision:
    """What a replay does with a letter, given the present executions of its attempt.

    Every execution counts, not only the newest: an operator's restart with another revision keeps
    the first one's start, and any execution that ended in success did the job.
    """
    by_state = {execution.state: execution for execution in executions}
    for state in (State.SUCCESS, State.WARNING) if ack_warning else (State.SUCCESS,):
        if state in by_state:
            why = f"execution {by_state[state].id} is {state} by now"
            return ReplayDecision(letter=letter, result=ReplayResult.SUCCEEDED, why=why)
    for execution in by_state.values():
        if not execution.state.terminal:
            why = f"execution {execution.id} is {execution.state} again"
            return ReplayDecision(letter=letter, result=ReplayResult.RUNNING, why=why)
    if obstacle:
        return ReplayDecision(letter=letter, result=ReplayResult.REFUSED, why=obstacle)
    return ReplayDecision(letter=letter, result=ReplayResult.REPLAY)


def find_obstacle(
    letter: DeadLetter, message: Message, *, max_priority: int, flows: Sequence[str] | None = None
) -> str | None:
    """Why a letter can't be put back into its queue, or None.

    `flows` are the patterns of the flows that may be started, None where they aren't known.
    """
    if letter.own_queue not in (None, letter.queue):
        return f"its queue is {visible(letter.own_queue or '')}, not {letter.queue}"
    if letter.reason == Reason.FLOW_NOT_ALLOWED and flows is not None:
        return _flow_obstacle(letter.flow, flows)
    if letter.origin is Origin.BRIDGE and letter.reason != Reason.INVALID_MESSAGE:
        return None  # the bridge could read it before
    try:
        # The settings here need not name the lane's flow: only the bridge must know it.
        decode(to_replay(letter, message), default_flow=ANY_FLOW, max_priority=max_priority)
    except InvalidMessage as error:
        return f"it would be a dead letter again: {error}"
    return None


def _flow_obstacle(flow: FlowName | None, flows: Sequence[str]) -> str | None:
    if flow is not None and allowed(flow, flows):
        return None
    return f"BRIDGE_ALLOWED_FLOWS still doesn't allow flow {flow or 'of its lane'}"


def indistinguishable(letters: Iterable[DeadLetter]) -> frozenset[bytes]:
    """The keys that several letters without an id share: nobody could say which of them went
    back.
    """
    counts = Counter(letter.key for letter in letters if not letter.named)
    return frozenset(key for key, count in counts.items() if count > 1)
