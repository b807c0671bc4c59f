"""The flows that ship, which of them a server gets, and what a deployment does, without a
Kestra."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

import bridge.cli.flows
from bridge.cli import main
from bridge.errors import BridgeError, SettingsError
from bridge.job.flow_name import FlowName
from bridge.kestra import Kestra
from bridge.operate import flows
from bridge.operate.flows import Fate, FlowFile
from bridge.settings import KestraSettings

CHECKOUT = Path(__file__).resolve().parents[3]
FLOWS = CHECKOUT / "flows"
SHIPPED = sorted(FLOWS.rglob("*.yaml"))
NOTIFIERS = [path for path in SHIPPED if path.stem == "notifier"]
ENDS = ["SUCCESS", "WARNING", "FAILED", "KILLED", "CANCELLED", "RETRIED"]

EXAMPLE = "id: {id}\nnamespace: {namespace}\ntasks: []\n"


def where(path: Path) -> str:
    return str(path.relative_to(FLOWS))


every_flow = pytest.mark.parametrize("path", SHIPPED, ids=where)
every_notifier = pytest.mark.parametrize("path", NOTIFIERS, ids=where)


def flow(name: str, source: str | None = None) -> FlowFile:
    parsed = FlowName.parse(name)
    text = source or EXAMPLE.format(id=parsed.id, namespace=parsed.namespace)
    return FlowFile(name=parsed, source=text, path=Path(f"{parsed.id}.yaml"))


class Server:
    """Just enough of Kestra: it keeps flows, refuses what it is told to, and remembers what it was
    asked."""

    def __init__(self, *, version: str = "2.0.0", refuse: Mapping[str, str] | None = None) -> None:
        self.version = version
        self.refuse = dict(refuse or {})
        self.refuse_to_save: set[str] = set()
        self.flows: dict[str, str] = {}
        self.requests: list[tuple[str, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        method, path = request.method, request.url.path.removeprefix("/api/v1")
        self.requests.append((method, path))
        if path == "/configs":
            return httpx.Response(200, json={"version": self.version})
        if path == "/main/executions/search":
            return httpx.Response(200, json={"results": [], "total": 0})
        if path == "/main/flows/validate":
            return self._validate(request.content.decode())
        if method == "GET":
            return self._get(path.removeprefix("/main/flows/"))
        return self._save(method, path, request.content.decode())

    def _validate(self, source: str) -> httpx.Response:
        problem = self.refuse.get(str(flows.name_in(source)))
        return httpx.Response(200, json=[{"index": 0, "constraints": problem}])

    def _get(self, name: str) -> httpx.Response:
        if name not in self.flows:
            return httpx.Response(404, json={"message": "Flow not found", "_links": {}})
        return httpx.Response(200, json={"source": self.flows[name]})

    def _save(self, method: str, path: str, source: str) -> httpx.Response:
        name = str(flows.name_in(source))
        expected = (
            ("POST", "/main/flows") if name not in self.flows else ("PUT", f"/main/flows/{name}")
        )
        if (method, path) != expected or name in self.refuse_to_save:
            return httpx.Response(
                422, json={"message": "Invalid entity: not like this", "_links": {}}
            )
        self.flows[name] = source
        return httpx.Response(200, json={"source": source})

    @property
    def writes(self) -> list[tuple[str, str]]:
        """The requests that change something."""
        return [
            (method, path)
            for method, path in self.requests
            if method != "GET" and not path.endswith("/validate")
        ]

    def client(self) -> Kestra:
        settings = KestraSettings.model_validate({"kestra_url": "http://kestra.test"})
        return Kestra(settings, transport=httpx.MockTransport(self))


async def deploy(server: Server, *found: FlowFile, dry_run: bool = False) -> dict[str, Fate]:
    async with server.client() as kestra:
        verdicts = await flows.deploy(kestra, found, dry_run=dry_run)
    return {str(verdict.flow): verdict.fate for verdict in verdicts}


# The flows that ship


@every_flow
def test_a_flow_s_name_is_that_of_its_folder_and_file(path: Path) -> None:
    assert str(flows.read(path).name) == f"{path.parent.name}/{path.stem}"


@every_flow
def test_the_name_that_is_read_is_the_one_in_the_yaml(path: Path) -> None:
    parsed = yaml.safe_load(path.read_text())
    assert flows.read(path).name == FlowName(parsed["namespace"], parsed["id"])


@every_flow
def test_a_flow_says_in_a_comment_at_its_top_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")


@every_flow
def test_a_flow_lies_in_a_folder_that_some_server_gets(path: Path) -> None:
    known = {layer for version in ("1.3.0", "2.0.0") for layer in flows.layers(version, tls=True)}
    assert any(path.is_relative_to(FLOWS / layer) for layer in known)


@every_flow
def test_a_shell_task_has_no_expression_in_its_commands(path: Path) -> None:
    # Inputs reach a shell as variables: in its text they would be commands.
    commands = [
        text for task in tasks_in(yaml.safe_load(path.read_text())) for text in shell_texts(task)
    ]
    assert not [text for text in commands if "{{" in text or "{%" in text]


def tasks_in(node: object) -> list[dict[str, Any]]:
    """Everything in a flow that has a type, however deep."""
    children = (
        list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    )
    own = [node] if isinstance(node, dict) and "type" in node else []
    return own + [task for child in children for task in tasks_in(child)]


def shell_texts(task: Mapping[str, Any]) -> list[str]:
    if not str(task["type"]).startswith("io.kestra.plugin.scripts.shell."):
        return []
    return [
        *task.get("beforeCommands", []),
        *task.get("commands", []),
        *filter(None, [task.get("script")]),
    ]


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    "version", ["0.24.0", "1.0.0", "1.3.25", "2.0.0", "2.1.0-SNAPSHOT", "3.0.0"]
)
def test_every_server_gets_one_notifier(version: str, tls: bool) -> None:
    names = [str(found.name) for found in flows.shipped(version, tls=tls)]
    assert names.count("bridge.system/notifier") == 1


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("version", ["1.3.25", "2.0.0"])
def test_every_server_gets_the_example(version: str, tls: bool) -> None:
    assert "bridge.jobs/example" in {str(found.name) for found in flows.shipped(version, tls=tls)}


@pytest.mark.parametrize(("version", "folder"), [("1.3.25", "kestra-1"), ("2.0.0", "kestra-2")])
def test_the_notifier_is_that_of_the_server_s_series(version: str, folder: str) -> None:
    notifier = next(found for found in flows.shipped(version) if found.name.id == "notifier")
    assert where(notifier.path) == f"{folder}/bridge.system/notifier.yaml"


@pytest.mark.parametrize(
    ("version", "folder"), [("1.3.25", "tls/kestra-1"), ("2.0.0", "tls/kestra-2")]
)
def test_with_tls_the_notifier_is_the_one_for_it(version: str, folder: str) -> None:
    notifier = next(
        found for found in flows.shipped(version, tls=True) if found.name.id == "notifier"
    )
    assert where(notifier.path) == f"{folder}/bridge.system/notifier.yaml"


# The notifiers. The acceptance tests see them work on both engines; here is what they consist of.


def trigger_in(path: Path) -> dict[str, Any]:
    (trigger,) = yaml.safe_load(path.read_text())["triggers"]
    found: dict[str, Any] = trigger
    return found


def task_in(path: Path) -> dict[str, Any]:
    (task,) = yaml.safe_load(path.read_text())["tasks"]
    found: dict[str, Any] = task
    return found


def test_there_is_a_notifier_for_each_series_with_and_without_tls() -> None:
    assert len(NOTIFIERS) == 4


@every_notifier
def test_a_notifier_runs_for_every_way_to_end(path: Path) -> None:
    assert trigger_in(path)["states"] == ENDS


@every_notifier
def test_a_notifier_s_trigger_keeps_no_state(path: Path) -> None:
    assert not {"preconditions", "dependsOn"} & trigger_in(path).keys()


@every_notifier
def test_a_notifier_has_no_label_by_which_it_would_be_told_of(path: Path) -> None:
    assert "labels" not in yaml.safe_load(path.read_text())


@every_notifier
def test_a_notifier_tries_again_only_so_often(path: Path) -> None:
    assert 1 < task_in(path)["retry"]["maxAttempts"] <= 10


@every_notifier
def test_a_notifier_gives_up_on_a_broker_that_does_not_answer(path: Path) -> None:
    assert task_in(path)["timeout"] == "PT30S"


@every_notifier
def test_a_notifier_reads_only_the_secrets_that_are_promised(path: Path) -> None:
    promised = {"HOST", "PORT", "VHOST", "USERNAME", "PASSWORD", "API_URL"}
    assert set(re.findall(r"secret\('BRIDGE_AMQP_(\w+)'\)", path.read_text())) <= promised


@pytest.mark.parametrize(
    "path", [path for path in NOTIFIERS if "kestra-1" in where(path)], ids=where
)
def test_a_notifier_for_1_x_filters_by_conditions(path: Path) -> None:
    condition = {
        "type": "io.kestra.plugin.core.condition.ExecutionLabels",
        "labels": {"bridge": "amqp"},
    }
    assert trigger_in(path)["conditions"] == [condition]


@pytest.mark.parametrize(
    "path", [path for path in NOTIFIERS if "kestra-1" in where(path)], ids=where
)
def test_a_notifier_for_1_x_uses_nothing_that_only_2_x_has(path: Path) -> None:
    assert "when" not in trigger_in(path)
    assert "trigger.endDate" not in path.read_text()


@pytest.mark.parametrize(
    "path", [path for path in NOTIFIERS if "kestra-2" in where(path)], ids=where
)
def test_a_notifier_for_2_x_filters_by_when(path: Path) -> None:
    assert trigger_in(path)["when"] == "{{ (labels.bridge ?? '') == 'amqp' }}"


@pytest.mark.parametrize(
    "path", [path for path in NOTIFIERS if "kestra-2" in where(path)], ids=where
)
def test_a_notifier_for_2_x_uses_nothing_that_2_x_refuses(path: Path) -> None:
    assert "conditions" not in trigger_in(path)


@pytest.mark.parametrize(
    "path", [path for path in NOTIFIERS if "tls" not in where(path)], ids=where
)
def test_a_plain_notifier_s_message_has_all_that_is_promised(path: Path) -> None:
    data = task_in(path)["from"]["data"]
    assert list(data) == ["executionId", "state", "namespace", "flowId", "endedAt"]


@pytest.mark.parametrize("path", [path for path in NOTIFIERS if "tls" in where(path)], ids=where)
def test_a_notifier_for_tls_never_trusts_everybody(path: Path) -> None:
    assert "ssl" not in task_in(path)["options"]


def test_the_notifiers_of_both_series_differ_only_in_trigger_and_end() -> None:
    first, second = (
        task_in(FLOWS / series / "bridge.system/notifier.yaml")
        for series in ("kestra-1", "kestra-2")
    )
    first["from"]["data"]["endedAt"] = second["from"]["data"]["endedAt"]
    assert first == second


# Where they are


def test_in_a_checkout_the_flows_lie_beside_the_package() -> None:
    assert flows.home() == FLOWS


def test_installed_the_flows_lie_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bridge/_flows").mkdir(parents=True)
    (tmp_path / "flows").mkdir()
    monkeypatch.setattr(flows, "_PACKAGE", tmp_path / "bridge")
    assert flows.home() == tmp_path / "bridge/_flows"


def test_an_installation_without_flows_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "_PACKAGE", tmp_path / "bridge")
    with pytest.raises(BridgeError, match="has no flows"):
        flows.home()


def test_the_wheel_carries_every_flow(tmp_path: Path) -> None:
    (built,) = WheelBuilder(str(CHECKOUT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        names = set(wheel.namelist())
    assert {f"bridge/_flows/{where(path)}" for path in SHIPPED} <= names


# A user's own flows


def test_a_folder_s_flows_are_found_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/one.yml").write_text(EXAMPLE.format(id="one", namespace="team"))
    (tmp_path / "two.yaml").write_text(EXAMPLE.format(id="two", namespace="team"))
    assert [str(found.name) for found in flows.from_paths([tmp_path])] == ["team/one", "team/two"]


def test_a_file_that_is_given_twice_is_one_flow(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(EXAMPLE.format(id="one", namespace="team"))
    assert len(flows.from_paths([path, tmp_path])) == 1


def test_two_files_with_the_same_flow_are_refused(tmp_path: Path) -> None:
    for name in ("one.yaml", "other.yaml"):
        (tmp_path / name).write_text(EXAMPLE.format(id="one", namespace="team"))
    with pytest.raises(
        SettingsError, match=r"team/one is in two files, .*one\.yaml and .*other\.yaml"
    ):
        flows.from_paths([tmp_path])


def test_a_folder_without_flows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no flow in"):
        flows.from_paths([tmp_path])


def test_a_file_that_is_not_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "image.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"can't read .*image\.yaml"):
        flows.from_paths([tmp_path / "image.yaml"])


@pytest.mark.parametrize(
    "source",
    [
        "id: one\nnamespace: team\n",
        "namespace: 'team'\nid: \"one\"\n",
        "id: one # the first\nnamespace:   team\t# ours\n",
        "id: one\r\nnamespace: team\r\ntasks: []\r\n",
        "---\nid: one\nnamespace: team\ntasks:\n  - id: deeper\n",
    ],
)
def test_a_source_s_name_is_read_as_yaml_would(source: str) -> None:
    assert flows.name_in(source) == FlowName("team", "one")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("namespace: team\n", "no line 'id: …'"),
        ("id: one\n", "no line 'namespace: …'"),
        ("id: one\nnamespace: team\n---\nid: two\nnamespace: team\n", "2 lines 'namespace: …'"),
        ("id: one\nnamespace: The Team\n", "is not namespace/id"),
        ("", "no line"),
    ],
)
def test_a_source_without_one_name_is_refused(source: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        flows.name_in(source)


# Choosing


@pytest.mark.parametrize("wanted", ["one", "team/one"])
def test_a_flow_can_be_chosen_by_its_id_or_whole_name(wanted: str) -> None:
    chosen = flows.select([flow("team/one"), flow("team/two")], [wanted])
    assert [str(found.name) for found in chosen] == ["team/one"]


def test_without_names_all_are_chosen() -> None:
    assert len(flows.select([flow("team/one"), flow("team/two")], [])) == 2


def test_a_name_that_fits_none_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(SettingsError, match=r"--only three: .*team/one, team/two"):
        flows.select([flow("team/one"), flow("team/two")], ["one", "three"])


# Deciding


def test_a_flow_that_the_server_lacks_is_created() -> None:
    assert flows.fate(flow("team/one"), None) is Fate.CREATED


def test_a_flow_with_another_source_is_updated() -> None:
    assert flows.fate(flow("team/one"), "id: one\nnamespace: team\n") is Fate.UPDATED


@pytest.mark.parametrize(
    "change",
    [str, str.rstrip, lambda text: f"{text}\n\n", lambda text: text.replace("\n", " \r\n")],
)
def test_white_space_at_the_ends_of_lines_and_of_the_file_makes_no_difference(
    change: Callable[[str], str],
) -> None:
    assert flows.fate(flow("team/one"), change(flow("team/one").source)) is Fate.UNCHANGED


def test_indentation_makes_a_difference() -> None:
    assert flows.fate(flow("team/one", "a:\n  b: c\n"), "a:\nb: c\n") is Fate.UPDATED


# Deploying


async def test_on_an_empty_server_a_flow_is_created() -> None:
    assert await deploy(Server(), flow("team/one")) == {"team/one": Fate.CREATED}


async def test_the_server_has_the_source_to_the_letter() -> None:
    server = Server()
    await deploy(server, flow("team/one"))
    assert server.flows == {"team/one": flow("team/one").source}


async def test_a_flow_that_is_there_already_is_not_written_again() -> None:
    server = Server()
    await deploy(server, flow("team/one"))
    server.requests.clear()
    await deploy(server, flow("team/one"))
    assert server.writes == []


async def test_only_what_differs_is_updated() -> None:
    server = Server()
    await deploy(server, flow("team/one"), flow("team/two"))
    changed = flow("team/two", flow("team/two").source + "description: new\n")
    fates = await deploy(server, flow("team/one"), changed)
    assert fates == {"team/one": Fate.UNCHANGED, "team/two": Fate.UPDATED}


async def test_nothing_is_deployed_when_one_flow_is_refused() -> None:
    server = Server(refuse={"team/two": "tasks: must not be empty"})
    await deploy(server, flow("team/one"), flow("team/two"), flow("team/three"))
    assert server.writes == []


async def test_what_is_held_back_beside_a_refused_flow_is_told() -> None:
    server = Server(refuse={"team/two": "tasks: must not be empty"})
    fates = await deploy(server, flow("team/one"), flow("team/two"))
    assert fates == {"team/one": Fate.HELD, "team/two": Fate.REFUSED}


async def test_a_flow_that_passes_validation_and_is_refused_all_the_same_is_told() -> None:
    server = Server()
    server.refuse_to_save = {"team/one"}
    fates = await deploy(server, flow("team/one"), flow("team/two"))
    assert fates == {"team/one": Fate.REFUSED, "team/two": Fate.CREATED}


async def test_a_dry_run_tells_what_it_would_do() -> None:
    assert await deploy(Server(), flow("team/one"), dry_run=True) == {"team/one": Fate.CREATED}


async def test_a_dry_run_writes_nothing() -> None:
    server = Server()
    await deploy(server, flow("team/one"), dry_run=True)
    assert server.writes == []


async def test_no_deployment_deletes_or_touches_another_flow() -> None:
    server = Server()
    server.flows = {"bridge.system/theirs": "theirs", "bridge.system/notifier": "old"}
    await deploy(server, *flows.shipped("2.0.0"))
    touched = {
        path.removeprefix("/main/flows/") for method, path in server.writes if method != "POST"
    }
    assert (touched, server.flows["bridge.system/theirs"]) == ({"bridge.system/notifier"}, "theirs")


async def test_no_deployment_uses_the_calls_that_delete_what_they_do_not_name() -> None:
    server = Server()
    await deploy(server, *flows.shipped("2.0.0"))
    assert {path for _, path in server.writes} == {"/main/flows"}


async def test_a_problem_of_several_lines_becomes_one_line() -> None:
    async with Server(refuse={"team/one": "wrong:\n  very wrong"}).client() as kestra:
        (verdict,) = await flows.validate(kestra, [flow("team/one")])
    assert verdict.problems == ("wrong: very wrong",)


# The commands


class Shell:
    """Runs `kestra-bridge flows …` in this process, against a server that is none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.server = Server()
        self.out = self.err = ""
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        client = partial(Kestra, transport=httpx.MockTransport(self.server))
        monkeypatch.setattr(bridge.cli.flows, "Kestra", client)

    def __call__(self, *arguments: str | Path) -> int:
        self._monkeypatch.setattr(sys, "argv", ["kestra-bridge", "flows", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        self.out, self.err = self._capsys.readouterr()
        return int(ended.value.code or 0)

    @property
    def results(self) -> dict[str, str]:
        return {row["flow"]: row["result"] for row in json.loads(self.out)["flows"]}


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Shell:
    # Not where a `.env` file could be.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRIDGE_KESTRA_URL", "http://kestra.test")
    return Shell(monkeypatch, capsys)


def test_a_deployment_that_is_done_ends_with_exit_code_0(shell: Shell) -> None:
    assert shell("deploy") == 0


def test_json_tells_each_flow_s_result(shell: Shell) -> None:
    shell("deploy", "--json", "--only", "notifier", "--only", "bridge.jobs/example")
    assert shell.results == {"bridge.system/notifier": "created", "bridge.jobs/example": "created"}


def test_the_table_names_each_flow_and_its_result(shell: Shell) -> None:
    shell("deploy", "--only", "notifier")
    assert re.search(r"bridge\.system/notifier\W+created", shell.out)


@pytest.mark.parametrize(("version", "sign"), [("1.3.25", "conditions:"), ("2.0.0", "when:")])
def test_the_server_s_version_decides_on_the_notifier(
    shell: Shell, version: str, sign: str
) -> None:
    shell.server.version = version
    shell("deploy", "--notifier")
    assert sign in shell.server.flows["bridge.system/notifier"]


NOTIFIER = "bridge.system/notifier"
FOR_JOBS = {str(found.name) for found in flows.shipped("2.0.0")} - {NOTIFIER}


@pytest.mark.parametrize(
    ("options", "deployed"),
    [
        ([], FOR_JOBS),
        (["--notifier"], {*FOR_JOBS, NOTIFIER}),
        (["--tls"], {*FOR_JOBS, NOTIFIER}),
        (["--only", "notifier"], {NOTIFIER}),
        (["--only", "example"], {"bridge.jobs/example"}),
        (["--only", "example", "--tls"], {"bridge.jobs/example"}),
        (["--only", "example", "--notifier"], {"bridge.jobs/example", NOTIFIER}),
    ],
    ids=lambda value: " ".join(value) or "no option" if isinstance(value, list) else "",
)
def test_the_notifier_is_deployed_only_where_it_is_asked_for(
    shell: Shell, options: list[str], deployed: set[str]
) -> None:
    shell("deploy", *options)
    assert set(shell.server.flows) == deployed


def test_a_notifier_that_is_there_is_left_alone_where_none_is_asked_for(shell: Shell) -> None:
    shell.server.flows = {NOTIFIER: "theirs"}
    shell("deploy")
    assert shell.server.flows[NOTIFIER] == "theirs"


def test_tls_takes_the_notifier_for_it(shell: Shell) -> None:
    shell("deploy", "--tls")
    assert "BRIDGE_AMQP_API_URL" in shell.server.flows["bridge.system/notifier"]


def test_flows_of_one_s_own_are_deployed_instead_of_those_that_ship(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "one.yaml").write_text(EXAMPLE.format(id="one", namespace="team"))
    shell("deploy", tmp_path)
    assert list(shell.server.flows) == ["team/one"]


@pytest.mark.parametrize("command", ["deploy", "validate"])
def test_a_refused_flow_ends_with_exit_code_1(shell: Shell, command: str) -> None:
    shell.server.refuse = {NOTIFIER: "Invalid type: io.kestra.plugin.amqp.Publish"}
    assert shell(command, "--notifier") == 1


@pytest.mark.parametrize("command", ["deploy", "validate"])
def test_a_refused_flow_is_named_with_the_reason_on_one_line(shell: Shell, command: str) -> None:
    shell.server.refuse = {NOTIFIER: "Invalid type: io.kestra.plugin.amqp.Publish"}
    shell(command, "--notifier")
    reason = "bridge.system/notifier is refused: Invalid type: io.kestra.plugin.amqp.Publish"
    assert shell.err == f"kestra-bridge: {reason}\n"


def test_json_tells_why_a_flow_is_refused(shell: Shell) -> None:
    shell.server.refuse = {"bridge.jobs/example": "no"}
    shell("validate", "--json", "--only", "example")
    assert json.loads(shell.out)["flows"][0]["problems"] == ["no"]


def test_validating_writes_nothing(shell: Shell) -> None:
    shell("validate")
    assert shell.server.writes == []


def test_flows_that_are_valid_end_with_exit_code_0(shell: Shell) -> None:
    assert shell("validate") == 0


def test_a_dry_run_of_the_command_writes_nothing(shell: Shell) -> None:
    shell("deploy", "--dry-run")
    assert shell.server.writes == []


def test_a_missing_setting_ends_with_exit_code_2(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRIDGE_KESTRA_URL")
    assert shell("deploy") == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["deploy", "--only", "nothing"],
        ["deploy", "--tls", "."],
        ["deploy", "--notifier", "."],
        ["deploy", "nowhere"],
        ["deploy", "--wrong"],
        ["upload"],
    ],
)
def test_wrong_usage_ends_with_exit_code_2(shell: Shell, arguments: Sequence[str]) -> None:
    assert shell(*arguments) == 2


def test_help_says_that_nothing_is_ever_deleted(shell: Shell) -> None:
    shell("deploy", "--help")
    assert "No flow is ever deleted" in shell.out
