"""Reads jobs from JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from bridge.errors import InvalidMessage
from bridge.job.decode import BYTE_ORDER_MARK, MAX_BODY
from bridge.operate.submission.drafts import Draft, parse_json_object, shown

Format = Literal["auto", "jsonl", "csv"]

_FIELDS = ("id", "flow", "priority", "timeout", "inputs", "labels")
_COLUMNS = ("id", "flow", "priority", "timeout")
_MAPS = {"input": "inputs", "label": "labels"}
_NOT_IN_BODY = ("id", "priority")
"""These become properties of the message."""


def read(data: bytes, *, name: str, style: Format = "auto") -> list[Draft]:
    """The jobs of a file. Its name appears in error messages and, for `auto`, helps to guess the
    format.

    Raises:
        InvalidMessage: the file isn't of that format; the text names the line, and the column if
        there is one.
    """
    content = data.removeprefix(BYTE_ORDER_MARK)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InvalidMessage(f"{name}: it is in UTF-16: save it in UTF-8")
    if content.startswith(b"\x1f\x8b"):
        raise InvalidMessage(
            f"{name}: it is compressed (gzip): unpack it first, as by zcat FILE | … --file -"
        )
    if style == "auto":
        style = _guess(content, name)
    if style == "csv":
        drafts = list(_read_csv(content, name))
    else:
        drafts = list(_read_json_lines(content, name))
    if not drafts:
        raise InvalidMessage(f"{name}: there is no job in it")
    return drafts


def _guess(content: bytes, name: str) -> Format:
    ending = name.rpartition(".")[2].lower()
    if ending == "csv":
        return "csv"
    if ending in ("jsonl", "ndjson", "json"):
        return "jsonl"
    first = content.lstrip()[:1]
    return "jsonl" if first in (b"{", b"[", b"") else "csv"


def _read_json_lines(content: bytes, name: str) -> Iterator[Draft]:
    # Only a line feed ends a line: JSON text may contain the other characters that Python takes
    # for line ends.
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        data = parse_json_object(line, where=where)
        for key in data:
            if key not in _FIELDS:
                raise InvalidMessage(f"{where}: field {shown(key)} is none of {', '.join(_FIELDS)}")
        yield _draft({key: value for key, value in data.items() if value is not None}, where)


def _draft(values: dict[str, Any], where: str) -> Draft:
    body = {key: value for key, value in values.items() if key not in _NOT_IN_BODY}
    return Draft(where=where, id=values.get("id"), priority=values.get("priority"), body=body)


def _read_csv(content: bytes, name: str) -> Iterator[Draft]:
    columns: list[str] | None = None
    for number, cells in _csv_rows(content, name):
        where = f"{name}:{number}"
        if columns is None:
            # Lines of blanks above the header are no header.
            if any(cell.strip() for cell in cells):
                columns = _columns(cells, where)
        elif any(cells):
            yield _draft_of_row(columns, cells, where)


def _csv_rows(content: bytes, name: str) -> Iterator[tuple[int, list[str]]]:
    """The rows, each with the number of the line at which it begins."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise InvalidMessage(f"{name}:{line}: not UTF-8: byte 0x{byte:02x}") from error
    csv.field_size_limit(MAX_BODY)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    begin = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise InvalidMessage(f"{name}:{begin}: not CSV: {error}") from error
        if row is None:
            return
        yield begin, row
        begin = reader.line_num + 1


def _columns(header: Sequence[str], where: str) -> list[str]:
    columns: list[str] = []
    for number, cell in enumerate(header, 1):
        column = cell.strip()
        kind, _, rest = column.partition(".")
        is_entry = kind in _MAPS and rest
        if column not in _COLUMNS and not is_entry:
            allowed = ", ".join((*_COLUMNS, "input.NAME", "label.NAME"))
            raise InvalidMessage(f"{where}: column {number}, {shown(column)}, is none of {allowed}")
        if column in columns:
            raise InvalidMessage(f"{where}: column {number}, {shown(column)}, is there twice")
        columns.append(column)
    return columns


def _draft_of_row(columns: Sequence[str], cells: Sequence[str], where: str) -> Draft:
    """The draft in a row. An empty cell counts as no cell at all."""
    if len(cells) != len(columns):
        raise InvalidMessage(f"{where}: {len(cells)} columns, where the header has {len(columns)}")
    # Ids are made of the body, so the order of its keys must stay.
    values: dict[str, Any] = {"inputs": {}, "labels": {}}
    for column, cell in zip(columns, cells, strict=True):
        if not cell:
            continue
        kind, dot, name = column.partition(".")
        if dot:
            values[_MAPS[kind]][name] = cell
        else:
            values[column] = _cell(column, cell, where)
    return _draft({key: value for key, value in values.items() if value != {}}, where)


def _cell(column: str, cell: str, where: str) -> str | int | float:
    if column == "priority":
        if not re.fullmatch(r"[0-9]{1,9}", cell.strip()):
            raise InvalidMessage(f"{where}: column priority: {shown(cell)} is not a whole number")
        return int(cell)
    if column == "timeout":
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", cell.strip()) or not float(cell):
            raise InvalidMessage(
                f"{where}: column timeout: {shown(cell)} is not a number of seconds above 0"
            )
        return float(cell)
    return cell
