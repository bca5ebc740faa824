"""Reads knowledge graphs in their public formats, with a text for each entity.

A graph is a folder with ``train``, ``valid`` and ``test``, each as ``.txt`` or ``.tsv``, perhaps with
``.gz``:
head, relation and tail between tabs, as WN18RR, FB15k-237 and CoDEx are distributed. Texts come from
``entities.tsv`` (which also gives the order of the entities, and must know all of them), or from
``entity2text.txt`` (as KG-BERT has them), which may lack some; without either, no entity has a text.
Embeddings of the texts may lie
beside them (`STORED`).

UMLS lies beside this module, so that there always is a graph.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experiments.npz import load_npz
from experiments.text_lines import numbered_lines

TINY = Path(__file__).parent / "tiny"
EMBEDDED = "umls"
SPLITS = ("train", "valid", "test")
SUFFIXES = (".txt", ".tsv", ".txt.gz", ".tsv.gz")
STORED = ("minilm_l6.npz", "minilm_l6_core3.npz")
"""Embeddings by all-MiniLM-L6-v2: ``name`` (or ``long64``) of all entities, or ``emb`` of
``entity_index``."""


@dataclass(frozen=True)
class Graph:
    """A knowledge graph. Triples hold head, relation, tail."""

    name: str
    entities: list[str]
    relations: list[str]
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    texts: list[str]
    """Of each entity; empty where it has none."""
    embeddings: np.ndarray | None = None
    """Of the texts, unit rows, if the folder has them for every entity."""
    notes: list[str] = field(default_factory=list)
    """What a reader of results on this graph must know."""

    @property
    def known(self) -> np.ndarray:
        """The triples of all three parts."""
        return np.concatenate([self.train, self.valid, self.test])


def data_folder() -> Path:
    """Where graphs are looked for: ``lemon`` in JAXNEG_DATA, by default in ``../shared/data``."""
    default = Path(__file__).parents[3] / "shared" / "data"
    return Path(os.environ.get("JAXNEG_DATA", default)) / "lemon"


def find_graph(name: str) -> Path | None:
    """The folder of a graph.

    Args:
        name: a folder below `data_folder`, a path, or "umls"; "-core3" and the like are cut off.

    Returns:
        The folder; None where it is missing and nobody named a data folder.

    Raises:
        FileNotFoundError: a graph that is neither in the named data folder nor a path.
    """
    base = re.sub(r"-core\d+$", "", name)
    root = data_folder()
    for path in (Path(base), root / base):
        if path.is_dir():
            return path
    if base == EMBEDDED:
        return TINY
    if "JAXNEG_DATA" not in os.environ and not root.is_dir():
        return None
    present = sorted(child.name for child in root.iterdir() if child.is_dir()) if root.is_dir() else []
    raise FileNotFoundError(
        f"there is no graph {name!r}: expected a folder {root / base} (JAXNEG_DATA/lemon/{base}), a "
        f"path, or one "
        f"of {', '.join([*present, EMBEDDED])}"
    )


def load_graph(name: str) -> Graph | None:
    """Finds and reads a graph, and takes its core if its name asks for one.

    Args:
        name: as in `find_graph`; "wn18rr-core3" is the part of wn18rr between entities of core number 3 and
            more in the undirected training graph.

    Returns:
        The graph, or None where `find_graph` finds none.
    """
    folder = find_graph(name)
    if folder is None:
        return None
    graph = read_graph(folder)
    core = re.search(r"-core(\d+)$", name)
    return k_core(graph, int(core[1])) if core else graph


def read_graph(folder: Path) -> Graph:
    """Reads a graph.

    Duplicate triples of a part are one triple. Entities and relations that only validation or test have are
    kept: they are ranked with the embedding that they start with.

    Args:
        folder: holds the files that the module's docstring names.

    Returns:
        The graph.

    Raises:
        FileNotFoundError: a part is missing.
        ValueError: a line that cannot be used; the message names file, line and remedy.
    """
    listed = _names(folder, ("entities",))
    texts = listed if listed is not None else _names(folder, ("entity2textlong", "entity2text"))
    relations = _names(folder, ("relations",))
    entity_ids = {entity: i for i, entity in enumerate(listed or ())}
    relation_ids = {relation: i for i, relation in enumerate(relations or ())}
    parts, notes = {}, []
    for part in SPLITS:
        path = _file(folder, part)
        if path is None:
            raise FileNotFoundError(
                f"graph {folder}: expected a file {part} with one of the suffixes {', '.join(SUFFIXES)}"
            )
        rows: dict[tuple[int, int, int], None] = {}
        lines = 0
        for where, line in numbered_lines(path):
            cells = line.split("\t")
            if len(cells) != 3 or not all(cell.strip() for cell in cells):
                raise ValueError(f"{where}: expected head, relation and tail between tabs, got {line[:60]!r}")
            lines += 1
            head, relation, tail = (cell.strip() for cell in cells)
            rows[
                _id(entity_ids, head, listed, where, "entity", "entities"),
                _id(relation_ids, relation, relations, where, "relation", "relations"),
                _id(entity_ids, tail, listed, where, "entity", "entities"),
            ] = None
        if not rows:
            raise ValueError(f"{path}: no triple: expected head, relation and tail between tabs")
        if lines > len(rows):
            notes.append(f"{folder.name}: {lines - len(rows)} duplicate triples of {part} were left out.")
        parts[part] = np.array(list(rows), np.int32)
    entities = list(entity_ids)
    graph_texts = [(texts or {}).get(entity, "") for entity in entities]
    if missing := sum(not text.strip() for text in graph_texts):
        notes.append(
            f"{folder.name}: {missing} of {len(entities)} entities have no text; their negatives are uniform."
        )
    seen = np.zeros(len(entities), bool)
    seen[parts["train"][:, [0, 2]]] = True
    if unseen := int((~seen[parts["test"][:, [0, 2]]]).any(axis=1).sum()):
        notes.append(
            f"{folder.name}: {unseen} of {len(parts['test'])} test triples have an entity that "
            f"training lacks; they "
            "are ranked like the others."
        )
    return Graph(
        folder.name if folder != TINY else EMBEDDED,
        entities,
        list(relation_ids),
        **parts,
        texts=graph_texts,
        embeddings=_stored(folder, len(entities)),
        notes=notes,
    )


def k_core(graph: Graph, k: int) -> Graph:
    """The part of a graph between entities of core number k and more.

    The core number counts in the undirected training graph without loops and without parallel edges.

    Args:
        graph: the graph.
        k: least core number.

    Returns:
        The part, with all relations.

    Raises:
        ValueError: there is no such entity, or a part has no triple left.
    """
    ends = np.sort(graph.train[:, [0, 2]], axis=1)
    edges = np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0)
    alive = np.ones(len(graph.entities), bool)
    while True:
        edges = edges[alive[edges].all(axis=1)]
        weak = alive & (np.bincount(edges.ravel(), minlength=len(alive)) < k)
        if not weak.any():
            break
        alive &= ~weak
    kept = np.flatnonzero(alive)
    new = np.full(len(alive), -1, np.int32)
    new[kept] = np.arange(len(kept))
    parts = {}
    for part in SPLITS:
        triples = getattr(graph, part)
        inside = triples[alive[triples[:, [0, 2]]].all(axis=1)]
        if not len(inside):
            raise ValueError(f"{graph.name}-core{k}: no triple of {part} is left: choose a lower core number")
        parts[part] = np.stack([new[inside[:, 0]], inside[:, 1], new[inside[:, 2]]], axis=1)
    rows = graph.embeddings
    if rows is not None:
        rows = rows[kept]
        rows = rows if np.all(np.any(rows, axis=1)) else None
    texts = [graph.texts[i] for i in kept]
    notes = [
        f"{graph.name}-core{k}: {len(kept)} of {len(alive)} entities, those of core number {k} and more."
    ]
    entities = [graph.entities[i] for i in kept]
    return Graph(
        f"{graph.name}-core{k}", entities, graph.relations, **parts, texts=texts, embeddings=rows, notes=notes
    )


def _id(
    ids: dict[str, int], name: str, listed: dict[str, str] | None, where: str, kind: str, file: str
) -> int:
    if listed is not None and name not in ids:
        raise ValueError(f"{where}: {kind} {name!r} is not in {file}.tsv: add it there or remove the line")
    return ids.setdefault(name, len(ids))


def _file(folder: Path, stem: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()), None)


def _names(folder: Path, stems: tuple[str, ...]) -> dict[str, str] | None:
    """Texts by identifier, in the order of the first of the files that is there."""
    path = next((path for stem in stems if (path := _file(folder, stem))), None)
    if path is None:
        return None
    texts: dict[str, str] = {}
    for where, line in numbered_lines(path):
        identifier, _, text = line.partition("\t")
        if not identifier.strip():
            raise ValueError(f"{where}: expected an identifier, a tab and a text, got {line[:60]!r}")
        if identifier in texts:
            raise ValueError(f"{where}: {identifier!r} occurs twice: remove one of the lines")
        texts[identifier] = text.strip()
    return texts


def _stored(folder: Path, entities: int) -> np.ndarray | None:
    """Unit embeddings of all entities; rows of zeros where the file has only some."""
    path = next((folder / name for name in STORED if (folder / name).is_file()), None)
    if path is None:
        return None
    remedy = "embed the texts again, in the order of the entities, or remove the file"
    arrays = load_npz(path)
    name = next((name for name in ("name", "emb", "long64") if name in arrays), None)
    if name is None:
        raise ValueError(f"{path}: expected an array name, emb or long64, got {', '.join(arrays)}: {remedy}")
    rows, index = arrays[name].astype(np.float32), arrays.get("entity_index", np.arange(entities))
    if rows.ndim != 2 or len(rows) != len(index) or (len(index) and index.max() >= entities):
        raise ValueError(
            f"{path}: array {name!r}: expected a row for each of {entities} entities, got "
            f"{rows.shape}: {remedy}"
        )
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    full = np.zeros((entities, rows.shape[1]), np.float32)
    full[index] = rows / np.where(norm > 0, norm, 1)
    return full
