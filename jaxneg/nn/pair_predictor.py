"""Predicts hidden node pairs of a graph from the rest: the self-supervised task of small graph networks.

A variational graph auto-encoder without its noise (Kipf and Welling 2016, arXiv:1611.07308): an encoder of
nodes (:mod:`jaxneg.nn.gin`) and a head for pairs, which also sees how many neighbours the two share.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxneg.nn.bridge import Model, bridge
from jaxneg.nn.contraction import contract
from jaxneg.nn.gin import GIN, HE_NORMAL

NODE_STATISTICS = 8


def node_statistics(adj: Float[Array, "*graphs nodes nodes"]) -> Float[Array, "*graphs nodes 8"]:
    """What can be counted around each node of a graph.

    With d the degree over the number of nodes n, and P = A / row sums (0 for isolated nodes): d; d^2; the
    mean of d over neighbours; the mean of d over the graph; ``5 (P^2)_ii``; ``(A^3)_ii / n^2``; d minus the
    graph's mean; 1.

    Args:
      adj: Adjacencies, A, symmetric.

    Returns:
      The eight numbers of each node, in float32 or better.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.nn import node_statistics
      >>> node_statistics(1.0 - jnp.eye(2))[0].tolist()
      [0.5, 0.25, 0.5, 0.5, 5.0, 0.0, 0.0, 1.0]
    """
    adj = adj.astype(jnp.promote_types(adj.dtype, jnp.float32))
    n = adj.shape[-1]
    counts = adj.sum(-1)
    d = counts / n
    walk = adj / jnp.maximum(counts, 1)[..., None]
    mean = jnp.broadcast_to(d.mean(-1, keepdims=True), d.shape)
    closed = jnp.sum((adj @ adj) * jnp.swapaxes(adj, -1, -2), -1)
    columns = [
        d,
        d * d,
        jnp.einsum("...ij,...j->...i", walk, d),
        mean,
        5 * jnp.sum(walk * jnp.swapaxes(walk, -1, -2), -1),
        closed / n**2,
        d - mean,
        jnp.ones_like(d),
    ]
    return jnp.stack(columns, -1)


class PairPredictor(nnx.Module):
    """The module behind :func:`pair_predictor`."""

    def __init__(self, layers: int, width: int, hidden: int, dtype: DTypeLike | None, rngs: nnx.Rngs):
        self.encoder = GIN(NODE_STATISTICS, layers, width, "mean", False, dtype, rngs)
        small = nnx.initializers.variance_scaling(2.0 * 0.1**2, "fan_in", "normal")

        def linear(n: int, m: int, kernel_init: nnx.Initializer) -> nnx.Linear:
            return nnx.Linear(n, m, dtype=dtype, kernel_init=kernel_init, dot_general=contract, rngs=rngs)

        self.first = linear(2 * width + 3, hidden, HE_NORMAL)
        self.second = linear(hidden, 1, small)

    def __call__(
        self, adj: Float[Array, "graphs nodes nodes"], pairs: Int[Array, "graphs pairs 2"]
    ) -> Float[Array, "graphs pairs"]:
        """The logit of each pair."""
        if adj.ndim != 3 or adj.shape[1] != adj.shape[2]:
            raise ValueError(f"adj: expected [graphs, nodes, nodes], got {adj.shape}")
        if pairs.ndim != 3 or pairs.shape[::2] != (len(adj), 2):
            raise ValueError(f"pairs: expected [{len(adj)}, pairs, 2], got {pairs.shape}")
        n = adj.shape[-1]
        x = self.encoder(node_statistics(adj), adj)[-1]
        i, j = pairs[..., 0], pairs[..., 1]

        def at(values: Array, index: Array) -> Array:
            return jnp.take_along_axis(values, index[..., None], 1)

        degree = adj.sum(-1) / n
        shared = jnp.sum(at(adj, i) * at(adj, j), -1) / n
        d_i, d_j = at(degree[..., None], i)[..., 0], at(degree[..., None], j)[..., 0]
        mean = jnp.broadcast_to(degree.mean(-1, keepdims=True), shared.shape)
        counted = jnp.stack([4 * shared, shared / jnp.sqrt(d_i * d_j + 1e-3), mean], -1)
        x_i, x_j = at(x, i), at(x, j)
        seen = jnp.concatenate([x_i + x_j, x_i * x_j, counted.astype(x.dtype)], -1)
        return self.second(jax.nn.relu(self.first(seen)))[..., 0]


def pair_predictor(
    *, layers: int = 2, width: int = 16, hidden: int = 16, dtype: DTypeLike | None = None
) -> Model:
    """Logits that pairs of nodes are joined, from the pairs that are visible.

    ``x = gin(node_statistics(A))`` with mean aggregation; ``u_ij = [x_i + x_j, x_i x_j, 4 c_ij, c_ij /
    sqrt(d_i d_j + 1e-3), mean of d]`` with c = A^2 / n and d = degree / n; ``w relu(W u_ij + b) + c``

    Weights start normal with variance 2 / fan_in, the last layer's at a tenth of that deviation.

    Args:
      layers: Rounds of messages.
      width: Features of a node.
      hidden: Units of the head.
      dtype: Type of the computation; by default that of adjacencies and parameters.

    Returns:
      ``apply(params, adj [graphs, nodes, nodes], pairs [graphs, pairs, 2])`` gives logits ``[graphs,
      pairs]``; hidden pairs must be 0 in ``adj``, which is symmetric and not padded.

    Raises:
      ValueError: If a size is not positive, or shapes do not fit.

    Source:
      The task: Kipf and Welling 2016, arXiv:1611.07308; network and features are this library's.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import pair_predictor
      >>> model = pair_predictor()
      >>> pairs = jnp.array([[[0, 1], [2, 4]]])
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((1, 5, 5)), pairs).shape
      (1, 2)
    """
    for name, size in (("layers", layers), ("width", width), ("hidden", hidden)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    return bridge(lambda rngs: PairPredictor(layers, width, hidden, dtype, rngs))
