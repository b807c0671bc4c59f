"""The settings are read whole: every fault is named at once, no value is shown, and the defaults
are the contract's."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bridge.errors import SettingsError
from bridge.job.settlement import Policy
from bridge.machines.settings import MachineSettings
from bridge.settings import (
    BrokerSettings,
    KestraSettings,
    Lane,
    Settings,
    load,
    unknown,
)
from tests.unit.settings.support import NEEDED, fault, loaded


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
            ("deduplicate", "ledger"),
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

    def test_serve_http_on_loopback_only(self, environment: pytest.MonkeyPatch) -> None:
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

    def test_are_read_from_an_env_file(self, tmp_path: Path) -> None:
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

    def test_say_of_a_list_with_a_faulty_item_only_what_is_wrong_with_that(
        self, environment: pytest.MonkeyPatch
    ) -> None:
        assert ";" not in fault(environment, RETRY_DELAYS="[-1]")

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
            ("DEDUPLICATE", "never", "input should be 'ledger', 'always' or 'redelivered'"),
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


def test_the_environment_of_whoever_runs_the_tests_does_not_matter() -> None:
    assert [name for name in os.environ if name.startswith("BRIDGE_")] == []
