"""Networks and collections of graphs in the formats that papers use.

A network has a name that says where it comes from:

- ``pubmed``: of the file ``w2pgnn/graphs.npz`` in the data folder, which holds ``{name}_n``, ``{name}_edges``
  and perhaps ``{name}_y``; the networks of `EMBEDDED` lie beside this module, too.
- ``edges:PATH``: an edge list as SNAP, GCC and struc2vec have them, two numbers a line; perhaps with labels
  beside it (`read_edge_list`).
- ``tu:FOLDER``: a collection of labelled graphs in the text format of the TU data sets (`read_tu`).
- ``smiles:FILE`` or ``smiles:FILE#2``: molecules, all or those of one scaffold domain
  (`experiments.w2pgnn.molecules`).

Paths may be relative to ``w2pgnn`` in the data folder. All are undirected: a directed list is read as
undirected, and loops and repeated edges are left out and counted.
"""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from experiments.npz import load_npz
from experiments.text_lines import numbered_lines

DATA = Path(os.environ.get("JAXNEG_DATA", Path(__file__).parents[3] / "shared" / "data"))
FILE = DATA / "w2pgnn" / "graphs.npz"
TINY = Path(__file__).parent / "tiny" / "networks.npz"
EMBEDDED = ("usa_airport", "europe_airport", "brazil_airport", "facebook_ego348")


@dataclass(frozen=True)
class Network:
    """An undirected network, or a collection of graphs as one network in pieces."""

    name: str
    n: int
    """Number of nodes."""
    edges: np.ndarray
    """``[m, 2]``, each once with the smaller node first."""
    labels: np.ndarray | None = None
    """Of nodes, ``[n]``; of the graphs of a collection, ``[graphs]``."""
    graph: np.ndarray | None = None
    """Of a collection: the number of each node's graph, ascending, ``[n]``."""
    notes: tuple[str, ...] = field(default=())
    """What was left out."""

    @cached_property
    def neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """``start [n + 1]`` and ``others [2 m]``; i's neighbours are ``others[start[i]:start[i + 1]]``."""
        both = np.concatenate([self.edges, self.edges[:, ::-1]])
        both = both[np.lexsort((both[:, 1], both[:, 0]))]
        degree = np.bincount(both[:, 0], minlength=self.n)
        return np.concatenate([[0], np.cumsum(degree)]), both[:, 1].copy()

    @property
    def degree(self) -> np.ndarray:
        """Of each node."""
        return np.diff(self.neighbours[0])

    def subgraphs(self, nodes: np.ndarray) -> np.ndarray:
        """Adjacencies between chosen nodes.

        Args:
            nodes: ``[..., k]``, -1 where there is none.

        Returns:
            uint8 ``[..., k, k]``.
        """
        _, others = self.neighbours
        codes = np.repeat(np.arange(self.n), self.degree) * self.n + others  # ascending
        if not len(codes):
            return np.zeros((*nodes.shape, nodes.shape[-1]), np.uint8)
        wanted = nodes[..., :, None].astype(np.int64) * self.n + nodes[..., None, :]
        place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        real = nodes >= 0
        return ((codes[place] == wanted) & real[..., :, None] & real[..., None, :]).astype(np.uint8)


def simple_edges(pairs: np.ndarray, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Undirected edges without loops and without repetitions.

    Args:
        pairs: ``[m, 2]``.
        where: the file, for the notes.

    Returns:
        The edges, each once with the smaller node first, in ascending order; and what was left out.
    """
    ends = np.sort(np.asarray(pairs, np.int64).reshape(-1, 2), 1)
    loops = ends[:, 0] == ends[:, 1]
    edges = np.unique(ends[~loops], axis=0)
    notes = []
    if loops.any():
        notes.append(f"{where}: {int(loops.sum())} loops were left out.")
    if repeated := len(ends) - int(loops.sum()) - len(edges):
        notes.append(
            f"{where}: {repeated} edges that repeat another, perhaps in the other direction, were left out."
        )
    return edges, tuple(notes)


def load_network(name: str, file: Path | None = None) -> Network:
    """Finds and reads a network.

    Args:
        name: as the module's docstring says.
        file: of the named networks; by default ``graphs.npz`` of the data folder, or the embedded file where
            there is none.

    Returns:
        The network.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such network, or its file cannot be used. The message names file and remedy.
    """
    kind, colon, rest = name.partition(":")
    if colon:
        if kind == "edges":
            return read_edge_list(_found(rest))
        if kind == "tu":
            return read_tu(_found(rest))
        if kind == "smiles":
            from experiments.w2pgnn.molecules import read_smiles

            path, _, domain = rest.partition("#")
            return read_smiles(_found(path), int(domain) if domain else None)
        raise ValueError(
            f"network {name!r}: expected edges:PATH, tu:FOLDER, smiles:FILE or a name, got {kind}:"
        )
    file = file or (FILE if FILE.is_file() else TINY)
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no file {file}: set JAXNEG_DATA to the folder that holds w2pgnn/graphs.npz"
        )
    return _named(name, file)


def _found(path: str) -> Path:
    """The path itself, or below the data folder if it is only there."""
    below = DATA / "w2pgnn" / path
    return below if below.exists() and not Path(path).exists() else Path(path)


def _named(name: str, file: Path) -> Network:
    arrays = load_npz(file)
    for key in (f"{name}_n", f"{name}_edges"):
        if key not in arrays:
            known = sorted(k.removesuffix("_edges") for k in arrays if k.endswith("_edges"))
            raise ValueError(
                f"{file}: there is no array {key!r}: expected one of the networks {', '.join(known)}, or "
                "edges:PATH, tu:FOLDER or smiles:FILE"
            )
    pairs, n = arrays[f"{name}_edges"].astype(np.int64), int(arrays[f"{name}_n"])
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
        raise ValueError(
            f"{file}: {name}_edges: expected [edges, 2] with at least one edge, got {pairs.shape}"
        )
    if pairs.min() < 0 or pairs.max() >= n:
        raise ValueError(f"{file}: {name}_edges: expected nodes from 0 to {n - 1}, got {pairs.max()}")
    labels = arrays.get(f"{name}_y")
    if labels is not None and labels.shape != (n,):
        raise ValueError(f"{file}: {name}_y: expected a label for each of {n} nodes, got {labels.shape}")
    edges, notes = simple_edges(pairs, f"{file.name}, {name}")
    return Network(name, n, edges, None if labels is None else labels.astype(np.int64), notes=notes)


def read_edge_list(path: Path) -> Network:
    """Reads an edge list, and labels if they lie beside it.

    Two node numbers a line, between blanks, tabs or a comma; lines that begin with # or % are comments.
    Labels are read from ``NAME.nodelabel`` (as GCC has them) or ``labels-NAME.txt`` (struc2vec): a node and
    its label a line, after a heading or without.

    Args:
        path: the edge list, ``.gz`` or not.

    Returns:
        The network; nodes are numbered as they appear.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that cannot be used; the message names file, line and remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no edge list {path}, nor below {DATA / 'w2pgnn'}: expected a file with two node"
            " numbers a line; set JAXNEG_DATA to the folder that holds w2pgnn"
        )
    ids: dict[int, int] = {}
    pairs = []
    for where, line in numbered_lines(path):
        if line.lstrip().startswith(("#", "%")):
            continue
        # What follows the two ends is a weight or a time, which is not used.
        ends = _integers(line, where, "two node numbers", least=2)[:2]
        pairs.append([ids.setdefault(end, len(ids)) for end in ends])
    if not pairs:
        raise ValueError(f"{path}: no edge: expected two node numbers a line")
    edges, notes = simple_edges(np.array(pairs), path.name)
    if not len(edges):
        raise ValueError(f"{path}: all edges are loops: expected some between different nodes")
    stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
    beside = (path.with_name(f"{stem}.nodelabel"), path.with_name(f"labels-{stem}.txt"))
    found = next((file for file in beside if file.is_file()), None)
    labels = None if found is None else _labels(found, ids, path)
    return Network(stem, len(ids), edges, labels, notes=notes)


def _labels(file: Path, ids: dict[int, int], edges: Path) -> np.ndarray:
    labels = np.full(len(ids), -1, np.int64)
    for number, (where, line) in enumerate(numbered_lines(file)):
        if number == 0 and not line.split()[0].lstrip("-").isdigit():
            continue  # a heading
        node, label = _integers(line, where, "a node and its label", least=2)[:2]
        if node not in ids:
            raise ValueError(f"{where}: node {node} has a label and no edge in {edges.name}: remove the line")
        labels[ids[node]] = label
    if (missing := np.flatnonzero(labels < 0)).size:
        node = list(ids)[missing[0]]
        raise ValueError(
            f"{file}: node {node} of {edges.name} has no label (a number from 0 on): add its line"
        )
    return np.unique(labels, return_inverse=True)[1]


def read_tu(folder: Path) -> Network:
    """Reads a collection of graphs in the text format of the TU data sets (Morris et al. 2020,
    arXiv:2007.08663).

    The folder ``DS`` holds ``DS_A.txt`` (the ends of an edge a line, with a comma, nodes counted from 1
    through the whole collection), ``DS_graph_indicator.txt`` (each node's graph) and
    ``DS_graph_labels.txt`` (each graph's class). Other files of the format are not needed.

    Args:
        folder: of the collection.

    Returns:
        The collection; classes are numbered in ascending order.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line that cannot be used; the message names file, line and remedy.
    """

    def file(part: str) -> Path:
        path = folder / f"{folder.name}_{part}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}: unpack the TU data set {folder.name} there")
        return path

    def column(part: str, what: str) -> np.ndarray:
        values = [_integers(line, where, what, least=1)[0] for where, line in numbered_lines(file(part))]
        if not values:
            raise ValueError(f"{file(part)}: no line: expected {what} a line")
        return np.array(values)

    graph, classes = column("graph_indicator", "a graph's number"), column("graph_labels", "a graph's class")
    if (np.diff(graph) < 0).any():
        line = int(np.flatnonzero(np.diff(graph) < 0)[0]) + 2
        raise ValueError(
            f"{file('graph_indicator')}, line {line}: expected ascending numbers: sort the nodes by graph"
        )
    if graph[0] < 1 or graph[-1] > len(classes):
        raise ValueError(
            f"{file('graph_indicator')}: expected graphs from 1 to {len(classes)}, as many as "
            f"{file('graph_labels').name} has lines, got {graph[0]} to {graph[-1]}"
        )
    pairs = []
    for where, line in numbered_lines(file("A")):
        i, j = _integers(line, where, "two node numbers", least=2)[:2]
        if not (min(i, j) >= 1 and max(i, j) <= len(graph)):
            raise ValueError(f"{where}: expected nodes from 1 to {len(graph)}, got {i} and {j}")
        if graph[i - 1] != graph[j - 1]:
            raise ValueError(
                f"{where}: nodes {i} and {j} are of different graphs, {graph[i - 1]} and {graph[j - 1]}: "
                f"one of {file('A').name} and {file('graph_indicator').name} is of another version"
            )
        pairs.append([i - 1, j - 1])
    edges, notes = simple_edges(np.array(pairs, np.int64), file("A").name)
    # Every edge of the format stands there in both directions: that is no defect.
    notes = tuple(note for note in notes if "loops" in note or len(pairs) != 2 * len(edges))
    labels = np.unique(classes, return_inverse=True)[1]
    return Network(folder.name, len(graph), edges, labels, graph - 1, notes)


def _integers(line: str, where: str, what: str, least: int) -> list[int]:
    cells = line.replace(",", " ").split()
    try:
        numbers = [int(cell) for cell in cells[:least]]
    except ValueError:
        numbers = []
    if len(numbers) < least:
        raise ValueError(f"{where}: expected {what}, got {line[:60]!r}: mend the line or remove it")
    return numbers
