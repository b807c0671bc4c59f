"""A repository's address without its credentials, and the credentials for git. Pure.

No error shows what it refuses: an address that can't be read may hold a password anywhere.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from urllib.parse import unquote

from bridge.errors import SettingsError

_WITH_SCHEME = re.compile(r"(?P<scheme>https?|git|ssh)://(?P<authority>[^/?#\s]+)(?P<rest>.*)")
_SCP_LIKE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*@[A-Za-z0-9][A-Za-z0-9.-]*:[^:].*")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]@:]+)(:[0-9]{0,5})?")
_KNOWN_HOST = re.compile(
    r"(@\S+\s+)?\S+\s+(ssh|ecdsa|sk)-[\w@.-]+\s+AAAA[A-Za-z0-9+/]*={0,3}(\s.*)?"
)
_KEY_BEGINS, _KEY_ENDS = "-----BEGIN ", "-----END "
_NOT_ENCODED = (
    "its user name or password holds a character that must be percent-encoded: %2F for /, %3F "
    "for ?, %23 for #, %40 for @, %3A for :"
)


@dataclass(frozen=True, slots=True)
class Login:
    """A user name and a password for all repositories whose address begins with `url`."""

    url: str
    username: str
    password: str

    def __repr__(self) -> str:
        return f"Login(url={self.url!r})"


@dataclass(frozen=True, slots=True)
class GitCredentials:
    """What git may log in with: at hosts by HTTP, and at known hosts by SSH."""

    logins: tuple[Login, ...] = ()
    key: str = ""
    known_hosts: str = ""

    def __repr__(self) -> str:
        return f"GitCredentials(logins={self.logins!r})"

    def with_login(self, login: Login | None) -> GitCredentials:
        """These credentials with one more login, which is tried first."""
        if login is None:
            return self
        return GitCredentials((login, *self.logins), self.key, self.known_hosts)

    @property
    def file(self) -> bytes:
        """The JSON that the checkout on the machine reads and removes."""
        logins = [[login.url, login.username, login.password] for login in self.logins]
        contents = {"logins": logins, "key": self.key, "known_hosts": self.known_hosts}
        return json.dumps(contents).encode()


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository's address, which holds no password, and the login that stood in it."""

    url: str
    login: Login | None = None


def parse_repository(text: str) -> Repository:
    """The repository of that address: https, http, git or ssh, or `user@host:path`.

    Raises:
        SettingsError: it is none of these, or its credentials can't be told from the rest.
    """
    option = "--git-repository"
    if not text.isprintable():
        raise SettingsError(f"{option} has characters that can't be printed")
    if _SCP_LIKE.fullmatch(text):
        return Repository(text)
    parts = _WITH_SCHEME.fullmatch(text)
    if parts is None:
        raise SettingsError(
            f"{option} must be https://…, http://…, git://…, ssh://… or user@host:path"
        )
    scheme, authority, rest = parts["scheme"], parts["authority"], parts["rest"]
    user, at, host = authority.rpartition("@")
    is_clear = _HOST.fullmatch(host) and "@" not in user and "@" not in rest
    if not is_clear:
        raise SettingsError(f"{option} can't be read: {_NOT_ENCODED}")
    _check_query(scheme, rest)
    if not at or scheme == "ssh":
        _check_ssh_user(user)
        return Repository(text)
    if scheme == "git":
        raise SettingsError(f"{option}: git knows no user name and no password with git://")
    base = f"{scheme}://{host}"
    return Repository(base + rest, _login(base, user, option))


def _check_query(scheme: str, rest: str) -> None:
    if scheme.startswith("http") and "?" in rest:
        raise SettingsError(
            "--git-repository has a query (?…), in which a token would be shown: give a token as "
            "https://user:token@host"
        )


def _check_ssh_user(user: str) -> None:
    if ":" in user:
        raise SettingsError(
            "--git-repository: git uses no password with ssh://, but a key of --git-credentials"
        )


def parse_credentials(text: str, *, option: str = "--git-credentials") -> GitCredentials:
    """The credentials of a file, which has three kinds of lines, in any order.

    `https://user:token@host` is a login at that host, or with a path below that path. A private key
    in OpenSSH's or PEM format is for ssh. Lines as in `known_hosts` say which host key each host
    must show.

    Raises:
        SettingsError: a line is none of these, or the key has no known hosts.
    """
    logins, known_hosts = [], []
    key, others = _key_and_others(text.splitlines())
    for number, line in others:
        where = f"{option}: line {number}"
        if line.startswith(("https://", "http://")):
            logins.append(_login_line(line, where))
        elif _KNOWN_HOST.fullmatch(line):
            known_hosts.append(line)
        else:
            raise SettingsError(
                f"{where} is no https://user:token@host, no line of known_hosts and no part of a "
                "private key"
            )
    if key and not key[-1].startswith(_KEY_ENDS):
        raise SettingsError(f"{option}: the private key has no end")
    if key and not known_hosts:
        raise SettingsError(
            f"{option}: a key needs the line of known_hosts for its host (ssh-keyscan HOST prints "
            "it; compare it with what the host's owner publishes)"
        )
    return GitCredentials(tuple(logins), _text(key), _text(known_hosts))


def _key_and_others(lines: list[str]) -> tuple[list[str], list[tuple[int, str]]]:
    """The lines of the private key, and the numbered others that say something."""
    key, others = [], []
    in_key = False
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if in_key or line.startswith(_KEY_BEGINS):
            key.append(line)
            in_key = not line.startswith(_KEY_ENDS)
        elif line and not line.startswith("#"):
            others.append((number, line))
    return key, others


def _login_line(line: str, where: str) -> Login:
    try:
        repository = parse_repository(line)
    except SettingsError:
        raise SettingsError(f"{where} can't be read: {_NOT_ENCODED}") from None
    if repository.login is None:
        raise SettingsError(f"{where} has no user name and password before its host")
    if "=" in repository.url:
        raise SettingsError(f"{where}: git takes no address with = for a login")
    login = repository.login
    return Login(repository.url.rstrip("/"), login.username, login.password)


def _login(url: str, user: str, where: str) -> Login:
    name, _, password = user.partition(":")
    username, password = unquote(name), unquote(password)
    if not (username + password).isprintable():
        raise SettingsError(f"{where}: its user name or password can't be printed")
    return Login(url, username, password)


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
