"""Finds, validates and deploys Kestra flows: those that ship with the bridge, or a user's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from bridge.errors import BridgeError, KestraRejected, SettingsError
from bridge.job.flow_name import FlowName
from bridge.kestra import Dialect, Kestra

NOTIFIER = FlowName("bridge.system", "notifier")
"""The flow that reports ends from inside Kestra. It is an option, deployed only on demand."""

_PACKAGE = Path(__file__).resolve().parents[1]
_SUFFIXES = (".yaml", ".yml")
_QUOTED = re.compile(r"""(?P<quote>["'])(?P<text>.*?)(?P=quote)\s*(?:#.*)?""")


class Fate(StrEnum):
    """Whether Kestra accepts a flow, and what a deployment did with it or would do."""

    VALID = "valid"
    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    HELD = "not deployed"
    """The flow is fine, but another one of the same deployment was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowFile:
    """A flow's source, the name that it gives itself, and its file."""

    name: FlowName
    source: str
    path: Path

    @property
    def names(self) -> set[str]:
        """The names that `--only` may call it by."""
        return {str(self.name), self.name.id}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The fate of one flow, and Kestra's problems with it if it was refused."""

    flow: FlowName
    fate: Fate
    problems: tuple[str, ...] = ()


def home() -> Path:
    """The folder of the flows that ship: inside an installed package, beside it in a checkout.

    Raises:
        BridgeError: this installation has none.
    """
    # In this order, since an installed package may have another package's `flows` beside it.
    for folder in (_PACKAGE / "_flows", _PACKAGE.parent / "flows"):
        if folder.is_dir():
            return folder
    raise BridgeError(
        f"this installation of kestra-bridge has no flows: neither {_PACKAGE / '_flows'} nor a "
        "checkout's flows/"
    )


def layers(version: str, *, tls: bool) -> tuple[str, ...]:
    """The folders below `home()` for a server of that version. A flow of a later folder replaces
    the one of the same name.
    """
    series = "kestra-2" if Dialect(version).major >= 2 else "kestra-1"
    if tls:
        return ("common", series, f"tls/{series}")
    return ("common", series)


def shipped(version: str, *, tls: bool = False) -> list[FlowFile]:
    """The flows that ship for a server of that version. With `tls` the notifier is the one for
    brokers that demand TLS.
    """
    folder = home()
    found: dict[FlowName, FlowFile] = {}
    for layer in layers(version, tls=tls):
        found |= {flow.name: flow for flow in _in_folder(folder / layer)}
    return [found[name] for name in sorted(found)]


def from_paths(paths: Sequence[Path]) -> list[FlowFile]:
    """A user's own flows: these files, and all YAML files in and below these folders.

    Raises:
        SettingsError: a file is not a flow, there is none, or two files have the same flow.
    """
    found: dict[FlowName, FlowFile] = {}
    for path in paths:
        flows = _in_folder(path) if path.is_dir() else [read(path)]
        for flow in flows:
            other = found.setdefault(flow.name, flow)
            if other.path.resolve() != flow.path.resolve():
                raise SettingsError(
                    f"{flow.name} is in two files, {other.path} and {flow.path}: deploy one of them"
                )
    if not found:
        places = ", ".join(map(str, paths))
        suffixes = " or ".join(_SUFFIXES)
        raise SettingsError(f"no flow in {places}: no file there ends in {suffixes}")
    return [found[name] for name in sorted(found)]


def read(path: Path) -> FlowFile:
    """The flow in a file.

    Raises:
        SettingsError: it can't be read, or doesn't name exactly one flow.
    """
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"can't read {path}: {error}") from error
    try:
        return FlowFile(name=name_in(source), source=source, path=path)
    except ValueError as error:
        raise SettingsError(f"{path} is no flow of Kestra's: {error}") from error


def name_in(source: str) -> FlowName:
    """The name that a flow's source gives itself. Nothing else of the YAML is read; Kestra judges
    the rest.

    Raises:
        ValueError: the source doesn't have exactly one namespace and id, or they are not valid.
    """
    return FlowName.parse(f"{_top_level(source, 'namespace')}/{_top_level(source, 'id')}")


def select(flows: Iterable[FlowFile], only: Sequence[str]) -> list[FlowFile]:
    """The flows with these names, written `namespace/id` or `id`; all flows if there are no names.

    Raises:
        SettingsError: a name fits none of them.
    """
    found = list(flows)
    if not only:
        return found
    names: set[str] = set()
    for flow in found:
        names |= flow.names
    for wanted in only:
        if wanted not in names:
            there = ", ".join(str(flow.name) for flow in found)
            raise SettingsError(f"--only {wanted}: no such flow here; there are {there}")
    return [flow for flow in found if not flow.names.isdisjoint(only)]


def choose(flows: Sequence[FlowFile], only: Sequence[str], *, notifier: bool) -> list[FlowFile]:
    """Of the flows that ship, those with these names; without names all but the notifier. With
    `notifier`, the notifier as well.

    Raises:
        SettingsError: a name fits none of them.
    """
    chosen = {flow.name for flow in select(flows, only)}
    if not only:
        chosen.discard(NOTIFIER)
    if notifier:
        chosen.add(NOTIFIER)
    return [flow for flow in flows if flow.name in chosen]


def fate(flow: FlowFile, present: str | None) -> Fate:
    """What a deployment does with a flow, given the source that the server has; None if it has no
    such flow.
    """
    if present is None:
        return Fate.CREATED
    if _comparable(flow.source) == _comparable(present):
        return Fate.UNCHANGED
    return Fate.UPDATED


async def validate(kestra: Kestra, flows: Iterable[FlowFile]) -> list[Verdict]:
    """Whether Kestra would accept each of the flows, and if not, why. Changes nothing."""
    return [_judge(flow, await kestra.flows.validate(flow.source)) for flow in flows]


async def deploy(
    kestra: Kestra, flows: Sequence[FlowFile], *, dry_run: bool = False
) -> list[Verdict]:
    """Create the flows that the server lacks and update those that differ. Deletes no flow and
    touches no other.

    All flows are validated first, and nothing is deployed if one is refused.
    """
    verdicts = await validate(kestra, flows)
    if any(verdict.problems for verdict in verdicts):
        return [_held(verdict) for verdict in verdicts]
    # All flows are looked up before the first is written, so that trouble with the server shows
    # while nothing has been changed.
    plan: list[tuple[FlowFile, Fate]] = []
    for flow in flows:
        stored = await kestra.flows.get(flow.name)
        plan.append((flow, fate(flow, stored.source if stored else None)))
    if dry_run:
        return [Verdict(flow=flow.name, fate=due) for flow, due in plan]
    return [await _carry_out(kestra, flow, due) for flow, due in plan]


async def _carry_out(kestra: Kestra, flow: FlowFile, due: Fate) -> Verdict:
    if due is not Fate.UNCHANGED:
        try:
            await kestra.flows.save(flow.name, flow.source, exists=due is Fate.UPDATED)
        except KestraRejected as error:
            # The flow passed the validation, so this is rare: two deployments at once, or a policy
            # that Kestra applies only when it saves.
            return _judge(flow, [str(error).removeprefix(f"{flow.name}: ")])
    return Verdict(flow=flow.name, fate=due)


def _held(verdict: Verdict) -> Verdict:
    """The verdict on a flow of a deployment in which some flow was refused."""
    if verdict.problems:
        return verdict
    return replace(verdict, fate=Fate.HELD)


def _judge(flow: FlowFile, problems: Iterable[str]) -> Verdict:
    found = tuple(" ".join(problem.split()) for problem in problems)
    if found:
        return Verdict(flow=flow.name, fate=Fate.REFUSED, problems=found)
    return Verdict(flow=flow.name, fate=Fate.VALID)


def _in_folder(folder: Path) -> list[FlowFile]:
    return [
        read(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in _SUFFIXES and path.is_file()
    ]


def _top_level(source: str, key: str) -> str:
    """The value of a key at the top level, where a line begins with it."""
    values = re.findall(rf"^{key}:[ \t]*(.*?)[ \t\r]*$", source, re.MULTILINE)
    if len(values) != 1:
        count = f"{len(values)} lines" if values else "no line"
        raise ValueError(f"it has {count} '{key}: …' at the top level, in place of one")
    (value,) = values
    quoted = _QUOTED.fullmatch(value)
    if quoted:
        return quoted["text"]
    # A comment may follow a plain value.
    return re.split(r"\s+#", value)[0]


def _comparable(source: str) -> str:
    lines = (line.rstrip() for line in source.splitlines())
    return "\n".join(lines).strip()
