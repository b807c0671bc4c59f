"""Debian releases, laid out from their packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from deploy.local.processes import AS_ROOT, run_tool

# In namespaces of its own, so that an interruption leaves neither mounts nor processes behind.
_APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


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

    Raises:
        ProcessError: it failed; the message ends with its log.
    """
    variables = ("env", *(f"{name}={value}" for name, value in (environment or {}).items()))
    run_tool(
        "mmdebstrap",
        "--mode=root",
        f"--format={form}",
        *options,
        suite,
        str(to),
        log=log,
        within=(*AS_ROOT, *_APART, *variables),
    )


def remove(*places: Path, log: Path) -> None:
    """Remove what root laid out."""
    run_tool("rm", "-rf", "--one-file-system", *map(str, places), log=log, within=AS_ROOT)
