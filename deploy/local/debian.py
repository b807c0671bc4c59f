"""Debian releases, laid out from their packages."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from deploy.local.paths import cache_directory, locked
from deploy.local.processes import AS_ROOT, run_tool

# In namespaces of its own, so that an interruption leaves neither mounts nor processes behind.
_APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def tree(
    kind: str, suite: str, options: Sequence[str], say: Callable[[str], None] = lambda _: None
) -> Path:
    """The folder with a release laid out by these options, made on first use and kept in the cache.

    Raises:
        ProcessError: mmdebstrap is missing or failed; the message has the last of what it said.
    """
    recipe = hashlib.sha256("\n".join((suite, *options)).encode()).hexdigest()[:12]
    place = cache_directory(kind) / f"{suite}-{recipe}"
    if not place.exists():
        with locked(f"{kind}-{suite}"):
            if not place.exists():
                _make_tree(kind, suite, options, place, say)
    return place


def _make_tree(
    kind: str, suite: str, options: Sequence[str], place: Path, say: Callable[[str], None]
) -> None:
    began = time.monotonic()
    say(f"laying out Debian {suite} for {kind} in the cache, once")
    partial = place.with_name(f"{place.name}.partial")
    log = place.with_name(f"{place.name}.log")
    log.unlink(missing_ok=True)
    lay_out(suite, partial, options, log=log)
    run_tool("mv", "--no-target-directory", str(partial), str(place), log=log, within=AS_ROOT)
    say(f"Debian {suite} laid out in {time.monotonic() - began:.0f} s")


def lay_out(
    suite: str,
    to: Path,
    options: Sequence[str],
    *,
    log: Path,
    form: Literal["directory", "tar"] = "directory",
    environment: Mapping[str, str] | None = None,
) -> None:
    """Lay out a release by mmdebstrap with these options, as a folder or a tar file.

    Where it fails or is interrupted, nothing is left of it.

    Raises:
        ProcessError: it failed; the message ends with its log.
    """
    # What mmdebstrap keeps for itself meanwhile goes where we remove it, as it can't when it is
    # killed.
    temporary = to.with_name(f"{to.name}.tmp")
    variables = {"TMPDIR": str(temporary), **(environment or {})}
    remove(to, temporary, log=log)
    temporary.mkdir()
    try:
        run_tool(
            "mmdebstrap",
            "--mode=root",
            f"--format={form}",
            *options,
            suite,
            str(to),
            log=log,
            within=(
                *AS_ROOT,
                *_APART,
                "env",
                *(f"{name}={value}" for name, value in variables.items()),
            ),
        )
    except BaseException:
        remove(to, log=log)
        raise
    finally:
        remove(temporary, log=log)


def remove(*places: Path, log: Path) -> None:
    """Remove what root laid out."""
    run_tool("rm", "-rf", "--one-file-system", *map(str, places), log=log, within=AS_ROOT)
