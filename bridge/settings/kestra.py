"""The settings for Kestra: its address and login."""

from __future__ import annotations

from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from bridge import tls
from bridge.settings.base import CommandSettings
from bridge.settings.secret_files import SecretPath, in_a_file
from bridge.settings.values import HeaderSecret, KestraUrl, Readable, Tenant, check_tls
from bridge.settings.variables import PREFIX


class KestraSettings(CommandSettings):
    """The settings that talking to Kestra takes."""

    kestra_url: KestraUrl = Field(description="Kestra's address, `http://host:8080`.")
    kestra_tenant: Tenant = Field(
        default="main", description="Kestra's tenant; the open-source edition has only `main`."
    )
    kestra_username: str | None = Field(
        default=None, description="User for Kestra's Basic authentication."
    )
    kestra_username_file: SecretPath | None = in_a_file("the user")
    kestra_password: SecretStr | None = Field(
        default=None, description="The password of Kestra's user."
    )
    kestra_password_file: SecretPath | None = in_a_file("the password")
    kestra_token: HeaderSecret | None = Field(
        default=None, description="An API token (Bearer), instead of user and password."
    )
    kestra_token_file: SecretPath | None = in_a_file("the token")
    kestra_ca: Readable | None = Field(
        default=None,
        description="A file of CA certificates to check Kestra's by, for `https`. "
        "Default: the public ones.",
    )
    kestra_certificate: Readable | None = Field(
        default=None,
        description="A file with our own certificate (and its chain), for a Kestra "
        "that demands one.",
    )
    kestra_key: Readable | None = Field(
        default=None,
        description="A file with the key of that certificate, if it is not in the same file. It "
        "has no pass phrase.",
    )
    ack_warning: bool = Field(
        default=True, description="Whether an execution that ended in WARNING is a success."
    )

    @model_validator(mode="after")
    def _has_one_way_to_log_in(self) -> Self:
        if self.kestra_token and (self.kestra_username or self.kestra_password):
            raise ValueError(
                "BRIDGE_KESTRA_TOKEN and BRIDGE_KESTRA_USERNAME/PASSWORD exclude each other"
            )
        if bool(self.kestra_username) != bool(self.kestra_password):
            raise ValueError("BRIDGE_KESTRA_USERNAME and BRIDGE_KESTRA_PASSWORD go together")
        return self

    @model_validator(mode="after")
    def _kestra_tls_files_go_with_https(self) -> Self:
        speaks_tls = urlsplit(self.kestra_url).scheme == "https"
        check_tls(self.kestra_tls, speaks_tls=speaks_tls, url="BRIDGE_KESTRA_URL", scheme="https")
        return self

    @property
    def kestra_tls(self) -> tls.TlsIdentity:
        """The files for TLS with Kestra."""
        return tls.TlsIdentity(
            prefix=f"{PREFIX}KESTRA",
            ca=self.kestra_ca,
            certificate=self.kestra_certificate,
            key=self.kestra_key,
        )
