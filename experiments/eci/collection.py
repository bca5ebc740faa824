"""Reads a retrieval collection: documents, queries, judgments and, where there are any, a teacher's
embeddings.

A collection is a folder with ``docs.jsonl`` (doc_id, title where there is one, text), ``queries.jsonl``
(query_id, text), ``qrels.tsv`` (query_id, doc_id, relevance; relevant above 0), each also as ``.gz``, and, if
there is a teacher, ``minilm_l6.npz`` (``docs`` and ``queries``, rows in the order of the files). The
collection "tiny" beside this module is ours: sixty short texts and thirty queries, enough to see everything
run.
"""

import gzip
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TINY = Path(__file__).parent / "tiny"
TEACHER = "minilm_l6.npz"


@dataclass(frozen=True)
class Collection:
    """Texts and judgments. Queries without a relevant document are left out: their nDCG has no value."""

    name: str
    texts: list[str]
    """Title and text of each document."""
    queries: list[str]
    relevant: np.ndarray
    """``[queries, documents]``, true where the document is relevant."""
    teacher: tuple[np.ndarray, np.ndarray] | None
    """A stronger encoder's unit embeddings of queries and documents, if the folder has them."""


def data_folder() -> Path:
    """Where collections are looked for: ``cet`` in JAXNEG_DATA, by default in ``../shared/data``."""
    default = Path(__file__).parents[3] / "shared" / "data"
    return Path(os.environ.get("JAXNEG_DATA", default)) / "cet"


def find_collections(names: tuple[str, ...]) -> tuple[dict[str, Path], str | None]:
    """The folder of each collection.

    Args:
        names: folders below `data_folder`, paths of folders, or "tiny".

    Returns:
        Folder by name, and a note for the report if the tiny collection stands in for all of them, which it
        does where there is no data folder at all.

    Raises:
        FileNotFoundError: a collection that is neither in the data folder nor a path.
    """
    root = data_folder()
    on_disk = [name for name in names if name != "tiny" and not Path(name).is_dir()]
    if on_disk and not root.is_dir() and "JAXNEG_DATA" not in os.environ:
        return {"tiny": TINY}, (
            f"The collections {', '.join(on_disk)} were not found: this run used the embedded collection of "
            "60 texts and 30 queries, which shows that everything works but is too small to test the "
            "paper. For the real ones set JAXNEG_DATA to the folder that holds cet/cranfield and cet/cisi."
        )
    folders = {}
    for name in names:
        path = TINY if name == "tiny" else Path(name) if Path(name).is_dir() else root / name
        if not path.is_dir():
            present = (
                sorted(child.name for child in root.iterdir() if child.is_dir()) if root.is_dir() else []
            )
            raise FileNotFoundError(
                f"there is no collection {name!r}: expected a folder {path} (JAXNEG_DATA/cet/{name}), "
                f"a path, or one of {', '.join([*present, 'tiny'])}"
            )
        folders[path.name] = path
    return folders, None


def load_collection(folder: Path) -> Collection:
    """Reads a collection.

    Args:
        folder: holds the files that the module's docstring names.

    Returns:
        The collection.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line that cannot be used; the message names file, line and remedy.
    """
    docs_file, queries_file = _file(folder, "docs.jsonl"), _file(folder, "queries.jsonl")
    docs = _records(docs_file, "doc_id")
    queries = _records(queries_file, "query_id")
    relevant = _judgments(_file(folder, "qrels.tsv"), list(queries), list(docs), docs_file, queries_file)
    if not relevant.any():
        raise ValueError(f"{folder}: no query has a relevant document: qrels.tsv needs relevance above 0")
    kept = np.flatnonzero(relevant.any(axis=1))
    texts = [f"{record.get('title', '')} {record['text']}".strip() for record in docs.values()]
    questions = [record["text"] for record in queries.values()]
    teacher = _teacher(folder / TEACHER, len(queries), len(docs))
    if teacher is not None:
        teacher = teacher[0][kept], teacher[1]
    return Collection(folder.name, texts, [questions[i] for i in kept], relevant[kept], teacher)


def _file(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"collection {folder}: expected a file {name} or {name}.gz, found neither")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, after where it stands."""
    number = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as stream
        ):
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{path}, line {number}", line.rstrip("\n")
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path}, after line {number}: not readable as UTF-8 text ({error}): get the file again"
        ) from error


def _records(path: Path, identifier: str) -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    for where, line in _lines(path):
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


def _judgments(
    path: Path, query_ids: list[str], doc_ids: list[str], docs_file: Path, queries_file: Path
) -> np.ndarray:
    rows = {identifier: row for row, identifier in enumerate(query_ids)}
    columns = {identifier: column for column, identifier in enumerate(doc_ids)}
    relevant = np.zeros((len(rows), len(columns)), bool)
    for where, line in _lines(path):
        cells = line.split("\t")
        if len(cells) != 3:
            raise ValueError(
                f"{where}: got {len(cells)} columns: write query_id, doc_id and relevance between tabs"
            )
        query, document, relevance = cells
        if query not in rows:
            raise ValueError(
                f"{where}: query {query!r} is not in {queries_file.name}: add it or remove the line"
            )
        if document not in columns:
            raise ValueError(
                f"{where}: document {document!r} is not in {docs_file.name}: add it or remove the line"
            )
        try:
            relevant[rows[query], columns[document]] = float(relevance) > 0
        except ValueError as error:
            raise ValueError(
                f"{where}: relevance {relevance!r} is not a number: write 1 for relevant, 0 for not relevant"
            ) from error
    return relevant


def _teacher(path: Path, queries: int, docs: int) -> tuple[np.ndarray, np.ndarray] | None:
    if not path.is_file():
        return None
    remedy = "embed the texts again, in the order of the files, or remove the file"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            embeddings = {name: arrays[name].astype(np.float32) for name in ("queries", "docs")}
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: expected arrays queries and docs ({error}): {remedy}") from error
    for name, rows in (("queries", queries), ("docs", docs)):
        array = embeddings[name]
        if array.ndim != 2 or array.shape[0] != rows:
            raise ValueError(
                f"{path}: array {name!r}: expected {rows} rows, got shape {array.shape}: {remedy}"
            )
        norm = np.linalg.norm(array, axis=1, keepdims=True)
        embeddings[name] = array / np.where(norm > 0, norm, 1.0)
    return embeddings["queries"], embeddings["docs"]
