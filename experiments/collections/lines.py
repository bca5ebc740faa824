"""Records of a collection's files, plain or compressed; every error names file, line and remedy."""

import json
from pathlib import Path
from typing import Any

from experiments.text_lines import numbered_lines


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
    for where, line in numbered_lines(path):
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
    for where, line in numbered_lines(path):
        identifier, tab, text = line.partition("\t")
        if not tab or not identifier.strip():
            raise ValueError(f"{where}: expected an identifier, a tab and the {what}, got {line[:40]!r}")
        if identifier in texts:
            raise ValueError(f"{where}: identifier {identifier!r} occurs twice: give each {what} its own")
        texts[identifier] = text
    if not texts:
        raise ValueError(f"{path}: no line: expected an identifier, a tab and a {what} on each line")
    return texts
