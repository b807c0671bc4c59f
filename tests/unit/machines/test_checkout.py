"""The checkout on a machine, run in a folder of this host, from a repository behind HTTP."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bridge.machines.run import remote_checkout
from bridge.machines.run.repository import parse_credentials
from bridge.machines.run.work import Work

USER, TOKEN = "ci", "s3/cr3t@t:ken"
ENCODED = "s3%2Fcr3t%40t%3Aken"
TIMEOUT = 60
WHO = ["-c", "user.email=a@example.org", "-c", "user.name=a"]


def git(folder: Path, *arguments: str) -> str:
    command = ["git", *WHO, "-c", "protocol.file.allow=always", *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=TIMEOUT)
    return done.stdout.decode().strip()


def commit(repository: Path, **files: str) -> str:
    """Commit these files, whose names have `_` for each dot, and return the commit's id."""
    for name, content in files.items():
        (repository / name.replace("_", ".")).write_text(content)
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "more")
    return git(repository, "rev-parse", "HEAD")


class Backend(BaseHTTPRequestHandler):
    """Git's own HTTP backend, a CGI program. Repositories below `/private` need the login."""

    root: Path

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        expected = base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
        given = self.headers.get("Authorization")
        if self.path.startswith("/private") and given != f"Basic {expected}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        done = subprocess.run(
            ["git", "http-backend"], env=environment, input=body, capture_output=True, check=False
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(headers.pop("Status", "200")[:3]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Served:
    """What the server has: its address without a scheme, and commits of `source` by their names."""

    place: str
    commits: dict[str, str]

    def url(self, path: str = "public/source", user: str = "") -> str:
        return f"http://{user}{self.place}/{path}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("git")
    commits = _make_repositories(root / "public")
    (root / "private").symlink_to("public")
    handler = type("Handler", (Backend,), {"root": root})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Served(f"127.0.0.1:{server.server_port}", commits)
        server.shutdown()
        thread.join()


def _make_repositories(root: Path) -> dict[str, str]:
    library, source = root / "library", root / "source"
    for repository in (library, source):
        repository.mkdir(parents=True)
        git(repository, "init", "-q", "-b", "main")
    commit(library, part="of the library")
    commits = {"first": commit(source, data="first"), "second": commit(source, data="second")}
    git(source, "tag", "v1", commits["first"])
    git(source, "tag", "-a", "-m", "annotated", "v2", commits["first"])
    git(source, "tag", "main-not", commits["first"])
    git(source, "checkout", "-q", "-b", "feature/x")
    commits["feature"] = commit(source, data="feature")
    git(source, "checkout", "-q", "--detach", "main")
    commits["pull"] = commit(source, data="pull")
    git(source, "update-ref", "refs/pull/1/head", "HEAD")
    git(source, "checkout", "-q", "main")
    git(source, "checkout", "-q", "-b", "with-submodule")
    git(source, "submodule", "--quiet", "add", "../library", "library")
    commit(source)
    git(source, "checkout", "-q", "-b", "with-lfs", "main")
    commit(source, _gitattributes="*.bin filter=lfs diff=lfs merge=lfs -text\n")
    git(source, "checkout", "-q", "main")
    return commits


@dataclass(frozen=True)
class CheckedOut:
    """What a checkout left, and what it said."""

    code: int
    said: str
    folder: Path

    @property
    def data(self) -> str:
        return (self.folder / "work/data").read_text()

    @property
    def error(self) -> str:
        return (self.folder / "checkout-error").read_text()


def check_out(
    folder: Path, repository: str, *, credentials: str = "", **fields: object
) -> CheckedOut:
    """Check out as the supervisor of a run has it done."""
    work = Work(
        run_id="run",
        script=b"true",
        git_repository=repository,
        git_credentials=parse_credentials(credentials),
        **fields,  # type: ignore[arg-type]
    )
    assert work.credentials_file is not None
    (folder / "work").mkdir()
    (folder / "request.json").write_bytes(work.request)
    (folder / "credentials").write_bytes(work.credentials_file)
    shutil.copy(remote_checkout.__file__, folder / "checkout.py")
    command = [sys.executable, "-I", "checkout.py"]
    environment = {**os.environ, "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    environment["GIT_TRACE"] = str(folder / "trace")
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, timeout=TIMEOUT, check=False
    )
    return CheckedOut(done.returncode, done.stderr.decode(), folder)


@pytest.mark.parametrize(
    ("name", "commit"),
    [
        (None, "second"),
        ("main", "second"),
        ("refs/heads/main", "second"),
        ("feature/x", "feature"),
        ("v1", "first"),
        ("v2", "first"),
        ("main-not", "first"),
        ("refs/tags/v1", "first"),
        ("refs/pull/1/head", "pull"),
    ],
)
def test_a_branch_a_tag_and_a_ref_are_checked_out_without_a_word(
    served: Served, tmp_path: Path, name: str | None, commit: str
) -> None:
    done = check_out(tmp_path, served.url(), git_branch=name)
    assert (done.code, done.said, done.data) == (0, "", commit)


@pytest.mark.parametrize("length", [40, 12])
def test_a_commit_is_checked_out_by_its_id_or_by_the_beginning_of_it(
    served: Served, tmp_path: Path, length: int
) -> None:
    done = check_out(tmp_path, served.url(), git_branch=served.commits["first"][:length])
    assert (done.code, done.data) == (0, "first")


@pytest.mark.parametrize("zeros", [1, 24])
def test_an_id_with_digits_too_many_is_no_commit(
    served: Served, tmp_path: Path, zeros: int
) -> None:
    name = served.commits["first"] + "0" * zeros
    done = check_out(tmp_path, served.url(), git_branch=name)
    assert (done.code, "no branch and no tag" in done.error) == (1, True)


def test_what_is_named_as_a_branch_is_no_commit(served: Served, tmp_path: Path) -> None:
    commit = served.commits["first"][:12]
    done = check_out(tmp_path, served.url(), git_branch=f"refs/heads/{commit}")
    assert (done.code, commit in done.error) == (1, True)


@pytest.mark.parametrize("length", [40, 12])
def test_a_commits_id_may_be_in_capitals(served: Served, tmp_path: Path, length: int) -> None:
    name = served.commits["first"][:length].upper()
    done = check_out(tmp_path, served.url(), git_branch=name)
    assert (done.code, done.data) == (0, "first")


def test_a_branch_stays_one_to_which_a_script_can_commit(served: Served, tmp_path: Path) -> None:
    check_out(tmp_path, served.url(), git_branch="feature/x")
    assert git(tmp_path / "work", "symbolic-ref", "HEAD") == "refs/heads/feature/x"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nope", "fatal: Remote branch nope not found in upstream origin"),
        ("refs/pull/9/head", "fatal: couldn't find remote ref refs/pull/9/head"),
        ("0" * 40, f"no branch and no tag of the repository leads to {'0' * 40}"),
        ("abcdef0", "no branch and no tag of the repository leads to abcdef0"),
    ],
)
def test_what_there_is_none_of_is_told_on_one_line(
    served: Served, tmp_path: Path, name: str, reason: str
) -> None:
    done = check_out(tmp_path, served.url(), git_branch=name)
    assert (done.code, done.error) == (1, reason)


@pytest.mark.parametrize("user", [f"{USER}:{ENCODED}@", ""])
def test_a_private_repository_is_checked_out_by_a_login(
    served: Served, tmp_path: Path, user: str
) -> None:
    credentials = "" if user else f"http://{USER}:{ENCODED}@{served.place}"
    done = check_out(tmp_path, served.url("private/source", user), credentials=credentials)
    assert (done.code, done.data) == (0, "second")


def test_a_login_is_offered_to_no_other_host(served: Served, tmp_path: Path) -> None:
    credentials = f"http://{USER}:{ENCODED}@localhost"
    done = check_out(tmp_path, served.url("private/source"), credentials=credentials)
    assert (done.code, "Authentication failed" in done.error) == (1, True)


def test_no_login_stays_in_a_file_or_shows_among_the_arguments(
    served: Served, tmp_path: Path
) -> None:
    check_out(tmp_path, served.url("private/source", f"{USER}:{ENCODED}@"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    # One of them is git's own trace, which has all commands with their arguments.
    shown = {
        path.name
        for path in files
        if any(word in path.read_bytes() for word in (TOKEN.encode(), ENCODED.encode()))
    }
    assert ((tmp_path / "trace").exists(), shown) == (True, set())


def test_a_wrong_login_is_hidden_in_all_that_is_said(served: Served, tmp_path: Path) -> None:
    done = check_out(tmp_path, served.url("private/source", "ci:wr0ngword@"))
    assert (done.code, "wr0ngword" in done.said + done.error) == (1, False)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a shell script of that name on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def program(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return program


def test_a_key_is_given_to_ssh_with_the_known_hosts_and_removed(
    tmp_path: Path, program: Callable[[str, str], None]
) -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
    known = "git.invalid ssh-ed25519 AAAA\n"
    program(
        "ssh",
        'cat key known_hosts >used; stat -c %a key >mode\nexec /usr/bin/ssh -G "$@" >options',
    )
    check_out(tmp_path, "ssh://git@git.invalid/x", credentials=key + known)
    options = (tmp_path / "options").read_text().splitlines()
    wanted = {
        "stricthostkeychecking true",
        "batchmode yes",
        "identitiesonly yes",
        f"userknownhostsfile {tmp_path}/known_hosts",
        f"identityfile {tmp_path}/key",
    }
    assert wanted - set(options) == set()
    assert ((tmp_path / "used").read_text(), (tmp_path / "mode").read_text()) == (
        key + known,
        "600\n",
    )
    assert [name for name in ("key", "known_hosts") if (tmp_path / name).exists()] == []


def test_submodules_are_checked_out_on_request(served: Served, tmp_path: Path) -> None:
    url = served.url("private/source", f"{USER}:{ENCODED}@")
    check_out(tmp_path, url, git_branch="with-submodule", git_submodules=True)
    assert (tmp_path / "work/library/part").read_text() == "of the library"


@pytest.mark.parametrize(
    ("branch", "option"), [("with-submodule", "--git-submodules"), ("with-lfs", "--git-lfs")]
)
def test_a_word_says_what_would_be_there_on_request(
    served: Served, tmp_path: Path, branch: str, option: str
) -> None:
    done = check_out(tmp_path, served.url(), git_branch=branch)
    assert (done.code, option in done.said, done.said.count("\n")) == (0, True, 1)


def test_files_in_lfs_are_fetched_on_request(
    served: Served, tmp_path: Path, program: Callable[[str, str], None]
) -> None:
    program("git-lfs", f'echo "$PWD $*" >>{tmp_path}/lfs')
    check_out(tmp_path, served.url(), git_branch="with-lfs", git_lfs=True)
    calls = (tmp_path / "lfs").read_text().splitlines()
    assert calls[1:] == [f"{tmp_path}/work install --local", f"{tmp_path}/work pull"]


@pytest.mark.skipif(shutil.which("git-lfs") is not None, reason="git-lfs is installed")
def test_a_machine_without_git_lfs_is_told(served: Served, tmp_path: Path) -> None:
    done = check_out(tmp_path, served.url(), git_branch="with-lfs", git_lfs=True)
    assert (done.code, "isn't installed" in done.error) == (1, True)


def test_the_request_for_the_machine_holds_no_credentials() -> None:
    work = Work(run_id="r", script=b"true", git_repository="https://u:s3cr3t@h/x")
    assert json.loads(work.request)["git_repository"] == "https://h/x"
