"""Bases of graphons: few graphons that stand for the graphs of all pre-training domains.

Cao et al. 2023 (W2PGNN, arXiv:2303.16458): one of all graphs (integr), one of each domain (domain), one of
each cluster of like topology (topo).
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.graphs.alignment import Padding, align_graphs
from jaxneg.graphs.arguments import at_least, one_of
from jaxneg.graphs.graph_batch import GraphBatch
from jaxneg.graphs.graphon import estimate_graphon
from jaxneg.graphs.topology import has_edges, topology_features

Basis = Literal["integr", "domain", "topo"]
BASES = ("integr", "domain", "topo")

Graphs = GraphBatch | tuple[np.ndarray, np.ndarray]
"""Adjacency matrices and numbers of nodes."""


def graphon_of(
    graphs: Graphs, resolution: int = 32, *, method: str = "sas", pad: Padding = "zero", **settings: Any
) -> Float[Array, "r r"]:
    """The graphon of a collection of graphs: aligned, estimated, resized.

    Args:
      graphs: The collection.
      resolution: Side of the result; the published code takes 1000, where 32 to 64 give the same order.
      method: Of :func:`estimate_graphon`.
      pad: Of :func:`align_graphs`.
      **settings: Further ones of :func:`estimate_graphon`.

    Returns:
      Probabilities.

    Raises:
      ValueError: No graph, or what the two functions say.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import graphon_of, stack_graphs
      >>> graphon_of(stack_graphs([np.ones((4, 4))]), 2).tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    adj, n_nodes = selected(graphs)
    aligned, _ = align_graphs(adj, n_nodes, pad=pad)
    counts = n_nodes if pad == "zero" else np.full_like(n_nodes, adj.shape[1])
    return estimate_graphon(aligned, counts, method, resolution=resolution, **settings)


def graphon_basis(
    domains: Sequence[Graphs],
    basis: Basis = "topo",
    *,
    resolution: int = 32,
    key: PRNGKeyArray | None = None,
    clusters: int = 5,
    standardize: bool = True,
    **settings: Any,
) -> Float[Array, "bases r r"]:
    """The graphons of a basis.

    Args:
      domains: The pre-training collections.
      basis: "integr": one graphon of all graphs; "domain": one of each domain; "topo": one of each cluster of
        :func:`topology_features`, graphs without edges left out.
      resolution: Of the graphons.
      key: Of the clustering; ``jax.random.key(0)`` by default.
      clusters: Of "topo"; fewer if there are fewer different graphs.
      standardize: Of :func:`topology_clusters`.
      **settings: Further ones of :func:`graphon_of`.

    Returns:
      Graphons of equal resolution.

    Raises:
      ValueError: No domain, an unknown basis, no graph with edges for "topo".

    Source:
      Cao et al. 2023, published code.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import graphon_basis, stack_graphs
      >>> domain = stack_graphs([1 - np.eye(4)])
      >>> graphon_basis([domain, domain], "domain", resolution=2).shape
      (2, 2, 2)
    """
    one_of("basis", basis, BASES)
    merged = merge_graphs(domains)
    if basis == "integr":
        collections = [merged]
    elif basis == "domain":
        collections = list(domains)
    else:
        labels = topology_clusters(merged, clusters, key=key, standardize=standardize)
        collections = [selected(merged, np.flatnonzero(labels == label)) for label in range(labels.max() + 1)]
    return jnp.stack([graphon_of(graphs, resolution, **settings) for graphs in collections])


def topology_clusters(
    graphs: Graphs,
    clusters: int = 5,
    *,
    key: PRNGKeyArray | None = None,
    standardize: bool = True,
    restarts: int = 10,
) -> Int[np.ndarray, " graphs"]:
    """Clusters graphs by their topological features with k-means.

    Args:
      graphs: The collection.
      clusters: Their number; fewer if there are fewer different rows of features.
      key: Of the first centres; ``jax.random.key(0)`` by default.
      standardize: Whether each feature is scaled to mean 0 and deviation 1 first. The published code does
        not: distances are then mostly those of the mean degree.
      restarts: The clustering of least inertia of so many counts.

    Returns:
      A label from 0 for each graph, every label in use; -1 for graphs without edges.

    Raises:
      ValueError: No graph has edges, or a number below 1.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import stack_graphs, topology_clusters
      >>> path, full = np.eye(4, k=1) + np.eye(4, k=-1), 1 - np.eye(4)
      >>> labels = topology_clusters(stack_graphs([path, full, path, np.zeros((2, 2))]), 2)
      >>> bool(labels[0] == labels[2] != labels[1]), int(labels[3])
      (True, -1)
    """
    at_least("clusters", clusters, 1)
    at_least("restarts", restarts, 1)
    adj, n_nodes = (np.asarray(part) for part in graphs)
    there = np.flatnonzero(has_edges(adj, n_nodes) & (n_nodes > 0))
    if there.size == 0:
        raise ValueError("graphs: expected at least one with edges, got none")
    features = topology_features(adj[there], n_nodes[there])
    if standardize:
        spread = features.std(0)
        features = (features - features.mean(0)) / np.where(spread > 0, spread, 1)
    key = jax.random.key(0) if key is None else key
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    clusters = min(clusters, len(np.unique(features, axis=0)))
    labels = min((_kmeans(rng, features, clusters) for _ in range(restarts)), key=lambda found: found[1])[0]
    result = np.full(len(adj), -1)
    result[there] = np.unique(labels, return_inverse=True)[1]
    return result


def merge_graphs(collections: Sequence[Graphs]) -> GraphBatch:
    """Several collections as one, padded to the largest graph.

    Args:
      collections: At least one.

    Returns:
      All graphs, in order.

    Raises:
      ValueError: No collection, or one whose arrays do not fit.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import merge_graphs, stack_graphs
      >>> merge_graphs([stack_graphs([np.ones((2, 2))]), stack_graphs([np.ones((3, 3))])]).n_nodes.tolist()
      [2, 3]
    """
    if len(collections) == 0:
        raise ValueError("domains: expected at least one collection of graphs, got none")
    parts = [selected(graphs) for graphs in collections]
    nodes = max(part.adj.shape[1] for part in parts)
    padded = [np.pad(part.adj, ((0, 0), *((0, nodes - part.adj.shape[1]),) * 2)) for part in parts]
    return GraphBatch(np.concatenate(padded), np.concatenate([part.n_nodes for part in parts]))


def selected(graphs: Graphs, rows: np.ndarray | None = None) -> GraphBatch:
    """Some graphs of a collection, the padding cut back to their largest.

    Args:
      graphs: The collection.
      rows: Which; all of at least one node by default.

    Returns:
      The graphs.

    Raises:
      ValueError: None is left, or shapes do not fit.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import stack_graphs
      >>> selected(stack_graphs([np.ones((2, 2)), np.ones((3, 3))]), np.array([0])).adj.shape
      (1, 2, 2)
    """
    adj, n_nodes = (np.asarray(part) for part in graphs)
    if adj.ndim != 3 or adj.shape[1] != adj.shape[2] or n_nodes.shape != adj.shape[:1]:
        raise ValueError(
            "graphs: expected adjacencies [graphs, nodes, nodes] and a number of nodes for each, got shapes"
            f" {adj.shape} and {n_nodes.shape}"
        )
    rows = np.flatnonzero(n_nodes > 0) if rows is None else rows
    if len(rows) == 0:
        raise ValueError("graphs: expected at least one graph, got none")
    nodes = int(n_nodes[rows].max())
    return GraphBatch(adj[rows, :nodes, :nodes], n_nodes[rows].astype(np.int32))


def _kmeans(rng: np.random.Generator, x: np.ndarray, clusters: int) -> tuple[np.ndarray, float]:
    """Labels and inertia of Lloyd's iterations from centres that lie far apart (k-means++)."""
    centers = x[rng.integers(len(x))][None]
    while len(centers) < clusters:
        nearest = np.square(x[:, None] - centers).sum(-1).min(1)
        centers = np.concatenate([centers, x[rng.choice(len(x), p=nearest / nearest.sum())][None]])
    labels = np.full(len(x), -1)
    while True:
        distances = np.square(x[:, None] - centers).sum(-1)
        new = distances.argmin(1)
        if np.array_equal(new, labels):
            return labels, float(distances.min(1).sum())
        labels = new
        centers = np.stack(
            [x[labels == j].mean(0) if np.any(labels == j) else center for j, center in enumerate(centers)]
        )
