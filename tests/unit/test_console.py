"""What commands say to people, run in this process."""

from __future__ import annotations

import pytest

from tests.console import Console

NOWHERE = "amqp://u:p@127.0.0.1:1"
KESTRA = "http://127.0.0.1:1"


class TestSecrets:
    @pytest.mark.parametrize("command", ["run", "status", "doctor"])
    @pytest.mark.parametrize("name", ["BRIDGE_AMQP_URL", "BRIDGE_KESTRA_URL", "BRIDGE_MANAGEMENT_URL"])
    @pytest.mark.parametrize("sign", ["/", "#", "?"])
    def test_in_an_address_that_is_misread_are_not_shown(
        self, console: Console, command: str, name: str, sign: str
    ) -> None:
        scheme = "amqp" if name == "BRIDGE_AMQP_URL" else "http"
        settings = {"BRIDGE_AMQP_URL": NOWHERE, "BRIDGE_KESTRA_URL": KESTRA, "BRIDGE_FLOW": "n/f"}
        done = console(command, **{**settings, name: f"{scheme}://bridge:12345{sign}topsecret@127.0.0.1/"})
        assert ("topsecret" in done.out + done.err, name in done.out + done.err) == (False, True), done
