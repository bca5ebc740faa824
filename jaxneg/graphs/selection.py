"""W2PGNN: the best feasibility over bases, and the choice of pre-training data by it.

Cao et al. 2023 (When to Pre-Train Graph Neural Networks? From Data Generation Perspective!,
arXiv:2303.16458).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.graphs.arguments import at_least, one_of
from jaxneg.graphs.bases import BASES, Graphs, graphon_basis, graphon_of, selected, topology_clusters
from jaxneg.graphs.feasibility import FeasibilityResult, feasibility
from jaxneg.graphs.graphon import resize_graphon


class W2PGNNResult(NamedTuple):
    """The feasibility of pre-training on some domains.

    Attributes:
      zeta: The largest over the bases.
      variant: The basis that has it.
      by_variant: The feasibility of each basis.
    """

    zeta: Float[Array, ""]
    variant: str
    by_variant: dict[str, FeasibilityResult]


class TopologicalSelection(NamedTuple):
    """Graphs chosen from the domains.

    Attributes:
      domain: The domain that they come from.
      graphs: Their numbers within it.
      rounds: How many graphs were left after each round.
    """

    domain: int
    graphs: Int[np.ndarray, " chosen"]
    rounds: list[int]


def w2pgnn_feasibility(
    domains: Sequence[Graphs],
    target: Graphs | Array | np.ndarray,
    variants: Sequence[str] = BASES,
    *,
    key: PRNGKeyArray | None = None,
    resolution: int = 32,
    steps: int = 100,
    lr: float = 0.05,
    starts: int = 2,
    iters: int = 40,
    clusters: int = 5,
    standardize: bool = True,
    **settings: Any,
) -> W2PGNNResult:
    """How feasible it is to pre-train on some domains for a downstream collection.

    ``zeta = -min over bases, min over alpha in simplex, GW(sum_k alpha_k B_k, B_d)``

    Args:
      domains: Pre-training collections: `GraphBatch`, or adjacencies and numbers of nodes.
      target: Downstream collection, or its graphon as a matrix.
      variants: Which bases; see :func:`graphon_basis`.
      key: Of the clustering and of random starts; ``jax.random.key(0)`` by default.
      resolution: Of all graphons.
      steps: As in :func:`feasibility`.
      lr: Likewise.
      starts: Likewise.
      iters: Likewise.
      clusters: Of the basis "topo".
      standardize: Whether features are scaled before clustering.
      **settings: Of :func:`graphon_of`: method, pad, tv_weight, ...

    Returns:
      The best feasibility, its basis, and each basis's result.

    Raises:
      ValueError: No domain or basis, an unknown basis, or what the parts say.

    Source:
      Cao et al. 2023, published code.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import stack_graphs, w2pgnn_feasibility
      >>> domain = stack_graphs([np.ones((4, 4))])
      >>> w2pgnn_feasibility([domain], domain, ("integr",), resolution=2).variant
      'integr'
    """
    if len(variants) == 0:
        raise ValueError(f"variants: expected some of {', '.join(BASES)}, got none")
    for variant in variants:
        one_of("variants", variant, BASES)
    downstream = _target_graphon(target, resolution, settings)
    by_variant = {}
    for variant in variants:
        bases = graphon_basis(
            domains,
            variant,  # pyright: ignore[reportArgumentType]
            resolution=resolution,
            key=key,
            clusters=clusters,
            standardize=standardize,
            **settings,
        )
        by_variant[variant] = feasibility(
            bases, downstream, steps=steps, lr=lr, starts=starts, iters=iters, key=key
        )
    best = max(by_variant, key=lambda variant: float(by_variant[variant].zeta))
    return W2PGNNResult(by_variant[best].zeta, best, by_variant)


def select_pretraining(
    zetas: Mapping[tuple[int, ...], float] | Sequence[float] | np.ndarray | Array, n: int
) -> tuple[int, ...]:
    """Of all choices of n domains that with the largest feasibility.

    Args:
      zetas: The feasibility of each choice: by the domains' numbers, or a list in the order of
        ``itertools.combinations(range(domains), n)``. A mapping may hold choices of other sizes too.
      n: Number of domains to choose.

    Returns:
      The domains; the first of equally feasible choices.

    Raises:
      ValueError: No choice of n domains, a list whose length no number of domains gives, a feasibility that
        is not a number.

    Source:
      Cao et al. 2023, Section on data selection.

    Example:
      >>> from jaxneg.graphs import select_pretraining
      >>> select_pretraining({(0, 1): -0.3, (0, 2): -0.1, (1, 2): -0.2}, 2)
      (0, 2)
    """
    at_least("n", n, 1)
    if isinstance(zetas, Mapping):
        choices = {tuple(choice): float(zeta) for choice, zeta in zetas.items() if len(choice) == n}
    else:
        values = np.asarray(zetas, np.float64)
        domains = n
        while values.ndim == 1 and math.comb(domains, n) < len(values):
            domains += 1
        if values.ndim != 1 or math.comb(domains, n) != len(values):
            raise ValueError(f"zetas: expected one for each choice of {n} domains, got shape {values.shape}")
        choices = dict(zip(itertools.combinations(range(domains), n), values.tolist(), strict=True))
    if not choices:
        raise ValueError(f"zetas: expected choices of {n} domains, got none")
    for choice, zeta in choices.items():
        if math.isnan(zeta):
            raise ValueError(f"zetas: expected numbers, got NaN for domains {choice}")
    return max(choices, key=lambda choice: choices[choice])


def topological_selection(
    domains: Sequence[Graphs],
    target: Graphs | Array | np.ndarray,
    *,
    key: PRNGKeyArray | None = None,
    rounds: int | None = None,
    clusters: int = 5,
    standardize: bool = True,
    resolution: int = 32,
    steps: int = 100,
    lr: float = 0.05,
    starts: int = 2,
    iters: int = 40,
    **settings: Any,
) -> TopologicalSelection:
    """Chooses graphs: the domain of largest weight, then again and again its cluster of largest weight.

    The weights are those of :func:`feasibility` over the graphons of the domains, then over those of the
    clusters of :func:`topology_clusters`.

    Args:
      domains: Pre-training collections.
      target: Downstream collection, or its graphon.
      key: Of clusterings and random starts; ``jax.random.key(0)`` by default.
      rounds: Clusterings; ``int(ln G) - 1`` for the G graphs of the domain by default. Fewer if one cluster
        is left.
      clusters: Of each round.
      standardize: Of :func:`topology_clusters`.
      resolution: Of all graphons.
      steps: As in :func:`feasibility`.
      lr: Likewise.
      starts: Likewise.
      iters: Likewise.
      **settings: Of :func:`graphon_of`.

    Returns:
      The domain and the graphs that are left of it.

    Raises:
      ValueError: No domain, or what the parts say.

    Source:
      Cao et al. 2023, published code (``top.py`` of an earlier commit), whose numbers of graphs were shifted
      by those without edges.

    Example:
      >>> import numpy as np
      >>> from jaxneg.graphs import stack_graphs, topological_selection
      >>> sparse, full = stack_graphs([np.eye(4)[::-1]]), stack_graphs([np.ones((4, 4))])
      >>> topological_selection([sparse, full], np.ones((2, 2)), resolution=2, steps=20).domain
      1
    """
    downstream = _target_graphon(target, resolution, settings)
    key = jax.random.key(0) if key is None else key

    def heaviest(bases: Array) -> int:
        found = feasibility(bases, downstream, steps=steps, lr=lr, starts=starts, iters=iters, key=key)
        return int(jnp.argmax(found.alpha))

    domain = heaviest(graphon_basis(domains, "domain", resolution=resolution, **settings))
    adj, n_nodes = (np.asarray(part) for part in domains[domain])
    graphs = np.flatnonzero(n_nodes > 0)
    left = []
    for number in range(max(int(math.log(len(graphs))) - 1, 0) if rounds is None else rounds):
        labels = topology_clusters(
            selected((adj, n_nodes), graphs),
            clusters,
            key=jax.random.fold_in(key, number),
            standardize=standardize,
        )
        groups = [graphs[labels == label] for label in range(labels.max() + 1)]
        if len(groups) == 1:
            break
        bases = [graphon_of(selected((adj, n_nodes), group), resolution, **settings) for group in groups]
        graphs = groups[heaviest(jnp.stack(bases))]
        left.append(len(graphs))
    return TopologicalSelection(domain, graphs, left)


def _target_graphon(target: Graphs | Array | np.ndarray, resolution: int, settings: dict[str, Any]) -> Array:
    if isinstance(target, tuple):
        return graphon_of(target, resolution, **settings)
    return resize_graphon(target, resolution)
