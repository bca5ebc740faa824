"""What feasibility is compared with: scores from graph statistics, Laplacian spectra, and the EGI gap.

The baselines of Cao et al. 2023 (W2PGNN, arXiv:2303.16458); the gap is that of Zhu et al. 2021 (Transfer
Learning of Graph Neural Networks with Ego-graph Information Maximization, arXiv:2009.05204). Every score is
a negated distance: larger is nearer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from jaxneg.graphs.arguments import at_least
from jaxneg.graphs.bases import Graphs, selected
from jaxneg.graphs.topology import laplacian_histogram, mean_betweenness, topology_features

BASELINES = ("graph statistics", "density", "clustering coefficient", "betweenness", "Laplacian spectrum")


class GraphStatistics(NamedTuple):
    """Means over the graphs of a collection.

    Attributes:
      features: Of `topology_features`.
      betweenness: Of `mean_betweenness`.
      spectrum: Of `laplacian_histogram`.
      count: Number of graphs.
    """

    features: Float[np.ndarray, " 8"]
    betweenness: float
    spectrum: Float[np.ndarray, " bins"]
    count: int


def graph_statistics(graphs: Graphs, *, bins: int = 20) -> GraphStatistics:
    """What the baselines know of a collection.

    Args:
      graphs: Undirected graphs.
      bins: Parts of the Laplacian spectrum.

    Returns:
      Means over the graphs.

    Raises:
      ValueError: No graph, or one that is not a simple undirected graph.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import graph_statistics, stack_graphs
      >>> graph_statistics(stack_graphs([1 - np.eye(3)])).betweenness
      0.0
    """
    adj, n_nodes = selected(graphs)
    return GraphStatistics(
        topology_features(adj, n_nodes).mean(0),
        float(mean_betweenness(adj, n_nodes).mean()),
        laplacian_histogram(adj, n_nodes, bins=bins).mean(0),
        len(adj),
    )


def baseline_scores(
    selection: Sequence[GraphStatistics],
    target: GraphStatistics,
    reference: Sequence[GraphStatistics] | None = None,
) -> dict[str, float]:
    """How near a selection of pre-training collections is to a downstream one, by each baseline.

    "graph statistics": ``-||z(selection) - z(target)||_2`` of the eight mean features, each scaled to mean 0
    and deviation 1 over the reference; "density": of that one alone, unscaled; "clustering coefficient" and
    "betweenness": ``-|difference of means|``; "Laplacian spectrum": ``-||difference of mean histograms||_2``.

    Args:
      selection: The chosen collections; their graphs are pooled.
      target: The downstream collection.
      reference: All data sets of the study; selection and target by default.

    Returns:
      A score for each of `BASELINES`, at most 0.

    Raises:
      ValueError: An empty selection, or spectra of different length.

    Source:
      Cao et al. 2023, Section on baselines; exact forms are ours.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import baseline_scores, graph_statistics, stack_graphs
      >>> full = graph_statistics(stack_graphs([1 - np.eye(3)]))
      >>> baseline_scores([full], full)["density"]
      -0.0
    """
    if len(selection) == 0:
        raise ValueError("selection: expected at least one collection, got none")
    if any(each.spectrum.shape != target.spectrum.shape for each in selection):
        raise ValueError("selection: expected spectra of as many bins as the target's")
    everything = [*selection, target] if reference is None else list(reference)
    spread = np.stack([each.features for each in everything]).std(0)
    weights = np.array([each.count for each in selection], float)
    weights /= weights.sum()
    features = weights @ np.stack([each.features for each in selection])
    spectrum = weights @ np.stack([each.spectrum for each in selection])
    between = weights @ np.array([each.betweenness for each in selection])
    difference = features - target.features
    # The mean of the reference falls out of the difference.
    scaled = np.where(spread > 0, difference / np.where(spread > 0, spread, 1), 0)
    distances = (
        np.linalg.norm(scaled),
        abs(difference[2]),
        abs(difference[7]),
        abs(between - target.betweenness),
        np.linalg.norm(spectrum - target.spectrum),
    )
    return {name: -float(distance) for name, distance in zip(BASELINES, distances, strict=True)}


def egi_gap(
    key: PRNGKeyArray,
    source: Graphs,
    target: Graphs,
    *,
    egos: int = 32,
    neighbors: int = 10,
    layers: int = 1,
) -> float:
    """How much the ego networks of two collections differ, as their normalised Laplacians do.

    The mean over pairs, one ego network from each side, of ``||L_s - L_t||_2``. An ego network holds, hop by
    hop, at most so many random neighbours of each node; its nodes are ordered by hop, at random within a
    hop, and both are padded to the same number of nodes in each hop.

    Args:
      key: Random key.
      source: Undirected graphs.
      target: Likewise.
      egos: Ego networks sampled on each side, their centres drawn from all nodes with a neighbour.
      neighbors: Most neighbours of a node.
      layers: Of the encoder, one fewer than there are hops.

    Returns:
      The gap; its negative is the baseline's score.

    Raises:
      ValueError: No graph, no edge, or a number below 1.

    Source:
      Zhu et al. 2021, Theorem 1, published code: only the sampled edges count, each in one direction.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from jaxneg.graphs import egi_gap, stack_graphs
      >>> pair = stack_graphs([1 - np.eye(2)])
      >>> egi_gap(jax.random.key(0), pair, pair, egos=2)
      0.0
    """
    for name, value in {"egos": egos, "neighbors": neighbors, "layers": layers}.items():
        at_least(name, value, 1)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    samples = [
        [
            _ego_network(rng, adj, center, neighbors, layers + 1)
            for adj, center in _centers(rng, graphs, egos, name)
        ]
        for name, graphs in (("source", source), ("target", target))
    ]
    gaps = [
        np.linalg.norm(_padded_laplacian(rng, ours, theirs) - _padded_laplacian(rng, theirs, ours), 2)
        for ours in samples[0]
        for theirs in samples[1]
    ]
    return float(np.mean(gaps))


class _Ego(NamedTuple):
    hops: list[list[int]]  # new nodes of each, the centre first
    edges: set[tuple[int, int]]  # (node, sampled neighbour)


def _centers(rng: np.random.Generator, graphs: Graphs, egos: int, name: str) -> list[tuple[np.ndarray, int]]:
    adj, _ = selected(graphs)
    where = np.argwhere(np.any(adj != 0, axis=2))
    if len(where) == 0:
        raise ValueError(f"{name}: expected graphs with edges, got none")
    chosen = where[rng.choice(len(where), min(egos, len(where)), replace=False)]
    return [(adj[graph], int(node)) for graph, node in chosen]


def _ego_network(rng: np.random.Generator, adj: np.ndarray, center: int, neighbors: int, hops: int) -> _Ego:
    layer, seen, new, edges = [center], {center}, [[center]], set()
    for _ in range(hops):
        found: list[int] = []
        for node in layer:
            around = np.flatnonzero(adj[node])
            around = rng.choice(around, min(neighbors, len(around)), replace=False)
            edges |= {(node, int(other)) for other in around}
            found += [int(other) for other in around]
        layer = sorted(set(found))
        new.append([node for node in layer if node not in seen])
        seen |= set(layer)
    return _Ego(new, edges)


def _padded_laplacian(rng: np.random.Generator, ego: _Ego, other: _Ego) -> np.ndarray:
    """``D^(-1/2) (D - A) D^(-1/2)`` with the nodes of each hop, and what pads them, in random order."""
    place, start = {}, 0
    for mine, theirs in zip(ego.hops, other.hops, strict=True):
        size = max(len(mine), len(theirs))
        places = start + rng.permutation(size)[: len(mine)]
        place |= dict(zip(mine, places.tolist(), strict=True))
        start += size
    a = np.zeros((start, start))
    for node, neighbor in ego.edges:
        a[place[node], place[neighbor]] = 1
    degree = a.sum(1)
    root = np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0)
    return np.diag((degree > 0).astype(float)) - root[:, None] * a * root
