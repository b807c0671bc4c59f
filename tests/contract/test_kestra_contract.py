"""The stand-in answers as Kestra's real engine does, wherever the bridge looks: each test runs
against both.

So it does as 2.0 and as 1.3; where the two differ, a test says of which it is. A server that is
given stands in for all of them.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar

import httpx
import pytest
from pydantic import SecretStr

from bridge.errors import KestraDenied, KestraRejected
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.kestra import FailureReport, Kestra, RequestLimits, StoredFlow, parse_execution
from bridge.settings import KestraSettings
from tests.contract.flows import CONTRACT, FLOWS
from tests.support.given import Server, given
from tests.support.harness import eventually

# The engine's jars are fetched on first use.
pytestmark = pytest.mark.timeout(600)

NAMESPACE = f"contract.t{uuid.uuid4().hex[:10]}"
"""Of this run alone: a server that is given has been there before, and has other clients."""
WAIT = 60.0
"""How long a server may take for what it does in its own time."""
HOSTILE = [
    "two words",
    "a:b:c",
    "a,b",
    "100%",
    "a%20b",
    "a+b",
    "a&b=c",
    "a/b?c#d",
    '"quoted"',
    "it's",
    "' OR '1'='1",
    "[brackets]",
    "{{ 1 + 1 }}",
    "$.key",
    "back\\slash",
    "*",
    "null",
    "üñí 日本 😀",
    "x" * 200,
]


SINCE_2 = pytest.mark.series("2.0")
BEFORE_2 = pytest.mark.series("1.3")
YAML = {"Content-Type": "application/x-yaml"}


def of_this_run(source: str) -> str:
    """A flow's source, in the namespace of this run."""
    return source.replace(CONTRACT, NAMESPACE)


@pytest.fixture(scope="package", autouse=True)
def deployed(server: Server) -> Iterator[None]:
    """The flows are there, and nothing that a test made stays."""
    with httpx.Client(
        base_url=f"{server.url}/api/v1/main", auth=server.auth, timeout=WAIT
    ) as client:
        for source in FLOWS.values():
            answer = client.post("/flows", content=of_this_run(source), headers=YAML)
            assert answer.status_code == 200, answer.text
        yield
        clear(server, client)


def clear(server: Server, client: httpx.Client) -> None:
    """Take the flows and the executions of this run away."""
    for flow in (*FLOWS, *TestFlows.made):
        client.delete(f"/flows/{NAMESPACE}/{flow}")
    params = {"filters[namespace][EQUALS]": NAMESPACE, "size": "200"}
    going = client.get(
        "/executions/search",
        params=params | {"filters[state][IN]": "CREATED,QUEUED,RUNNING,PAUSED"},
    )
    for row in going.json()["results"]:
        client.delete(server.path(row["id"], "kill"))
    while found := client.get(
        "/executions/search", params=params | {"filters[state][IN]": "SUCCESS,FAILED"}
    ).json()["results"]:
        gone = [client.delete(f"/executions/{row['id']}").is_success for row in found]
        if not any(gone):
            break


@pytest.fixture
async def api(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """The raw API below the tenant."""
    async with httpx.AsyncClient(
        base_url=f"{server.url}/api/v1/main", auth=server.auth, timeout=WAIT
    ) as client:
        yield client


@pytest.fixture
async def kestra(server: Server) -> AsyncIterator[Kestra]:
    async with Kestra(server.settings(), limits=RequestLimits(create_timeout=WAIT)) as client:
        yield client


def job(flow: str = "works", **changed: Any) -> Job:
    return Job(**{"id": uuid.uuid4().hex, "flow": FlowName(NAMESPACE, flow), **changed})


async def create(
    api: httpx.AsyncClient, flow: str, *labels: str, inputs: Mapping[str, str] | None = None
) -> httpx.Response:
    return await api.post(
        f"/executions/{NAMESPACE}/{flow}",
        params=[("labels", label) for label in labels],
        files=[(name, (None, value)) for name, value in (inputs or {}).items()] or None,
    )


async def ended(kestra: Kestra, execution: Execution) -> Execution:
    async def look() -> Execution | None:
        found = await kestra.get(execution.id)
        return found if found and found.state.terminal else None

    found = await eventually(look, f"the end of execution {execution.id}", timeout=WAIT)
    assert found is not None
    return found


def message(answer: httpx.Response) -> str:
    return str(answer.json()["message"])


class TestCreate:
    async def test_answers_with_what_the_bridge_reads(
        self, server: Server, api: httpx.AsyncClient
    ) -> None:
        answer = await create(api, "sleeps", "bridge:amqp", "bridgeJob:a")
        body = answer.json()
        await api.delete(server.path(body["id"], "kill"))
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert (body["namespace"], body["flowId"], body["originalId"]) == (
            NAMESPACE,
            "sleeps",
            body["id"],
        )
        assert body["state"]["current"] in ("CREATED", "RUNNING")
        assert {"key": "bridgeJob", "value": "a"} in body["labels"]
        assert "outputs" not in body

    async def test_tells_the_start_as_an_instant_of_now(self, api: httpx.AsyncClient) -> None:
        answer = await create(api, "works")
        started = datetime.fromisoformat(answer.json()["state"]["startDate"])
        assert abs(started - parsedate_to_datetime(answer.headers["Date"])) < timedelta(
            seconds=WAIT
        )

    async def test_takes_a_correlation_id(self, api: httpx.AsyncClient) -> None:
        body = (await create(api, "works", "system.correlationId:mine")).json()
        assert {"key": "system.correlationId", "value": "mine"} in body["labels"]

    async def test_gives_the_executions_id_as_correlation_id_where_none_is_given(
        self, api: httpx.AsyncClient
    ) -> None:
        body = (await create(api, "works")).json()
        assert {"key": "system.correlationId", "value": body["id"]} in body["labels"]

    async def test_splits_a_label_at_its_first_colon_and_trims_its_value(
        self, api: httpx.AsyncClient
    ) -> None:
        body = (await create(api, "works", "key: a:b ")).json()
        assert {"key": "key", "value": "a:b"} in body["labels"]

    async def test_reads_inputs_by_their_types(self, api: httpx.AsyncClient) -> None:
        given = {"text": "a b", "number": "7", "data": '{"list": [1, "zwei"]}'}
        body = (await create(api, "works", inputs=given)).json()
        assert body["inputs"] == {"text": "a b", "number": 7, "data": {"list": [1, "zwei"]}}

    async def test_passes_over_an_input_that_the_flow_has_not(self, api: httpx.AsyncClient) -> None:
        answer = await create(api, "works", inputs={"other": "x"})
        assert answer.status_code == 200
        assert "other" not in answer.json()["inputs"]

    @pytest.mark.parametrize(
        ("flow", "labels", "inputs", "refusal"),
        [
            ("nowhere", (), {}, (404, "Requested Flow is not found.")),
            ("disabled", (), {}, (409, "Requested Flow is disabled.")),
            ("works", (), {"number": "seven"}, (422, "Invalid value for input `number`")),
            ("works", (), {"data": "{"}, (422, "Invalid entity")),
            ("demanding", (), {}, (422, "text")),
            ("works", ("empty:",), {}, (422, "Can't have an empty part of queryString")),
            ("works", ("nocolon",), {}, (422, "Can't split the queryString parameter by ':'")),
            (
                "works",
                ("system.other:x",),
                {},
                (422, "System labels can only be set by Kestra itself"),
            ),
            ("works", ("twice:1", "twice:2"), {}, (422, "Duplicate key twice")),
        ],
    )
    async def test_refuses_what_it_can_never_run(
        self,
        api: httpx.AsyncClient,
        flow: str,
        labels: tuple[str, ...],
        inputs: dict[str, str],
        refusal: tuple[int, str],
    ) -> None:
        answer = await create(api, flow, *labels, inputs=inputs)
        status, reason = refusal
        assert (answer.status_code, reason in message(answer)) == (status, True), answer.text

    async def test_gives_a_link_to_itself_with_each_refusal(self, api: httpx.AsyncClient) -> None:
        assert "self" in (await create(api, "nowhere")).json()["_links"]

    async def test_refuses_json_in_place_of_a_form(self, api: httpx.AsyncClient) -> None:
        answer = await api.post(f"/executions/{NAMESPACE}/works", json={"text": "x"})
        assert answer.status_code == 415

    async def test_refuses_a_request_line_beyond_4096_bytes(self, api: httpx.AsyncClient) -> None:
        answer = await create(api, "works", f"long:{'x' * 4096}")
        assert answer.status_code == 413


class TestCreateByTheBridge:
    async def test_starts_the_jobs_execution_with_its_labels(self, kestra: Kestra) -> None:
        wanted = job(labels={"team": "blue"})
        made = await kestra.create(wanted)
        assert wanted.execution_labels.items() <= made.labels.items()

    @pytest.mark.parametrize("flow", ["nowhere", "disabled", "demanding"])
    async def test_is_rejected_for_a_flow_that_cannot_run(self, kestra: Kestra, flow: str) -> None:
        with pytest.raises(KestraRejected):
            await kestra.create(job(flow))

    async def test_sends_what_is_no_text_as_json(self, kestra: Kestra) -> None:
        made = await kestra.create(
            job(inputs={"number": 7, "data": {"a": [True, None, 1.5]}, "text": "ü\n"})
        )
        assert (await ended(kestra, made)).state == State.SUCCESS


class TestSearch:
    @pytest.mark.parametrize("value", HOSTILE)
    async def test_finds_a_job_by_whatever_its_id_is(self, kestra: Kestra, value: str) -> None:
        wanted = job("silent", id=value)
        made = await kestra.create(wanted)
        assert made.id in [found.id for found in await kestra.executions.find(wanted)]

    @pytest.mark.parametrize("value", HOSTILE)
    async def test_finds_nothing_but_the_very_value(
        self, api: httpx.AsyncClient, value: str
    ) -> None:
        await create(api, "silent", "very:other")
        answer = await api.get(
            "/executions/search", params={"filters[labels][EQUALS][very]": value}
        )
        assert answer.json() == {"results": [], "total": 0}

    async def test_asks_for_all_labels_at_once(self, api: httpx.AsyncClient) -> None:
        mark = uuid.uuid4().hex
        await create(api, "silent", f"mark:{mark}", "n:1")
        second = (await create(api, "silent", f"mark:{mark}", "n:2")).json()
        params = {"filters[labels][EQUALS][mark]": mark, "filters[labels][EQUALS][n]": "2"}
        answer = (await api.get("/executions/search", params=params)).json()
        assert ([row["id"] for row in answer["results"]], answer["total"]) == ([second["id"]], 1)

    async def test_tells_attempts_of_a_job_apart(self, kestra: Kestra) -> None:
        first = job("silent")
        second = Job(id=first.id, flow=first.flow, attempt=2)
        await kestra.create(first)
        made = await kestra.create(second)
        assert [found.id for found in await kestra.executions.find(second)] == [made.id]

    @pytest.mark.parametrize(("back", "found"), [(timedelta(hours=1), 1), (timedelta(hours=-1), 0)])
    async def test_reads_back_no_further_than_it_is_told(
        self, kestra: Kestra, back: timedelta, found: int
    ) -> None:
        wanted = job("silent")
        await kestra.create(wanted)
        assert len(await kestra.executions.find(wanted, since=datetime.now(UTC) - back)) == found

    async def test_lists_what_ended_since_a_moment_the_latest_end_first(
        self, kestra: Kestra
    ) -> None:
        goes_on = await kestra.create(job("sleeps"))
        done = [await ended(kestra, await kestra.create(job("silent"))) for _ in range(3)]
        assert done[1].ended
        rows, _ = await kestra.ended_since(done[1].ended)
        await kestra.kill(goes_on.id)
        made = {execution.id for execution in (goes_on, *done)}
        assert [row.id for row in rows if row.id in made] == [done[2].id, done[1].id]

    async def test_an_end_is_found_by_when_it_was_and_not_by_when_the_execution_began(
        self, kestra: Kestra
    ) -> None:
        killed, other = await kestra.create(job("sleeps")), await kestra.create(job("silent"))
        between = (await ended(kestra, other)).ended
        assert between
        await kestra.kill(killed.id)
        await ended(kestra, killed)
        rows, _ = await kestra.ended_since(between + timedelta(milliseconds=1))
        assert killed.id in [row.id for row in rows]

    async def test_an_end_is_not_found_where_the_execution_began_before_what_is_read(
        self, kestra: Kestra
    ) -> None:
        done = await ended(kestra, await kestra.create(job("silent")))
        assert done.ended
        assert done.started
        reads = [done.started - timedelta(minutes=1), done.started + timedelta(minutes=1)]
        found = [await kestra.ended_since(done.ended, started=moment) for moment in reads]
        assert [done.id in [row.id for row in rows] for rows, _ in found] == [True, False]

    async def test_the_oldest_unfinished_execution_is_the_first_of_all_that_go_on(
        self, kestra: Kestra
    ) -> None:
        going = [await kestra.create(job("sleeps")) for _ in range(2)]
        oldest = await kestra.executions.oldest_unfinished()
        unfinished = await kestra.unfinished()
        for execution in going:
            await kestra.kill(execution.id)
        assert oldest
        assert oldest.id == min(unfinished, key=lambda run: str(run.started)).id

    async def test_leaves_out_states_and_lists_only_what_goes_on(
        self, server: Server, api: httpx.AsyncClient
    ) -> None:
        mark = uuid.uuid4().hex
        done = (await create(api, "silent", f"mark:{mark}")).json()
        going = (await create(api, "sleeps", f"mark:{mark}")).json()
        params = {"filters[labels][EQUALS][mark]": mark, "filters[state][NOT_IN]": "SUCCESS,FAILED"}

        async def only_one() -> bool:
            answer = (await api.get("/executions/search", params=params)).json()
            return [row["id"] for row in answer["results"]] == [going["id"]]

        await eventually(only_one, f"{done['id']} to be left out", timeout=WAIT)
        await api.delete(server.path(going["id"], "kill"))

    async def test_filters_by_namespace_flow_and_parentage(self, api: httpx.AsyncClient) -> None:
        mark = uuid.uuid4().hex
        await create(api, "works", f"mark:{mark}")
        wanted = (await create(api, "silent", f"mark:{mark}")).json()
        params = {
            "filters[labels][EQUALS][mark]": mark,
            "filters[namespace][EQUALS]": NAMESPACE,
            "filters[flowId][EQUALS]": "silent",
            "filters[childFilter][EQUALS]": "MAIN",
        }
        answer = (await api.get("/executions/search", params=params)).json()
        assert [row["id"] for row in answer["results"]] == [wanted["id"]]

    async def test_pages_in_the_order_of_the_start_without_gap_or_overlap(
        self, api: httpx.AsyncClient
    ) -> None:
        mark = uuid.uuid4().hex
        made = [(await create(api, "silent", f"mark:{mark}")).json()["id"] for _ in range(5)]
        params = {"filters[labels][EQUALS][mark]": mark, "size": "2", "sort": "state.startDate:asc"}
        pages = [
            (await api.get("/executions/search", params=params | {"page": str(n)})).json()
            for n in (1, 2, 3)
        ]
        assert [row["id"] for page in pages for row in page["results"]] == made
        assert [page["total"] for page in pages] == [5, 5, 5]

    async def test_has_nothing_past_the_last_page(self, api: httpx.AsyncClient) -> None:
        answer = await api.get("/executions/search", params={"size": "10", "page": "9999"})
        assert answer.json() == {"results": [], "total": 0}

    @SINCE_2
    async def test_shows_light_rows_with_what_the_bridge_reads(
        self, api: httpx.AsyncClient
    ) -> None:
        mark = uuid.uuid4().hex
        made = (await create(api, "silent", f"mark:{mark}")).json()
        (row,) = (
            await api.get("/executions/search", params={"filters[labels][EQUALS][mark]": mark})
        ).json()["results"]
        assert {"id", "namespace", "flowId", "state", "labels", "originalId"} <= row.keys()
        assert {"taskRunList", "outputs"}.isdisjoint(row)
        assert parse_execution(row).started == parse_execution(made).started

    @BEFORE_2
    async def test_shows_whole_rows(self, api: httpx.AsyncClient, kestra: Kestra) -> None:
        mark = uuid.uuid4().hex
        made = (await create(api, "works", f"mark:{mark}", inputs={"text": "42"})).json()
        await ended(kestra, parse_execution(made))
        (row,) = (
            await api.get("/executions/search", params={"filters[labels][EQUALS][mark]": mark})
        ).json()["results"]
        assert {
            "id",
            "namespace",
            "flowId",
            "state",
            "labels",
            "originalId",
            "taskRunList",
        } <= row.keys()
        assert row["outputs"] == {"answer": "42"}
        # The answer to a create counts nanoseconds, the database microseconds.
        assert parse_execution(row).started == parse_execution(made).started

    @BEFORE_2
    async def test_heeds_the_flat_parameters_too(self, api: httpx.AsyncClient) -> None:
        mark = uuid.uuid4().hex
        made = (await create(api, "silent", f"mark:{mark}", "n:1")).json()
        await create(api, "silent", f"mark:{mark}", "n:2")
        answer = (
            await api.get(
                "/executions/search", params=[("labels", f"mark:{mark}"), ("labels", "n:1")]
            )
        ).json()
        assert [row["id"] for row in answer["results"]] == [made["id"]]

    @SINCE_2
    async def test_ignores_the_flat_parameters_of_1x(self, api: httpx.AsyncClient) -> None:
        await create(api, "silent")
        answer = await api.get("/executions/search", params={"labels": "nobody:has-this"})
        assert answer.json()["total"] > 0

    @pytest.mark.parametrize(
        "params",
        [
            {"filters[nothing][EQUALS]": "x"},
            {"filters[labels][LOOKS_LIKE][a]": "x"},
            {"filters[state][NOT_IN]": "DREAMING"},
            {"page": "0"},
        ],
    )
    async def test_refuses_a_question_that_it_does_not_understand(
        self, api: httpx.AsyncClient, params: dict[str, str]
    ) -> None:
        answer = await api.get("/executions/search", params=params)
        assert (answer.status_code, bool(message(answer))) == (422, True)


class TestGet:
    async def test_shows_how_an_execution_ended(self, kestra: Kestra) -> None:
        found = await ended(kestra, await kestra.create(job("silent")))
        assert found.state == State.SUCCESS
        assert found.started is not None
        assert found.ended is not None
        assert found.started <= found.ended

    async def test_names_the_task_that_failed(self, api: httpx.AsyncClient, kestra: Kestra) -> None:
        failed = await ended(kestra, await kestra.create(job("fails")))
        runs = (await api.get(f"/executions/{failed.id}")).json()["taskRunList"]
        assert [run["taskId"] for run in runs if run["state"]["current"] == "FAILED"] == ["boom"]

    async def test_knows_nothing_of_an_unknown_id(
        self, api: httpx.AsyncClient, kestra: Kestra
    ) -> None:
        answer = await api.get("/executions/unknown")
        assert (answer.status_code, message(answer)) == (404, "Not Found")
        assert await kestra.get("unknown") is None


class TestKill:
    async def test_ends_what_runs(self, kestra: Kestra) -> None:
        made = await kestra.create(job("sleeps"))
        await kestra.kill(made.id)
        assert (await ended(kestra, made)).state == State.KILLED

    @BEFORE_2
    async def test_is_only_accepted(self, api: httpx.AsyncClient) -> None:
        made = (await create(api, "sleeps")).json()
        answer = await api.delete(
            f"/executions/{made['id']}/kill", params={"isOnKillCascade": "true"}
        )
        assert (answer.status_code, answer.content) == (202, b"")

    @SINCE_2
    async def test_answers_with_the_execution(self, api: httpx.AsyncClient) -> None:
        made = (await create(api, "sleeps")).json()
        answer = await api.delete(
            f"/executions/{made['id']}/actions/kill", params={"isOnKillCascade": "true"}
        )
        assert (answer.status_code, answer.json()["id"]) == (200, made["id"])

    async def test_of_what_has_ended_changes_nothing(self, kestra: Kestra) -> None:
        done = await ended(kestra, await kestra.create(job("silent")))
        await kestra.kill(done.id)
        assert (await ended(kestra, done)).state == State.SUCCESS

    async def test_of_what_has_ended_is_a_conflict_without_cascade(
        self, server: Server, api: httpx.AsyncClient, kestra: Kestra
    ) -> None:
        done = await ended(kestra, await kestra.create(job("silent")))
        answer = await api.delete(server.path(done.id, "kill"), params={"isOnKillCascade": "false"})
        assert answer.status_code == 409

    async def test_of_an_unknown_id_is_not_found(
        self, server: Server, api: httpx.AsyncClient, kestra: Kestra
    ) -> None:
        answer = await api.delete(server.path("unknown", "kill"))
        assert (answer.status_code, message(answer)) == (404, "Not Found")
        await kestra.kill("unknown")


class TestDelete:
    async def test_takes_the_execution_away(self, api: httpx.AsyncClient, kestra: Kestra) -> None:
        done = await ended(kestra, await kestra.create(job("silent")))
        answer = await api.delete(f"/executions/{done.id}")
        assert (answer.status_code, answer.content, await kestra.get(done.id)) == (204, b"", None)

    async def test_takes_it_out_of_searches_too(
        self, api: httpx.AsyncClient, kestra: Kestra
    ) -> None:
        wanted = job("silent")
        done = await ended(kestra, await kestra.create(wanted))
        await api.delete(f"/executions/{done.id}")
        assert await kestra.executions.find(wanted) == []

    async def test_of_an_unknown_id_is_not_found(self, api: httpx.AsyncClient) -> None:
        answer = await api.delete("/executions/unknown")
        assert (answer.status_code, bool(message(answer))) == (404, True)


class TestOutputs:
    async def test_are_those_that_the_flow_declares(self, kestra: Kestra) -> None:
        done = await ended(kestra, await kestra.create(job("works", inputs={"text": "42"})))
        assert await kestra.outputs(done) == {"answer": "42"}

    async def test_of_a_flow_without_any_are_empty(self, kestra: Kestra) -> None:
        done = await ended(kestra, await kestra.create(job("silent")))
        assert await kestra.outputs(done) == {}

    @BEFORE_2
    async def test_are_within_the_execution(self, api: httpx.AsyncClient, kestra: Kestra) -> None:
        done = await ended(kestra, await kestra.create(job("works", inputs={"text": "42"})))
        assert (await api.get(f"/executions/{done.id}")).json()["outputs"] == {"answer": "42"}

    @BEFORE_2
    async def test_have_no_path_of_their_own(self, api: httpx.AsyncClient, kestra: Kestra) -> None:
        done = await ended(kestra, await kestra.create(job("works", inputs={"text": "42"})))
        assert (await api.get(f"/outputs/executions/{done.id}")).status_code == 404

    @SINCE_2
    @pytest.mark.parametrize("flow", ["silent", "fails"])
    async def test_are_an_object_on_the_wire_even_where_there_are_none(
        self,
        request: pytest.FixtureRequest,
        server: Server,
        api: httpx.AsyncClient,
        kestra: Kestra,
        flow: str,
    ) -> None:
        done = await ended(kestra, await kestra.create(job(flow)))
        answer = await api.get(f"/outputs/executions/{done.id}")
        if answer.status_code == 404 and given(request.config):
            pytest.skip(
                f"{server.version} is a build of 2.0 that has no /outputs/executions/{{id}} yet"
            )
        assert answer.json() == {}

    @SINCE_2
    async def test_of_an_unknown_id_are_not_found(self, api: httpx.AsyncClient) -> None:
        assert (await api.get("/outputs/executions/unknown")).status_code == 404


class TestLogs:
    async def test_say_why_a_task_failed(
        self, server: Server, api: httpx.AsyncClient, kestra: Kestra
    ) -> None:
        failed = await ended(kestra, await kestra.create(job("fails")))

        async def errors() -> Any:
            return (await api.get(f"/logs/{failed.id}", params=server.errors())).json()

        (entry,) = await eventually(errors, "the error in the log", timeout=WAIT)
        assert (entry["level"], entry["taskId"], entry["message"]) == (
            "ERROR",
            "boom",
            "the disk is full",
        )

    async def test_explain_a_failure_in_one_line(self, kestra: Kestra) -> None:
        failed = await ended(kestra, await kestra.create(job("fails")))

        async def reason() -> str | None:
            explained = await kestra.explain(failed)
            return explained if "full" in explained else None

        assert (
            await eventually(reason, "the reason", timeout=WAIT)
            == "task boom ended FAILED: the disk is full"
        )

    async def test_tell_a_failures_story(self, kestra: Kestra) -> None:
        failed = await ended(kestra, await kestra.create(job("fails")))

        async def told() -> FailureReport | None:
            story = await kestra.logs.failure_report(failed.id)
            return story if story and any(line.level == "ERROR" for line in story.log) else None

        story = await eventually(told, "the error in the story", timeout=WAIT)
        assert story is not None
        assert (story.execution.state, story.task, story.log[-1].message) == (
            "FAILED",
            "boom",
            "the disk is full",
        )

    async def test_of_an_unknown_id_are_none(self, api: httpx.AsyncClient) -> None:
        assert (await api.get("/logs/unknown")).json() == []


class TestServer:
    async def test_tells_its_version(self, server: Server, kestra: Kestra) -> None:
        assert await kestra.probe() == server.version

    @pytest.mark.parametrize("auth", [None, ("admin@example.org", "wrong")])
    async def test_lets_nobody_in_without_the_password(
        self, server: Server, auth: tuple[str, str] | None
    ) -> None:
        async with httpx.AsyncClient(auth=auth) as stranger:
            answer = await stranger.get(f"{server.url}/api/v1/main/executions/search")
        assert (answer.status_code, answer.content, answer.headers["WWW-Authenticate"]) == (
            401,
            b"",
            "Basic",
        )

    async def test_denies_the_bridge_with_a_wrong_password(self, server: Server) -> None:
        wrong = KestraSettings(
            kestra_url=server.url,
            kestra_username="admin@example.org",
            kestra_password=SecretStr("Wrong000"),
        )
        async with Kestra(wrong) as kestra:
            with pytest.raises(KestraDenied):
                await kestra.create(job())

    async def test_has_one_tenant(self, server: Server) -> None:
        async with Kestra(server.settings(kestra_tenant="other")) as kestra:
            with pytest.raises(KestraDenied, match="Tenant must be 'main'"):
                await kestra.create(job())

    @pytest.mark.parametrize("path", ["/executions/{id}/kill", "/executions/{id}/actions/kill"])
    async def test_has_no_actions_but_its_own(
        self, server: Server, api: httpx.AsyncClient, kestra: Kestra, path: str
    ) -> None:
        made = await kestra.create(job("sleeps"))
        answer = await api.delete(path.format(id=made.id))
        await kestra.kill(made.id)
        assert answer.is_success == (path.format(id=made.id) == server.path(made.id, "kill"))

    async def test_says_in_its_own_words_that_there_is_no_such_path(
        self, api: httpx.AsyncClient
    ) -> None:
        answer = await api.get("/nothing/here")
        assert (answer.status_code, message(answer)) == (404, "Not Found")


class TestFlows:
    SOURCE = f"""
id: {{id}}
namespace: {NAMESPACE}
tasks:
  - {{{{id: say, type: io.kestra.plugin.core.log.Log, message: {{text}}}}}}
"""

    made: ClassVar[list[str]] = []

    def named(self) -> FlowName:
        self.made.append(f"f{uuid.uuid4().hex[:8]}")
        return FlowName(NAMESPACE, self.made[-1])

    async def test_are_kept_as_they_were_sent(self, kestra: Kestra) -> None:
        flow = self.named()
        source = self.SOURCE.format(id=flow.id, text="one")
        await kestra.flows.save(flow, source, exists=False)
        assert await kestra.flows.get(flow) == StoredFlow(source=source)

    async def test_tell_whether_they_are_disabled_and_how_many_may_run_at_once(
        self, kestra: Kestra
    ) -> None:
        flow = self.named()
        limits = "disabled: true\nconcurrency: {limit: 3, behavior: CANCEL}\n"
        source = self.SOURCE.format(id=flow.id, text="one") + limits
        await kestra.flows.save(flow, source, exists=False)
        assert await kestra.flows.get(flow) == StoredFlow(
            source=source, disabled=True, limit=3, beyond="CANCEL"
        )

    async def test_are_deleted_and_deleting_what_is_gone_is_no_error(self, kestra: Kestra) -> None:
        flow = self.named()
        await kestra.flows.save(flow, self.SOURCE.format(id=flow.id, text="one"), exists=False)
        await kestra.flows.delete(flow)
        await kestra.flows.delete(flow)
        assert await kestra.flows.get(flow) is None

    async def test_are_replaced(self, kestra: Kestra) -> None:
        flow = self.named()
        await kestra.flows.save(flow, self.SOURCE.format(id=flow.id, text="one"), exists=False)
        await kestra.flows.save(flow, self.SOURCE.format(id=flow.id, text="two"), exists=True)
        assert await kestra.flows.get(flow) == StoredFlow(
            source=self.SOURCE.format(id=flow.id, text="two")
        )

    async def test_that_are_unknown_are_none(self, kestra: Kestra) -> None:
        assert await kestra.flows.get(self.named()) is None

    async def test_are_not_created_twice(self, kestra: Kestra) -> None:
        with pytest.raises(KestraRejected, match="already exists"):
            await kestra.flows.save(
                FlowName(NAMESPACE, "works"), of_this_run(FLOWS["works"]), exists=False
            )

    async def test_that_are_unknown_are_not_replaced(self, kestra: Kestra) -> None:
        flow = self.named()
        with pytest.raises(KestraRejected, match="Not Found"):
            await kestra.flows.save(flow, self.SOURCE.format(id=flow.id, text="one"), exists=True)

    async def test_do_not_change_their_names(self, kestra: Kestra) -> None:
        with pytest.raises(KestraRejected, match="Illegal flow id update"):
            await kestra.flows.save(
                FlowName(NAMESPACE, "works"), of_this_run(FLOWS["silent"]), exists=True
            )

    @pytest.mark.parametrize(
        ("source", "fault"),
        [
            ("id: v\nnamespace: contract.flows\n", "tasks: must not be empty"),
            (
                "id: v\nnamespace: contract.flows\ntasks: [{id: a, type: io.no.Such}]",
                "Invalid type: io.no.Such",
            ),
            ("id: [broken", "YAML parsing error"),
        ],
    )
    async def test_with_a_fault_are_refused_and_found_at_fault(
        self, kestra: Kestra, source: str, fault: str
    ) -> None:
        source = of_this_run(source)
        with pytest.raises(KestraRejected):
            await kestra.flows.save(FlowName(NAMESPACE, "v"), source, exists=False)
        (constraint,) = await kestra.flows.validate(source)
        assert fault in constraint

    async def test_without_a_fault_are_found_so(self, kestra: Kestra) -> None:
        assert await kestra.flows.validate(of_this_run(FLOWS["works"])) == []
