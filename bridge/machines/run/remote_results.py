"""Lists the result files of a run that has ended, on the machine.

The client runs it, in the user's home or anywhere else. It writes to standard output alone, so that
it works on a full disk. Like the helper it needs only Python 3.8 or later and the standard library.

    python3 results.py RUN

Its output is a sequence of records, each ended by a NUL: `+NAME` for a file that was found, `-PATH`
followed by a record with the reason for what could not be looked at, and at last `.`.
"""

# It works on bytes and imports little, as the machine may be slow: the functions of `os`, not
# pathlib.
# ruff: noqa: PTH114, PTH116, PTH118, PTH123

from __future__ import annotations

import fnmatch
import json
import os
import stat
import sys

NOT_FOLLOWED = "a link to a folder, and such links are not followed"


class Finder:
    """The files in a folder that match any of the patterns, and what could not be looked at.

    Not by `glob`, which follows links to folders, and so may never end.
    """

    def __init__(self, folder: str, texts: list[str]) -> None:
        self._folder = folder
        self._patterns = [os.path.normpath(text).split("/") for text in texts]
        self.found: list[str] = []
        self.unread: list[tuple[str, str]] = []
        """The path and the reason of each."""

    def look(self) -> None:
        """Look through the folder."""
        for folder, folders, names in os.walk(self._folder, onerror=self._note_folder):
            self._note_links(folder, folders)
            folders[:] = [name for name in folders if self._may_hold(self._parts(folder, name))]
            for name in names:
                parts = self._parts(folder, name)
                if any(matches(parts, pattern) for pattern in self._patterns):
                    self._note_file(parts)
        self.found.sort()

    def _parts(self, *path: str) -> list[str]:
        return os.path.relpath(os.path.join(*path), self._folder).split("/")

    def _may_hold(self, folder: list[str]) -> bool:
        return any(may_hold(folder, pattern) for pattern in self._patterns)

    def _note_file(self, parts: list[str]) -> None:
        """Note the file as found, or why it can't be. A link to a file stands for the file."""
        name = "/".join(parts)
        try:
            mode = os.stat(os.path.join(self._folder, name)).st_mode
        except FileNotFoundError:
            return  # A link to nothing.
        except OSError as error:
            self.unread.append((name, str(error.strerror)))
            return
        # A pipe or a device would block its reader.
        if stat.S_ISREG(mode):
            self.found.append(name)

    def _note_folder(self, error: OSError) -> None:
        """Note a folder that can't be read, if it may hold results."""
        parts = self._parts(error.filename)
        if parts == ["."] or self._may_hold(parts):
            self.unread.append(("/".join(parts), str(error.strerror)))

    def _note_links(self, folder: str, names: list[str]) -> None:
        """Note the links to folders that a pattern names, unless it covers the folders as well."""
        for name in names:
            path = os.path.join(folder, name)
            parts = self._parts(path)
            is_named = any(names_folder(parts, pattern) for pattern in self._patterns)
            if os.path.islink(path) and is_named and not self._covers(os.path.realpath(path)):
                self.unread.append(("/".join(parts), NOT_FOLLOWED))

    def _covers(self, folder: str) -> bool:
        """Whether results are looked for in that folder anyway."""
        parts = os.path.relpath(folder, os.path.realpath(self._folder)).split("/")
        return parts[0] != ".." and (parts == ["."] or self._may_hold(parts))


def matches(path: list[str], pattern: list[str]) -> bool:
    """Whether a file, or a folder above it, matches a pattern, both given as their parts.

    `*`, `?` and `[...]` match within a name, `**` matches any folders. As in a shell, a leading dot
    must be matched by a dot.
    """
    if not pattern:
        return True
    if pattern == ["**"]:
        return not any(part.startswith(".") for part in path)
    if not path:
        return False
    name, rest = path[0], path[1:]
    if pattern[0] == "**":
        is_hidden = name.startswith(".")
        if matches(path, pattern[1:]):
            return True
        return not is_hidden and matches(rest, pattern)
    return _name_matches(name, pattern[0]) and matches(rest, pattern[1:])


def may_hold(folder: list[str], pattern: list[str]) -> bool:
    """Whether a file in that folder, or further below it, may match the pattern."""
    if not folder or not pattern:
        return True
    if pattern == ["**"]:
        return not any(part.startswith(".") for part in folder)
    name, rest = folder[0], folder[1:]
    if pattern[0] == "**":
        is_hidden = name.startswith(".")
        if may_hold(folder, pattern[1:]):
            return True
        return not is_hidden and may_hold(rest, pattern)
    return _name_matches(name, pattern[0]) and may_hold(rest, pattern[1:])


def names_folder(folder: list[str], pattern: list[str]) -> bool:
    """Whether the pattern names that folder, or one above it, and not merely by a `**`."""
    for name, part in zip(folder, pattern):  # noqa: B905  (Python 3.8 doesn't know it)
        if part == "**" or not _name_matches(name, part):
            return False
    return True


def _name_matches(name: str, pattern: str) -> bool:
    if name == pattern:
        return True
    if name.startswith(".") and not pattern.startswith("."):
        return False
    return fnmatch.fnmatchcase(name, pattern)


def main(run: str) -> None:
    """Look for the results of that run, and write the records."""
    with open(os.path.join(run, "request.json"), "rb") as file:
        texts = json.loads(file.read())["results"]
    finder = Finder(os.path.join(run, "work"), texts)
    finder.look()
    records = ["+" + name for name in finder.found]
    for path, reason in finder.unread:
        records += ["-" + path, reason]
    records.append(".")
    output = "".join(record + "\0" for record in records)
    sys.stdout.buffer.write(os.fsencode(output))


if __name__ == "__main__":
    main(sys.argv[1])
