"""Kestra flows as files: those that ship with the bridge, a user's own, and what a deployment does
with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from bridge.errors import BridgeError, KestraRejected, SettingsError
from bridge.job.flow_name import FlowName
from bridge.kestra import Dialect, Kestra, StoredFlow

_PACKAGE = Path(__file__).resolve().parents[1]
_SUFFIXES = (".yaml", ".yml")
_QUOTED = re.compile(r"""(?P<quote>["'])(?P<text>.*?)(?P=quote)\s*(?:#.*)?""")


class Fate(StrEnum):
    """What Kestra thinks of a flow, and what a deployment did with it or would do."""

    VALID = "valid"
    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    HELD = "not deployed"
    """Nothing is wrong with it, but another one of the same deployment was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowFile:
    """A flow's source, the name that it gives itself, and the file that it came from."""

    name: FlowName
    source: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one flow, and why Kestra refused it, if it did."""

    flow: FlowName
    fate: Fate
    problems: tuple[str, ...] = ()


def home() -> Path:
    """The folder of the flows that ship: in the package when installed, beside it in a checkout.

    Raises:
        BridgeError: this installation has none.
    """
    # In this order, since an installed package may have somebody else's `flows` beside it.
    for folder in (_PACKAGE / "_flows", _PACKAGE.parent / "flows"):
        if folder.is_dir():
            return folder
    raise BridgeError(
        f"this installation of kestra-bridge has no flows: neither {_PACKAGE / '_flows'} nor a "
        "checkout's flows/"
    )


def layers(version: str, *, tls: bool) -> tuple[str, ...]:
    """The folders below `home()` for a server of that version. A later one's flow replaces an
    earlier one's.
    """
    series = "kestra-2" if Dialect(version).major >= 2 else "kestra-1"
    return ("common", series, *((f"tls/{series}",) if tls else ()))


def shipped(version: str, *, tls: bool = False) -> list[FlowFile]:
    """The flows that ship, for a server of that version, with the notifier for brokers that demand
    TLS if so wished.
    """
    folder = home()
    found: dict[FlowName, FlowFile] = {}
    for layer in layers(version, tls=tls):
        found |= {flow.name: flow for flow in _in_folder(folder / layer)}
    return [found[name] for name in sorted(found)]


def from_paths(paths: Sequence[Path]) -> list[FlowFile]:
    """A user's own flows: those files, and all YAML files in those folders and below.

    Raises:
        SettingsError: a file is no flow, there is none, or two files hold the same flow.
    """
    found: dict[FlowName, FlowFile] = {}
    for path in paths:
        for flow in _in_folder(path) if path.is_dir() else [read(path)]:
            other = found.setdefault(flow.name, flow)
            if other.path.resolve() != flow.path.resolve():
                raise SettingsError(
                    f"{flow.name} is in two files, {other.path} and {flow.path}: deploy one of them"
                )
    if not found:
        raise SettingsError(
            f"no flow in {', '.join(map(str, paths))}: no file there ends in "
            f"{' or '.join(_SUFFIXES)}"
        )
    return [found[name] for name in sorted(found)]


def read(path: Path) -> FlowFile:
    """The flow in a file.

    Raises:
        SettingsError: it can't be read, or names no flow, or more than one.
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
    """The name that a flow's source gives itself. Reads no more of the YAML than that; the rest is
    for Kestra to judge.

    Raises:
        ValueError: the source has not exactly one namespace and id, or they can't be a flow's.
    """
    return FlowName.parse(f"{_top_level(source, 'namespace')}/{_top_level(source, 'id')}")


def select(flows: Iterable[FlowFile], only: Sequence[str]) -> list[FlowFile]:
    """The flows of those names, written `namespace/id` or `id`; all of them for no names.

    Raises:
        SettingsError: a name fits none of them.
    """
    found = list(flows)
    for wanted in only:
        if not any(_is_called(flow, wanted) for flow in found):
            names = ", ".join(str(flow.name) for flow in found)
            raise SettingsError(f"--only {wanted}: no such flow here; there are {names}")
    return [flow for flow in found if not only or any(_is_called(flow, wanted) for wanted in only)]


def fate(flow: FlowFile, present: str | None) -> Fate:
    """What a deployment does with a flow, given the source that the server has (None: no such
    flow).
    """
    if present is None:
        return Fate.CREATED
    return Fate.UNCHANGED if _comparable(flow.source) == _comparable(present) else Fate.UPDATED


async def validate(kestra: Kestra, flows: Iterable[FlowFile]) -> list[Verdict]:
    """Whether Kestra would take each of the flows, and if not, why. Changes nothing."""
    return [_judge(flow, await kestra.flows.validate(flow.source)) for flow in flows]


async def deploy(
    kestra: Kestra, flows: Sequence[FlowFile], *, dry_run: bool = False
) -> list[Verdict]:
    """Create the flows that the server lacks and update those that differ. Never deletes one, nor
    touches any other.

    All are validated first, and nothing is deployed when one is refused.
    """
    verdicts = await validate(kestra, flows)
    if any(verdict.fate is Fate.REFUSED for verdict in verdicts):
        return [_held(verdict) for verdict in verdicts]
    # All are looked up before the first is written, so that trouble with the server shows while
    # nothing has been done.
    plan = [(flow, fate(flow, _source(await kestra.flows.get(flow.name)))) for flow in flows]
    return [
        Verdict(flow=flow.name, fate=due) if dry_run else await _carry_out(kestra, flow, due)
        for flow, due in plan
    ]


async def _carry_out(kestra: Kestra, flow: FlowFile, due: Fate) -> Verdict:
    try:
        if due is not Fate.UNCHANGED:
            await kestra.flows.save(flow.name, flow.source, exists=due is Fate.UPDATED)
    except KestraRejected as error:
        # It passed the validation, so this is rare: two deployments at once, or a policy that only
        # a save is put to.
        return _judge(flow, [str(error).removeprefix(f"{flow.name}: ")])
    return Verdict(flow=flow.name, fate=due)


def _source(stored: StoredFlow | None) -> str | None:
    return stored.source if stored else None


def _judge(flow: FlowFile, problems: Iterable[str]) -> Verdict:
    found = tuple(" ".join(problem.split()) for problem in problems)
    return Verdict(flow=flow.name, fate=Fate.REFUSED if found else Fate.VALID, problems=found)


def _held(verdict: Verdict) -> Verdict:
    return verdict if verdict.fate is Fate.REFUSED else replace(verdict, fate=Fate.HELD)


def _in_folder(folder: Path) -> list[FlowFile]:
    return [
        read(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in _SUFFIXES and path.is_file()
    ]


def _top_level(source: str, key: str) -> str:
    """The text of a key at the top level, where a line begins with it."""
    values = re.findall(rf"^{key}:[ \t]*(.*?)[ \t\r]*$", source, re.MULTILINE)
    if len(values) != 1:
        raise ValueError(
            f"it has {f'{len(values)} lines' if values else 'no line'} '{key}: …' at the top "
            "level, in place of one"
        )
    if quoted := _QUOTED.fullmatch(values[0]):
        return quoted["text"]
    return re.split(r"\s+#", values[0])[0]


def _is_called(flow: FlowFile, wanted: str) -> bool:
    return wanted in (str(flow.name), flow.name.id)


def _comparable(source: str) -> str:
    lines = (line.rstrip() for line in source.splitlines())
    return "\n".join(lines).strip()
