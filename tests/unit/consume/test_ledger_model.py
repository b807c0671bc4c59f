"""Every interleaving of a few replicas that start one attempt, by the rules of the ledger.

Each replica writes claims, reads them in their order but in its own time, sends creates and looks
up, in steps that the others can come between. Replicas die, also with a create on its way, and the
ledger is deleted. A create comes true at any moment while its call lasts, or never. Time passes in
ticks. What matters of it is only how long ago something was, so that there are finitely many
situations, and all are visited.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest

from bridge.consume.ledger import Claim, Standing, Step, counted, round_for, step

GRACE = 3
CREATE_LASTS = 1
LATENCY = 1
MOST_ROUNDS = 3
WINDOW = 1e9


class Replica(NamedTuple):
    """One start on one replica. Times are ticks ago.

    `unread` are claims with their ages. `awaited` is the token of a claim that was written and not
    read back. `looked` is whether a look-up found nothing, after which it may supersede. `blind` is
    for how many ticks it has to look before its first create; None: not at all. `deaf` is for how
    long it has not known that the ledger which it reads was deleted; None where that is not so.
    """

    token: int | None = None
    standing: Standing | None = None
    unread: tuple[tuple[Claim, int], ...] = ()
    awaited: int | None = None
    looked: bool = False
    creating: bool = False
    done: bool = False
    blind: int | None = None
    deaf: int | None = None


class Create(NamedTuple):
    """A create call on its way: who sent it, and how many ticks ago."""

    by: int
    age: int


@dataclass(frozen=True)
class World:
    """A situation. `whole` is what counts for whoever reads the ledger from its beginning."""

    replicas: tuple[Replica, ...]
    whole: Standing | None = None
    creates: tuple[Create, ...] = ()
    executions: int = 0
    deaths: int = 1
    deletions: int = 0
    tokens: int = 1
    late: bool = False

    def change(self, number: int, **more: object) -> World:
        """The world with a replica changed."""
        replicas = list(self.replicas)
        replicas[number] = replicas[number]._replace(**more)  # type: ignore[arg-type]
        return replace(self, replicas=tuple(replicas))


def read(standing: Standing | None, claim: Claim) -> Standing:
    return counted(standing, claim, now=0.0, window=WINDOW)


def successors(world: World) -> Iterator[World]:
    """What can happen next."""
    for number, replica in enumerate(world.replicas):
        if replica.unread:
            yield read_next(world, number)
        if not replica.done:
            yield from act(world, number)
            if world.deaths:
                yield from die(world, number)
        if replica.deaf is not None:
            yield world.change(number, **FORGOTTEN, standing=from_the_beginning(world))
    if world.deletions:
        yield delete(world)
    for create in world.creates:
        yield come_true(world, create)
        yield answer_never(world, create)
    if may_pass(world):
        yield tick(world)


def read_next(world: World, number: int) -> World:
    replica = world.replicas[number]
    (claim, _), *rest = replica.unread
    standing = read(replica.standing, claim)
    return world.change(
        number,
        standing=standing,
        unread=tuple(rest),
        awaited=None if replica.awaited == claim.token else replica.awaited,
        looked=replica.looked and standing == replica.standing,
    )


def act(world: World, number: int) -> Iterator[World]:
    """The replica's own next step."""
    replica = world.replicas[number]
    if replica.awaited is not None or replica.creating:
        return
    wanted = step(replica.standing, replica.token)
    if wanted is Step.CREATE:
        if replica.blind is None:
            sent = world.change(number, creating=True)
            yield replace(sent, creates=(*world.creates, Create(number, 0)))
        elif world.executions:
            yield world.change(number, done=True)
        elif replica.blind == 0:
            yield world.change(number, blind=None)
    elif wanted is Step.LOOK_UP and not replica.looked:
        assert replica.standing is not None
        if world.executions:
            yield world.change(number, done=True)
        elif replica.standing.superseded_from(GRACE) <= 0:
            yield world.change(number, looked=True)
    else:
        yield from write(world, number, wanted)


def write(world: World, number: int, wanted: Step) -> Iterator[World]:
    replica = world.replicas[number]
    claim = Claim(7, round_for(wanted, replica.standing), world.tokens, 0.0)
    if claim.round > MOST_ROUNDS:
        return
    if replica.deaf is not None:
        return
    replicas = tuple(
        each._replace(unread=(*each.unread, (claim, 0))) if each.deaf is None else each
        for each in world.replicas
    )
    written = replace(
        world, replicas=replicas, whole=read(world.whole, claim), tokens=world.tokens + 1
    )
    yield written.change(number, token=claim.token, awaited=claim.token)


def die(world: World, number: int) -> Iterator[World]:
    """The replica's message comes again, to one that reads the ledger from its beginning."""
    creates = tuple(each._replace(by=-1) if each.by == number else each for each in world.creates)
    whole = from_the_beginning(world)
    replicas = list(world.replicas)
    # Where nobody has claimed the attempt of a redelivered message, it is looked for.
    replicas[number] = Replica(standing=whole, blind=GRACE if whole is None else None)
    yield replace(world, replicas=tuple(replicas), creates=creates, deaths=world.deaths - 1)


def from_the_beginning(world: World) -> Standing | None:
    """What a replica knows that reads the whole ledger now."""
    whole = world.whole
    if whole is None or whole.contended is None:
        return whole
    return replace(whole, contended=0.0)


FORGOTTEN = {
    "unread": (),
    "token": None,
    "awaited": None,
    "looked": False,
    "blind": GRACE,
    "deaf": None,
}
"""What a replica is once it knows that the ledger was deleted. It reads the new one, which it does
not trust until all creates have ended whose claims stood in the old one."""


def delete(world: World) -> World:
    """The ledger is deleted, and another one is there."""
    replicas = tuple(each._replace(unread=(), deaf=0) for each in world.replicas)
    return replace(world, replicas=replicas, whole=None, deletions=world.deletions - 1)


def come_true(world: World, create: Create) -> World:
    creates = tuple(each for each in world.creates if each is not create)
    done = replace(world, creates=creates, executions=world.executions + 1)
    return done.change(create.by, creating=False, done=True) if create.by >= 0 else done


def answer_never(world: World, create: Create) -> World:
    """The create does nothing, and its sender knows."""
    creates = tuple(each for each in world.creates if each is not create)
    lost = replace(world, creates=creates)
    return lost.change(create.by, creating=False) if create.by >= 0 else lost


def may_pass(world: World) -> bool:
    """Whether a tick can pass: nothing stays unread, and no create lasts, longer than it can."""
    if not world.late and any(create.age >= CREATE_LASTS for create in world.creates):
        return False
    if any(each.deaf is not None and each.deaf >= LATENCY for each in world.replicas):
        return False
    return all(age < LATENCY for each in world.replicas for _, age in each.unread)


def tick(world: World) -> World:
    return replace(
        world,
        replicas=tuple(map(older, world.replicas)),
        creates=tuple(each._replace(age=min(each.age + 1, CREATE_LASTS)) for each in world.creates),
    )


def older(replica: Replica) -> Replica:
    standing = replica.standing
    if standing is not None and standing.contended is not None:
        standing = replace(standing, contended=max(standing.contended - 1.0, -float(GRACE)))
    unread = tuple((claim, age + 1) for claim, age in replica.unread)
    blind = replica.blind and replica.blind - 1
    deaf = None if replica.deaf is None else replica.deaf + 1
    return replica._replace(standing=standing, unread=unread, blind=blind, deaf=deaf)


def renamed(world: World) -> World:
    """The same with the smallest tokens: only which are equal matters."""
    names: dict[int, int] = {}

    def name(token: int | None) -> int | None:
        return None if token is None else names.setdefault(token, len(names) + 1)

    def claim(one: Claim) -> Claim:
        return replace(one, token=names.setdefault(one.token, len(names) + 1))

    def standing(one: Standing | None) -> Standing | None:
        return None if one is None else replace(one, claim=claim(one.claim))

    replicas = tuple(
        each._replace(
            token=name(each.token),
            standing=standing(each.standing),
            unread=tuple((claim(one), age) for one, age in each.unread),
            awaited=name(each.awaited),
        )
        for each in world.replicas
    )
    whole = standing(world.whole)
    return replace(world, replicas=replicas, whole=whole, tokens=len(names) + 1)


def visit(begin: World) -> Iterable[World]:
    """Every situation that can come of that one."""
    seen, waiting = {begin}, [begin]
    while waiting:
        world = waiting.pop()
        yield world
        for following in map(renamed, successors(world)):
            if following not in seen:
                seen.add(following)
                waiting.append(following)


TWO_COPIES = (Replica(), Replica())


@pytest.mark.parametrize(("deaths", "deletions"), [(1, 0), (0, 1)])
def test_two_copies_at_the_same_instant_never_have_two_executions(
    deaths: int, deletions: int
) -> None:
    world = World(TWO_COPIES, deaths=deaths, deletions=deletions)
    assert max(each.executions for each in visit(world)) == 1


def test_a_message_whose_replicas_die_never_has_two_executions() -> None:
    assert max(each.executions for each in visit(World((Replica(),), deaths=3))) == 1


def test_a_start_always_ends_where_no_create_is_lost() -> None:
    ends = [
        each
        for each in visit(World(TWO_COPIES))
        if all(replica.done for replica in each.replicas) and not each.creates
    ]
    assert {each.executions for each in ends} == {1}


def test_the_model_sees_a_second_execution_where_creates_last_longer_than_the_grace() -> None:
    world = World(TWO_COPIES, deaths=0, late=True)
    assert any(each.executions == 2 for each in visit(world))
