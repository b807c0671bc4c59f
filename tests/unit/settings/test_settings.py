"""The settings are read whole: every fault is named at once, no value is shown, and the defaults
are the contract's."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr
from yarl import URL

from bridge.errors import SettingsError
from bridge.job.flow_name import FlowName
from bridge.job.settlement import Policy
from bridge.machines.settings import MachineSettings
from bridge.settings import (
    BrokerSettings,
    CommandSettings,
    KestraSettings,
    Lane,
    Settings,
    check_for_run,
    load,
    unknown,
)
from bridge.telemetry import log

NEEDED = {
    "BRIDGE_AMQP_URL": "amqp://user:geheim@rabbit:5672/jobs",
    "BRIDGE_KESTRA_URL": "http://kestra:8080",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment with what is needed and nothing else of ours."""
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def loaded(environment: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        environment.setenv(f"BRIDGE_{name}", value)
    return load(Settings)


def fault(environment: pytest.MonkeyPatch, **variables: str) -> str:
    with pytest.raises(SettingsError) as caught:
        loaded(environment, **variables)
    return str(caught.value)


class TestDefaults:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("kestra_tenant", "main"),
            ("kestra_username", None),
            ("kestra_password", None),
            ("kestra_token", None),
            ("queue", "kestra.jobs"),
            ("prefetch", 8),
            ("flow", None),
            ("lanes", ()),
            ("queue_type", "auto"),
            ("max_priority", 10),
            ("allowed_flows", ()),
            ("max_attempts", 3),
            ("retry_delays", (30, 300)),
            ("ack_warning", True),
            ("job_timeout", 21_600),
            ("reconcile_interval", 30),
            ("drain_timeout", 30),
            ("deduplicate", "always"),
            ("adopt_grace", 10),
            ("http_port", 9464),
            ("log_format", "auto"),
            ("log_level", "info"),
        ],
    )
    def test_are_those_of_the_contract(
        self, environment: pytest.MonkeyPatch, name: str, value: Any
    ) -> None:
        assert getattr(loaded(environment), name) == value

    def test_hold_for_an_empty_variable(self, environment: pytest.MonkeyPatch) -> None:
        assert loaded(environment, PREFETCH="", QUEUE="", FLOW="").all_lanes == (
            Lane(queue="kestra.jobs", prefetch=8),
        )

    def test_serve_http_on_loopback_alone(self, environment: pytest.MonkeyPatch) -> None:
        assert loaded(environment).http_host == "127.0.0.1"

    def test_hold_a_delivery_for_longer_than_a_job_may_take(
        self, environment: pytest.MonkeyPatch
    ) -> None:
        settings = loaded(environment)
        assert settings.hold > 2 * settings.job_timeout


class TestValues:
    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("PREFETCH", "1", 1),
            ("MAX_PRIORITY", "255", 255),
            ("RETRY_DELAYS", "[1, 2]", (1, 2)),
            ("ALLOWED_FLOWS", '["a/*", "b/c"]', ("a/*", "b/c")),
            ("ACK_WARNING", "false", False),
            ("JOB_TIMEOUT", "0.5", 0.5),
            ("LOG_LEVEL", "DEBUG", "debug"),
            ("LOG_FORMAT", "Json", "json"),
            ("QUEUE_TYPE", "QUORUM", "quorum"),
            ("DEDUPLICATE", "Redelivered", "redelivered"),
            ("FLOW", "bridge.jobs/example", "bridge.jobs/example"),
            ("KESTRA_URL", "https://kestra.example/base/", "https://kestra.example/base"),
            ("KESTRA_URL", "https://kestra.example/api", "https://kestra.example/api"),
            ("ALLOWED_FLOWS", '["*", "a?b", "n.[ab]*/x", "n/f"]', ("*", "a?b", "n.[ab]*/x", "n/f")),
            ("HTTP_PORT", "0", 0),
        ],
    )
    def test_are_read_from_the_environment(
        self, environment: pytest.MonkeyPatch, name: str, text: str, value: Any
    ) -> None:
        assert getattr(loaded(environment, **{name: text}), name.lower()) == value

    def test_are_read_from_a_env_file(self, tmp_path: Path) -> None:
        lines = [f"{name}={value}" for name, value in (NEEDED | {"BRIDGE_PREFETCH": "3"}).items()]
        (tmp_path / ".env").write_text("\n".join(lines))
        assert load(Settings).prefetch == 3

    def test_of_the_environment_come_before_those_of_the_file(
        self, environment: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / ".env").write_text("BRIDGE_PREFETCH=3\nBRIDGE_MAX_ATTEMPTS=7")
        settings = loaded(environment, PREFETCH="5")
        assert (settings.prefetch, settings.max_attempts) == (5, 7)

    def test_can_not_be_changed(self, environment: pytest.MonkeyPatch) -> None:
        settings = loaded(environment)
        with pytest.raises(ValueError, match="frozen"):
            settings.prefetch = 9  # type: ignore[misc]

    def test_make_the_policy(self, environment: pytest.MonkeyPatch) -> None:
        settings = loaded(environment, MAX_ATTEMPTS="5", RETRY_DELAYS="[7]", ACK_WARNING="no")
        assert settings.policy == Policy(max_attempts=5, retry_delays=(7,), ack_warning=False)

    def test_of_one_side_need_nothing_of_the_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BRIDGE_AMQP_URL", NEEDED["BRIDGE_AMQP_URL"])
        assert load(BrokerSettings).queue == "kestra.jobs"
        with pytest.raises(SettingsError, match="BRIDGE_KESTRA_URL is not set"):
            load(KestraSettings)

    def test_tell_the_brokers_address_without_credentials(
        self, environment: pytest.MonkeyPatch
    ) -> None:
        assert loaded(environment).broker_address == "rabbit:5672/jobs"

    @pytest.mark.parametrize(
        ("url", "address"),
        [
            ("amqp://rabbit", "rabbit:5672/"),
            ("amqp://[::1]", "[::1]:5672/"),
            ("amqps://u:p@rabbit/%2Fa", "rabbit:5671/%2Fa"),
        ],
    )
    def test_know_the_brokers_default_port(
        self, environment: pytest.MonkeyPatch, url: str, address: str
    ) -> None:
        assert loaded(environment, AMQP_URL=url).broker_address == address


class TestLanes:
    def test_are_one_by_default(self, environment: pytest.MonkeyPatch) -> None:
        settings = loaded(environment, QUEUE="q", PREFETCH="2", FLOW="a/b")
        assert settings.all_lanes == (Lane(queue="q", prefetch=2, flow="a/b"),)

    def test_are_read_from_a_json_list(self, environment: pytest.MonkeyPatch) -> None:
        settings = loaded(
            environment, LANES='[{"queue": "a", "prefetch": 1, "flow": "n/f"}, {"queue": "b"}]'
        )
        assert settings.all_lanes == (
            Lane(queue="a", prefetch=1, flow="n/f"),
            Lane(queue="b", prefetch=8),
        )

    def test_know_their_flow(self) -> None:
        assert Lane(queue="q", flow="a/b").flow_name == FlowName("a", "b")
        assert Lane(queue="q").flow_name is None

    def test_allow_their_own_flows(self, environment: pytest.MonkeyPatch) -> None:
        queues = [("a", "n/g"), ("b", None), ("c", "n/f"), ("d", "n/f")]
        lanes = json.dumps([{"queue": queue, "flow": flow} for queue, flow in queues])
        assert loaded(environment, LANES=lanes).flow_patterns == ("n/f", "n/g")

    def test_allow_nothing_else_once_there_is_a_list(self, environment: pytest.MonkeyPatch) -> None:
        assert loaded(environment, FLOW="n/f", ALLOWED_FLOWS='["m/*"]').flow_patterns == ("m/*",)

    def test_allow_nothing_at_all_where_the_list_is_empty(
        self, environment: pytest.MonkeyPatch
    ) -> None:
        assert loaded(environment, FLOW="n/f", ALLOWED_FLOWS="[]").flow_patterns == ()

    def test_allow_nothing_after_a_secret_was_read_anew(
        self, environment: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "secret").write_text("one")
        settings = loaded(
            environment, FLOW="n/f", ALLOWED_FLOWS="[]", KESTRA_TOKEN_FILE=str(tmp_path / "secret")
        )
        (tmp_path / "secret").write_text("two")
        assert settings.refreshed(Settings).flow_patterns == ()

    @pytest.mark.parametrize(
        ("variables", "patterns"),
        [
            ({}, None),
            ({"FLOW": "n/f"}, ("n/f",)),
            ({"ALLOWED_FLOWS": "[]"}, ()),
            ({"ALLOWED_FLOWS": '["a/*"]'}, ("a/*",)),
        ],
    )
    def test_know_what_may_be_started_or_that_they_do_not(
        self,
        environment: pytest.MonkeyPatch,
        variables: dict[str, str],
        patterns: tuple[str, ...] | None,
    ) -> None:
        assert loaded(environment, **variables).known_patterns == patterns

    def test_that_can_start_nothing_are_a_fault_for_the_consumer(
        self, environment: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(SettingsError, match="no flow may be started: set BRIDGE_FLOW"):
            check_for_run(loaded(environment))

    def test_that_may_start_nothing_are_a_fault_for_the_consumer(
        self, environment: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(SettingsError, match=r"BRIDGE_ALLOWED_FLOWS is \[\], by which no flow"):
            check_for_run(loaded(environment, FLOW="n/f", ALLOWED_FLOWS="[]"))

    def test_that_can_start_a_flow_are_none(self, environment: pytest.MonkeyPatch) -> None:
        check_for_run(loaded(environment, ALLOWED_FLOWS='["m/*"]'))


class TestFaults:
    def test_are_all_named_at_once(self, environment: pytest.MonkeyPatch) -> None:
        environment.delenv("BRIDGE_AMQP_URL")
        named = fault(
            environment,
            KESTRA_URL="kestra",
            PREFETCH="many",
            LANES="[",
            RETRY_DELAYS="{}",
            LOG_LEVEL="loud",
            HTTP_PORT="70000",
            MAX_ATTEMPTS="0",
        )
        names = [
            "AMQP_URL",
            "KESTRA_URL",
            "PREFETCH",
            "LANES",
            "RETRY_DELAYS",
            "LOG_LEVEL",
            "HTTP_PORT",
        ]
        assert [name for name in names if f"BRIDGE_{name}" not in named] == []

    @pytest.mark.parametrize(
        ("name", "text", "reason"),
        [
            ("AMQP_URL", "http://rabbit", "must be amqp://user:password@host:port/vhost"),
            ("AMQP_URL", "rabbit", "must be amqp://user:password@host:port/vhost"),
            ("AMQP_URL", "amqp://", "must be amqp://user:password@host:port/vhost"),
            ("AMQP_URL", "amqp://rabbit:99999", "must be amqp://user:password@host:port/vhost"),
            ("AMQP_CA", "/no/such/file", "is no file that can be read"),
            ("KESTRA_URL", "ftp://kestra", "must be http://host:port"),
            ("KESTRA_URL", "http://[::1", "must be http://host:port"),
            ("KESTRA_URL", "http://kestra?x=1", "must be http://host:port"),
            ("KESTRA_URL", "http://u:p@kestra", "must not hold credentials"),
            (
                "KESTRA_URL",
                "http://u:p@kestra",
                "use BRIDGE_KESTRA_USERNAME and BRIDGE_KESTRA_PASSWORD",
            ),
            (
                "MANAGEMENT_URL",
                "http://u:p@rabbit",
                "use BRIDGE_MANAGEMENT_USERNAME and BRIDGE_MANAGEMENT_PASSWORD",
            ),
            ("KESTRA_TENANT", "a/b", "must be lower-case letters, digits, - and _ only"),
            ("KESTRA_TOKEN", "token\n", "must be printable ASCII"),
            ("KESTRA_TOKEN", "tökén", "must be printable ASCII"),
            ("QUEUE", "two words", "must be letters, digits and . _ : - only"),
            ("QUEUE", "ü" * 200, "must be letters, digits and . _ : - only"),
            ("QUEUE", "q" * 201, "string should have at most 200"),
            ("PREFETCH", "0", "greater than or equal to 1"),
            ("FLOW", "example", "must be namespace/id"),
            ("LANES", "[", "is not valid JSON"),
            ("LANES", '[{"queue": "a"}, {"queue": "a"}]', "names a queue twice"),
            (
                "LANES",
                '[{"queue": "q"}, {"queue": "q.retry.30"}]',
                "names q.retry.30, which is the name of a side queue of",
            ),
            (
                "LANES",
                '[{"queue": "q.dead"}, {"queue": "q"}]',
                "side queue of lane q: rename one of them",
            ),
            (
                "LANES",
                '[{"queue": "a"}, {"queue": "kestra.replies"}]',
                "which is the exchange for replies",
            ),
            ("QUEUE", "kestra.replies", "must not be kestra.replies"),
            ("LANES", '[{"prefetch": 1}]', "BRIDGE_LANES[0][queue] is not set"),
            (
                "LANES",
                '[{"queue": "a", "flow": "x"}]',
                "BRIDGE_LANES[0][flow] must be namespace/id",
            ),
            (
                "LANES",
                '[{"queue": "a", "speed": 1}]',
                "BRIDGE_LANES[0][speed] extra inputs are not permitted",
            ),
            ("RETRY_DELAYS", "[]", "at least 1 item"),
            ("RETRY_DELAYS", "[true]", "BRIDGE_RETRY_DELAYS[0] must be a whole number"),
            (
                "LANES",
                '[{"queue": "a", "prefetch": true}]',
                "BRIDGE_LANES[0][prefetch] must be a whole number",
            ),
            (
                "ALLOWED_FLOWS",
                '["test"]',
                "BRIDGE_ALLOWED_FLOWS[0] must be namespace/id or a pattern",
            ),
            (
                "ALLOWED_FLOWS",
                '["a/*", ""]',
                "BRIDGE_ALLOWED_FLOWS[1] must be namespace/id or a pattern",
            ),
            (
                "ALLOWED_FLOWS",
                '["a/ *"]',
                "BRIDGE_ALLOWED_FLOWS[0] must be namespace/id or a pattern",
            ),
            (
                "ALLOWED_FLOWS",
                '["a/b/c"]',
                "BRIDGE_ALLOWED_FLOWS[0] must be namespace/id or a pattern",
            ),
            (
                "KESTRA_URL",
                "http://kestra:8080/api/v1",
                "must be Kestra's own address, without /api/v1",
            ),
            ("KESTRA_URL", "http://kestra:8080/api/v1/main/", "without /api/v1/main"),
            ("KESTRA_URL", "http://kestra/base/ui/main/flows", "without /ui/main/flows"),
            (
                "RETRY_DELAYS",
                "[0]",
                "BRIDGE_RETRY_DELAYS[0] input should be greater than or equal to 1",
            ),
            ("RETRY_DELAYS", "30,300", "is not valid JSON"),
            ("QUEUE_TYPE", "stream", "input should be 'auto', 'classic' or 'quorum'"),
            ("MAX_PRIORITY", "256", "less than or equal to 255"),
            ("JOB_TIMEOUT", "nan", "input should be"),
            ("JOB_TIMEOUT", "0", "greater than 0"),
            ("DEDUPLICATE", "never", "input should be 'always' or 'redelivered'"),
            ("ACK_WARNING", "perhaps", "valid boolean"),
        ],
    )
    def test_say_which_setting_is_wrong_and_why(
        self, environment: pytest.MonkeyPatch, name: str, text: str, reason: str
    ) -> None:
        named = fault(environment, **{name: text})
        assert (f"BRIDGE_{name}" in named, reason in named) == (True, True), named

    @pytest.mark.parametrize(
        ("variables", "reason"),
        [
            (
                {"KESTRA_USERNAME": "u"},
                "BRIDGE_KESTRA_USERNAME and BRIDGE_KESTRA_PASSWORD go together",
            ),
            (
                {"KESTRA_PASSWORD": "p"},
                "BRIDGE_KESTRA_USERNAME and BRIDGE_KESTRA_PASSWORD go together",
            ),
            (
                {"MANAGEMENT_USERNAME": "u"},
                "BRIDGE_MANAGEMENT_USERNAME and BRIDGE_MANAGEMENT_PASSWORD go together",
            ),
            (
                {"KESTRA_TOKEN": "t", "KESTRA_USERNAME": "u", "KESTRA_PASSWORD": "p"},
                "exclude each other",
            ),
        ],
    )
    def test_say_which_settings_do_not_go_together(
        self, environment: pytest.MonkeyPatch, variables: dict[str, str], reason: str
    ) -> None:
        assert reason in fault(environment, **variables)

    @pytest.mark.parametrize(
        "url",
        [
            "amqp://user:geheim/geheim@rabbit",
            "amqp://user:geheim#geheim@rabbit",
            "amqp://user:geheim℀@rabbit",
            "amqp://user:[geheim@rabbit",
            "amqp://user:geheim@rabbit:geheim",
            "geheim://rabbit",
            "amqp://user:12345/geheim@rabbit/",
            "amqp://user:12345?geheim@rabbit/",
            "amqp://user:12345#geheim@rabbit/",
            "amqp://user:12345/geheim#geheim",
            "amqp://user@rabbit/jobs#",
            "amqp://rab bit",
        ],
    )
    def test_show_no_part_of_a_url_that_can_not_be_read(
        self, environment: pytest.MonkeyPatch, url: str
    ) -> None:
        named = fault(environment, AMQP_URL=url)
        assert ("BRIDGE_AMQP_URL must be amqp://" in named, "geheim" in named) == (True, False), (
            named
        )

    @pytest.mark.parametrize("name", ["KESTRA", "MANAGEMENT"])
    @pytest.mark.parametrize(
        "rest",
        [
            "12345/geheim@host",
            "12345?geheim@host",
            "12345#geheim@host",
            "geheim@host",
            "geheim/@host",
        ],
    )
    def test_show_no_part_of_an_http_url_with_a_password(
        self, environment: pytest.MonkeyPatch, name: str, rest: str
    ) -> None:
        named = fault(environment, **{f"{name}_URL": f"http://user:{rest}"})
        assert (f"BRIDGE_{name}_URL must" in named, "geheim" in named) == (True, False), named

    @pytest.mark.parametrize("name", sorted(Settings.model_fields))
    def test_show_no_value(self, environment: pytest.MonkeyPatch, name: str) -> None:
        """Somebody may put a password into the wrong variable."""
        environment.setenv(f"BRIDGE_{name.upper()}", "[geheim ]")
        try:
            loaded(environment)
        except SettingsError as error:
            text = str(error)
            assert ("geheim" not in text, f"BRIDGE_{name.upper()}" in text) == (True, True), text

    @given(
        url=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
    )
    @hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_are_all_that_can_come_of_a_url(
        self, environment: pytest.MonkeyPatch, url: str
    ) -> None:
        for prefix in ("", "amqp://", "http://u:"):
            environment.setenv("BRIDGE_AMQP_URL", prefix + url)
            environment.setenv("BRIDGE_KESTRA_URL", prefix + url)
            with suppress(SettingsError):
                load(Settings)


class TestTheManagementApi:
    @pytest.mark.parametrize(
        ("amqp_url", "url"),
        [
            ("amqp://u:p@rabbit:5673/jobs", "http://rabbit:15672"),
            ("amqps://u:p@rabbit", "https://rabbit:15671"),
            ("amqp://[::1]", "http://[::1]:15672"),
        ],
    )
    def test_is_where_it_is_by_default_beside_amqp(
        self, environment: pytest.MonkeyPatch, amqp_url: str, url: str
    ) -> None:
        assert loaded(environment, AMQP_URL=amqp_url).management_address == url

    def test_is_where_the_setting_says(self, environment: pytest.MonkeyPatch) -> None:
        assert (
            loaded(environment, MANAGEMENT_URL="https://api/").management_address == "https://api"
        )

    @pytest.mark.parametrize(
        ("variables", "login"),
        [
            ({"AMQP_URL": "amqp://u%40x:p%2Fw@rabbit"}, ("u@x", "p/w")),
            ({"AMQP_URL": "amqp://rabbit"}, ("guest", "guest")),
            (
                {"AMQP_URL": "amqp://rabbit", "AMQP_USERNAME": "u%", "AMQP_PASSWORD": "p@"},
                ("u%", "p@"),
            ),
            ({"MANAGEMENT_USERNAME": "m", "MANAGEMENT_PASSWORD": "n"}, ("m", "n")),
        ],
    )
    def test_is_for_the_same_user_unless_another_is_named(
        self, environment: pytest.MonkeyPatch, variables: dict[str, str], login: tuple[str, str]
    ) -> None:
        username, password = loaded(environment, **variables).management_login
        assert (username, password.get_secret_value()) == login

    @pytest.mark.parametrize(
        ("amqp_url", "name"),
        [
            ("amqp://rabbit", "/"),
            ("amqp://rabbit/", "/"),
            ("amqp://rabbit/%2F", "/"),
            ("amqp://rabbit//", "/"),
            ("amqp://rabbit/a%20b", "a b"),
        ],
    )
    def test_has_the_virtual_host_that_the_address_names(
        self, environment: pytest.MonkeyPatch, amqp_url: str, name: str
    ) -> None:
        assert loaded(environment, AMQP_URL=amqp_url).virtual_host == name


class TestSecretFiles:
    """A secret in a file: its setting with `_FILE`."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "secret"
        path.write_text("geheim\n")
        return path

    @pytest.mark.parametrize(
        "section", [Settings, MachineSettings], ids=lambda section: section.__name__
    )
    def test_are_there_for_every_secret(self, section: type[CommandSettings]) -> None:
        secret = [
            name
            for name, field in section.model_fields.items()
            if "SecretStr" in str(field.annotation)
        ]
        assert [name for name in secret if f"{name}_file" not in section.model_fields] == []

    @pytest.mark.parametrize(
        ("name", "text", "others"),
        [
            ("AMQP_URL", "amqp://rabbit", {}),
            ("AMQP_USERNAME", "geheim", {"AMQP_PASSWORD": "x"}),
            ("AMQP_PASSWORD", "geheim", {"AMQP_USERNAME": "x"}),
            ("KESTRA_USERNAME", "geheim", {"KESTRA_PASSWORD": "x"}),
            ("KESTRA_PASSWORD", "geheim", {"KESTRA_USERNAME": "x"}),
            ("KESTRA_TOKEN", "geheim", {}),
        ],
    )
    def test_take_the_place_of_the_value(
        self,
        environment: pytest.MonkeyPatch,
        file: Path,
        name: str,
        text: str,
        others: dict[str, str],
    ) -> None:
        file.write_text(f"{text}\r\n")
        environment.setenv("BRIDGE_AMQP_URL", "" if name == "AMQP_URL" else "amqp://rabbit")
        value = getattr(loaded(environment, **{f"{name}_FILE": str(file)}, **others), name.lower())
        assert (value.get_secret_value() if isinstance(value, SecretStr) else value) == text

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (None, "is no file"),
            (b"", "is an empty file"),
            (b"\n", "is an empty file"),
            (b"two\nlines", "is a file of more than one line"),
            (b"\xff", "is a file that is not UTF-8"),
            (b"x" * 70_000, "is a file of more than one line, or of what can't be printed"),
        ],
        ids=["missing", "empty", "only a line break", "two lines", "no text", "too long"],
    )
    def test_that_hold_no_secret_are_named(
        self, environment: pytest.MonkeyPatch, tmp_path: Path, data: bytes | None, reason: str
    ) -> None:
        if data is not None:
            (tmp_path / "secret").write_bytes(data)
        said = fault(environment, KESTRA_TOKEN_FILE=str(tmp_path / "secret"))
        assert said.startswith(f"BRIDGE_KESTRA_TOKEN_FILE {reason}")

    def test_that_can_not_be_read_are_named(
        self, environment: pytest.MonkeyPatch, file: Path
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        environment.setattr(Path, "open", refuse)
        said = fault(environment, KESTRA_TOKEN_FILE=str(file))
        assert said == "BRIDGE_KESTRA_TOKEN_FILE is no file that can be read (Permission denied)"

    def test_that_are_pipes_are_refused_and_not_waited_for(
        self, environment: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        os.mkfifo(tmp_path / "pipe")
        assert "is no file" in fault(environment, KESTRA_TOKEN_FILE=str(tmp_path / "pipe"))

    def test_that_can_not_be_used_are_named_with_every_other_fault(
        self, environment: pytest.MonkeyPatch
    ) -> None:
        environment.delenv("BRIDGE_AMQP_URL")
        said = fault(
            environment, AMQP_URL_FILE="nowhere", KESTRA_TOKEN_FILE="nowhere", PREFETCH="0"
        )
        assert said.count("is no file") == 2
        assert "BRIDGE_PREFETCH" in said
        assert "not set" not in said

    def test_go_with_no_value_of_their_own(
        self, environment: pytest.MonkeyPatch, file: Path
    ) -> None:
        said = fault(environment, KESTRA_TOKEN="geheim", KESTRA_TOKEN_FILE=str(file))
        assert (
            said
            == "BRIDGE_KESTRA_TOKEN_FILE goes in place of BRIDGE_KESTRA_TOKEN: give one of them"
        )

    def test_hold_what_is_checked_like_any_value(
        self, environment: pytest.MonkeyPatch, file: Path
    ) -> None:
        file.write_text("http://geheim")
        environment.delenv("BRIDGE_AMQP_URL")
        said = fault(environment, AMQP_URL_FILE=str(file))
        assert ("BRIDGE_AMQP_URL must be amqp://" in said, "geheim" in said) == (True, False)

    def test_are_among_the_secrets(self, environment: pytest.MonkeyPatch, file: Path) -> None:
        assert "geheim" in loaded(environment, KESTRA_TOKEN_FILE=str(file)).secrets

    def test_are_read_anew(self, environment: pytest.MonkeyPatch, file: Path) -> None:
        settings = loaded(environment, KESTRA_TOKEN_FILE=str(file), PREFETCH="3")
        file.write_text("neu")
        fresh = settings.refreshed(Settings)
        assert (fresh.kestra_token, fresh.prefetch) == (SecretStr("neu"), 3)

    def test_are_masked_in_the_log_once_they_were_read_anew(
        self, environment: pytest.MonkeyPatch, file: Path
    ) -> None:
        hidden: list[str] = []
        environment.setattr(log, "hide", hidden.extend)
        settings = loaded(environment, KESTRA_TOKEN_FILE=str(file))
        file.write_text("neu")
        settings.refreshed(Settings)
        assert "neu" in hidden

    def test_that_have_not_changed_leave_the_settings_as_they_are(
        self, environment: pytest.MonkeyPatch, file: Path
    ) -> None:
        settings = loaded(environment, KESTRA_TOKEN_FILE=str(file))
        assert settings.refreshed(Settings) is settings

    def test_that_can_not_be_used_any_more_are_named(
        self, environment: pytest.MonkeyPatch, file: Path
    ) -> None:
        settings = loaded(environment, KESTRA_TOKEN_FILE=str(file))
        file.unlink()
        with pytest.raises(SettingsError, match="BRIDGE_KESTRA_TOKEN_FILE is no file"):
            settings.refreshed(Settings)

    def test_of_one_side_are_no_matter_of_the_other(
        self, environment: pytest.MonkeyPatch, file: Path
    ) -> None:
        settings = loaded(environment, KESTRA_TOKEN_FILE=str(file), AMQP_URL="amqp://rabbit")
        file.unlink()
        assert settings.refreshed(BrokerSettings) is settings

    def test_leave_what_a_command_changed_as_it_is(
        self, environment: pytest.MonkeyPatch, file: Path
    ) -> None:
        settings = loaded(environment, KESTRA_TOKEN_FILE=str(file)).model_copy(
            update={"lanes": (Lane(queue="other"),)}
        )
        file.write_text("neu")
        assert settings.refreshed(Settings).all_lanes == (Lane(queue="other"),)


class TestLoginAtTheBroker:
    @pytest.mark.parametrize(
        ("variables", "login"),
        [
            ({"AMQP_URL": "amqp://u:p@rabbit:1/v"}, "amqp://u:p@rabbit:1/v"),
            ({"AMQP_URL": "amqp://rabbit:1/v?heartbeat=9"}, "amqp://rabbit:1/v?heartbeat=9"),
            (
                {
                    "AMQP_URL": "amqp://rabbit:1/v?heartbeat=9",
                    "AMQP_USERNAME": "a b",
                    "AMQP_PASSWORD": "p@/:?#%",
                },
                "amqp://a%20b:p%40%2F%3A%3F%23%25@rabbit:1/v?heartbeat=9",
            ),
            ({"AMQP_URL": "amqp://u@[::1]:1/", "AMQP_PASSWORD": "p"}, "amqp://u:p@[::1]:1/"),
        ],
    )
    def test_is_the_address_with_what_was_given_apart_from_it(
        self, environment: pytest.MonkeyPatch, variables: dict[str, str], login: str
    ) -> None:
        assert loaded(environment, **variables).amqp_login == login

    @given(
        password=st.text(
            st.characters(exclude_characters="\0", exclude_categories=["Cs", "Cc"]), min_size=1
        )
    )
    def test_brings_any_password_to_the_broker_as_it_is(self, password: str) -> None:
        settings = BrokerSettings(
            amqp_url=SecretStr("amqp://rabbit"),
            amqp_username="u",
            amqp_password=SecretStr(password),
        )
        assert URL(settings.amqp_login).password == password

    @pytest.mark.parametrize(
        ("variables", "reason"),
        [
            ({"AMQP_USERNAME": "u"}, "BRIDGE_AMQP_URL holds what BRIDGE_AMQP_USERNAME says"),
            ({"AMQP_PASSWORD": "p"}, "BRIDGE_AMQP_URL holds what BRIDGE_AMQP_PASSWORD says"),
            ({"AMQP_URL": "amqp://rabbit", "AMQP_USERNAME": "u"}, "user and password go together"),
            ({"AMQP_URL": "amqp://rabbit", "AMQP_PASSWORD": "p"}, "user and password go together"),
            ({"AMQP_URL": "amqp://u@rabbit"}, "user and password go together"),
        ],
    )
    def test_is_whole_and_given_once(
        self, environment: pytest.MonkeyPatch, variables: dict[str, str], reason: str
    ) -> None:
        assert reason in fault(environment, **variables)


class TestTlsSettings:
    @pytest.fixture
    def pem(self, tmp_path: Path) -> str:
        (tmp_path / "file.pem").touch()
        return str(tmp_path / "file.pem")

    @pytest.mark.parametrize("name", ["CA", "CERTIFICATE"])
    @pytest.mark.parametrize(("side", "scheme"), [("AMQP", "amqps"), ("KESTRA", "https")])
    def test_are_no_promise_that_an_address_without_tls_breaks(
        self, environment: pytest.MonkeyPatch, pem: str, side: str, scheme: str, name: str
    ) -> None:
        said = fault(environment, **{f"{side}_{name}": pem})
        assert (
            said
            == f"BRIDGE_{side}_{name} is for TLS: BRIDGE_{side}_URL must begin with {scheme}://"
        )

    @pytest.mark.parametrize(
        ("side", "url"), [("AMQP", "amqps://u:p@rabbit"), ("KESTRA", "https://kestra")]
    )
    def test_name_a_key_without_a_certificate(
        self, environment: pytest.MonkeyPatch, pem: str, side: str, url: str
    ) -> None:
        said = fault(environment, **{f"{side}_URL": url, f"{side}_KEY": pem})
        assert said == f"BRIDGE_{side}_KEY needs BRIDGE_{side}_CERTIFICATE"

    @pytest.mark.parametrize(
        ("side", "url"), [("AMQP", "AMQPS://u:p@rabbit"), ("KESTRA", "HTTPS://kestra")]
    )
    def test_go_with_a_scheme_in_any_case(
        self, environment: pytest.MonkeyPatch, pem: str, side: str, url: str
    ) -> None:
        settings = loaded(environment, **{f"{side}_URL": url, f"{side}_CA": pem})
        assert Path(pem) in (settings.amqp_ca, settings.kestra_ca)


class TestUnknownVariables:
    @pytest.mark.parametrize(
        ("name", "warning"),
        [
            ("BRIDGE_PREFECH", "BRIDGE_PREFECH is no setting; did you mean BRIDGE_PREFETCH?"),
            (
                "bridge_kestra_uri",
                "bridge_kestra_uri is no setting; did you mean BRIDGE_KESTRA_URL?",
            ),
            ("BRIDGE_QQQQQQQQQQQQQ", "BRIDGE_QQQQQQQQQQQQQ is no setting"),
        ],
    )
    def test_are_warned_of_with_a_hint(self, name: str, warning: str) -> None:
        assert unknown([name, "PATH"]) == [warning]

    def test_are_none_among_the_settings(self) -> None:
        assert unknown(f"BRIDGE_{name.upper()}" for name in Settings.model_fields) == []

    def test_of_machines_get_a_hint_where_machines_are_the_matter(self) -> None:
        wrong = ["BRIDGE_MACHINE_PROVDER"]
        hint = "BRIDGE_MACHINE_PROVDER is no setting; did you mean BRIDGE_MACHINE_PROVIDER?"
        assert (unknown(wrong, MachineSettings), unknown(wrong)) == ([hint], [])

    def test_stop_nothing(self, environment: pytest.MonkeyPatch) -> None:
        assert loaded(environment, PREFECH="1").prefetch == 8


class TestSecrets:
    def test_are_told_in_every_spelling_the_longest_first(
        self, environment: pytest.MonkeyPatch
    ) -> None:
        settings = loaded(
            environment,
            AMQP_URL="amqp://u:p%40ss%2Fword@rabbit",
            KESTRA_USERNAME="u",
            KESTRA_PASSWORD="k",
        )
        assert settings.secrets == ("p%40ss%2Fword", "p@ss/word", "k")

    @pytest.mark.parametrize("password", ["//[x", "http://a:b@c", "amqp", "%"])
    def test_are_whole_whatever_they_look_like(
        self, environment: pytest.MonkeyPatch, password: str
    ) -> None:
        assert (
            password in loaded(environment, KESTRA_USERNAME="u", KESTRA_PASSWORD=password).secrets
        )

    def test_are_told_in_the_spelling_of_an_address_too(
        self, environment: pytest.MonkeyPatch
    ) -> None:
        settings = loaded(
            environment, AMQP_URL="amqp://rabbit", AMQP_USERNAME="u", AMQP_PASSWORD="p@ss"
        )
        assert settings.secrets == ("p%40ss", "p@ss")

    def test_are_none_where_there_are_none(self, environment: pytest.MonkeyPatch) -> None:
        assert loaded(environment, AMQP_URL="amqp://rabbit").secrets == ()

    def test_are_not_shown_by_the_settings(self, environment: pytest.MonkeyPatch) -> None:
        settings = loaded(environment, KESTRA_TOKEN="sehr-geheim")
        assert "geheim" not in f"{settings!r} {settings}"

    def test_are_kept_apart_from_what_can_be_shown(self, environment: pytest.MonkeyPatch) -> None:
        secret = {name for name, value in loaded(environment) if isinstance(value, SecretStr)}
        assert secret == {"amqp_url"}


def test_the_environment_of_whoever_runs_the_tests_does_not_matter() -> None:
    assert [name for name in os.environ if name.startswith("BRIDGE_")] == []
