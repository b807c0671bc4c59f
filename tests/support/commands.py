"""The commands of ours that a text names, and whether there are such: what a person copies must
work."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import typer

from bridge.cli.commands import app

OURS = r"(?:kestra-bridge|docker compose run --rm bridge) +(?=[a-z-])"
"""How a command begins that a person types."""

HELP = frozenset({"-h", "--help"})


def in_markdown(text: str) -> list[str]:
    """Those in blocks of shell and in the running text, there also such as `dead-letters list`,
    from our name on."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    by_group = [span for span in spans if " " in span and span.split()[0] in _commands(_root())]
    return [
        *(found for block in blocks for found in in_shell(block)),
        *_after_our_name(spans),
        *by_group,
    ]


def in_shell(script: str) -> list[str]:
    """Those in the lines of a script, without what follows them on a line."""
    lines = [line.partition(" #")[0] for line in script.replace("\\\n", " ").splitlines()]
    return [re.split(r" +(?:[|;&]|&&)", found)[0] for found in _after_our_name(lines)]


def in_examples(module: Path) -> list[str]:
    """Those in the examples of a command's help: indented lines of a string."""
    lines = [line for text in _strings(module) for line in text.splitlines()]
    return in_shell("\n".join(line for line in lines if line.startswith("  kestra-bridge ")))


def in_sentences(module: Path) -> list[str]:
    """Those in the sentences of a module's strings, each up to the end of what can belong to it."""
    return [re.split(r"[`';:(]", found)[0] for found in _after_our_name(_strings(module))]


def unknown_in(command: str) -> str | None:
    """The first word of a command line, without our name, that is no command or no option of
    ours."""
    found: Any = _root()
    for word in (word.strip(",.") for word in command.split()):
        if word.startswith("-") and len(word) > 1:
            option = word.partition("=")[0]
            if option not in HELP and option not in _options(found):
                return word
        elif names := _commands(found):
            if word not in names:
                return word
            found = found.get_command(None, word)
    return None


def _root() -> Any:
    return typer.main.get_command(app)


def _commands(command: Any) -> list[str]:
    return list(command.list_commands(None)) if hasattr(command, "list_commands") else []


def _options(command: Any) -> set[str]:
    return {option for each in command.params for option in (*each.opts, *each.secondary_opts)}


def _after_our_name(texts: list[str]) -> list[str]:
    lines = (" ".join(text.split()) for text in texts)
    return [
        found for line in lines for found in re.findall(OURS + r"(.*?)(?=$|kestra-bridge )", line)
    ]


def _strings(module: Path) -> list[str]:
    nodes = ast.walk(ast.parse(module.read_text()))
    return [_plain(node) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr)]


def _plain(node: ast.Constant | ast.JoinedStr) -> str:
    """A string; what is put into it when it is made is left as a word."""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _plain(part) if isinstance(part, ast.Constant) else "VALUE" for part in node.values
        )
    return node.value if isinstance(node.value, str) else ""
