"""Tell a lost machine from a script that failed, by what the execution's task logged last."""

from __future__ import annotations

import re

_OUR_WORD = "kestra-bridge: "
"""How the last line of `kestra-bridge machine run` begins."""
_SCRIPTS_OWN_END = "the script exited with"
_LOST = re.compile(r"\bexit code (?:69|74)\b")
"""Kestra's word on the exit code of a task's process, with the codes by which `machine run` says
that the machine never let it in (69) or was lost (74)."""


def says_machine_lost(error: str) -> bool:
    """Whether the last errors of an execution say that its machine was lost.

    A script may itself exit with these codes. The line in which `machine run` says how the script
    ended tells the two apart, and so does its absence, in a flow that has no machine.
    """
    if not _LOST.search(error):
        return False
    _, found, last_word = error.rpartition(_OUR_WORD)
    return bool(found) and _SCRIPTS_OWN_END not in last_word
