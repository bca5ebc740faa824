"""Small collections with all judgments in one matrix, and the folders they are found in.

A folder of ours has ``docs.jsonl`` (doc_id, title where there is one, text), ``queries.jsonl`` (query_id,
text), ``qrels.tsv`` (query_id, doc_id, relevance; relevant above 0), each also as ``.gz``. Beside these, or
in a folder of BEIR or MS MARCO, there may be ``minilm_l6.npz`` (``docs`` and ``queries``, rows in the order
of the files): a teacher's embeddings. The collection "tiny" beside this module is ours: sixty short texts
and thirty queries, enough to see everything run.
"""

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.collections.beir import is_beir, read_beir
from experiments.collections.judged_texts import JudgedTexts, judged_pairs
from experiments.collections.lines import existing_file, json_records
from experiments.collections.ms_marco import is_ms_marco, read_ms_marco
from experiments.text_lines import numbered_lines

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
    """Reads a collection; the folder's files say whether it is one of ours, of BEIR or of MS MARCO.

    Args:
        folder: of BEIR the split "test" is read, of MS MARCO "dev.small".

    Returns:
        The collection.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line that cannot be used; the message names file, line and remedy.
    """
    read = read_beir if is_beir(folder) else read_ms_marco if is_ms_marco(folder) else read_folder
    judged = read(folder)
    relevant = judged.grades() > 0
    if not relevant.any():
        raise ValueError(f"{folder}: no query has a relevant document: the judgments need one above 0")
    kept = np.flatnonzero(relevant.any(axis=1))
    teacher = _teacher(folder / TEACHER, len(judged.queries), len(judged.texts))
    if teacher is not None:
        teacher = teacher[0][kept], teacher[1]
    return Collection(judged.name, judged.texts, [judged.queries[i] for i in kept], relevant[kept], teacher)


def read_folder(folder: Path) -> JudgedTexts:
    """Reads a folder of ours, also its queries without a relevant document.

    Args:
        folder: holds the files that the module's docstring names.

    Returns:
        The texts and their judgments.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line that cannot be used; the message names file, line and remedy.
    """
    docs_file, queries_file = (existing_file(folder, f"{name}.jsonl") for name in ("docs", "queries"))
    docs, queries = json_records(docs_file, "doc_id"), json_records(queries_file, "query_id")
    lines = _lines(existing_file(folder, "qrels.tsv"))
    return JudgedTexts(
        name=folder.name,
        doc_ids=list(docs),
        texts=[f"{record.get('title', '')} {record['text']}".strip() for record in docs.values()],
        query_ids=list(queries),
        queries=[record["text"] for record in queries.values()],
        judgments=judged_pairs(lines, list(queries), list(docs), queries_file, docs_file),
    )


def _lines(path: Path) -> Iterator[tuple[str, str, str, str]]:
    for where, line in numbered_lines(path):
        cells = line.split("\t")
        if len(cells) != 3:
            raise ValueError(
                f"{where}: got {len(cells)} columns: write query_id, doc_id and relevance between tabs"
            )
        yield where, cells[0], cells[1], cells[2]


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
