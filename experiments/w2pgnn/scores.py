"""Scores of a selection of pre-training sets for a downstream set: feasibilities, and what they are
compared with.

All are negated distances, so that larger means nearer. Every set is given by a collection of small graphs.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from jaxneg import graphs

ZETA = "W2PGNN"
UNIFORM = "W2PGNN, uniform weights"
INTEGR = "W2PGNN, integr basis"
TOPO = "W2PGNN, topo basis"
BEST = "W2PGNN, best of three bases"
TV_SMALL = "W2PGNN, TV weight 0.1"
TV_H = "W2PGNN, TV weight h"
STATISTICS = "graph statistics"
DENSITY = "density"
CLUSTERING = "clustering coefficient"
BETWEENNESS = "betweenness"
SPECTRUM = "Laplacian spectrum"
EGI = "EGI"
BASELINES = (STATISTICS, DENSITY, CLUSTERING, BETWEENNESS, SPECTRUM, EGI)
"""By the names of `jaxneg.graphs.baseline_scores`, and the EGI gap."""

EGOS = 16
"""Ego networks that EGI samples of each set."""


class Scored(NamedTuple):
    """What the scores say."""

    scores: dict[str, np.ndarray]
    """By name, ``[selections, targets]``."""
    alpha: np.ndarray
    """Weights of the pre-training sets in the best mixture of each selection, 0 for those outside,
    ``[selections, targets, sets]``."""
    graphons: np.ndarray
    """Of the pre-training sets, then the targets."""


def whole(adj: np.ndarray) -> graphs.GraphBatch:
    """Graphs without padding.

    Args:
        adj: ``[graphs, nodes, nodes]``.

    Returns:
        The collection.
    """
    return graphs.GraphBatch(adj, np.full(len(adj), adj.shape[1], np.int32))


def part_of(collection: graphs.GraphBatch, chosen: np.ndarray) -> graphs.GraphBatch:
    """Some graphs of a collection, without the padding that they do not need.

    Args:
        collection: graphs.
        chosen: whether each is taken; at least one.

    Returns:
        The graphs.
    """
    sizes = collection.n_nodes[chosen]
    return graphs.GraphBatch(collection.adj[chosen, : sizes.max(), : sizes.max()], sizes)


def graphon_of(
    collection: graphs.GraphBatch, resolution: int, tv_weight: float | Literal["h"] = 0.0
) -> np.ndarray:
    """A collection's graphon: sorted by degree, averaged over blocks.

    Args:
        collection: graphs.
        resolution: side of the result.
        tv_weight: of the total-variation denoising; "h" is the published code's.

    Returns:
        ``[resolution, resolution]``.
    """
    count = len(collection.n_nodes)
    # Graphs without nodes count for nothing; with them collections of many sizes share a program.
    empty = 2 ** (count - 1).bit_length() - count
    adj = np.pad(collection.adj, ((0, empty), (0, 0), (0, 0)))
    sizes = np.pad(collection.n_nodes, (0, empty))
    return np.asarray(_graphon(adj, sizes, resolution=resolution, tv_weight=tv_weight))


@partial(jax.jit, static_argnames=("resolution", "tv_weight"))
def _graphon(adj: Array, sizes: Array, *, resolution: int, tv_weight: float | Literal["h"]) -> Array:
    aligned, _ = graphs.align_graphs(adj, sizes)
    return graphs.estimate_graphon(aligned, sizes, "sas", tv_weight=tv_weight, resolution=resolution)


def score_selections(
    pretraining: Sequence[graphs.GraphBatch],
    downstream: Sequence[graphs.GraphBatch],
    selections: np.ndarray,
    *,
    resolution: int,
    steps: int,
    clusters: int = 5,
    seed: int = 0,
    denoised: bool = False,
) -> Scored:
    """Every score of every selection for every downstream set.

    Args:
        pretraining: graphs of each pre-training set.
        downstream: likewise.
        selections: whether each selection holds each set, ``[selections, sets]``.
        resolution: side of the graphons.
        steps: of Adam on the mixture's weights.
        clusters: of the topological basis.
        seed: of its k-means, and of EGI's samples.
        denoised: whether feasibilities with the TV weights 0.1 and h are computed, too.

    Returns:
        The scores.
    """
    every, key = [*pretraining, *downstream], jax.random.key(seed)
    sets = len(pretraining)

    def graphons(tv_weight: float | Literal["h"]) -> np.ndarray:
        return np.stack([graphon_of(each, resolution, tv_weight) for each in every])

    def domain(of_sets: np.ndarray) -> _Feasibilities:
        return _feasibilities([of_sets[:sets][selection] for selection in selections], of_sets[sets:], steps)

    pools = [
        graphs.merge_graphs([each for each, held in zip(pretraining, selection, strict=True) if held])
        for selection in selections
    ]
    integr = [graphon_of(pool, resolution)[None] for pool in pools]
    topo = []
    for pool in pools:
        labels = graphs.topology_clusters(pool, clusters, key=key)
        parts = [part_of(pool, labels == label) for label in range(labels.max() + 1)]
        topo.append(np.stack([graphon_of(part, resolution) for part in parts]))
    plain = graphons(0.0)
    of_domains = domain(plain)
    found = {ZETA: of_domains.zeta, UNIFORM: of_domains.zeta_uniform}
    found |= {
        name: _feasibilities(bases, plain[sets:], steps).zeta
        for name, bases in ((INTEGR, integr), (TOPO, topo))
    }
    found[BEST] = np.maximum(np.maximum(found[ZETA], found[INTEGR]), found[TOPO])
    if denoised:
        found |= {TV_SMALL: domain(graphons(0.1)).zeta, TV_H: domain(graphons("h")).zeta}
    found |= _baselines(pretraining, downstream, selections, key)
    alpha = np.zeros((len(selections), len(downstream), sets))
    for row, selection, weights in zip(alpha, selections, of_domains.alpha, strict=True):
        row[:, selection] = weights
    return Scored(found, alpha, plain)


class _Feasibilities(NamedTuple):
    zeta: np.ndarray
    zeta_uniform: np.ndarray
    alpha: list[np.ndarray]


def _feasibilities(bases: Sequence[np.ndarray], targets: np.ndarray, steps: int) -> _Feasibilities:
    """Feasibilities of every basis for every target; bases of one size go in one call."""
    zeta = np.zeros((len(bases), len(targets)))
    uniform, alpha = zeta.copy(), [np.zeros(0)] * len(bases)
    for size in sorted({len(basis) for basis in bases}):
        at = [number for number, basis in enumerate(bases) if len(basis) == size]
        of_size = np.stack([bases[number] for number in at])
        result = graphs.feasibility_grid(
            np.repeat(of_size, len(targets), 0), np.tile(targets, (len(at), 1, 1)), steps=steps
        )
        shape = (len(at), len(targets))
        zeta[at] = np.asarray(result.zeta).reshape(shape)
        uniform[at] = np.asarray(result.zeta_uniform).reshape(shape)
        for number, weights in zip(at, np.asarray(result.alpha).reshape(*shape, size), strict=True):
            alpha[number] = weights
    return _Feasibilities(zeta, uniform, alpha)


def _baselines(
    pretraining: Sequence[graphs.GraphBatch],
    downstream: Sequence[graphs.GraphBatch],
    selections: np.ndarray,
    key: PRNGKeyArray,
) -> dict[str, np.ndarray]:
    of_sets, of_targets = (
        [graphs.graph_statistics(each) for each in collections] for collections in (pretraining, downstream)
    )
    gaps = np.array(
        [[graphs.egi_gap(key, one, other, egos=EGOS) for other in downstream] for one in pretraining]
    )
    found = {name: np.zeros((len(selections), len(downstream))) for name in BASELINES}
    for s, selection in enumerate(selections):
        chosen = np.flatnonzero(selection)
        counts = np.array([of_sets[at].count for at in chosen], float)  # a selection's graphs are pooled
        for t, target in enumerate(of_targets):
            scores = graphs.baseline_scores([of_sets[at] for at in chosen], target, [*of_sets, *of_targets])
            scores[EGI] = -float(counts @ gaps[chosen, t] / counts.sum())
            for name in BASELINES:
                found[name][s, t] = scores[name]
    return found
