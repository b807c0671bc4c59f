"""Kestra's engine behind our façade answers as Kestra's own server does, and loses nothing when
it's killed.

Most of it is asked of 2.0; of 1.3, what it has for itself beyond the contract in `tests/contract`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from deploy.local import kestra_engine
from deploy.local.kestra_engine import AmqpAddress, BuildError, Engine
from deploy.local.paths import REPOSITORY, free_port
from deploy.local.processes import ProcessError

# The jars are fetched on first use.
pytestmark = pytest.mark.timeout(600)

Json = dict[str, Any]

HELLO = """
inputs:
  - {id: name, type: STRING}
  - {id: count, type: INT, defaults: 3}
tasks:
  - {id: greet, type: io.kestra.plugin.core.log.Log, message: "hello {{ inputs.name }}"}
  - {id: say, type: io.kestra.plugin.core.debug.Return, format: "{{ inputs.count }}"}
outputs:
  - {id: result, type: STRING, value: "{{ outputs.say.value }}"}
"""
SHORT = """
tasks:
  - {id: log, type: io.kestra.plugin.core.log.Log, message: done}
"""
FAILING = """
tasks:
  - {id: fail, type: io.kestra.plugin.core.execution.Fail, errorMessage: it had to be}
"""
PAUSING = """
tasks:
  - {id: pause, type: io.kestra.plugin.core.flow.Pause}
  - {id: log, type: io.kestra.plugin.core.log.Log, message: resumed}
"""


def shell(*commands: str) -> str:
    """A flow of one shell task, on this machine."""
    return f"""
tasks:
  - id: shell
    type: io.kestra.plugin.scripts.shell.Commands
    taskRunner: {{type: io.kestra.plugin.core.runner.Process}}
    commands: {json.dumps(commands)}
"""


@dataclass
class Kestra:
    """One namespace on the engine."""

    http: httpx.Client
    namespace: str = field(default_factory=lambda: f"test.n{uuid.uuid4().hex[:12]}")

    def source(self, flow: str, body: str) -> str:
        return f"id: {flow}\nnamespace: {self.namespace}\n{body}"

    def send_flow(self, source: str) -> httpx.Response:
        return self.http.post(
            "/flows", content=source, headers={"Content-Type": "application/x-yaml"}
        )

    def deploy(self, body: str, flow: str = "job") -> str:
        self.send_flow(self.source(flow, body)).raise_for_status()
        return flow

    def create(
        self, flow: str = "job", *labels: str, wait: bool = False, **inputs: str
    ) -> httpx.Response:
        parts = [(name, (None, value)) for name, value in inputs.items()]
        query = {"labels": list(labels), "wait": str(wait).lower()}
        return self.http.post(
            f"/executions/{self.namespace}/{flow}", params=query, files=parts or None, timeout=60
        )

    def run(self, body: str, *labels: str, **inputs: str) -> Json:
        """Deploy the flow, run it, and give its execution at the end."""
        return answer(self.create(self.deploy(body), *labels, wait=True, **inputs))

    def begin(self, body: str, *labels: str, flow: str = "job") -> str:
        """Deploy the flow and start it; the id of its execution."""
        return str(answer(self.create(self.deploy(body, flow), *labels))["id"])

    def get(self, execution: str) -> Json:
        return answer(self.http.get(f"/executions/{execution}"))

    def state(self, execution: str) -> str:
        return str(self.get(execution)["state"]["current"])

    def await_state(self, execution: str, *states: str, timeout: float = 30.0) -> None:
        eventually(lambda: self.state(execution) in states, f"{execution} in {states}", timeout)

    def search(self, *filters: str, **query: str) -> Json:
        mine = {"filters[namespace][EQUALS]": self.namespace}
        more = dict(text.split("=", 1) for text in filters)
        return answer(self.http.get("/executions/search", params={**mine, **more, **query}))

    def logged(self, execution: str) -> list[str]:
        return [entry["message"] for entry in self.http.get(f"/logs/{execution}").json()]

    def found(self, *filters: str, **query: str) -> list[str]:
        return [row["id"] for row in self.search(*filters, **query)["results"]]


def answer(response: httpx.Response) -> Json:
    assert response.status_code == 200, response.text
    return cast("Json", response.json())


def eventually(true: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"not {what} within {timeout:g} s"
        time.sleep(0.05)


def client(engine: Engine) -> httpx.Client:
    return httpx.Client(
        base_url=f"{engine.url}/api/v1/main", auth=(engine.username, engine.password), timeout=30
    )


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    dead_broker = AmqpAddress(port=free_port())
    with Engine(
        tmp_path_factory.mktemp("engine"), amqp=dead_broker, secrets={"COLOUR": "blue\u00e9"}
    ) as running:
        yield running


@pytest.fixture(scope="module")
def http(engine: Engine) -> Iterator[httpx.Client]:
    with client(engine) as opened:
        yield opened


@pytest.fixture
def kestra(http: httpx.Client) -> Kestra:
    return Kestra(http)


# Who may ask, and how


def test_the_version_is_that_of_the_engine(engine: Engine, http: httpx.Client) -> None:
    assert answer(http.get(f"{engine.url}/api/v1/configs"))["version"] == "2.0.0"


def test_ping_needs_no_credentials(engine: Engine) -> None:
    assert httpx.get(f"{engine.url}/ping").text == "pong"


@pytest.mark.parametrize("auth", [None, ("admin@example.org", "wrong")])
def test_bad_credentials_are_refused_without_a_body(
    engine: Engine, auth: tuple[str, str] | None
) -> None:
    response = httpx.get(f"{engine.url}/api/v1/configs", auth=auth)
    assert (response.status_code, response.headers["WWW-Authenticate"], response.content) == (
        401,
        "Basic",
        b"",
    )


def test_a_path_without_the_tenant_works_too(engine: Engine, http: httpx.Client) -> None:
    assert http.get(f"{engine.url}/api/v1/executions/search").status_code == 200


def test_another_tenant_is_refused(engine: Engine, http: httpx.Client) -> None:
    response = http.get(f"{engine.url}/api/v1/other/executions/search")
    assert (response.status_code, "Tenant must be 'main'" in response.json()["message"]) == (
        400,
        True,
    )


def test_every_answer_has_a_date(http: httpx.Client) -> None:
    assert "Date" in http.get("/executions/search").headers


def test_an_unknown_path_is_not_found(http: httpx.Client) -> None:
    assert http.get("/executions/a/b/c/d/e").status_code == 404


def test_a_method_that_a_path_does_not_know_is_refused(http: httpx.Client) -> None:
    assert http.patch("/executions/search").status_code == 405


def test_a_request_line_as_long_as_netty_takes_is_answered(http: httpx.Client) -> None:
    assert http.get(path_of_line(4096)).status_code == 200


def test_a_longer_request_line_is_refused(http: httpx.Client) -> None:
    assert http.get(path_of_line(4097)).status_code == 413


def path_of_line(length: int) -> str:
    start, end = "GET /api/v1/main", " HTTP/1.1"
    return "/executions/search?x=".ljust(length - len(start) - len(end), "x")


def test_the_engine_listens_on_loopback_alone(engine: Engine) -> None:
    listening = {line.split()[1] for line in sockets_of(engine.pid)}
    assert all(local.split(":")[0] in LOOPBACK for local in listening), listening


LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


def sockets_of(pid: int) -> list[str]:
    """The rows of the process's listening TCP sockets."""
    inodes = {str(handle.readlink()).partition("[")[2].rstrip("]") for handle in handles(pid)}
    rows = [
        row
        for name in ("tcp", "tcp6")
        for row in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return [row for row in rows if row.split()[3] == "0A" and row.split()[9] in inodes]


def handles(pid: int) -> list[Path]:
    return [
        handle
        for handle in Path(f"/proc/{pid}/fd").iterdir()
        if os.path.lexists(handle) and is_socket(handle)
    ]


def is_socket(handle: Path) -> bool:
    try:
        return str(handle.readlink()).startswith("socket:")
    except FileNotFoundError:
        return False


# Flows


def test_a_flow_is_read_back_with_its_source(kestra: Kestra) -> None:
    source = kestra.source("job", SHORT)
    kestra.send_flow(source)
    assert (
        answer(kestra.http.get(f"/flows/{kestra.namespace}/job", params={"source": "true"}))[
            "source"
        ]
        == source
    )


def test_an_unknown_flow_is_not_found(kestra: Kestra) -> None:
    assert kestra.http.get(f"/flows/{kestra.namespace}/nothing").status_code == 404


def test_a_flow_that_exists_is_not_created_again(kestra: Kestra) -> None:
    kestra.deploy(SHORT)
    assert kestra.send_flow(kestra.source("job", SHORT)).status_code == 422


def test_an_unknown_task_type_is_refused(kestra: Kestra) -> None:
    body = "tasks:\n  - {id: x, type: io.nobody.Nothing}\n"
    assert "io.nobody.Nothing" in kestra.send_flow(kestra.source("job", body)).json()["message"]


@pytest.mark.parametrize("source", ["tasks: []", ": no yaml", "", "id: 1\nnamespace: []\ntasks: 3"])
def test_a_flow_that_is_none_is_refused(kestra: Kestra, source: str) -> None:
    assert kestra.send_flow(source).status_code == 422


def test_an_update_makes_a_new_revision(kestra: Kestra) -> None:
    kestra.deploy(SHORT)
    changed = kestra.http.put(
        f"/flows/{kestra.namespace}/job", content=kestra.source("job", FAILING)
    )
    assert answer(changed)["revision"] == 2


def test_an_update_without_a_change_keeps_the_revision(kestra: Kestra) -> None:
    kestra.deploy(SHORT)
    same = kestra.http.put(f"/flows/{kestra.namespace}/job", content=kestra.source("job", SHORT))
    assert answer(same)["revision"] == 1


def test_an_unknown_flow_is_not_updated(kestra: Kestra) -> None:
    response = kestra.http.put(
        f"/flows/{kestra.namespace}/job", content=kestra.source("job", SHORT)
    )
    assert response.status_code == 404


def test_a_deleted_flow_is_gone(kestra: Kestra) -> None:
    path = f"/flows/{kestra.namespace}/{kestra.deploy(SHORT)}"
    assert (kestra.http.delete(path).status_code, kestra.http.get(path).status_code) == (204, 404)


def test_validation_tells_which_document_is_wrong(kestra: Kestra) -> None:
    documents = [
        kestra.source("good", SHORT),
        kestra.source("bad", "tasks:\n  - {id: x, type: io.nobody.Nothing}\n"),
    ]
    response = kestra.http.post("/flows/validate", content="\n---\n".join(documents))
    verdicts = cast("list[Json]", response.json())
    assert (response.status_code, ["constraints" in verdict for verdict in verdicts]) == (
        200,
        [False, True],
    )


def test_the_search_for_flows_knows_namespaces(kestra: Kestra) -> None:
    kestra.deploy(SHORT)
    page = answer(
        kestra.http.get("/flows/search", params={"filters[namespace][EQUALS]": kestra.namespace})
    )
    assert ([flow["id"] for flow in page["results"]], page["total"]) == (["job"], 1)


# Create


def test_a_job_runs_to_its_end(kestra: Kestra) -> None:
    assert kestra.run(HELLO, name="Ann")["state"]["current"] == "SUCCESS"


def test_a_created_execution_has_an_address_and_no_outputs(kestra: Kestra) -> None:
    created = kestra.run(HELLO, name="Ann")
    assert (created["url"].endswith(created["id"]), "outputs" in created) == (True, False)


def test_a_default_fills_an_input_that_is_not_given(kestra: Kestra) -> None:
    assert kestra.run(HELLO, name="Ann")["inputs"] == {"name": "Ann", "count": 3}


def test_inputs_of_every_kind_arrive_typed(kestra: Kestra) -> None:
    body = """
inputs:
  - {id: text, type: STRING}
  - {id: number, type: INT}
  - {id: flag, type: BOOL}
  - {id: data, type: JSON}
  - {id: list, type: ARRAY, itemType: INT}
"""
    execution = kestra.run(
        body + SHORT, text='né\r\n"x"', number="7", flag="true", data='{"a": [1]}', list="[1, 2]"
    )
    expected = {"text": 'né\r\n"x"', "number": 7, "flag": True, "data": {"a": [1]}, "list": [1, 2]}
    assert execution["inputs"] == expected


def test_a_file_input_is_read_by_the_flow_and_handed_out_again(kestra: Kestra) -> None:
    content = bytes(range(256)) * 8
    flow = kestra.deploy("inputs:\n  - {id: document, type: FILE}\n" + SHORT)
    parts = {"document": ("data.bin", content, "application/octet-stream")}
    created = answer(kestra.http.post(f"/executions/{kestra.namespace}/{flow}", files=parts))
    path = created["inputs"]["document"]
    assert (
        kestra.http.get(f"/executions/{created['id']}/file", params={"path": path}).content
        == content
    )


def test_a_file_outside_the_execution_is_refused(kestra: Kestra) -> None:
    execution = kestra.begin(SHORT)
    response = kestra.http.get(
        f"/executions/{execution}/file", params={"path": "kestra:///etc/passwd"}
    )
    assert response.status_code == 422


def test_an_execution_of_an_unknown_flow_is_not_found(kestra: Kestra) -> None:
    assert kestra.create("nothing").status_code == 404


def test_an_execution_of_a_disabled_flow_is_a_conflict(kestra: Kestra) -> None:
    kestra.deploy("disabled: true\n" + SHORT)
    assert kestra.create().status_code == 409


def test_a_missing_input_is_refused(kestra: Kestra) -> None:
    kestra.deploy(HELLO)
    assert kestra.create().status_code == 422


def test_a_bad_input_is_refused_with_its_reason(kestra: Kestra) -> None:
    kestra.deploy(HELLO)
    message = kestra.create(name="Ann", count="many").json()["message"]
    assert message.startswith("Invalid entity: Invalid value for input `count`")


def test_a_json_body_is_refused(kestra: Kestra) -> None:
    path = f"/executions/{kestra.namespace}/{kestra.deploy(HELLO)}"
    assert kestra.http.post(path, json={"name": "Ann"}).status_code == 415


def test_a_body_that_breaks_off_is_refused(kestra: Kestra) -> None:
    path = f"/executions/{kestra.namespace}/{kestra.deploy(HELLO)}"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert kestra.http.post(
        path, content=b'--x\r\nContent-Disposition: form-data; name="a"', headers=headers
    ).is_error


def test_inputs_beyond_the_limit_of_the_queue_are_an_error_of_the_server(kestra: Kestra) -> None:
    kestra.deploy(HELLO)
    response = kestra.create(name="x" * 1_100_000)
    assert (
        response.status_code,
        "exceeded the configured limit" in response.json()["message"],
    ) == (500, True)


def test_a_check_that_fails_blocks_the_execution(kestra: Kestra) -> None:
    checks = 'checks:\n  - {when: "{{ false }}", message: not today}\n'
    kestra.deploy(checks + SHORT)
    assert kestra.create().status_code == 422


# Labels

HOSTILE = [
    '"quoted"',
    "it's",
    "back\\slash",
    "100 %",
    "%27",
    "a:b:c",
    "żółw 🐢",
    "{braces} [too]",
    "a,b",
    "a=b&c",
    "+",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_label_of_any_characters_is_found_again(kestra: Kestra, value: str) -> None:
    execution = kestra.begin(SHORT, f"bridgeJob:{value}", "bridge:amqp")
    assert kestra.found(f"filters[labels][EQUALS][bridgeJob]={value}") == [execution]


def test_labels_are_shown_in_pairs(kestra: Kestra) -> None:
    assert {"key": "bridgeJob", "value": "a:b"} in kestra.run(SHORT, "bridgeJob:a:b")["labels"]


def test_the_value_of_a_label_is_trimmed(kestra: Kestra) -> None:
    assert {"key": "k", "value": "v"} in kestra.run(SHORT, "k: v ")["labels"]


def test_several_labels_all_count(kestra: Kestra) -> None:
    kestra.begin(SHORT, "bridgeJob:one", "bridgeAttempt:1")
    assert (
        kestra.found(
            "filters[labels][EQUALS][bridgeJob]=one", "filters[labels][EQUALS][bridgeAttempt]=2"
        )
        == []
    )


@pytest.mark.parametrize("label", ["key:", "key", "system.mine:1"])
def test_a_label_that_kestra_does_not_take_is_refused(kestra: Kestra, label: str) -> None:
    kestra.deploy(SHORT)
    assert kestra.create("job", label).status_code == 422


def test_the_correlation_id_may_be_set(kestra: Kestra) -> None:
    execution = kestra.run(SHORT, "system.correlationId:mine")
    assert {"key": "system.correlationId", "value": "mine"} in execution["labels"]


# Look up


def test_an_unknown_execution_is_not_found(kestra: Kestra) -> None:
    assert kestra.http.get("/executions/nothing").status_code == 404


def test_an_execution_is_found_as_soon_as_it_is_created(kestra: Kestra) -> None:
    execution = kestra.begin(shell("sleep 30"), "bridgeJob:x")
    assert kestra.found("filters[labels][EQUALS][bridgeJob]=x") == [execution]


def test_a_row_of_a_search_is_light(kestra: Kestra) -> None:
    kestra.run(HELLO, "bridgeJob:x", name="Ann")
    [row] = kestra.search()["results"]
    expected = {
        "tenantId",
        "id",
        "namespace",
        "flowId",
        "flowRevision",
        "inputs",
        "labels",
        "state",
        "originalId",
    }
    assert row.keys() == expected


def test_a_state_shows_its_history(kestra: Kestra) -> None:
    history = kestra.run(SHORT)["state"]["histories"]
    assert [entry["state"] for entry in history] == ["CREATED", "RUNNING", "SUCCESS"]


@pytest.mark.parametrize(
    ("filter", "finds"),
    [
        ("filters[state][EQUALS]=SUCCESS", True),
        ("filters[state][EQUALS]=FAILED", False),
        ("filters[state][IN]=FAILED,SUCCESS", True),
        ("filters[state][NOT_IN]=FAILED,KILLED", True),
        ("filters[state][NOT_IN]=SUCCESS,KILLED", False),
        ("filters[flowId][EQUALS]=job", True),
        ("filters[flowId][EQUALS]=other", False),
        ("filters[startDate][GREATER_THAN_OR_EQUAL_TO]=2020-01-01T00:00:00Z", True),
        ("filters[startDate][LESS_THAN_OR_EQUAL_TO]=2020-01-01T00:00:00Z", False),
        ("filters[endDate][GREATER_THAN_OR_EQUAL_TO]=2020-01-01T00:00:00Z", True),
        ("filters[timeRange][EQUALS]=PT5M", True),
        ("filters[childFilter][EQUALS]=MAIN", True),
        ("filters[childFilter][EQUALS]=CHILD", False),
        ("filters[triggerExecutionId][EQUALS]=nothing", False),
        ("filters[parentId][EQUALS]=nothing", False),
    ],
)
def test_a_filter_finds_what_fits(kestra: Kestra, filter: str, finds: bool) -> None:  # noqa: A002
    execution = kestra.run(SHORT)["id"]
    assert kestra.found(filter) == ([execution] if finds else [])


@pytest.mark.parametrize(
    "filter",
    ["filters[nothing][EQUALS]=1", "filters[state][NEARLY]=1", "filters[state][EQUALS]=NOPE"],
)
def test_an_invalid_filter_is_refused(kestra: Kestra, filter: str) -> None:  # noqa: A002
    name, value = filter.split("=")
    assert kestra.http.get("/executions/search", params={name: value}).status_code == 422


@pytest.mark.parametrize(
    "filter",
    ["filters[timeRange][EQUALS]=x", "filters[startDate][EQUALS]=x", "filters[labels][EQUALS]=a:b"],
)
def test_a_value_that_fits_no_filter_is_an_error_and_no_more(kestra: Kestra, filter: str) -> None:  # noqa: A002
    name, value = filter.split("=")
    assert kestra.http.get("/executions/search", params={name: value}).is_error


def test_flat_parameters_are_ignored(kestra: Kestra) -> None:
    execution = kestra.run(SHORT)["id"]
    assert kestra.found(state="FAILED", flowId="other", labels="a:b") == [execution]


def test_pages_split_what_is_found(kestra: Kestra) -> None:
    flow = kestra.deploy(SHORT)
    ids = [answer(kestra.create(flow))["id"] for _ in range(5)]
    pages = [
        kestra.found(size="2", page=str(page), sort="state.startDate:asc") for page in (1, 2, 3, 4)
    ]
    assert pages == [ids[:2], ids[2:4], ids[4:], []]


def test_a_page_of_a_thousand_is_given(kestra: Kestra) -> None:
    execution = kestra.run(SHORT)["id"]
    assert kestra.found(size="1000") == [execution]


@pytest.mark.parametrize(
    "query", [{"page": "0"}, {"size": "0"}, {"sort": "nothing"}, {"size": "many"}]
)
def test_an_impossible_page_is_refused(kestra: Kestra, query: dict[str, str]) -> None:
    assert kestra.http.get("/executions/search", params=query).status_code in {400, 422}


# Outputs, logs, events


def test_the_outputs_of_a_flow_are_apart(kestra: Kestra) -> None:
    execution = kestra.run(HELLO, name="Ann")["id"]
    assert answer(kestra.http.get(f"/outputs/executions/{execution}")) == {"result": "3"}


def test_a_flow_without_outputs_has_none(kestra: Kestra) -> None:
    assert answer(kestra.http.get(f"/outputs/executions/{kestra.run(SHORT)['id']}")) == {}


def test_the_outputs_of_a_task_run_are_found_by_their_list(kestra: Kestra) -> None:
    execution = kestra.run(HELLO, name="Ann")["id"]
    [listed] = kestra.http.get(f"/outputs/tasks/{execution}").json()
    assert answer(kestra.http.get(f"/outputs/tasks/{execution}/{listed['taskRunId']}")) == {
        "value": "3"
    }


def test_the_outputs_of_an_unknown_execution_are_not_found(kestra: Kestra) -> None:
    assert kestra.http.get("/outputs/executions/nothing").status_code == 404


def test_logs_are_filtered_by_level(kestra: Kestra) -> None:
    execution = kestra.run(FAILING)["id"]
    level = {"filters[level][GREATER_THAN_OR_EQUAL_TO]": "ERROR"}
    eventually(lambda: len(kestra.logged(execution)) > 0, "logged")
    assert {
        entry["level"] for entry in kestra.http.get(f"/logs/{execution}", params=level).json()
    } == {"ERROR"}


def test_a_log_entry_says_what_the_task_said(kestra: Kestra) -> None:
    execution = kestra.run(HELLO, name="Ann")["id"]
    eventually(lambda: "hello Ann" in kestra.logged(execution), "logged")


def test_following_an_execution_ends_with_its_end(kestra: Kestra) -> None:
    execution = kestra.begin(shell("sleep 1"))
    with kestra.http.stream("GET", f"/executions/{execution}/follow", timeout=30) as response:
        *_, last = response.read().decode().strip().split("\n\n")
    event = dict(line.split(": ", 1) for line in last.splitlines())
    assert (event["id"], json.loads(event["data"])["state"]["current"]) == ("end", "SUCCESS")


# What can be done to an execution


def test_a_kill_ends_a_running_shell_and_its_process(kestra: Kestra, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    execution = kestra.begin(shell(f"echo $$ > {file}.new && mv {file}.new {file} && sleep 300"))
    eventually(file.exists, "started")
    answer(kestra.http.delete(f"/executions/{execution}/actions/kill"))
    kestra.await_state(execution, "KILLED")
    eventually(
        lambda: not Path(f"/proc/{file.read_text().strip()}").exists(), "the shell's process gone"
    )


def test_a_kill_of_a_paused_execution_ends_it(kestra: Kestra) -> None:
    execution = kestra.begin(PAUSING)
    kestra.await_state(execution, "PAUSED")
    answer(kestra.http.delete(f"/executions/{execution}/actions/kill"))
    kestra.await_state(execution, "KILLED")


def test_a_kill_of_an_unknown_execution_is_not_found(kestra: Kestra) -> None:
    assert kestra.http.delete("/executions/nothing/actions/kill").status_code == 404


@pytest.mark.parametrize(("cascade", "status"), [("false", 409), ("true", 200)])
def test_a_kill_after_the_end_is_a_conflict_unless_it_cascades(
    kestra: Kestra, cascade: str, status: int
) -> None:
    path = f"/executions/{kestra.run(SHORT)['id']}/actions/kill"
    assert kestra.http.delete(path, params={"isOnKillCascade": cascade}).status_code == status


def test_a_paused_execution_is_resumed(kestra: Kestra) -> None:
    execution = kestra.begin(PAUSING)
    kestra.await_state(execution, "PAUSED")
    answer(kestra.http.post(f"/executions/{execution}/actions/resume"))
    kestra.await_state(execution, "SUCCESS")


def test_an_execution_that_is_not_paused_is_not_resumed(kestra: Kestra) -> None:
    assert (
        kestra.http.post(f"/executions/{kestra.run(SHORT)['id']}/actions/resume").status_code == 409
    )


def test_a_restart_keeps_the_id_and_counts(kestra: Kestra) -> None:
    execution = kestra.run(FAILING)["id"]
    answer(kestra.http.post(f"/executions/{execution}/actions/restart"))
    eventually(lambda: kestra.get(execution)["metadata"]["attemptNumber"] == 2, "restarted")


def test_a_replay_is_a_new_execution_with_the_same_labels(kestra: Kestra) -> None:
    execution = kestra.run(SHORT, "bridgeJob:x")["id"]
    replay = answer(kestra.http.post(f"/executions/{execution}/actions/replay"))
    assert (replay["originalId"], replay["id"] != execution) == (execution, True)
    labels = {label["key"]: label["value"] for label in replay["labels"]}
    assert (labels["bridgeJob"], labels["system.replay"]) == ("x", "true")


def test_a_state_can_be_changed_after_the_end(kestra: Kestra) -> None:
    execution = kestra.run(FAILING)["id"]
    answer(
        kestra.http.post(
            f"/executions/{execution}/actions/change-status", params={"status": "SUCCESS"}
        )
    )
    kestra.await_state(execution, "SUCCESS")


def test_a_state_can_not_be_changed_to_one_that_is_no_end(kestra: Kestra) -> None:
    path = f"/executions/{kestra.run(SHORT)['id']}/actions/change-status"
    assert kestra.http.post(path, params={"status": "RUNNING"}).status_code == 422


def test_a_queued_execution_waits_for_its_slot_and_can_be_forced(kestra: Kestra) -> None:
    flow = kestra.deploy("concurrency: {limit: 1, behavior: QUEUE}\n" + PAUSING)
    first, second = (str(answer(kestra.create(flow))["id"]) for _ in range(2))
    kestra.await_state(first, "PAUSED")
    kestra.await_state(second, "QUEUED")
    answer(kestra.http.post(f"/executions/{second}/actions/force-run"))
    kestra.await_state(second, "PAUSED")


def test_taken_slots_are_counted(kestra: Kestra) -> None:
    flow = kestra.deploy("concurrency: {limit: 3, behavior: QUEUE}\n" + PAUSING)
    kestra.await_state(str(answer(kestra.create(flow))["id"]), "PAUSED")
    limits = answer(kestra.http.get("/concurrency-limit/search"))["results"]
    assert [limit["running"] for limit in limits if limit["namespace"] == kestra.namespace] == [1]


# Webhook

HOOK = """
inputs:
  - {id: who, type: STRING}
tasks:
  - {id: log, type: io.kestra.plugin.core.log.Log, message: "{{ inputs.who }}"}
triggers:
  - id: hook
    type: io.kestra.plugin.core.trigger.Webhook
    key: key-of-the-hook
    inputs: {who: "{{ trigger.body.who }}"}
    when: "{{ trigger.body.who != 'nobody' }}"
"""


def webhook(engine: Engine, kestra: Kestra, key: str, who: str) -> httpx.Response:
    return httpx.post(
        f"{engine.url}/api/v1/main/executions/webhook/{kestra.namespace}/job/{key}",
        json={"who": who},
    )


def test_a_webhook_starts_an_execution_without_credentials(engine: Engine, kestra: Kestra) -> None:
    kestra.deploy(HOOK)
    started = answer(webhook(engine, kestra, "key-of-the-hook", "Ann"))
    kestra.await_state(started["id"], "SUCCESS")


def test_a_webhook_whose_condition_does_not_hold_starts_nothing(
    engine: Engine, kestra: Kestra
) -> None:
    kestra.deploy(HOOK)
    assert webhook(engine, kestra, "key-of-the-hook", "nobody").status_code == 204


def test_a_webhook_with_a_wrong_key_is_not_found(engine: Engine, kestra: Kestra) -> None:
    kestra.deploy(HOOK)
    assert webhook(engine, kestra, "wrong", "Ann").status_code == 404


# Triggers, secrets, values, plugins


def notifier(kestra: Kestra, task: str) -> str:
    return f"""id: notifier
namespace: {kestra.namespace}.system
tasks:
{task}
triggers:
  - id: ended
    type: io.kestra.plugin.core.trigger.Flow
    states: [SUCCESS, WARNING, FAILED, KILLED, CANCELLED, RETRIED]
    when: "{{{{ (labels.bridge ?? '') == 'amqp' and flow.namespace == '{kestra.namespace}' }}}}"
"""


def notifications(kestra: Kestra) -> list[Json]:
    filters = {"filters[namespace][EQUALS]": f"{kestra.namespace}.system"}
    return cast(
        "list[Json]", answer(kestra.http.get("/executions/search", params=filters))["results"]
    )


RETURN = '  - {id: log, type: io.kestra.plugin.core.log.Log, message: "{{ trigger.state }}"}'


@pytest.mark.parametrize(("body", "state"), [(SHORT, "SUCCESS"), (FAILING, "FAILED")])
def test_a_notifier_fires_at_the_end_of_an_execution(kestra: Kestra, body: str, state: str) -> None:
    kestra.send_flow(notifier(kestra, RETURN)).raise_for_status()
    execution = kestra.run(body, "bridge:amqp")["id"]
    eventually(lambda: len(notifications(kestra)) == 1, "notified")
    variables = notifications(kestra)[0]["trigger"]["variables"]
    assert (variables["executionId"], variables["state"]) == (execution, state)


def test_a_publish_to_a_dead_address_fails(kestra: Kestra) -> None:
    publish = """
tasks:
  - id: publish
    type: io.kestra.plugin.amqp.Publish
    host: "{{ secret('BRIDGE_AMQP_HOST') }}"
    port: "{{ secret('BRIDGE_AMQP_PORT') }}"
    virtualHost: "{{ secret('BRIDGE_AMQP_VHOST') }}"
    username: "{{ secret('BRIDGE_AMQP_USERNAME') }}"
    password: "{{ secret('BRIDGE_AMQP_PASSWORD') }}"
    exchange: kestra.replies
    routingKey: x
    serdeType: JSON
    from: {contentType: application/json, deliveryMode: 2, data: {a: 1}}
"""
    assert kestra.run(publish)["state"]["current"] == "FAILED"


def test_a_publish_without_an_exchange_is_refused(kestra: Kestra) -> None:
    body = (
        "tasks:\n  - {id: publish, type: io.kestra.plugin.amqp.Publish, host: "
        "localhost, from: {data: x}}\n"
    )
    assert kestra.send_flow(kestra.source("job", body)).status_code == 422


def test_a_secret_is_read_by_a_task(kestra: Kestra) -> None:
    body = """
tasks:
  - {id: tell, type: io.kestra.plugin.core.debug.Return, format: "{{ secret('COLOUR') | upper }}"}
outputs:
  - {id: colour, type: STRING, value: "{{ outputs.tell.value }}"}
"""
    outputs = answer(kestra.http.get(f"/outputs/executions/{kestra.run(body)['id']}"))
    assert outputs == {"colour": "BLUE\u00c9"}


def test_a_shell_task_hands_out_its_variables(kestra: Kestra) -> None:
    body = shell("""echo '::{"outputs":{"answer":42}}::'""") + (
        'outputs:\n  - {id: answer, type: INT, value: "{{ outputs.shell.vars.answer }}"}\n'
    )
    assert answer(kestra.http.get(f"/outputs/executions/{kestra.run(body)['id']}")) == {
        "answer": 42
    }


def test_a_shell_task_that_fails_fails_its_execution(kestra: Kestra) -> None:
    assert kestra.run(shell("exit 3"))["state"]["current"] == "FAILED"


def test_a_shell_script_runs_too(kestra: Kestra) -> None:
    body = (
        shell()
        .replace("shell.Commands", "shell.Script")
        .replace("commands: []", 'script: "true\\nfalse || true"')
    )
    assert kestra.run(body)["state"]["current"] == "SUCCESS"


def test_a_value_is_kept_in_the_store_of_its_namespace(kestra: Kestra) -> None:
    path = f"/namespaces/{kestra.namespace}/kv/answer"
    kestra.http.put(
        path, content="42", headers={"Content-Type": "application/json"}
    ).raise_for_status()
    assert answer(kestra.http.get(path)) == {"type": "NUMBER", "value": 42}


def test_an_unknown_value_is_not_found(kestra: Kestra) -> None:
    assert kestra.http.get(f"/namespaces/{kestra.namespace}/kv/nothing").status_code == 404


# What can be done to an execution of 1.3


@pytest.fixture(scope="module")
def kestra_1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kestra]:
    with (
        Engine(tmp_path_factory.mktemp("engine-1"), series="1.3") as running,
        client(running) as opened,
    ):
        yield Kestra(opened)


def test_a_kill_in_1_3_ends_a_running_shell_and_its_process(
    kestra_1: Kestra, tmp_path: Path
) -> None:
    file = tmp_path / "pid"
    execution = kestra_1.begin(
        shell(f"echo $$ > {file}.new && mv {file}.new {file} && sleep 300"), flow="killed"
    )
    eventually(file.exists, "started")
    kestra_1.http.delete(f"/executions/{execution}/kill").raise_for_status()
    kestra_1.await_state(execution, "KILLED")
    eventually(
        lambda: not Path(f"/proc/{file.read_text().strip()}").exists(), "the shell's process gone"
    )


def test_a_paused_execution_of_1_3_is_resumed(kestra_1: Kestra) -> None:
    execution = kestra_1.begin(PAUSING, flow="pausing")
    kestra_1.await_state(execution, "PAUSED")
    status = kestra_1.http.post(f"/executions/{execution}/resume").status_code
    kestra_1.await_state(execution, "SUCCESS")
    assert status == 204


def test_a_restart_in_1_3_keeps_the_id_and_counts(kestra_1: Kestra) -> None:
    execution = kestra_1.begin(FAILING, flow="failing")
    kestra_1.await_state(execution, "FAILED")
    answer(kestra_1.http.post(f"/executions/{execution}/restart"))
    eventually(lambda: kestra_1.get(execution)["metadata"]["attemptNumber"] == 2, "restarted")


def test_a_replay_in_1_3_is_a_new_execution_with_the_same_labels(kestra_1: Kestra) -> None:
    execution = kestra_1.begin(SHORT, "bridgeJob:x", flow="replayed")
    kestra_1.await_state(execution, "SUCCESS")
    replay = answer(kestra_1.http.post(f"/executions/{execution}/replay"))
    assert (replay["originalId"], replay["id"] != execution) == (execution, True)
    labels = {label["key"]: label["value"] for label in replay["labels"]}
    assert (labels["bridgeJob"], labels["system.replay"]) == ("x", "true")


def test_a_state_in_1_3_can_be_changed_after_the_end(kestra_1: Kestra) -> None:
    execution = kestra_1.begin(FAILING, flow="changed")
    kestra_1.await_state(execution, "FAILED")
    answer(
        kestra_1.http.post(f"/executions/{execution}/change-status", params={"status": "SUCCESS"})
    )
    kestra_1.await_state(execution, "SUCCESS")


def test_a_queued_execution_of_1_3_can_be_forced(kestra_1: Kestra) -> None:
    flow = kestra_1.deploy("concurrency: {limit: 1, behavior: QUEUE}\n" + PAUSING, "crowded")
    # A create is no sign that the executor has seen it: of two at once either may take the slot.
    kestra_1.await_state(str(answer(kestra_1.create(flow))["id"]), "PAUSED")
    second = str(answer(kestra_1.create(flow))["id"])
    kestra_1.await_state(second, "QUEUED")
    answer(kestra_1.http.post(f"/executions/{second}/force-run"))
    kestra_1.await_state(second, "PAUSED")


@pytest.mark.parametrize(
    ("flat", "count"),
    [
        ({"labels": ["team:blue", "n:1"]}, 1),
        ({"labels": ["team:blue", "n:2"]}, 0),
        ({"flowId": "searched", "state": ["SUCCESS", "FAILED"]}, 1),
        ({"flowId": "searched", "state": ["FAILED"]}, 0),
        (
            {
                "flowId": "searched",
                "childFilter": "MAIN",
                "timeRange": "PT5M",
                "startDate": "2020-01-01T00:00:00Z",
            },
            1,
        ),
        ({"flowId": "searched", "namespace": "test"}, 1),
        ({"flowId": "searched", "namespace": "other"}, 0),
    ],
)
def test_flat_parameters_narrow_a_search_in_1_3(
    kestra_1: Kestra, flat: dict[str, str | list[str]], count: int
) -> None:
    if not kestra_1.found("filters[flowId][EQUALS]=searched"):
        kestra_1.await_state(kestra_1.begin(SHORT, "team:blue", "n:1", flow="searched"), "SUCCESS")
    assert answer(kestra_1.http.get("/executions/search", params=flat))["total"] == count


def test_a_webhook_of_1_3_starts_an_execution_with_what_it_was_sent(kestra_1: Kestra) -> None:
    kestra_1.deploy(
        """
tasks:
  - {id: log, type: io.kestra.plugin.core.log.Log, message: "{{ trigger.body.who }}"}
triggers:
  - {id: hook, type: io.kestra.plugin.core.trigger.Webhook, key: key-of-the-hook}
""",
        "hooked",
    )
    path = f"/executions/webhook/{kestra_1.namespace}/hooked/key-of-the-hook"
    started = answer(kestra_1.http.post(path, json={"who": "Ann"}))
    eventually(lambda: "Ann" in kestra_1.logged(started["id"]), "logged")


# Crash and start


@dataclass(frozen=True)
class Crash:
    """An engine that was killed and started again, and what it had taken before that."""

    kestra: Kestra
    accepted: set[str]
    running: str


@pytest.fixture(scope="module")
def crash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crash]:
    folder = tmp_path_factory.mktemp("crash")
    runs = folder / "runs"
    lasting = shell(f"echo x >> {runs}; test $(wc -l < {runs}) -gt 1 || sleep 300")
    with Engine(folder / "engine", database="file") as engine:
        with client(engine) as http:
            running = Kestra(http).begin(lasting)
            eventually(runs.exists, "running")
            kestra = Kestra(http)
            flow = kestra.deploy(SHORT)
            accepted = {str(answer(kestra.create(flow))["id"]) for _ in range(30)}
            engine.kill()
        engine.start()
        with client(engine) as http:
            yield Crash(Kestra(http, kestra.namespace), accepted, running)


def test_executions_that_were_accepted_outlive_a_kill(crash: Crash) -> None:
    assert set(crash.kestra.found(size="100")) == crash.accepted
    eventually(
        lambda: (
            set(crash.kestra.found("filters[state][EQUALS]=SUCCESS", size="100")) == crash.accepted
        ),
        "all at their end",
        60,
    )


def test_a_task_that_ran_at_the_kill_runs_again(crash: Crash) -> None:
    crash.kestra.await_state(crash.running, "SUCCESS", timeout=90)


def test_a_start_on_a_port_that_is_taken_fails_with_its_reason(
    engine: Engine, tmp_path: Path
) -> None:
    with pytest.raises(ProcessError, match="Address already in use"):
        Engine(tmp_path, port=engine.port).start()


def test_a_second_start_is_refused(engine: Engine) -> None:
    with pytest.raises(ProcessError, match="started already"):
        engine.start()


def test_without_maven_the_build_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KESTRA_BRIDGE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="no mvn on the PATH"):
        kestra_engine.build()


def test_an_amqp_url_is_taken_apart() -> None:
    address = AmqpAddress.from_url("amqp://u%40x:p%2Fw@broker:5673/%2Fv")
    assert address == AmqpAddress(
        host="broker", port=5673, vhost="/v", username="u@x", password="p/w"
    )


@pytest.mark.parametrize("url", ["http://broker", "amqp://", "broker:5672"])
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="amqp://"):
        AmqpAddress.from_url(url)


def test_in_the_foreground_it_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.local.kestra_engine", "--directory", str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = dict(process.stdout.readline().split() for _ in range(3))
        status = httpx.get(
            f"{said['url']}/api/v1/configs", auth=(said["user"], said["password"])
        ).status_code
        process.send_signal(signal.SIGTERM)
        assert (status, process.wait(60)) == (200, 0)
