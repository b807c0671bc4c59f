"""Variables that libraries obey are judged before a library fails over them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from bridge.errors import SettingsError
from bridge.settings import environment


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080"),
        ("all_proxy", "socks5h://user:geheim@proxy"),
        ("HTTP_PROXY", "ftp://proxy"),
        ("HTTPS_PROXY", "http://geheim@proxy:port"),
        ("HTTP_PROXY", "http://"),
        ("NO_PROXY", "localhost,[::1]"),
        ("NO_PROXY", "fd00::/8"),
        ("no_proxy", "a b:c"),
        ("SSL_CERT_FILE", "/nope.pem"),
        ("SSL_CERT_FILE", "/dev/null"),
        ("SSL_CERT_DIR", "/nope"),
    ],
)
def test_a_variable_that_can_not_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        environment.check({name: value})
    assert (str(caught.value).startswith(name), "geheim" in str(caught.value)) == (True, False), (
        caught.value
    )


def test_a_file_for_the_keys_of_tls_that_can_not_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", "/nope/keys")
    with pytest.raises(SettingsError, match="SSLKEYLOGFILE: /nope/keys can't be written"):
        environment.check({"SSLKEYLOGFILE": "/nope/keys"})


def test_all_that_are_wrong_are_named_at_once() -> None:
    with pytest.raises(SettingsError, match=r"ALL_PROXY .*; NO_PROXY.*; SSL_CERT_FILE"):
        environment.check(
            {"ALL_PROXY": "ftp://a", "NO_PROXY": "[::1]", "SSL_CERT_FILE": "/nope.pem"}
        )


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HTTP_PROXY": ""},
        {"HTTP_PROXY": "proxy:3128", "NO_PROXY": ""},
        {"https_proxy": "http://user:pass@proxy:3128"},
        {"NO_PROXY": "localhost, .example.com,10.0.0.0/8,::1,http://only.example"},
        {"ALL_PROXY": "socks5://proxy", "NO_PROXY": "*"},
    ],
)
def test_what_httpx_can_use_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    environment.check(variables)
    httpx.Client(verify=False).close()  # noqa: S501


@pytest.mark.parametrize(
    "variables", [{"ALL_PROXY": "socks5://proxy"}, {"NO_PROXY": "[::1]"}, {"HTTP_PROXY": "ftp://a"}]
)
def test_what_is_a_fault_httpx_can_not_use(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ImportError, ValueError, httpx.InvalidURL)):
        httpx.Client(verify=False)  # noqa: S501


def test_a_store_of_certificates_is_no_fault(tmp_path: Path) -> None:
    environment.check({"SSL_CERT_DIR": str(tmp_path)})
