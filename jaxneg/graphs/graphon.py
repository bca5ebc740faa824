"""Graphon estimators: the probability of an edge as a function on the unit square, from aligned graphs.

Sorting and smoothing (Chan and Airoldi 2014), largest gap (Channarond et al. 2012), universal singular value
thresholding (Chatterjee 2015), matrix completion (Keshavan et al. 2010), stochastic block approximation
(Airoldi et al. 2013) and the Gromov-Wasserstein barycentres of Xu et al. 2021 (arXiv:2012.05644), whose
published code Cao et al. 2023 (W2PGNN, arXiv:2303.16458) use.
"""

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxneg.graphs.arguments import at_least, node_counts, one_of, square
from jaxneg.graphs.gw_barycenter import gw_barycenter
from jaxneg.graphs.total_variation import tv_chambolle

METHODS = ("sas", "lg", "usvt", "mc", "sba", "gwb", "fgwb", "sgwb", "sfgwb")


def estimate_graphon(
    aligned: Float[Array, "graphs nodes nodes"] | np.ndarray,
    n_nodes: Int[Array, " graphs"] | np.ndarray | None = None,
    method: str = "sas",
    *,
    tv_weight: float | Literal["h"] = 0.0,
    resolution: int | None = None,
    h: int | None = None,
    k: int | None = None,
    gap: Literal["drop", "signed"] = "drop",
    threshold: float | None = None,
    rank: int | None = None,
    alpha: float = 3e-4,
    beta: float = 5e-3,
    gamma: float | None = None,
    inner: int = 50,
    outer: int = 20,
    key: PRNGKeyArray | None = None,
    axis_name: str | None = None,
) -> Float[Array, "r r"]:
    """The graphon of a collection of graphs, as a matrix of edge probabilities.

    Args:
      aligned: Of :func:`align_graphs`, N nodes.
      n_nodes: Number of nodes of each graph; all by default. A graph of 0 nodes does not count. Only the
        barycentres read where a graph ends, the others read the padding as it is.
      method: "sas", means of blocks and total-variation denoising, [k, k]; "lg", blocks between the largest
        gaps of the degrees, [N, N]; "usvt", large singular values, [N, N]; "mc", truncated singular values,
        [N, N]; "sba", greedy blocks, [N, N]; "gwb", "fgwb", "sgwb", "sfgwb", Gromov-Wasserstein barycentres
        (f: fused with degrees; s: smoothed), [k, k].
      tv_weight: Of "sas"; "h" is the published code's, which leaves little but the edge density.
      resolution: Side of the result, resized bilinearly; the method's own by default.
      h: Side of a block of "sas"; ``int(log2 N + 1)`` by default.
      k: Blocks of "lg", side of a barycentre; ``N // h`` by default.
      gap: Of "lg". "drop": cuts where degrees fall most. "signed": where they rise most, as the published
        code does on falling degrees, that is, where they fall least.
      threshold: Of "usvt" (2.02; singular values below ``threshold sqrt(N)`` go) and "sba" (0.1).
      rank: Of "mc"; ``int(N / int(ln N))`` by default.
      alpha: Smoothness of "sgwb" and "sfgwb".
      beta: Proximal weight of the barycentres.
      gamma: Weight of structure against degrees; 0.1 for "fgwb" and "sfgwb", else 1.
      inner: Most Sinkhorn iterations of the barycentres.
      outer: Updates of the barycentre.
      key: Order in which "sba" visits nodes; by index without it.
      axis_name: Mesh axis over which graphs are spread, inside ``shard_map``: means are taken over it.

    Returns:
      Probabilities, in float32 or wider.

    Raises:
      ValueError: An unknown method, a shape or a setting that does not fit.
      TypeError: ``n_nodes`` are no integers.

    Source:
      Cao et al. 2023 and Xu et al. 2021, published code. ``tv_weight=0`` and ``gap="drop"`` are ours.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import estimate_graphon
      >>> estimate_graphon(jnp.ones((2, 8, 8)), method="sas").tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    one_of("method", method, METHODS)
    aligned = square("aligned", aligned, leading=1)
    graphs, nodes = aligned.shape[:2]
    counts = node_counts(n_nodes, graphs, nodes)
    h = block_size(nodes) if h is None else h
    if not 1 <= h <= nodes:
        raise ValueError(f"h: expected from 1 to the number of nodes, {nodes}, got {h}")
    k = nodes // h if k is None else k
    if not 1 <= k <= nodes:
        raise ValueError(f"k: expected from 1 to the number of nodes, {nodes}, got {k}")
    if method == "sba" and axis_name is not None:
        raise ValueError(
            "axis_name: expected None with method 'sba', whose halves of the graphs lie on one device, got"
            f" {axis_name!r}"
        )
    if isinstance(tv_weight, str):
        one_of("tv_weight", tv_weight, ("h",))
        tv_weight = float(h)
    if threshold is None:
        threshold = 0.1 if method == "sba" else 2.02
    if gamma is None:
        gamma = 0.1 if "f" in method else 1.0
    if not beta > 0:
        raise ValueError(f"beta: expected a positive number, got {beta}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma: expected from 0 to 1, got {gamma}")
    return _estimate(
        aligned,
        counts,
        key,
        {"tv_weight": tv_weight, "threshold": threshold, "beta": beta, "gamma": gamma},
        (method, resolution, h, k, gap, rank, inner, outer, float(alpha), axis_name),
    )


@partial(jax.jit, static_argnames="settings")
def _estimate(
    aligned: Array,
    counts: Array,
    key: PRNGKeyArray | None,
    numbers: dict[str, Array],
    settings: tuple[Any, ...],
) -> Array:
    method, resolution, h, k, gap, rank, inner, outer, alpha, axis_name = settings
    if method == "sba":
        graphon = stochastic_blocks(aligned, counts > 0, numbers["threshold"], key)
    elif method.endswith("gwb"):
        graphon = gw_barycenter(
            aligned,
            counts,
            k,
            alpha=alpha if method in ("sgwb", "sfgwb") else None,
            beta=numbers["beta"],
            gamma=numbers["gamma"],
            inner=inner,
            outer=outer,
            axis_name=axis_name,
        )
    else:
        mean = mean_adjacency(aligned, counts, axis_name=axis_name)
        if method == "sas":
            graphon = tv_chambolle(block_means(mean, h), numbers["tv_weight"])
        elif method == "lg":
            graphon = largest_gap(mean, k, gap)
        elif method == "usvt":
            graphon = universal_singular_values(mean, numbers["threshold"])
        else:
            graphon = matrix_completion(mean, rank)
    return graphon if resolution is None else resize_graphon(graphon, resolution)


def block_size(nodes: int) -> int:
    """``h = int(log2 N + 1)``, the side of a block that the published code takes.

    Example:
      >>> block_size(40)
      6
    """
    return nodes.bit_length()  # the same without rounding


def mean_adjacency(
    aligned: Float[Array, "graphs nodes nodes"],
    n_nodes: Int[Array, " graphs"] | np.ndarray | None = None,
    *,
    axis_name: str | None = None,
) -> Float[Array, "nodes nodes"]:
    """The mean of aligned graphs, those of 0 nodes left out.

    Args:
      aligned: Of :func:`align_graphs`.
      n_nodes: Number of nodes of each graph; all by default.
      axis_name: Mesh axis over which graphs are spread, inside ``shard_map``: one sum of [N, N] crosses it.

    Returns:
      The mean; NaN if no graph counts.

    Raises:
      ValueError: A shape does not fit.
      TypeError: ``n_nodes`` are no integers.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import mean_adjacency
      >>> mean_adjacency(jnp.array([[[0.0]], [[1.0]]])).tolist()
      [[0.5]]
    """
    aligned = square("aligned", aligned, leading=1)
    there = node_counts(n_nodes, *aligned.shape[:2]) > 0
    total = jnp.sum(jnp.where(there[:, None, None], aligned, 0), axis=0)
    count = jnp.sum(there, dtype=aligned.dtype)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    return total / count


def block_means(mean_adj: Float[Array, "nodes nodes"], h: int) -> Float[Array, "k k"]:
    """Means over blocks of h x h nodes; what remains beyond the last whole block is dropped.

    Args:
      mean_adj: Mean of aligned graphs.
      h: Side of a block.

    Returns:
      ``k = N // h`` blocks a side.

    Raises:
      ValueError: Not square, or ``h`` not from 1 to N.

    Source:
      Chan and Airoldi 2014, Section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import block_means
      >>> block_means(jnp.arange(9.0).reshape(3, 3), 2).tolist()
      [[2.0]]
    """
    mean_adj = square("mean_adj", mean_adj)
    nodes = mean_adj.shape[0]
    if not 1 <= h <= nodes:
        raise ValueError(f"h: expected from 1 to the number of nodes, {nodes}, got {h}")
    k = nodes // h
    return mean_adj[: k * h, : k * h].reshape(k, h, k, h).mean((1, 3))


def largest_gap(
    mean_adj: Float[Array, "nodes nodes"], k: int, gap: Literal["drop", "signed"] = "drop"
) -> Float[Array, "nodes nodes"]:
    """Blocks between the k - 1 largest gaps of the degrees.

    ``d_i = sum_j A_ij / (N - 1)``; cuts where ``d_i - d_(i+1)`` is largest ("drop") or smallest ("signed");
    of equal gaps the first are taken.

    Args:
      mean_adj: Mean of aligned graphs.
      k: Number of blocks.
      gap: Which differences are large.

    Returns:
      The mean of the block that each pair of nodes lies in.

    Raises:
      ValueError: Not square, ``k`` not from 1 to N, or ``gap`` unknown.

    Source:
      Channarond, Daudin and Robin 2012, Section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import largest_gap
      >>> largest_gap(jnp.array([[4.0, 4.0, 4.0], [4.0, 0.0, 1.0], [4.0, 1.0, 0.0]]), 2)[1].tolist()
      [4.0, 0.5, 0.5]
    """
    one_of("gap", gap, ("drop", "signed"))
    mean_adj = square("mean_adj", mean_adj)
    nodes = mean_adj.shape[0]
    if not 1 <= k <= nodes:
        raise ValueError(f"k: expected from 1 to the number of nodes, {nodes}, got {k}")
    rise = jnp.diff(mean_adj.sum(1)) / max(nodes - 1, 1)
    order = jnp.argsort(rise if gap == "drop" else -rise, stable=True)[: k - 1]
    cuts = jnp.zeros(nodes, jnp.int32).at[order + 1].set(1)
    return _means_of_blocks(mean_adj, jnp.cumsum(cuts), k)


def universal_singular_values(
    mean_adj: Float[Array, "nodes nodes"], threshold: float | Array = 2.02
) -> Float[Array, "nodes nodes"]:
    """The mean without its small singular values, clipped to [0, 1].

    ``sum_(s_i >= threshold sqrt(N)) s_i u_i v_i^T``

    Args:
      mean_adj: Mean of aligned graphs.
      threshold: In units of ``sqrt(N)``.

    Returns:
      Probabilities.

    Raises:
      ValueError: Not square.

    Source:
      Chatterjee 2015, Section 1.2.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs.graphon import universal_singular_values
      >>> universal_singular_values(jnp.eye(2), 0.9).tolist()
      [[0.0, 0.0], [0.0, 0.0]]
    """
    mean_adj = square("mean_adj", mean_adj)
    u, s, v = jnp.linalg.svd(mean_adj)
    s = jnp.where(s < threshold * math.sqrt(len(mean_adj)), 0, s)
    return jnp.clip(jnp.matmul(u * s, v, precision="highest"), 0, 1)


def matrix_completion(
    mean_adj: Float[Array, "nodes nodes"], rank: int | None = None
) -> Float[Array, "nodes nodes"]:
    """The mean, shifted to [-1, 1], in its largest singular values, clipped to [0, 1].

    Args:
      mean_adj: Mean of aligned graphs.
      rank: How many; ``int(N / int(ln N))`` by default.

    Returns:
      Probabilities.

    Raises:
      ValueError: Not square, or ``rank`` not from 1 to N.

    Source:
      Keshavan, Montanari and Oh 2010, Section 1; rank of the published code.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs.graphon import matrix_completion
      >>> matrix_completion(jnp.ones((2, 2)), 1).round(3).tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    mean_adj = square("mean_adj", mean_adj)
    nodes = len(mean_adj)
    rank = int(nodes / max(int(math.log(nodes)), 1)) if rank is None else rank
    if not 1 <= rank <= nodes:
        raise ValueError(f"rank: expected from 1 to the number of nodes, {nodes}, got {rank}")
    u, s, v = jnp.linalg.svd(2 * mean_adj - 1)
    low = jnp.matmul(u[:, :rank] * s[:rank], v[:rank], precision="highest")
    return jnp.clip((low + 1) / 2, 0, 1)


def stochastic_blocks(
    aligned: Float[Array, "graphs nodes nodes"],
    there: Bool[Array, " graphs"] | None = None,
    threshold: float | Array = 0.1,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "nodes nodes"]:
    """Greedy blocks of nodes with like neighbours.

    Node i joins the nearest pivot b if ``d_ib < threshold``, else becomes one itself, where ``d_ib^2`` is
    ``w / (N - 2)`` times the mean over rows and columns of ``|sum_l (S1_il - S1_bl) (S2_il - S2_bl)|``,
    without ``l = i, b``; S1 and S2 are sums over the first ``half = G // 2`` graphs and the others, and
    ``w = 1 / ((half + 1) (N - half))``.

    Args:
      aligned: Of :func:`align_graphs`; one graph takes the place of both halves.
      there: Which graphs count; all by default.
      threshold: Distance below which nodes share a block.
      key: Random order of the nodes after the first; by index without it.

    Returns:
      The mean of the block that each pair of nodes lies in.

    Raises:
      ValueError: A shape does not fit.

    Source:
      Airoldi, Costa and Chan 2013, Algorithm 1; weights of the published code.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs.graphon import stochastic_blocks
      >>> stochastic_blocks(jnp.ones((2, 3, 3))).tolist()[0]
      [1.0, 1.0, 1.0]
    """
    aligned = square("aligned", aligned, leading=1)
    graphs, nodes = aligned.shape[:2]
    there = jnp.ones(graphs, bool) if there is None else jnp.asarray(there)
    count = jnp.sum(there)
    position = jnp.cumsum(there) - 1
    half = count // 2
    aligned = jnp.where(there[:, None, None], aligned, 0)
    s1 = jnp.sum(jnp.where((position < half)[:, None, None] | (count == 1), aligned, 0), axis=0)
    s2 = jnp.sum(jnp.where((position >= half)[:, None, None] | (count == 1), aligned, 0), axis=0)
    weight = 1 / ((half + 1) * (nodes - half)).astype(aligned.dtype)

    def by_rows(s1: Array, s2: Array) -> Array:
        gram = jnp.matmul(s1, s2.T, precision="highest")
        own = jnp.diagonal(gram)
        whole = own[:, None] + own[None] - gram - gram.T
        # The term l = i for all pairs (i, b); l = b is its transpose.
        left_out = (jnp.diagonal(s1)[:, None] - s1.T) * (jnp.diagonal(s2)[:, None] - s2.T)
        return jnp.abs(whole - left_out - left_out.T)

    distance = jnp.sqrt(0.5 * weight * (by_rows(s1, s2) + by_rows(s1.T, s2.T)) / max(nodes - 2, 1))
    order = jnp.arange(nodes)
    if key is not None:
        order = jnp.concatenate([order[:1], jax.random.permutation(key, order[1:])])
    distance = distance[order][:, order]

    def visit(pivots: Array, i: Array) -> tuple[Array, Array]:
        to_pivots = jnp.where(pivots, distance[i], jnp.inf)
        nearest = jnp.argmin(to_pivots)
        joins = to_pivots[nearest] < threshold
        return pivots.at[i].set(~joins), jnp.where(joins, nearest, i)

    _, pivot = jax.lax.scan(visit, jnp.zeros(nodes, bool), jnp.arange(nodes))
    labels = jnp.zeros(nodes, pivot.dtype).at[order].set(pivot)
    return _means_of_blocks(jnp.sum(aligned, axis=0) / count, labels, nodes)


def resize_graphon(w: Float[Array, "a b"] | np.ndarray, r: int) -> Float[Array, "r r"]:
    """A graphon at another resolution: bilinear, half-pixel centres, no antialiasing.

    Args:
      w: Probabilities on a grid.
      r: Side of the result.

    Returns:
      Probabilities on r x r.

    Raises:
      ValueError: No matrix, or ``r`` below 1.

    Source:
      Cao et al. 2023, published code (OpenCV's ``INTER_LINEAR``).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import resize_graphon
      >>> resize_graphon(jnp.array([[0.0, 1.0], [0.0, 1.0]]), 4)[0].tolist()
      [0.0, 0.25, 0.75, 1.0]
    """
    w = jnp.asarray(w)
    if w.ndim != 2 or 0 in w.shape:
        raise ValueError(f"w: expected a matrix, no axis empty, got shape {w.shape}")
    at_least("r", r, 1)
    w = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    return jax.image.resize(w, (r, r), "linear", antialias=False, precision=jax.lax.Precision.HIGHEST)


def _means_of_blocks(mean_adj: Array, labels: Array, blocks: int) -> Array:
    """For each pair of nodes the mean over the pairs with the same two labels."""
    member = jax.nn.one_hot(labels, blocks, dtype=mean_adj.dtype)
    size = jnp.maximum(member.sum(0), 1)
    product = jnp.matmul(member.T, mean_adj, precision="highest")
    means = jnp.matmul(product, member, precision="highest") / (size[:, None] * size)
    return means[labels][:, labels]
