"""`kestra-bridge machine run` against Debian's sshd, which runs as whoever runs the tests, in a
home of its own."""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil
import pytest

from bridge.machines.identity import SshIdentity
from deploy.local.paths import REPOSITORY, free_port
from deploy.local.processes import Child

SSHD = Path("/usr/sbin/sshd")
SECRET = "a secret of sixteen or more"
NAME = "m-1"
COMMAND = [sys.executable, "-m", "bridge", "machine", "run"]
HOSTILE = (
    "'\"`\\",
    "$(touch pwned)`touch pwned`${HOME}",
    "first\nsecond\n\n",
    "{{ inputs.x }}{% raw %}",
    "größer ☃ \u202e",
    "-rf --help",
    "; rm -rf / & | > x < y *",
    "",
    " leading and trailing ",
    "%s %d \t\r\x1b[31m",
)

MARK = f"98765.{os.getpid()}"
"""What a `sleep` of these tests is known by."""
DUMP = "#!/usr/bin/env python3\nimport json, os; print(json.dumps(dict(os.environ)))"
LIST = """#!/usr/bin/env python3
import json, os
paths = [os.path.relpath(os.path.join(d, n)) for d, _, names in os.walk(".") for n in names]
print(json.dumps({path: open(path, "rb").read().hex() for path in paths}))
"""
ONCE = b"echo x >>starts; echo started; until [ -e go ]; do sleep 0.05; done; echo done; exit 7"

Value = TypeVar("Value")

PATIENCE = 120.0
"""Seconds that a command may take: far more than it does, as it is to hold on a busy machine."""

pytestmark = [
    pytest.mark.skipif(not SSHD.exists(), reason="openssh-server isn't installed"),
    pytest.mark.timeout(400),
]


@dataclass
class Finished:
    code: int
    out: bytes
    err: bytes

    @property
    def last(self) -> str:
        return self.err.decode(errors="replace").splitlines()[-1]


@dataclass
class Machine:
    """An sshd of the test's own on a loopback port, and the home that its user has there."""

    directory: Path
    port: int
    name: str = NAME
    server: Child | None = None
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def command(self) -> list[str]:
        where = ["--name", self.name, "--host", "127.0.0.1", "--port", str(self.port)]
        return [*COMMAND, *where, "--user", getpass.getuser()]

    def work(self, run: str = NAME) -> Path:
        return self.home / ".kestra-bridge" / run / "work"

    def start(self) -> None:
        self.home.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        identity = SshIdentity.derive(SECRET, self.name)
        self._write("host_key", identity.host.private, 0o600)
        self._write("authorized_keys", identity.client.public, 0o600)
        # The account's real home is nobody's business: every session is led to another.
        home = shlex.quote(str(self.home))
        session = self._write(
            "session", f'cd {home} && HOME={home} exec bash -c "$SSH_ORIGINAL_COMMAND"\n', 0o700
        )
        config = self._write(
            "sshd_config",
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey "
            f"{self.directory}/host_key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.directory}/authorized_keys\nStrictModes "
            "no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nSubsystem sftp /usr/lib/openssh/sftp-server\n"
            f"ForceCommand bash {session}\n",
            0o600,
        )
        command = [str(SSHD), "-D", "-e", "-f", str(config)]
        self.server = Child("sshd", command, log=self.directory / "sshd.log")
        self.server.wait_until(lambda: _answers(self.port), timeout=PATIENCE, what="listening")

    def _write(self, name: str, text: str, mode: int) -> Path:
        path = self.directory / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def sessions(self) -> list[psutil.Process]:
        """The processes that serve connections."""
        return (
            psutil.Process(self.server.pid).children(recursive=True)
            if self.server and self.server.alive
            else []
        )

    def processes(self, marker: str) -> list[psutil.Process]:
        """The processes, wherever they are, whose command line holds that text."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = process.info["cmdline"] or ()
            if process.info["status"] != psutil.STATUS_ZOMBIE and any(
                marker in word for word in line
            ):
                found.append(process)
        return found

    def drop(self) -> None:
        """End every connection at once, as a network does; the server takes new ones."""
        assert self.server
        end(psutil.Process(self.server.pid).children())

    def vanish(self) -> None:
        """End the server and every connection."""
        assert self.server
        sessions = psutil.Process(self.server.pid).children()
        self.server.kill()
        end(sessions)

    def end(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()
        if self.server:
            end(self.sessions())
            self.server.kill()
        # What a run that outlives its connection would leave behind.
        end(
            one
            for one in psutil.process_iter(["cwd"])
            if (one.info["cwd"] or "").startswith(str(self.home))
        )

    def environment(self, **more: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("BRIDGE_")}
        ours = {
            "BRIDGE_MACHINE_SECRET": SECRET,
            "BRIDGE_MACHINE_PROVIDER": "qemu",
            "BRIDGE_MACHINE_BOOT_TIMEOUT": str(PATIENCE),
            "PYTHONPATH": str(REPOSITORY),
        }
        return {**kept, **ours, **more}

    def popen(
        self, *arguments: str, stdin: bytes | None = None, **environment: str
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*self.command, *arguments],
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(**environment),
            cwd=self.directory,
            # What has been read isn't to be more than was asked for: `communicate` would not see
            # it.
            bufsize=0,
        )
        self.running.append(process)
        if stdin is not None and process.stdin:
            process.stdin.write(stdin)
            process.stdin.close()
            process.stdin = None
        return process

    def run(self, script: str | bytes, *arguments: str, **environment: str) -> Finished:
        content = script.encode() if isinstance(script, str) else script
        return finish(self.popen("--script", "-", *arguments, stdin=content, **environment))


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill them, whichever of them are still there."""
    for process in processes:
        # One that served a connection may have ended with it just now.
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path, free_port())
    try:
        machine.start()
        yield machine
    finally:
        machine.end()


def until(probe: Callable[[], Value], what: str, timeout: float = PATIENCE) -> Value:
    """The first true value of `probe`."""
    deadline = time.monotonic() + timeout
    while not (value := probe()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.02)
    return value


def finish(process: subprocess.Popen[bytes], timeout: float = PATIENCE) -> Finished:
    out, err = process.communicate(timeout=timeout)
    return Finished(process.returncode, out, err)


def report(finished: Finished) -> dict[str, Any]:
    return dict(json.loads(finished.out.splitlines()[-1]))


# ------------------------------------------------------------------ exit codes and output


def test_output_and_exit_code_are_the_script_s_own(machine: Machine) -> None:
    finished = machine.run("echo out; echo err >&2; exit 3")

    assert (finished.code, finished.out) == (3, b"out\n")
    assert finished.err.splitlines()[0] == b"err"
    assert re.fullmatch(
        r"kestra-bridge: m-1: the script exited with 3 after [\d.]+ s", finished.last
    )


def test_a_script_is_run_by_what_its_first_line_names(machine: Machine) -> None:
    finished = machine.run("#!/usr/bin/env python3\nimport sys; print(sys.version_info.major)")

    assert (finished.code, finished.out) == (0, b"3\n")


def test_a_script_whose_interpreter_is_missing_was_never_started(machine: Machine) -> None:
    finished = machine.run("#!/no/such/interpreter\n")

    assert finished.code == 66
    assert "the script can't be started: No such file or directory" in finished.last


def test_a_script_killed_by_a_signal_is_told_apart(machine: Machine) -> None:
    finished = machine.run("kill -KILL $$", "--json")

    assert (finished.code, report(finished)["outcome"]) == (137, "signalled")


def test_output_that_is_no_text_passes_as_it_is(machine: Machine) -> None:
    every_byte = bytes(range(256)) * 3
    finished = machine.run(
        "#!/usr/bin/env python3\nimport sys\nsys.stdout.buffer.write(bytes(range(256)) * 3)"
    )

    assert finished.out == every_byte


def test_lines_that_look_like_kestra_s_outputs_pass_unchanged_and_ours_comes_last(
    machine: Machine,
) -> None:
    finished = machine.run("""echo '::{"outputs":{"mine":1}}::'; printf unfinished""", "--outputs")

    first, second, ours = finished.out.decode().splitlines()
    assert (first, second) == ('::{"outputs":{"mine":1}}::', "unfinished")
    assert json.loads(ours.removeprefix("::").removesuffix("::"))["outputs"]["exitCode"] == 0


def test_output_comes_line_by_line_while_the_script_still_runs(machine: Machine) -> None:
    process = machine.popen(
        "--script", "-", stdin=b"echo first; while [ ! -e go ]; do sleep 0.05; done; echo second"
    )
    assert process.stdout
    first = process.stdout.readline()
    (machine.work() / "go").touch()

    assert (first, finish(process).out) == (b"first\n", b"second\n")


@pytest.mark.parametrize(
    ("script", "size"),
    [
        ("yes 0123456789abcdef | head -c 20000000", 20_000_000),
        ("head -c 1000000 /dev/zero | tr '\\0' x; echo", 1_000_001),
        ("head -c 30000000 /dev/zero | tr '\\0' x", 30_000_000),
    ],
    ids=["20 MB in lines", "a line of 1 MB", "30 MB without a line break"],
)
def test_memory_stays_flat_whatever_is_written(machine: Machine, script: str, size: int) -> None:
    target = machine.directory / "out"
    with target.open("wb") as out:
        code, megabytes = _measured(machine, script, out)

    assert (code, target.stat().st_size) == (0, size)
    assert megabytes < 100


def test_memory_stays_flat_before_a_reader_that_takes_its_time(machine: Machine) -> None:
    process = machine.popen("--script", "-", stdin=b"head -c 40000000 /dev/zero; echo x >done")
    until((machine.work() / "done").exists, "all written on the machine")
    seen = 0
    assert process.stdout
    megabytes = psutil.Process(process.pid).memory_info().rss / 1e6
    while data := process.stdout.read(1 << 16):
        seen += len(data)

    assert (finish(process).code, seen) == (0, 40_000_000)
    assert megabytes < 100


def _measured(machine: Machine, script: str, out: IO[bytes]) -> tuple[int, float]:
    """The exit code, and the most memory that the command ever held."""
    path = machine.directory / "script"
    path.write_text(script)
    process = subprocess.Popen(
        [*machine.command, "--script", str(path)], stdout=out, env=machine.environment()
    )
    machine.running.append(process)
    return _peak(process)


def _peak(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """The exit code, and the most megabytes that the process held.

    The kernel's own account of an ended child (`ru_maxrss`) begins with what its parent held when
    it was forked.
    """
    megabytes = 0.0
    while process.poll() is None:
        with suppress(OSError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            megabytes = max(
                [
                    megabytes,
                    *(
                        int(line.split()[1]) / 1000
                        for line in status.splitlines()
                        if "VmHWM" in line
                    ),
                ]
            )
        time.sleep(0.01)
    return process.returncode, megabytes


# ------------------------------------------------------------------ what the script is given


def test_hostile_variables_arrive_exactly_and_run_nothing(machine: Machine) -> None:
    variables = {f"V{number}": value for number, value in enumerate(HOSTILE)}
    options = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    finished = machine.run(DUMP, *options)

    assert {name: json.loads(finished.out)[name] for name in variables} == variables
    assert not list(machine.directory.rglob("pwned"))


def test_hostile_variables_of_a_file_arrive_exactly(machine: Machine) -> None:
    variables = {f"V{number}": value for number, value in enumerate(HOSTILE)}
    (machine.directory / "inputs.json").write_text(json.dumps(variables))
    finished = machine.run(DUMP, "--env-file", "inputs.json")

    assert {name: json.loads(finished.out)[name] for name in variables} == variables


def test_a_variable_of_ours_is_passed_on_by_its_name_alone(machine: Machine) -> None:
    finished = machine.run('printf %s "$INPUT"', "--env", "INPUT", INPUT="$(id) 'x'\n")

    assert finished.out == b"$(id) 'x'\n"


def test_a_variable_that_is_no_text_arrives_exactly(machine: Machine) -> None:
    finished = machine.run('printf %s "$INPUT"', "--env", os.fsdecode(b"INPUT=\xff\xfe="))

    assert finished.out == b"\xff\xfe="


def test_nothing_of_the_variables_stays_on_the_machine(machine: Machine) -> None:
    machine.run("true", "--env", "TOKEN=very-secret-indeed")

    kept = [
        path
        for path in machine.home.rglob("*")
        if path.is_file() and b"very-secret" in path.read_bytes()
    ]
    assert kept == []


@pytest.mark.parametrize("name", ["in.txt", "-rf", "a b/$(touch pwned)/'\"", "größe\n☃"])
def test_a_file_arrives_under_any_name(machine: Machine, name: str) -> None:
    (machine.directory / "local").write_bytes(b"\0\xff content")
    finished = machine.run(LIST, "--file", f"local:{name}")

    assert json.loads(finished.out) == {name: (b"\0\xff content").hex()}


@pytest.mark.parametrize("remote", ["/etc/x", "../x", "a/../../x", ""])
def test_a_file_goes_nowhere_but_where_the_script_runs(machine: Machine, remote: str) -> None:
    (machine.directory / "local").touch()
    finished = machine.run("true", "--file", f"local:{remote}")

    assert (finished.code, "must be a relative path" in finished.last) == (2, True)


# ------------------------------------------------------------------ checkout


@contextmanager
def serve_git(directory: Path, port: int) -> Iterator[None]:
    """A repository `source` with the branches `main`, `feature/x` and a tag `v1`, served by git's
    own daemon."""
    source = directory / "git" / "source"
    _make_repository(source)
    options = [
        "--reuseaddr",
        "--export-all",
        f"--base-path={source.parent}",
        "--listen=127.0.0.1",
        f"--port={port}",
    ]
    daemon = Child("git daemon", ["git", "daemon", *options], log=directory / "git.log")
    try:
        daemon.wait_until(lambda: _answers(port), timeout=PATIENCE, what="listening")
        yield
    finally:
        daemon.kill()


def _make_repository(source: Path) -> None:
    source.mkdir(parents=True)
    (source / "job.sh").write_text("echo from the branch; cat data 2>/dev/null; exit 5\n")
    who = ["-c", "user.email=a@example.org", "-c", "user.name=a"]
    commands = [
        ["init", "-q", "-b", "main"],
        [*who, "commit", "-q", "--allow-empty", "-m", "first"],
        ["tag", "v1"],
        ["checkout", "-q", "-b", "feature/x"],
        ["add", "."],
        [*who, "commit", "-q", "-m", "second"],
    ]
    for command in commands:
        subprocess.run(["git", *command], cwd=source, check=True)


@pytest.fixture
def git(tmp_path: Path) -> Iterator[str]:
    """The address of that repository."""
    port = free_port()
    with serve_git(tmp_path, port):
        yield f"git://127.0.0.1:{port}/source"


def test_a_script_of_a_branch_is_run_in_its_checkout_with_the_input_files(
    machine: Machine, git: str
) -> None:
    (machine.directory / "data").write_text("input")
    options = (
        "--git-repository",
        git,
        "--git-branch",
        "feature/x",
        "--repository-script",
        "job.sh",
    )
    finished = finish(machine.popen(*options, "--file", "data"))

    assert (finished.code, finished.out) == (5, b"from the branch\ninput")


def test_what_is_no_branch_fails_the_preparation(machine: Machine, git: str) -> None:
    finished = machine.run("echo never", "--git-repository", git, "--git-branch", "no-such-branch")

    assert (finished.code, finished.out) == (66, b"")
    assert "prepare failed: " in finished.last
    assert "branch" in finished.last


def test_a_private_repository_is_checked_out_by_ssh_from_a_known_host(machine: Machine) -> None:
    source = machine.directory / "private"
    _make_repository(source)
    identity = SshIdentity.derive(SECRET, machine.name)
    known = f"[127.0.0.1]:{machine.port} {identity.host.public}\n"
    (machine.directory / "login").write_text(identity.client.private + known)
    url = f"ssh://{getpass.getuser()}@127.0.0.1:{machine.port}{source}"
    options = ("--git-repository", url, "--git-branch", "feature/x")
    finished = machine.run("ls; cat ../key", *options, "--git-credentials", "login")

    assert (finished.code, finished.out) == (1, b"job.sh\n")


def test_a_private_repository_on_an_unknown_host_is_refused(machine: Machine) -> None:
    identity = SshIdentity.derive(SECRET, machine.name)
    other = SshIdentity.derive(SECRET, "other")
    known = f"[127.0.0.1]:{machine.port} {other.host.public}\n"
    (machine.directory / "login").write_text(identity.client.private + known)
    url = f"ssh://{getpass.getuser()}@127.0.0.1:{machine.port}/x"
    finished = machine.run("true", "--git-repository", url, "--git-credentials", "login")

    assert (finished.code, b"Host key verification failed" in finished.err) == (66, True)


def test_a_repository_that_does_not_answer_fails_the_preparation(machine: Machine) -> None:
    url = f"http://user:hunter2@127.0.0.1:{free_port()}/x.git"
    finished = machine.run("echo never", "--git-repository", url)

    assert (finished.code, "hunter2" in finished.last) == (66, False)


@pytest.mark.parametrize(
    ("repository", "branch"),
    [
        ("--upload-pack=touch pwned", "main"),
        ("ext::sh -c touch% pwned", "main"),
        ("file:///etc", "main"),
        ("https://h/x", "--upload-pack=touch pwned"),
        ("https://h/x", "$(touch pwned)"),
        ("https://h/x", "a..b"),
    ],
)
def test_a_hostile_repository_or_branch_is_refused(
    machine: Machine, repository: str, branch: str
) -> None:
    finished = machine.run("true", "--git-repository", repository, "--git-branch", branch)

    assert (finished.code, list(machine.directory.rglob("pwned"))) == (2, [])


# ------------------------------------------------------------------ results


def test_result_files_come_back_under_their_paths(machine: Machine) -> None:
    script = "mkdir -p out/deep; printf 1 >out/deep/a.csv; printf 2 >b.csv; printf 3 >c.txt"
    options = ("--result", "out", "--result", "*.csv", "--results-directory", "results", "--json")
    finished = machine.run(script, *options)

    assert report(finished)["results"] == ["b.csv", "out/deep/a.csv"]
    assert _tree(machine.directory / "results") == {"b.csv": b"2", "out/deep/a.csv": b"1"}


def test_a_large_result_takes_little_memory(machine: Machine) -> None:
    process = machine.popen(
        "--script",
        "-",
        "--result",
        "big",
        "--results-directory",
        "results",
        stdin=b"head -c 150000000 /dev/zero >big",
    )
    code, megabytes = _peak(process)

    assert (code, (machine.directory / "results" / "big").stat().st_size) == (0, 150_000_000)
    assert 20 < megabytes < 100


def test_results_of_a_failing_script_come_back_as_well(machine: Machine) -> None:
    finished = machine.run(
        "echo why >log; exit 9", "--result", "log", "--results-directory", "results"
    )

    assert (finished.code, _tree(machine.directory / "results")) == (9, {"log": b"why\n"})


def test_missing_results_are_a_failure_of_their_own(machine: Machine) -> None:
    finished = machine.run("true", "--result", "*.csv", "--results-directory", "results")

    assert (finished.code, "left nothing that matches '*.csv'" in finished.last) == (73, True)


def test_hostile_result_names_stay_in_the_folder(machine: Machine) -> None:
    names = ["-rf", "$(touch pwned)", "a\nb", "☃ '\"", os.fsdecode(b"\xff")]
    quoted = " ".join(shlex.quote(f"out/{name}") for name in names)
    script = f'mkdir out; for f in {quoted}; do printf x >"$f"; done'.encode(
        "utf-8", "surrogateescape"
    )
    finished = machine.run(script, "--result", "out/*", "--results-directory", "results")

    assert finished.code == 0
    assert _tree(machine.directory / "results") == {f"out/{name}": b"x" for name in names}


def test_a_result_is_not_written_through_a_link(machine: Machine) -> None:
    elsewhere = machine.directory / "elsewhere"
    elsewhere.mkdir()
    (machine.directory / "results").mkdir()
    (machine.directory / "results" / "out").symlink_to(elsewhere)
    (machine.directory / "results" / "b").symlink_to(elsewhere / "b")
    finished = machine.run(
        "mkdir out; echo x >out/a; echo x >b",
        "--result",
        "b",
        "--result",
        "out/a",
        "--results-directory",
        "results",
    )

    assert (finished.code, list(elsewhere.iterdir())) == (73, [])
    assert (machine.directory / "results" / "b").read_text() == "x\n"


def test_a_link_to_a_file_comes_with_the_file_s_content(machine: Machine) -> None:
    finished = machine.run(
        "ln -s /proc/cpuinfo cpus; exit 5", "--result", "cpus", "--results-directory", "results"
    )

    assert finished.code == 5
    assert b"processor" in (machine.directory / "results" / "cpus").read_bytes()


def test_a_result_that_can_not_be_read_is_named_and_the_others_come(machine: Machine) -> None:
    # Nobody can read the first page of a process's memory, not even root.
    script = "ln -s /proc/self/mem a; echo x >b"
    finished = machine.run(script, "--result", "*", "--results-directory", "results")

    assert finished.code == 73
    assert "but a result is missing: 'a': it can't be read on the machine" in finished.last
    assert _tree(machine.directory / "results") == {"b": b"x\n"}


def test_a_result_whose_name_kestra_can_not_keep_is_named(machine: Machine) -> None:
    script = "echo x >$'a\\nb'; echo x >c"
    options = ("--result", "*", "--results-directory", "results", "--outputs")
    finished = machine.run(script, *options)

    assert (finished.code, _tree(machine.directory / "results")) == (73, {"c": b"x\n"})
    assert r"'a\nb': Kestra can't keep a name with a line break" in finished.last


def test_pipes_devices_and_loops_of_links_are_no_results(machine: Machine) -> None:
    script = (
        "mkdir out; mkfifo out/pipe; ln -s . out/loop; ln -s /dev/zero out/zero; echo x >out/file"
    )
    finished = machine.run(script, "--result", "out/**", "--results-directory", "results")

    assert (finished.code, _tree(machine.directory / "results")) == (0, {"out/file": b"x\n"})


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ------------------------------------------------------------------ stopping


def test_at_the_time_limit_everything_that_the_script_started_is_gone(machine: Machine) -> None:
    script = (
        f"sleep {MARK} & setsid sleep {MARK} & (trap '' TERM; sleep {MARK}; sleep {MARK}) & wait"
    )
    finished = machine.run(script, "--time-limit", "1", "--grace", "0.5", "--json")

    assert (finished.code, report(finished)["outcome"]) == (124, "timed_out")
    assert machine.processes(MARK) == []


def test_a_script_may_clean_up_when_it_is_stopped(machine: Machine) -> None:
    # Its time begins before it does: it has to come as far as to its trap.
    finished = machine.run(
        "trap 'echo bye; exit' TERM; while :; do sleep 0.05; done", "--time-limit", "3"
    )

    assert (finished.code, finished.out) == (124, b"bye\n")


def test_what_a_script_leaves_running_is_ended_with_it(machine: Machine) -> None:
    finished = machine.run(f"setsid sleep {MARK} & sleep {MARK} & echo started")

    assert (finished.code, finished.out) == (0, b"started\n")
    assert machine.processes(MARK) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_command_stops_the_script(
    machine: Machine, number: signal.Signals, code: int
) -> None:
    process = machine.popen("--script", "-", stdin=f"echo started; exec sleep {MARK}".encode())
    assert process.stdout
    process.stdout.readline()
    process.send_signal(number)
    finished = finish(process)

    assert (finished.code, f"ended by {number.name}; the script was stopped" in finished.last) == (
        code,
        True,
    )
    assert machine.processes(MARK) == []


def test_a_signal_while_the_machine_boots_ends_the_command(machine: Machine) -> None:
    assert machine.server
    machine.server.kill()
    process = machine.popen("--script", "-", BRIDGE_LOG_LEVEL="debug", stdin=b"true")
    assert process.stderr
    while b"not yet reached" not in process.stderr.readline():
        pass
    process.terminate()

    finished = finish(process)
    assert (finished.code, "before the script began" in finished.last) == (143, True)


# ------------------------------------------------------------------ running twice


def test_a_second_start_after_a_crash_follows_the_first_run(machine: Machine) -> None:
    process = machine.popen("--script", "-", stdin=ONCE)
    assert process.stdout
    process.stdout.readline()
    process.kill()
    again = machine.popen("--script", "-", "--json", stdin=ONCE)
    assert again.stdout
    first = again.stdout.readline()
    (machine.work() / "go").touch()
    finished = finish(again)

    assert (first, finished.out.splitlines()[0], finished.code) == (b"started\n", b"done", 7)
    assert report(finished)["attached"] is True
    assert (machine.work() / "starts").read_text() == "x\n"


def test_two_who_start_the_same_run_at_once_both_see_it_and_it_runs_once(machine: Machine) -> None:
    both = [machine.popen("--script", "-", stdin=ONCE) for _ in range(2)]
    for process in both:
        assert process.stdout
        process.stdout.readline()
    (machine.work() / "go").touch()

    assert [(finished.code, finished.out) for finished in map(finish, both)] == [(7, b"done\n")] * 2
    assert (machine.work() / "starts").read_text() == "x\n"


def test_a_run_that_has_ended_is_told_again_with_its_results(machine: Machine) -> None:
    options = ("--run-id", "execution-1", "--result", "r", "--results-directory", "results")
    machine.run("echo x >r; echo out", *options)
    shutil.rmtree(machine.directory / "results")
    finished = machine.run("echo x >r; echo out", *options)

    assert (finished.code, finished.out, _tree(machine.directory / "results")) == (
        0,
        b"out\n",
        {"r": b"x\n"},
    )


def test_another_script_under_the_same_id_is_refused(machine: Machine) -> None:
    machine.run("echo one")
    finished = machine.run("echo two")

    assert (finished.code, finished.out) == (65, b"")


def test_the_script_goes_on_when_nobody_reads_its_output_any_more(machine: Machine) -> None:
    process = machine.popen(
        "--script",
        "-",
        stdin=b"echo started; until [ -e go ]; do sleep 0.05; done; seq 5; echo >end",
    )
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    (machine.work() / "go").touch()
    process.stdout = None

    finished = finish(process)
    assert (finished.code, b"the script is left to the machine" in finished.err) == (1, True)
    until((machine.work() / "end").exists, "the script's end")


# ------------------------------------------------------------------ trouble


def test_a_connection_that_breaks_is_taken_up_again_and_no_byte_lost_or_doubled(
    machine: Machine,
) -> None:
    script = b"seq 200000; until [ -e go ]; do sleep 0.05; done; seq 200000; exit 4"
    process = machine.popen("--script", "-", stdin=script)
    assert process.stdout
    first = process.stdout.read(50_000)
    machine.drop()
    (machine.work() / "go").touch()
    rest = finish(process)

    numbers = b"".join(b"%d\n" % number for number in range(1, 200_001))
    assert first + rest.out == numbers * 2
    assert rest.code == 4


def test_a_machine_that_is_gone_for_good_is_lost_and_not_done(machine: Machine) -> None:
    process = machine.popen(
        "--script", "-", "--reconnect", "1", "--json", stdin=b"echo started; sleep 1000"
    )
    assert process.stdout
    process.stdout.readline()
    machine.vanish()
    finished = finish(process)

    assert (finished.code, report(finished)["outcome"]) == (74, "lost")


def kill_supervisor(machine: Machine, *, boots: bool) -> Finished:
    """Run a script whose supervisor is killed, on a machine that then boots anew or doesn't."""
    process = machine.popen("--script", "-", stdin=f"echo started; exec sleep {MARK}".encode())
    assert process.stdout
    process.stdout.readline()
    # Its first word is said before it becomes the process that is looked for.
    (script,) = until(lambda: machine.processes(MARK), "the script's process")
    supervisor = script.parent()
    assert supervisor
    if boots:
        (machine.work().parent / "boot").write_text("another boot")
    supervisor.kill()
    finished = finish(process)
    script.kill()
    return finished


def test_a_run_that_a_boot_has_ended_is_lost(machine: Machine) -> None:
    finished = kill_supervisor(machine, boots=True)
    assert (finished.code, "has vanished" in finished.last) == (74, True)


def test_a_script_that_kills_its_supervisor_is_no_lost_machine(machine: Machine) -> None:
    finished = kill_supervisor(machine, boots=False)
    assert (finished.code, "has killed the supervisor of run" in finished.last) == (70, True)


def test_a_script_that_removes_its_runs_folder_is_told_of(machine: Machine) -> None:
    finished = machine.run("rm -rf ~/.kestra-bridge; echo removed; sleep 1000")
    assert (finished.code, finished.out) == (70, b"removed\n")
    assert "were removed on" in finished.last


def test_a_script_that_removes_its_runs_folder_runs_once_although_the_connection_is_lost(
    machine: Machine,
) -> None:
    script = b"trap '' TERM; echo once >>~/runs; rm -rf ~/.kestra-bridge; echo removed; sleep 1000"
    process = machine.popen("--script", "-", "--grace", "5", stdin=script)
    assert process.stdout
    process.stdout.readline()
    machine.drop()
    finished = finish(process)
    assert (finished.code, "were removed on" in finished.last) == (70, True)
    assert (machine.home / "runs").read_text() == "once\n"


@pytest.mark.parametrize("name", ["stdout", "stderr", "lock", "digest"])
def test_a_run_whose_files_were_removed_is_told_of_when_it_is_followed_again(
    machine: Machine, name: str
) -> None:
    script = f'rm "$(dirname $0)/{name}"; exit 3'
    machine.run(script)
    finished = machine.run(script)
    assert (finished.code, "were removed on" in finished.last) == (70, True)
    assert b"Traceback" not in finished.err


@pytest.mark.parametrize(("exit_code", "code"), [(5, 5), (0, 73)])
def test_a_signal_while_results_are_fetched_hides_no_end_of_the_script(
    machine: Machine, tmp_path: Path, exit_code: int, code: int
) -> None:
    script = f"head -c 300M /dev/zero >big; exit {exit_code}".encode()
    folder = tmp_path / "fetched"
    process = machine.popen(
        *("--script", "-", "--result", "big", "--results-directory", str(folder)), stdin=script
    )
    until(lambda: list(folder.glob(".partial-*")), "the results are being fetched")
    process.terminate()
    finished = finish(process)
    assert (finished.code, "ended by SIGTERM" in finished.last) == (code, True)
    assert "was stopped" not in finished.last


def test_a_machine_that_boots_late_is_waited_for(machine: Machine) -> None:
    assert machine.server
    machine.server.kill()
    process = machine.popen("--script", "-", BRIDGE_LOG_LEVEL="debug", stdin=b"echo here")
    assert process.stderr
    while b"not yet reached" not in process.stderr.readline():
        pass
    machine.start()

    assert finish(process).out == b"here\n"


def test_a_machine_that_never_answers_is_unreachable(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        machine.port = silent.getsockname()[1]
        finished = machine.run("true", BRIDGE_MACHINE_BOOT_TIMEOUT="1")

    assert (finished.code, "can't be reached within 1 s" in finished.last) == (69, True)


def test_another_host_key_is_not_waited_out_for_longer_than_a_boot_may_take(
    machine: Machine,
) -> None:
    finished = machine.run(
        "true", BRIDGE_MACHINE_SECRET="another secret of sixteen", BRIDGE_MACHINE_BOOT_TIMEOUT="2"
    )

    assert (finished.code, "shows another host key" in finished.last) == (76, True)


def _start_up_file(machine: Machine, text: str, *, before_sftp: bool) -> None:
    """Let the user's shell do that before each command, and before SFTP where sshd starts SFTP by
    that shell."""
    session = machine.directory / "session"
    always = "*" if before_sftp else "exec*"
    session.write_text(
        f"cd {machine.home}; case $SSH_ORIGINAL_COMMAND in {always}) {text};; esac\n"
        'exec bash -c "$SSH_ORIGINAL_COMMAND"\n'
    )


@pytest.mark.parametrize("before_sftp", [True, False])
def test_a_start_up_file_may_change_the_folder(machine: Machine, before_sftp: bool) -> None:
    _start_up_file(machine, f"cd {machine.directory}", before_sftp=before_sftp)
    finished = machine.run("echo x >r; exit 3", "--result", "r", "--results-directory", "results")

    assert (finished.code, _tree(machine.directory / "results")) == (3, {"r": b"x\n"})


@pytest.mark.parametrize("before_sftp", [True, False])
@pytest.mark.parametrize("code", [0, 3])
def test_a_start_up_file_that_ends_the_shell_is_no_lost_machine(
    machine: Machine, code: int, before_sftp: bool
) -> None:
    _start_up_file(machine, f"exit {code}", before_sftp=before_sftp)
    finished = machine.run("true", "--reconnect", "1")

    assert (finished.code, "start-up file" in finished.last) == (70, True)


def test_a_machine_without_python_says_what_is_missing(machine: Machine) -> None:
    empty = machine.directory / "empty"
    empty.mkdir()
    (machine.directory / "session").write_text(
        f"cd {machine.home} && case $SSH_ORIGINAL_COMMAND in *sftp*) ;; *) PATH={empty};; esac\n"
        'eval "$SSH_ORIGINAL_COMMAND"\n'
    )
    finished = machine.run("true")

    assert (finished.code, "does it have python3?" in finished.last) == (70, True)
