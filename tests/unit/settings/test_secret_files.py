"""Secrets are read from files, and read again, and none of them is ever shown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bridge.errors import SettingsError
from bridge.machines.settings import MachineSettings
from bridge.settings import (
    BrokerSettings,
    CommandSettings,
    Lane,
    Settings,
    load,
)
from bridge.telemetry import log
from tests.unit.settings.support import NEEDED, fault, loaded


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

    def test_can_be_named_in_the_env_file(self, tmp_path: Path, file: Path) -> None:
        lines = [*(f"{name}={value}" for name, value in NEEDED.items())]
        lines.append(f"BRIDGE_KESTRA_TOKEN_FILE={file}")
        (tmp_path / ".env").write_text("\n".join(lines))
        assert load(Settings).kestra_token == SecretStr("geheim")

    def test_are_read_once_each(self, environment: pytest.MonkeyPatch, file: Path) -> None:
        """What is checked is what is used, even while somebody writes the file."""
        read: list[Path] = []
        opened = Path.open

        def note(path: Path, *arguments: Any, **more: Any) -> Any:
            read.append(path)
            return opened(path, *arguments, **more)

        environment.setattr(Path, "open", note)
        loaded(environment, KESTRA_TOKEN_FILE=str(file))
        assert read.count(file) == 1

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

    def test_of_one_side_do_not_matter_to_the_other(
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


class TestSecrets:
    def test_are_listed_in_every_spelling_the_longest_first(
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

    def test_are_listed_in_the_spelling_of_an_address_too(
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
