"""A repository's address and the credentials for it."""

from __future__ import annotations

import json

import pytest

from bridge.errors import SettingsError
from bridge.machines.run.repository import Login, parse_credentials, parse_repository

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAAsecret\n-----END OPENSSH PRIVATE KEY-----\n"
KNOWN = "git.example.org ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHVe\n"


@pytest.mark.parametrize(
    "address",
    [
        "https://h/x.git",
        "https://h:8443/x.git",
        "http://[::1]:80/x",
        "ssh://git@h:22/x",
        "git@github.com:a/b.git",
        "git://h/x",
    ],
)
def test_an_address_without_credentials_stays_as_it_is(address: str) -> None:
    repository = parse_repository(address)
    assert (repository.url, repository.login) == (address, None)


@pytest.mark.parametrize(
    ("address", "login"),
    [
        ("https://u:p@h:1/x", Login("https://h:1", "u", "p")),
        ("https://token@h:1/x", Login("https://h:1", "token", "")),
        ("https://u:s%2Fcr%403t@h:1/x", Login("https://h:1", "u", "s/cr@3t")),
        ("https://u:p:q@h:1/x", Login("https://h:1", "u", "p:q")),
    ],
)
def test_the_credentials_of_an_address_are_taken_out_of_it(address: str, login: Login) -> None:
    repository = parse_repository(address)
    assert (repository.url, repository.login) == ("https://h:1/x", login)


@pytest.mark.parametrize(
    "address",
    [
        "http://u:s3/cr3t@h/x",
        "http://s3/cr3t@h/x",
        "http://u:s3?cr3t@h/x",
        "http://u:s3#cr3t@h/x",
        "http://u:s3@cr3t@h/x",
        "http://u:s3:cr3t/x",
        "git://u:s3cr3t@h/x",
        "ssh://u:s3cr3t@h/x",
        "https://u:s3\x07cr3t@h/x",
        "https://u:s3%0Acr3t@h/x",
        "ftp://u:s3cr3t@h/x",
        "https://h/x?private_token=s3cr3t",
    ],
)
def test_a_refusal_shows_nothing_of_the_address(address: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_repository(address)
    assert [part for part in ("s3", "cr3t") if part in str(refused.value)] == []


def test_a_file_of_credentials_has_logins_a_key_and_known_hosts_in_any_order() -> None:
    text = f"# ours\nhttps://u:t@h/team/\n{KEY}\n{KNOWN}https://x:y@g\n".replace("\n", "\r\n")
    found = parse_credentials(text)
    assert (found.logins, found.key, found.known_hosts) == (
        (Login("https://h/team", "u", "t"), Login("https://g", "x", "y")),
        KEY,
        KNOWN,
    )


def test_credentials_reach_the_machine_with_the_addresss_own_first() -> None:
    given = parse_credentials("https://u:t@h").with_login(parse_repository("https://a:b@h/x").login)
    assert json.loads(given.file) == {
        "logins": [["https://h", "a", "b"], ["https://h", "u", "t"]],
        "key": "",
        "known_hosts": "",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (KEY, "a key needs the line of known_hosts for its host"),
        (KEY[:50] + KNOWN, "the private key has no end"),
        (f"{KNOWN}s3cr3t", "line 2 is no https://user:token@host, no line of known_hosts"),
        ("machine h login u password s3cr3t", "line 1 is no https://user:token@host, no line"),
        ("https://h", "line 1 has no user name and password"),
        ("https://u:s3/cr3t@h", "line 1 can't be read"),
        ("https://u:s3cr3t@h/a=b", "line 1: git takes no address with ="),
    ],
)
def test_what_is_no_credential_is_refused_by_its_line(text: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as refused:
        parse_credentials(text)
    assert "cr3t" not in str(refused.value)


def test_no_credential_is_shown_by_a_representation() -> None:
    given = parse_credentials(f"https://u:s3cr3t@h\n{KEY}{KNOWN}")
    assert [word for word in ("s3cr3t", "AAAAsecret") if word in repr(given)] == []
