"""Graphs of different sizes as one array: dense adjacencies, padded with zeros to the largest.

Every function of this room takes graphs in this form. Edge lists come in here, and what is wrong with them
is said here.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxneg.graphs.arguments import one_of


class GraphBatch(NamedTuple):
    """Graphs, padded to the same number of nodes.

    Attributes:
      adj: Adjacency matrices; rows and columns from a graph's number of nodes on are zero.
      n_nodes: Number of nodes of each graph; 0 marks a graph that only fills the batch up.
    """

    adj: Float[np.ndarray, "graphs nodes nodes"]
    n_nodes: Int[np.ndarray, " graphs"]


def graphs_from_edges(
    edges: Sequence[np.ndarray | Sequence[tuple[int, int]]],
    n_nodes: Sequence[int] | None = None,
    *,
    directed: bool = False,
    self_loops: Literal["drop", "error"] = "drop",
) -> GraphBatch:
    """Graphs from their edge lists.

    Undirected graphs may list an edge once, in either direction, or twice: ``A_uv = A_vu = 1``. A directed
    edge list thus becomes the undirected graph under it. An edge that is listed several times counts once.

    Args:
      edges: For each graph rows ``(u, v)`` of node numbers from 0; no row for a graph without edges.
      n_nodes: Number of nodes of each graph. Without it the largest number that has an edge is the last
        node, so that isolated nodes behind it are not seen.
      directed: Keeps the direction: ``A_uv = 1`` alone.
      self_loops: "drop": an edge from a node to itself is left out, as simple graphs have none; "error".

    Returns:
      Adjacencies in float32, padded to the largest graph, and numbers of nodes.

    Raises:
      ValueError: No graph, a graph without nodes, a node number out of range, a self loop where that is an
        error, or rows that are not pairs. The message names graph and edge.
      TypeError: Node numbers that are no integers.

    Example:
      >>> from jaxneg.graphs import graphs_from_edges
      >>> graphs_from_edges([[(0, 1), (1, 0), (2, 2)]]).adj[0].astype(int).tolist()
      [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    """
    one_of("self_loops", self_loops, ("drop", "error"))
    if len(edges) == 0:
        raise ValueError("edges: expected at least one graph, got none")
    if n_nodes is not None and len(n_nodes) != len(edges):
        raise ValueError(f"n_nodes: expected one for each of {len(edges)} graphs, got {len(n_nodes)}")
    lists = [_checked_edges(graph, rows) for graph, rows in enumerate(edges)]
    counts = np.array(
        [
            _checked_count(graph, rows, None if n_nodes is None else int(n_nodes[graph]))
            for graph, rows in enumerate(lists)
        ],
        np.int32,
    )
    adj = np.zeros((len(lists), counts.max(), counts.max()), np.float32)
    for graph, rows in enumerate(lists):
        loops = np.flatnonzero(rows[:, 0] == rows[:, 1])
        if loops.size and self_loops == "error":
            raise ValueError(
                f"edges: graph {graph}, edge {loops[0]}: expected two different nodes, got node"
                f" {rows[loops[0], 0]} twice; self_loops='drop' leaves such edges out"
            )
        rows = np.delete(rows, loops, axis=0)
        adj[graph, rows[:, 0], rows[:, 1]] = 1
        if not directed:
            adj[graph, rows[:, 1], rows[:, 0]] = 1
    return GraphBatch(adj, counts)


def stack_graphs(adjacencies: Sequence[np.ndarray]) -> GraphBatch:
    """Graphs from adjacency matrices of different sizes.

    Args:
      adjacencies: Square matrices, weights allowed.

    Returns:
      The same, padded with zeros to the largest, and their sizes.

    Raises:
      ValueError: No graph, a graph without nodes, or a matrix that is not square or not finite. The message
        names the graph.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import stack_graphs
      >>> stack_graphs([np.ones((2, 2)), np.ones((3, 3))]).n_nodes.tolist()
      [2, 3]
    """
    if len(adjacencies) == 0:
        raise ValueError("adjacencies: expected at least one graph, got none")
    matrices = [np.asarray(matrix) for matrix in adjacencies]
    for graph, matrix in enumerate(matrices):
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
            raise ValueError(
                f"adjacencies: graph {graph}: expected [n, n] with at least one node, got {matrix.shape}"
            )
        if not np.all(np.isfinite(matrix)):
            raise ValueError(f"adjacencies: graph {graph}: expected finite numbers")
    counts = np.array([len(matrix) for matrix in matrices], np.int32)
    dtype = np.result_type(np.float32, *(m.dtype for m in matrices if np.issubdtype(m.dtype, np.floating)))
    adj = np.zeros((len(matrices), counts.max(), counts.max()), dtype)
    for graph, matrix in enumerate(matrices):
        adj[graph, : len(matrix), : len(matrix)] = matrix
    return GraphBatch(adj, counts)


def _checked_edges(graph: int, rows: np.ndarray | Sequence[tuple[int, int]]) -> np.ndarray:
    array = np.asarray(rows)
    if array.size == 0:
        return np.zeros((0, 2), np.int64)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"edges: graph {graph}: expected rows (u, v), got shape {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"edges: graph {graph}: expected integer node numbers, got {array.dtype}")
    return array.astype(np.int64)


def _checked_count(graph: int, rows: np.ndarray, count: int | None) -> int:
    if count is None and len(rows) == 0:
        raise ValueError(
            f"edges: graph {graph} has no edges: give n_nodes to say how many nodes it has, or leave it out"
        )
    found = int(rows.max()) + 1 if count is None else count
    if found < 1:
        raise ValueError(f"n_nodes: graph {graph}: expected at least one node, got {found}; leave it out")
    wrong = np.flatnonzero(((rows < 0) | (rows >= found)).any(axis=1))
    if wrong.size:
        u, v = rows[wrong[0]]
        raise ValueError(
            f"edges: graph {graph}, edge {wrong[0]}: expected nodes from 0 to {found - 1}, got ({u}, {v})"
        )
    return found
