"""What real Kestra servers answered, asked again of any server: status, content type, keys and
message must agree.

    python -m tests.contract.exchanges --url http://127.0.0.1:8080 --username … --password …
    --series 1.3

`recordings/` holds one exchange a line; ids, times and UUIDs in it are blanked. Each exchange is
asked again by itself, in namespaces of its own, after what it needs has been made: the flows that
it names, and the executions that its path or its answer shows. What was made is taken away
afterwards.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Self
from urllib.parse import parse_qsl, quote, urlsplit

import httpx

from tests.contract.flows import CONTRACT, EXTRA, EXTRA_FLOWS, FLOWS, Series, source
from tests.contract.recorded import FILES, Exchange, recorded, rows

BOUNDARY = "8f1f0c6d5a"
ENDED = ("SUCCESS", "FAILED", "KILLED")
ENDLESS = ("sleeps", "sleeper", "limited", "pauses")
"""The flows whose executions don't end by themselves."""
PATIENCE = 60.0
"""How many seconds an execution may take to get into a state."""
TRIES = 5
"""How often an answer that depends on the server's speed is asked for again."""
OF_SPEED = frozenset({"taskRunList", "outputs"})
"""What an execution shows only from some state on."""
OF_THE_FLOW = frozenset({"inputs", "outputs", "trigger", "parentId"})
"""What a listed execution shows only if its flow has it."""


# What an exchange needs.


@dataclass(frozen=True)
class Wanted:
    """An execution of a flow that has to be there, and how far it has come: a state, "deleted", or
    "" for any."""

    flow: str
    state: str
    labels: tuple[str, ...] = ()


def wanted_flow(exchange: Exchange) -> str:
    """The id of the flow that the request is about; empty where it's about none that there was."""
    about_flows = exchange.route[0] == "flows"
    if about_flows and exchange.method == "POST":
        return _id_in(exchange.request_body) if "already exists" in exchange.message else ""
    if exchange.message.startswith(("Not Found: Requested Flow", "Not Found: Webhook")):
        return "hook" if "Webhook" in exchange.message else ""
    match exchange.route:
        case ["flows", _, flow] if exchange.status != 404:
            return _named(flow, exchange)
        case ["executions", "webhook", _, flow, _] | ["executions", str(), flow] if (
            exchange.method == "POST"
        ):
            return flow if flow in FLOWS or flow in EXTRA_FLOWS or flow == "sleeper" else ""
    return ""


def _named(flow: str, exchange: Exchange) -> str:
    """The name that a blanked one stands for."""
    if "<uuid>" not in flow:
        return flow
    return _id_in(exchange.request_body) or (exchange.body or {}).get("id", "fabsent00")


def _id_in(flow_source: str) -> str:
    found = re.search(r"^id: (\w+)$", flow_source, re.MULTILINE)
    return found[1] if found else ""


def wanted_executions(exchange: Exchange) -> list[Wanted]:
    """The executions that were there, in the order of their creation; the last is the path's
    `<id>`."""
    if "<id>" in exchange.path:
        return _of_the_path(exchange)
    if exchange.route[-1] == "limited" and exchange.shown["state"]["current"] == "FAILED":
        return [Wanted("limited", "RUNNING")]
    return [_listed(row, exchange.path) for row in reversed(rows(exchange.body)) if "state" in row]


def _listed(row: dict[str, Any], path: str) -> Wanted:
    state = row["state"]["current"]
    reached = state if row["flowId"] in ENDLESS else _END.get(row["flowId"], "SUCCESS")
    return Wanted(row["flowId"], reached, _labels_asked(path))


_END = {"fails": "FAILED", "broken": "FAILED"}


def _labels_asked(path: str) -> tuple[str, ...]:
    """The labels that a search asks for, as a create call takes them."""
    pairs = parse_qsl(urlsplit(path).query)
    filtered = [
        (re.fullmatch(r"filters\[labels]\[EQUALS]\[(.+)]", name), value) for name, value in pairs
    ]
    flat = [value for name, value in pairs if name == "labels" and "nobody" not in value]
    return (*(f"{found[1]}:{value}" for found, value in filtered if found), *flat)


def _of_the_path(exchange: Exchange) -> list[Wanted]:
    what, action = exchange.route[0], exchange.route[-1]
    if what == "logs":
        return [Wanted(exchange.shown["flowId"], "FAILED")]
    if action in _BEFORE:
        return [_before(exchange, action)]
    if exchange.shown:
        return _seen(exchange.shown["flowId"], exchange.shown["state"]["current"])
    deleted = exchange.status == 404 and what == "executions"
    return [Wanted("silent", "deleted" if deleted else "SUCCESS")]


def _seen(flow: str, state: str) -> list[Wanted]:
    """What leads to an execution of that flow in that state."""
    if flow == "limited":
        return [Wanted(flow, "RUNNING"), Wanted(flow, state)]
    passing = state not in ENDED and flow not in ENDLESS
    return [Wanted(flow, "" if passing else state)]


_BEFORE = {
    "kill": ("sleeps", "RUNNING"),
    "resume": ("pauses", "PAUSED"),
    "restart": ("broken", "FAILED"),
    "replay": ("broken", "FAILED"),
}
"""What an action is asked for, where the answer doesn't show it."""


def _before(exchange: Exchange, action: str) -> Wanted:
    flow, state = _BEFORE[action]
    if exchange.status == 409:
        return Wanted("silent", "SUCCESS")
    if exchange.shown and exchange.shown["state"]["current"] == "KILLED":
        state = "KILLED"
    return Wanted(exchange.shown.get("flowId", flow), state)


# The comparison.


def differences(exchange: Exchange, answer: httpx.Response, body: Any) -> list[str]:
    """What of the answer is not as it was recorded."""
    pairs = {
        "status": (exchange.status, answer.status_code),
        "content type": (exchange.headers.get("content-type"), answer.headers.get("content-type")),
        "WWW-Authenticate": (
            exchange.headers.get("www-authenticate"),
            answer.headers.get("www-authenticate"),
        ),
        "body": (type(exchange.body).__name__, type(body).__name__),
        "message": (_message(exchange.body), _message(body)),
    }
    found = [
        f"{what}: {seen!r} in place of {wanted!r}"
        for what, (wanted, seen) in pairs.items()
        if wanted != seen
    ]
    left_out = frozenset() if states(exchange.body) == states(body) else OF_SPEED
    wanted, seen = keys(exchange.body, left_out), keys(body, left_out)
    if wanted != seen:
        found.append(f"keys: without {sorted(wanted - seen)}, but with {sorted(seen - wanted)}")
    return found


def _message(body: Any) -> str | None:
    """A body's message, in which what stands in brackets has no order."""
    message = body.get("message") if isinstance(body, dict) else None
    if not isinstance(message, str):
        return None
    return re.sub(
        r"\[([\w, /]+)]", lambda found: f"[{', '.join(sorted(found[1].split(', ')))}]", message
    )


def states(body: Any) -> set[str]:
    """The states of the executions that a body shows."""
    shown = rows(body) or ([body] if isinstance(body, dict) else [])
    return {one["state"]["current"] for one in shown if "state" in one}


def keys(body: Any, left_out: frozenset[str]) -> set[str]:
    """The names in a body: of a refusal at any depth, of a list those that each row has."""
    if _message(body) is not None:
        return set(_paths(body))
    common = set.intersection(*map(set, rows(body))) if rows(body) else set[str]()
    own = set(body) if isinstance(body, dict) else set[str]()
    return (own - left_out) | {f"[].{key}" for key in common - left_out - OF_THE_FLOW}


def _paths(value: Any, above: str = "") -> Iterator[str]:
    inner = value.items() if isinstance(value, dict) else [("[]", one) for one in value]
    for key, one in inner:
        yield f"{above}{key}"
        if isinstance(one, dict | list):
            yield from _paths(one, f"{above}{key}.")


# The replay.


class NotPrepared(Exception):
    """The server doesn't let an exchange's needs be made; the message says what failed."""


@dataclass
class Replayer:
    """Asks a server again what a real one was asked."""

    url: str
    auth: httpx.Auth
    series: Series
    _made: list[str] = field(default_factory=list)
    _deployed: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._http = httpx.Client(base_url=self.url, auth=self.auth, timeout=PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def disagreements(self, exchange: Exchange) -> list[str]:
        """What of this server's answer is not as it was recorded; nothing if all agrees."""
        found: list[str] = []
        # A refusal is the same however often it's asked for. How far an execution has come isn't.
        for _ in range(TRIES if exchange.status < 300 else 1):
            try:
                found, same_state = self._ask(exchange)
            except NotPrepared as error:
                return [f"not asked, since {error}"]
            finally:
                self._clean_up()
            if not found and same_state:
                break
        return found

    def _ask(self, exchange: Exchange) -> tuple[list[str], bool]:
        run = f"x{uuid.uuid4().hex[:12]}"
        names = {CONTRACT: f"{run}.contract", EXTRA: f"{run}.extra"}
        since = self._now()
        ids = self._prepare(exchange, names)
        answer = self._send(exchange, names, ids[-1] if ids else "", since)
        text = answer.text
        for name, own in names.items():
            text = text.replace(own, name)
        body = _json(text.replace(ids[-1], "<id>") if ids else text)
        made = body.get("id") if isinstance(body, dict) else None
        if exchange.method == "POST" and exchange.route[0] == "executions" and made:
            self._made.append(made)
        if exchange.method == "POST" and exchange.route[0] == "flows" and made:
            self._deployed.append((names.get(body["namespace"], ""), made))
        # Each state has its own keys, but there are servers on which a short one is never seen.
        return differences(exchange, answer, body), exchange.method != "GET" or states(
            body
        ) == states(exchange.body)

    def _now(self) -> str:
        """The moment before now by the server's clock, as a search takes it."""
        answered = self._http.get("/api/v1/configs").headers["Date"]
        return (parsedate_to_datetime(answered) - timedelta(seconds=2)).isoformat()

    def _send(
        self, exchange: Exchange, names: dict[str, str], execution: str, since: str
    ) -> httpx.Response:
        path = exchange.path.replace("<id>", execution)
        flow = _named("<uuid>", exchange) if "/flows/" in path else ""
        path = re.sub("f<uuid>", flow, path)
        path = re.sub(r"=20\d\d-\d\d-\d\dT[^&]+", lambda _: f"={quote(since)}", path)
        content = exchange.request_body.replace("<uuid>", BOUNDARY)
        for name, own in names.items():
            path, content = path.replace(name, own), content.replace(name, own)
        headers = {
            key: value.replace("<uuid>", f"boundary={BOUNDARY}")
            for key, value in exchange.request_headers.items()
        }
        request = self._http.build_request(
            exchange.method, path, headers=headers, content=content.encode()
        )
        return self._http.send(request, auth=self._auth(exchange))

    def _auth(self, exchange: Exchange) -> httpx.Auth | None:
        """None where the exchange had none, and a wrong one where it was refused."""
        if not exchange.authorised:
            return None
        return (
            httpx.BasicAuth("nobody@example.org", "Wrong000")
            if exchange.status == 401
            else self.auth
        )

    def _prepare(self, exchange: Exchange, names: dict[str, str]) -> list[str]:
        """Make what the exchange needs; the ids of the executions."""
        wanted = wanted_executions(exchange)
        for flow in sorted({wanted_flow(exchange), *(one.flow for one in wanted)} - {""}):
            self._deploy(flow, exchange, names)
        return [self._execution(one, names) for one in wanted]

    def _deploy(self, flow: str, exchange: Exchange, names: dict[str, str]) -> None:
        text = _SOME_FLOW.format(id=flow)
        if flow in FLOWS or flow in EXTRA_FLOWS or flow == "sleeper":
            text = source(flow, self.series)
        elif (
            isinstance(exchange.body, dict)
            and "source" in exchange.body
            and exchange.method == "GET"
        ):
            text = exchange.body["source"]
        for name, own in names.items():
            text = text.replace(name, own)
        answer = self._done(
            self._http.post("/api/v1/main/flows", content=text.encode(), headers=_YAML)
        )
        self._deployed.append((answer.json()["namespace"], flow))

    def _execution(self, wanted: Wanted, names: dict[str, str]) -> str:
        """The id of such an execution, made for this."""
        namespace = names[CONTRACT if wanted.flow in FLOWS else EXTRA]
        path = f"/api/v1/main/executions/{namespace}/{wanted.flow}"
        text = [("text", (None, "42"))] if wanted.flow == "works" else None
        answer = self._done(
            self._http.post(path, params=[("labels", label) for label in wanted.labels], files=text)
        )
        execution = str(answer.json()["id"])
        self._made.append(execution)
        self._bring(execution, wanted)
        return execution

    def _bring(self, execution: str, wanted: Wanted) -> None:
        """Wait until an execution is in that state, and do what leads there."""
        match wanted.flow, wanted.state:
            case _, "":
                return
            case _, "deleted":
                self._wait(execution, "SUCCESS")
                self._done(self._http.delete(f"/api/v1/main/executions/{execution}"))
                return
            case "pauses", "SUCCESS":
                self._wait(execution, "PAUSED")
                self._done(self._http.post(self._action(execution, "resume")))
            case (("sleeps" | "sleeper" | "pauses"), "KILLED"):
                self._wait(execution, "PAUSED" if wanted.flow == "pauses" else "RUNNING")
                self._kill(execution)
        self._wait(execution, wanted.state)

    def _action(self, execution: str, action: str) -> str:
        moved = "" if self.series == "1.3" else "actions/"
        return f"/api/v1/main/executions/{execution}/{moved}{action}"

    def _kill(self, execution: str) -> None:
        self._http.delete(self._action(execution, "kill"))

    def _wait(self, execution: str, state: str) -> None:
        deadline = time.monotonic() + PATIENCE
        seen = ""
        while time.monotonic() < deadline:
            answer = self._http.get(f"/api/v1/main/executions/{execution}")
            seen = (
                answer.json()["state"]["current"]
                if answer.status_code == 200
                else f"status {answer.status_code}"
            )
            if seen == state:
                return
            if seen in ENDED:
                break
            time.sleep(0.02)
        raise NotPrepared(
            f"execution {execution} is not {state} within {PATIENCE:g} s (last seen: {seen})"
        )

    def _done(self, answer: httpx.Response) -> httpx.Response:
        if not answer.is_success:
            request = answer.request
            raise NotPrepared(
                f"{request.method} {request.url.path} was "
                f"answered {answer.status_code} {answer.text}"
            )
        return answer

    def _clean_up(self) -> None:
        """Leave nothing behind that runs, and no flow."""
        for execution in self._made:
            self._kill(execution)
        for namespace, flow in self._deployed:
            self._http.delete(f"/api/v1/main/flows/{namespace}/{flow}")
        self._made.clear()
        self._deployed.clear()


_YAML = {"Content-Type": "application/x-yaml"}
_SOME_FLOW = """id: {id}
namespace: contract.flows
tasks:
  - {{id: say, type: io.kestra.plugin.core.log.Log, message: one}}
"""


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask a server all that was recorded of its series, and print what differs: 0 if nothing does,
    else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.contract.exchanges", description=main.__doc__
    )
    parser.add_argument("--url", required=True)
    parser.add_argument("--username", required=True)
    parser.add_argument("--password", required=True)
    parser.add_argument("--series", choices=sorted(FILES), required=True)
    parser.add_argument(
        "--only", type=int, nargs="*", help="the numbers of exchanges (default: all)"
    )
    options = parser.parse_args(arguments)
    chosen = [
        one for one in recorded(options.series) if not options.only or one.number in options.only
    ]
    agreed = 0
    with Replayer(
        options.url, httpx.BasicAuth(options.username, options.password), options.series
    ) as replayer:
        for exchange in chosen:
            found = replayer.disagreements(exchange)
            agreed += not found
            if found:
                print("\n    ".join([exchange.name, *found]), flush=True)
    print(f"{agreed} of {len(chosen)} agree")
    return int(agreed < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
