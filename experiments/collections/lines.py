"""Lines of text and of JSON from plain or compressed files; every error names file, line and remedy."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def existing_file(folder: Path, name: str) -> Path:
    """The file of this name, or its ``.gz``, which comes first.

    Args:
        folder: where it should be.
        name: without ``.gz``.

    Returns:
        The path.

    Raises:
        FileNotFoundError: there is neither.
    """
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"collection {folder}: expected a file {name} or {name}.gz, found neither")


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, after where it stands, one at a time.

    Args:
        path: of a UTF-8 file, read through gzip where it ends in ``.gz``.

    Yields:
        ("PATH, line NUMBER", line without its end).

    Raises:
        ValueError: the file is damaged or no UTF-8 text.
    """
    number = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as stream
        ):
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{path}, line {number}", line.rstrip("\r\n")
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path}, after line {number}: not readable as UTF-8 text ({error}): get the file again"
        ) from error


def json_records(path: Path, identifier: str) -> dict[str, dict[str, Any]]:
    """The objects of a JSON-lines file by their identifier.

    Args:
        path: one object a line.
        identifier: the field that names the object; it and ``text`` must be strings.

    Returns:
        At least one object.

    Raises:
        ValueError: a line that cannot be used, an identifier that occurs twice, or no line at all.
    """
    records: dict[str, dict[str, Any]] = {}
    for where, line in text_lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{where}: not valid JSON ({error.msg} at column {error.colno}): write one object a line"
            ) from error
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected a JSON object with {identifier} and text, got {line[:40]}")
        for field in (identifier, "text"):
            if not isinstance(record.get(field), str):
                raise ValueError(
                    f"{where}: field {field!r} is missing or not a string: each line needs "
                    f"{identifier} and text"
                )
        if record[identifier] in records:
            raise ValueError(f"{where}: {identifier} {record[identifier]!r} occurs twice: give each its own")
        records[record[identifier]] = record
    if not records:
        raise ValueError(f"{path}: no line: expected one JSON object a line with {identifier} and text")
    return records


def identified_texts(path: Path, what: str) -> dict[str, str]:
    """The texts of a file with an identifier and a text on each line, between a tab.

    Args:
        path: the file.
        what: what the texts are, for the message.

    Returns:
        At least one text by its identifier.

    Raises:
        ValueError: a line without a tab, an identifier that occurs twice, or no line at all.
    """
    texts: dict[str, str] = {}
    for where, line in text_lines(path):
        identifier, tab, text = line.partition("\t")
        if not tab or not identifier.strip():
            raise ValueError(f"{where}: expected an identifier, a tab and the {what}, got {line[:40]!r}")
        if identifier in texts:
            raise ValueError(f"{where}: identifier {identifier!r} occurs twice: give each {what} its own")
        texts[identifier] = text
    if not texts:
        raise ValueError(f"{path}: no line: expected an identifier, a tab and a {what} on each line")
    return texts
