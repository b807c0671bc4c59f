"""The unit tests where the rest of the tests don't run: on the lowest dependencies, and on another
Python.

Each has an environment of its own in the cache, made once. Another Python than that of `.venv` is
Debian's, in a folder with a release of Debian that has it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from deploy.local.paths import REPOSITORY
from deploy.local.processes import ProcessError
from tests.compatibility.environments import OWN, SUITES, Place, lowest, of_python

# What looks at files of the repository, or only at what the tests themselves use, finds the same
# there as here.
LEFT_OUT = (
    "tests/unit/deploy",
    "tests/unit/support",
    "tests/unit/machines/test_machine_flows.py",
    "tests/unit/test_structure.py",
)
# A library or a Python that behaves otherwise shows it in any example; the rare ones are looked for
# in the main run.
FEW_EXAMPLES = "--hypothesis-profile=few examples"
IGNORED = tuple(f"--ignore={each}" for each in LEFT_OUT)
PYTEST = ("-m", "pytest", "tests/unit", "--quiet", FEW_EXAMPLES, *IGNORED)
# What an old release of a dependency does is deprecated by a newer one of what that depends on.
LENIENT = ("-W", "default::DeprecationWarning", "-W", "default::PendingDeprecationWarning")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the unit tests there; 1 where that can't be made, 0 where all tests run
    anyway.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility", description=__doc__)
    parser.add_argument(
        "where", choices=("lowest", *SUITES), help="the lowest dependencies, or that Python"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="how many tests run at once (default: 2)"
    )
    given = parser.parse_args(arguments)
    if given.where == OWN:
        print(f"tests/compatibility: all tests run on Python {OWN}")
        return 0
    print(f"tests/compatibility: the unit tests on {_in_words(given.where)}", flush=True)
    try:
        return _test(given.where, given.workers)
    except (ProcessError, subprocess.CalledProcessError) as error:
        print(f"tests/compatibility: {error}", file=sys.stderr)
        return 1


def _in_words(where: str) -> str:
    return "the lowest versions of the dependencies" if where == "lowest" else f"Python {where}"


def _test(where: str, workers: int) -> int:
    """The exit status of the unit tests there.

    Raises:
        ProcessError, CalledProcessError: they can't be run there.
    """
    if where == "lowest":
        return _status_of([*PYTEST, *LENIENT], lowest(), workers)
    return _status_of(PYTEST, of_python(where), workers)


def _status_of(pytest: Sequence[str], place: Place, workers: int) -> int:
    """The exit status of the tests; what fails runs once more, alone, as in all of `tests/run`."""
    kept = [*place.python, *pytest, "-o", f"cache_dir={place.folder / 'pytest-cache'}"]
    first = [*kept, "--numprocesses", str(workers)]
    status = subprocess.run(first, cwd=REPOSITORY, check=False).returncode
    if status != 1:
        return status
    print("tests/compatibility: what failed runs once more, alone", flush=True)
    again = ("--last-failed", "--last-failed-no-failures", "none", "--exitfirst")
    return subprocess.run([*kept, *again], cwd=REPOSITORY, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
