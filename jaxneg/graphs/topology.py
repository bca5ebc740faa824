"""Numbers that describe a graph: degrees, closeness, clustering, betweenness, Laplacian spectrum.
spectrum.

All on the host in float64, by products of dense matrices; the values are those of networkx. Cao et al. 2023
(W2PGNN, arXiv:2303.16458) cluster graphs by eight of them.
"""

import numpy as np
from jaxtyping import Float

from jaxneg.graphs.arguments import at_least

FEATURES = (
    "mean degree",
    "standard deviation of degree",
    "density",
    "mean closeness centrality",
    "degree Pearson coefficient",
    "degree assortativity",
    "transitivity",
    "average clustering",
)
"""What the entries of `topology_features` are, in order."""


def topology_features(
    adj: Float[np.ndarray, "*batch nodes nodes"], n: int | np.ndarray | None = None
) -> Float[np.ndarray, "*batch 8"]:
    """Eight numbers of an undirected graph, named in `FEATURES`.

    Closeness is scaled by the share of the nodes that can be reached (Wasserman and Faust). The Pearson
    coefficient of the degrees at the ends of an edge, and assortativity, the same number, are 0 where all
    degrees are equal; all eight are 0, or finite limits, for a graph without edges.

    Args:
      adj: Adjacency matrices; what is not 0 is an edge. What lies beyond ``n`` is not read.
      n: Number of nodes of each graph; all of them by default.

    Returns:
      The features in float64.

    Raises:
      ValueError: No square matrix, one that is not symmetric, a loop, or ``n`` out of range.

    Source:
      Cao et al. 2023, published code, which calls networkx.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import topology_features
      >>> topology_features(1 - np.eye(4))[[0, 2, 6]].tolist()
      [3.0, 1.0, 1.0]
    """
    return _over_batch(_features, adj, n)


def mean_betweenness(
    adj: Float[np.ndarray, "*batch nodes nodes"], n: int | np.ndarray | None = None
) -> Float[np.ndarray, "*batch"]:
    """The mean over nodes of betweenness centrality, scaled by the number of pairs.

    Shortest paths are counted from all nodes at once, level by level, and dependencies summed on the way
    back.

    Args:
      adj: As in :func:`topology_features`.
      n: Likewise.

    Returns:
      One number for each graph; 0 for fewer than three nodes.

    Raises:
      ValueError: As :func:`topology_features`.

    Source:
      Brandes 2001, in matrices.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import mean_betweenness
      >>> path = np.eye(3, k=1) + np.eye(3, k=-1)
      >>> round(float(mean_betweenness(path)), 4)
      0.3333
    """
    return _over_batch(lambda a: betweenness(a).mean(), adj, n)


def betweenness(adj: Float[np.ndarray, "nodes nodes"]) -> Float[np.ndarray, " nodes"]:
    """Betweenness centrality of each node of an undirected graph: the share of shortest paths through it.

    Args:
      adj: As in :func:`topology_features`.

    Returns:
      One number for each node.

    Raises:
      ValueError: As :func:`topology_features`.

    Source:
      Brandes 2001, in matrices.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import betweenness
      >>> betweenness(np.eye(3, k=1) + np.eye(3, k=-1)).tolist()
      [0.0, 1.0, 0.0]
    """
    a = _edges(adj, None)
    nodes = len(a)
    if nodes < 3:
        return np.zeros(nodes)
    paths, levels = np.eye(nodes), [np.eye(nodes, dtype=bool)]
    seen = levels[0]
    while levels[-1].any():
        found = np.where(seen, 0, np.where(levels[-1], paths, 0) @ a)
        paths = paths + found
        levels.append(found > 0)
        seen = seen | levels[-1]
    dependency = np.zeros_like(paths)
    for near, far in zip(levels[-2:0:-1], levels[:1:-1], strict=True):
        share = np.where(far, (1 + dependency) / np.where(far, paths, 1), 0)
        dependency = dependency + np.where(near, paths * (share @ a), 0)
    return dependency.sum(0) / ((nodes - 1) * (nodes - 2))


def laplacian_spectrum(
    adj: Float[np.ndarray, "nodes nodes"], n: int | None = None
) -> Float[np.ndarray, " n"]:
    """The eigenvalues of the normalised Laplacian, from 0 to 2, ascending.

    ``L = D^(-1/2) (D - A) D^(-1/2)``; a node without an edge has a row of zeros.

    Args:
      adj: As in :func:`topology_features`.
      n: Number of nodes; all by default.

    Returns:
      One eigenvalue for each node.

    Raises:
      ValueError: As :func:`topology_features`.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import laplacian_spectrum
      >>> laplacian_spectrum(1 - np.eye(2)).round(6).tolist()
      [0.0, 2.0]
    """
    a = _edges(adj, n)
    degree = a.sum(1)
    root = np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0)
    laplacian = np.diag((degree > 0).astype(float)) - root[:, None] * a * root
    return np.clip(np.linalg.eigvalsh(laplacian), 0, 2)


def laplacian_histogram(
    adj: Float[np.ndarray, "*batch nodes nodes"], n: int | np.ndarray | None = None, *, bins: int = 20
) -> Float[np.ndarray, "*batch bins"]:
    """The shares of the normalised Laplacian's eigenvalues in equal parts of [0, 2].

    Args:
      adj: As in :func:`topology_features`.
      n: Likewise.
      bins: Number of parts.

    Returns:
      Shares, of sum 1.

    Raises:
      ValueError: As :func:`topology_features`, or ``bins`` below 1.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import laplacian_histogram
      >>> laplacian_histogram(1 - np.eye(2), bins=4).tolist()
      [0.5, 0.0, 0.0, 0.5]
    """
    at_least("bins", bins, 1)

    def shares(a: np.ndarray) -> np.ndarray:
        # Many eigenvalues lie on a border, 1 above all: rounding must not scatter them.
        values = laplacian_spectrum(a).round(9)
        return np.histogram(values, bins, (0, 2))[0] / len(values)

    return _over_batch(shares, adj, n)


def has_edges(adj: Float[np.ndarray, "graphs nodes nodes"], n: np.ndarray | None = None) -> np.ndarray:
    """Which graphs of a batch have an edge.

    Args:
      adj: Adjacency matrices.
      n: Number of nodes of each; all by default.

    Returns:
      A truth value for each graph.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs.topology import has_edges
      >>> has_edges(np.stack([np.zeros((2, 2)), 1 - np.eye(2)])).tolist()
      [False, True]
    """
    adj = np.asarray(adj)
    counts = np.full(len(adj), adj.shape[1]) if n is None else np.asarray(n)
    return np.array([np.any(a[:count, :count]) for a, count in zip(adj, counts, strict=True)], bool)


def _features(adj: np.ndarray) -> np.ndarray:
    a = _edges(adj, None)
    nodes, degree = len(a), a.sum(1)
    edges = degree.sum()  # each counted twice
    density = edges / (nodes * (nodes - 1)) if nodes > 1 else 0.0
    steps = _distances(a)
    reached = (steps > 0).sum(1)
    far = steps.sum(1)
    closeness = np.where(far > 0, reached / np.where(far > 0, far, 1), 0) * reached / max(nodes - 1, 1)
    # Over both directions of every edge the two ends have one distribution of degrees.
    mean = (degree**2).sum() / edges if edges else 0.0
    variance = (degree * (degree - mean) ** 2).sum()
    centred = degree - mean
    pearson = centred @ a @ centred / variance if variance > 1e-12 * max(edges, 1) else 0.0
    triangles = np.einsum("ij,ij->i", a @ a, a)  # twice those at each node
    wedges = degree * (degree - 1)
    transitivity = triangles.sum() / wedges.sum() if wedges.sum() else 0.0
    clustering = np.where(wedges > 0, triangles / np.where(wedges > 0, wedges, 1), 0).mean()
    return np.array(
        [
            degree.mean(),
            degree.std(),
            density,
            closeness.mean(),
            pearson,
            pearson,
            transitivity,
            clustering,
        ]
    )


def _distances(a: np.ndarray) -> np.ndarray:
    """Edges between all pairs of nodes on the shortest way; 0 where there is none."""
    single = a.astype(np.float32)  # counts of nodes are exact in it
    seen = np.eye(len(a), dtype=bool)
    front, steps, length = seen, np.zeros(a.shape), 0
    while front.any():
        length += 1
        front = (front.astype(np.float32) @ single > 0) & ~seen
        steps[front] = length
        seen = seen | front
    return steps


def _edges(adj: np.ndarray, n: int | None) -> np.ndarray:
    """The graph as zeros and ones in float64, checked."""
    adj = np.asarray(adj)
    if adj.ndim != 2 or adj.shape[0] != adj.shape[1]:
        raise ValueError(f"adj: expected [nodes, nodes], got shape {adj.shape}")
    count = len(adj) if n is None else int(n)
    if not 1 <= count <= len(adj):
        raise ValueError(f"n: expected from 1 to {len(adj)} nodes, got {count}")
    a = (adj[:count, :count] != 0).astype(np.float64)
    if not np.array_equal(a, a.T):
        u, v = np.argwhere(a != a.T)[0]
        raise ValueError(
            f"adj: expected an undirected graph, got an edge between {u} and {v} in one direction; take"
            " np.maximum(adj, adj.T)"
        )
    if np.diagonal(a).any():
        node = np.flatnonzero(np.diagonal(a))[0]
        raise ValueError(f"adj: expected no loops, got one at node {node}")
    return a


def _over_batch(function, adj: np.ndarray, n: int | np.ndarray | None) -> np.ndarray:
    """Calls a function of one graph, cut to its size, for each of a batch."""
    adj = np.asarray(adj)
    if adj.ndim < 2 or adj.shape[-1] != adj.shape[-2]:
        raise ValueError(f"adj: expected [nodes, nodes] or a batch of them, got shape {adj.shape}")
    batch, nodes = adj.shape[:-2], adj.shape[-1]
    counts = np.broadcast_to(nodes if n is None else np.asarray(n), batch)
    flat = adj.reshape(-1, nodes, nodes)
    for count in counts.ravel():
        if not 1 <= count <= nodes:
            raise ValueError(f"n: expected from 1 to {nodes} nodes, got {count}")
    found = [function(graph[:count, :count]) for graph, count in zip(flat, counts.ravel(), strict=True)]
    return np.asarray(found, np.float64).reshape(batch + (np.shape(found[0]) if found else ()))
