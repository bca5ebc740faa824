"""Small graphs around the nodes of a network: views by random walks, ego networks, and features of views.

Views and their features are GCC's (Qiu et al. 2020, arXiv:2006.09963, Section 3.2): a random walk with
restart visits nodes around an ego, the subgraph between them is a view, and two walks from one ego are a
positive pair.
"""

from typing import NamedTuple

import numpy as np

from experiments.w2pgnn.networks import Network
from jaxneg.graphs import GraphBatch

DEGREE_BINS = 6
RETURNS = 4
FEATURES = DEGREE_BINS + 1 + RETURNS
"""Of a node, without positions."""


class Views(NamedTuple):
    """Padded graphs with features; node 0 is the ego."""

    x: np.ndarray
    """float32 ``[..., nodes, features]``."""
    adj: np.ndarray
    """uint8 ``[..., nodes, nodes]``."""
    sizes: np.ndarray
    """Number of nodes, int32 ``[...]``."""


def walk_nodes(
    network: Network, seeds: np.ndarray, restart: float, steps: int, most: int, rng: np.random.Generator
) -> np.ndarray:
    """The nodes that a random walk with restart visits first, from each seed.

    At every step the walk returns to its seed with probability ``restart``, and goes to a random neighbour
    of where it is otherwise. All walks go at once.

    Args:
        network: the network.
        seeds: nodes, ``[walks]``.
        restart: probability.
        steps: of a walk.
        most: nodes that are kept, the first ones.
        rng: random numbers.

    Returns:
        ``[walks, most]``: the seed first, in the order of the visits, -1 where there are fewer.
    """
    start, others = network.neighbours
    degree = np.diff(start)
    trace = np.empty((len(seeds), steps + 1), np.int64)
    trace[:, 0] = here = seeds
    for step in range(1, steps + 1):
        choice = (rng.random(len(seeds)) * degree[here]).astype(np.int64)
        # A node without neighbours stays; its look-up must not leave the array.
        on = np.where(degree[here] > 0, others[np.minimum(start[here] + choice, len(others) - 1)], here)
        here = np.where(rng.random(len(seeds)) < restart, seeds, on)
        trace[:, step] = here
    order = np.argsort(trace, 1, kind="stable")
    ordered = np.take_along_axis(trace, order, 1)
    first = np.ones_like(trace, bool)
    np.put_along_axis(first, order, np.diff(ordered, axis=1, prepend=-1) != 0, 1)
    rank = np.cumsum(first, 1) - 1
    nodes = np.full((len(seeds), most), -1, np.int64)
    row, column = np.nonzero(first & (rank < most))
    nodes[row, rank[row, column]] = trace[row, column]
    return nodes


def walk_views(
    network: Network,
    seeds: np.ndarray,
    rng: np.random.Generator,
    *,
    restart: float,
    steps: int,
    most: int,
    positions: int = 0,
    chunk: int = 1000,
) -> Views:
    """A view of each seed.

    Args:
        network: the network.
        seeds: nodes, ``[...]``.
        rng: random numbers.
        restart: probability of a return to the seed.
        steps: of a walk.
        most: nodes of a view.
        positions: as for `view_features`.
        chunk: views that are made at a time.

    Returns:
        The views, with the axes of the seeds.
    """
    flat = seeds.reshape(-1)
    parts = []
    for at in range(0, len(flat), chunk):
        nodes = walk_nodes(network, flat[at : at + chunk], restart, steps, most, rng)
        adj = network.subgraphs(nodes)
        sizes = (nodes >= 0).sum(1).astype(np.int32)
        parts.append(Views(view_features(adj, sizes, positions), adj, sizes))
    return Views(
        *(np.concatenate(part).reshape(*seeds.shape, *part[0].shape[1:]) for part in zip(*parts, strict=True))
    )


def graph_views(network: Network, most: int, positions: int = 0) -> Views:
    """The graphs of a collection as views, without an ego's mark; of larger ones the first nodes.

    Args:
        network: a collection.
        most: nodes of a view.
        positions: as for `view_features`.

    Returns:
        A view of each graph.
    """
    assert network.graph is not None
    graphs = int(network.graph[-1]) + 1
    starts = np.searchsorted(network.graph, np.arange(graphs + 1))
    sizes = np.minimum(np.diff(starts), most).astype(np.int32)
    nodes = np.where(np.arange(most) < sizes[:, None], starts[:-1, None] + np.arange(most), -1)
    adj = network.subgraphs(nodes)
    return Views(view_features(adj, sizes, positions, ego=False), adj, sizes)


def view_features(adj: np.ndarray, sizes: np.ndarray, positions: int = 0, *, ego: bool = True) -> np.ndarray:
    """What is told of each node of a view: its degree, whether it is the ego, how often walks return to it.

    Args:
        adj: ``[..., nodes, nodes]``.
        sizes: ``[...]``.
        positions: leading eigenvectors of the normalised adjacency, with rows of length one, that come
        first; GCC
            has 32.
        ego: whether node 0 is marked.

    Returns:
        float32 ``[..., nodes, positions + 11]``: positions; ``max(0, 1 - |log2(degree + 1) - b|)`` for b =
        0 to 5, the last one also above; the mark; ``(P^k)_ii`` for k = 2 to 5, P the row-normalised
        adjacency. 0 for padding.
    """
    adj = adj.astype(np.float32)
    real = np.arange(adj.shape[-1]) < sizes[..., None]
    degree = adj.sum(-1)
    level = np.minimum(np.log2(degree + 1), DEGREE_BINS - 1)
    columns = [np.maximum(0, 1 - np.abs(level[..., None] - np.arange(DEGREE_BINS)))]
    columns.append(np.broadcast_to((np.arange(adj.shape[-1]) == 0) & ego, real.shape)[..., None])
    walk = adj / np.maximum(degree, 1)[..., None]
    power, returns = walk, []
    for _ in range(RETURNS):
        power = power @ walk
        returns.append(np.diagonal(power, axis1=-2, axis2=-1))
    columns.append(np.stack(returns, -1))
    if positions:
        columns.insert(0, _positions(adj, degree, sizes, positions))
    return (np.concatenate(columns, -1) * real[..., None]).astype(np.float32)


def _positions(adj: np.ndarray, degree: np.ndarray, sizes: np.ndarray, count: int) -> np.ndarray:
    scale = np.maximum(degree, 1) ** -0.5
    normalised = scale[..., :, None] * adj * scale[..., None, :]
    # Padding gets the lowest eigenvalue, below every real one, so that its vectors come last.
    nodes = np.arange(adj.shape[-1])
    normalised[..., nodes, nodes] = np.where(nodes < sizes[..., None], normalised[..., nodes, nodes], -2)
    vectors = np.linalg.eigh(normalised)[1][..., ::-1][..., :count]
    # As GCC has it, of n nodes there are at most n - 2 vectors.
    vectors = vectors * (np.arange(vectors.shape[-1]) < (sizes - 2)[..., None])[..., None, :]
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors = vectors / np.where(norm > 0, norm, 1)
    missing = count - vectors.shape[-1]
    return np.pad(vectors, [(0, 0)] * (vectors.ndim - 1) + [(0, missing)])


def small_graphs(
    network: Network, count: int, rng: np.random.Generator, *, least: int = 8, most: int = 300
) -> GraphBatch:
    """Graphs that stand for a network when graphons are estimated: 2-hop ego networks of random nodes.

    Of a collection: its graphs.

    Args:
        network: the network.
        count: graphs that are wanted; fewer where the network has not as many of this size.
        rng: random numbers.
        least: nodes of a graph.
        most: likewise.

    Returns:
        Adjacencies, float32 ``[graphs, nodes, nodes]``, and numbers of nodes, ``[graphs]``.

    Raises:
        ValueError: there is no graph of this size.
    """
    start, others = network.neighbours
    found: list[np.ndarray] = []
    if network.graph is not None:
        starts = np.searchsorted(network.graph, np.arange(int(network.graph[-1]) + 2))
        every = np.arange(network.n)
        candidates = (every[starts[g] : starts[g + 1]] for g in rng.permutation(len(starts) - 1))
    else:
        candidates = (_two_hops(start, others, node) for node in rng.permutation(network.n))
    for nodes in candidates:
        if least <= len(nodes) <= most:
            found.append(nodes)
            if len(found) == count:
                break
    if not found:
        raise ValueError(
            f"{network.name}: no 2-hop ego network (or graph) has {least} to {most} nodes: change ego_least "
            "and ego_most"
        )
    sizes = np.array([len(nodes) for nodes in found], np.int32)
    padded = np.full((len(found), sizes.max()), -1, np.int64)
    for row, nodes in zip(padded, found, strict=True):
        row[: len(nodes)] = nodes
    return GraphBatch(network.subgraphs(padded).astype(np.float32), sizes)


def _two_hops(start: np.ndarray, others: np.ndarray, node: int) -> np.ndarray:
    near = others[start[node] : start[node + 1]]
    parts = [np.array([node]), near, *(others[start[i] : start[i + 1]] for i in near)]
    return np.unique(np.concatenate(parts))
