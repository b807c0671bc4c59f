"""The lanes, the login at the broker and the management API follow from the settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from yarl import URL

from bridge.errors import SettingsError
from bridge.job.flow_name import FlowName
from bridge.settings import (
    BrokerSettings,
    Lane,
    Settings,
    check_for_run,
)
from tests.unit.settings.support import fault, loaded


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
