"""Alignment: nodes in the order of their degrees, so that graphs of one collection can be averaged.

Cao et al. 2023 (W2PGNN, arXiv:2303.16458) and Xu et al. 2021 (SGWB, arXiv:2012.05644), as their code has it.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxneg.graphs.arguments import node_counts, one_of, square

Padding = Literal["zero", "resize"]


def align_graphs(
    adj: Float[Array, "graphs nodes nodes"] | np.ndarray,
    n_nodes: Int[Array, " graphs"] | np.ndarray | None = None,
    *,
    pad: Padding = "zero",
) -> tuple[Float[Array, "graphs nodes nodes"], Float[Array, "graphs nodes"]]:
    """Sorts the nodes of each graph by falling degree.

    ``deg_i = (sum_j A_ij + sum_j A_ji) / 2``, rows and columns permuted; of equal degrees the lower index
    comes first.

    Args:
      adj: Adjacency matrices, directed and weighted ones too; what lies beyond ``n_nodes`` is not read.
      n_nodes: Number of nodes of each graph; all of them by default.
      pad: "zero": smaller graphs are padded with zeros, as the published code does, which pulls the lower
        right of their mean to 0. "resize": they are resized bilinearly to the size of the array instead, so
        that the number of nodes does not leak into the graphon; every graph then has all the nodes.

    Returns:
      The aligned adjacencies, and ``deg / sum deg`` in the same order, 0 beyond ``n_nodes``. A graph without
      edges has equal degrees ``1 / n``.

    Raises:
      ValueError: A shape does not fit, a count is out of range (outside of ``jit``), or ``pad`` is unknown.
      TypeError: ``n_nodes`` are no integers.

    Source:
      Cao et al. 2023, published code; ties, ``pad`` and graphs without edges are ours.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import align_graphs
      >>> align_graphs(jnp.array([[[0, 0, 1], [0, 0, 1], [1, 1, 0]]]))[1].tolist()
      [[0.5, 0.25, 0.25]]
    """
    one_of("pad", pad, ("zero", "resize"))
    adj = square("adj", adj, leading=1)
    counts = node_counts(n_nodes, adj.shape[0], adj.shape[1])
    return _align_all(adj, counts, pad)


def degree_distribution(aligned: Float[Array, "nodes nodes"], n: Int[Array, ""]) -> Float[Array, " nodes"]:
    """``deg / sum deg`` of one graph, uniform where there is no edge, 0 beyond ``n``."""
    degree = (aligned.sum(0) + aligned.sum(1)) / 2
    total = degree.sum()
    there = jnp.arange(aligned.shape[0]) < n
    uniform = there / jnp.maximum(n, 1).astype(aligned.dtype)
    return jnp.where(total > 0, degree / jnp.where(total > 0, total, 1), uniform)


@partial(jax.jit, static_argnames="pad")
def _align_all(adj: Array, counts: Array, pad: str) -> tuple[Array, Array]:
    return jax.vmap(lambda a, n: _align(a, n, pad))(adj, counts)


def _align(adj: Array, n: Array, pad: str) -> tuple[Array, Array]:
    size = adj.shape[0]
    there = jnp.arange(size) < n
    adj = jnp.where(there[:, None] & there, adj, 0)
    degree = (adj.sum(0) + adj.sum(1)) / 2
    order = jnp.argsort(jnp.where(there, -degree, jnp.inf), stable=True)
    aligned = adj[order][:, order]
    distribution = degree_distribution(aligned, n)
    if pad == "resize":
        # Row o of the larger matrix lies at o' = (o + 1/2) n / size - 1/2 of the smaller one, within its
        # ends.
        place = (jnp.arange(size, dtype=adj.dtype) + 0.5) * n / size - 0.5
        place = jnp.clip(place, 0, jnp.maximum(n - 1, 0))
        weights = jnp.maximum(1 - jnp.abs(place[:, None] - jnp.arange(size)), 0)
        product = jnp.matmul(weights, aligned, precision="highest")
        aligned = jnp.matmul(product, weights.T, precision="highest")
    return aligned, distribution
