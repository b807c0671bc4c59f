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

    Where it fails or is interrupted, nothing is left of it.

    Raises:
        ProcessError: it failed; the message ends with its log.
    """
    # What mmdebstrap keeps for itself meanwhile goes where we remove it, as it can't when it is killed.
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
            within=(*AS_ROOT, *_APART, "env", *(f"{name}={value}" for name, value in variables.items())),
        )
    except BaseException:
        remove(to, log=log)
        raise
    finally:
        remove(temporary, log=log)


def remove(*places: Path, log: Path) -> None:
    """Remove what root laid out."""
    run_tool("rm", "-rf", "--one-file-system", *map(str, places), log=log, within=AS_ROOT)
