"""ECI: a training-free score of a set of hard negatives.

Paper: "ECI: Effective Contrastive Information to Evaluate Hard-Negatives", arXiv:2603.20990, version 1.
formula: proposed reading of arXiv:2603.20990. The abstract fixes the ingredients (a logarithmic capacity, and
the harmonic balance of hardness and max-margin safety); the exact equations were not available, so there are
no equation numbers to cite. The formulas here are the simplest that fit the text. Version 3 of the paper has
another formula: see `jaxneg.retrieval.eci_sem`.

Notation: for query i, s_i+ is the cosine of query and labelled positive, s_ik that of query and k-th
negative, K_i the number of its valid negatives, and clip(x) = min(max(x, 0), 1). Every reduction is over
valid negatives.
"""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxneg.retrieval.arguments import boolean_mask, one_of, unit_rows
from jaxneg.retrieval.dense_search import pair_similarities
from jaxneg.retrieval.masked import at_least_float32, masked_max, masked_mean

HARDNESS = ("mean", "max")
SAFETY = ("max", "mean", "fraction", "threshold")
SIM01 = ("clip", "affine")
AGGREGATE = ("mean_of_products", "product_of_means")
# Below this sum of hardness and safety, the efficiency is defined as 0.
EFFICIENCY_FLOOR = 1e-12


class ECIResult(NamedTuple):
    """ECI of each row and of the whole source, with its parts.

    Attributes:
        eci: capacity times efficiency of each row, in nats.
        capacity: ln(1 + K_i) of each row, in nats.
        hardness: in [0, 1], of each row.
        safety: in [0, 1], of each row.
        efficiency: harmonic mean of hardness and safety, in [0, 1], of each row.
        score: the source's ECI, in nats.
        unsafe_rate: share of rows whose safety is 0.
    """

    eci: Float[Array, "batch"]
    capacity: Float[Array, "batch"]
    hardness: Float[Array, "batch"]
    safety: Float[Array, "batch"]
    efficiency: Float[Array, "batch"]
    score: Float[Array, ""]
    unsafe_rate: Float[Array, ""]


class SourceScore(NamedTuple):
    """One line of the table that `rank_sources` returns: a source's ECI and the means of its parts."""

    name: str
    score: float
    capacity: float
    hardness: float
    safety: float
    efficiency: float
    unsafe_rate: float


def information_capacity(k: Int[Array, "..."] | Float[Array, "..."] | int) -> Float[Array, "..."]:
    """Nats that InfoNCE with one positive and k negatives can certify at most.

    C = ln(1 + k)

    Args:
        k: number of negatives, any shape.

    Returns:
        The capacity in nats, same shape, float32 (float64 where k is).

    Source:
        arXiv:2603.20990v1 (information capacity; proposed reading); the bound is that of InfoNCE,
        arXiv:1807.03748.

    Example:
        >>> [round(float(c), 4) for c in information_capacity(jnp.array([0, 1, 3]))]
        [0.0, 0.6931, 1.3863]
    """
    return jnp.log1p(at_least_float32(jnp.asarray(k)))


def hardness(
    sim_neg: Float[Array, "*batch negatives"],
    mask: Bool[Array, "*batch negatives"] | None = None,
    kind: str = "mean",
    *,
    sim01: str = "clip",
) -> Float[Array, "*batch"]:
    """How close the negatives are to the query (signal magnitude).

    H_i = mean_k f(s_ik)  or  max_k f(s_ik),  f(s) = clip(s) or (1 + s) / 2;  0 without valid negatives

    Args:
        sim_neg: cosines of query and negatives, in [-1, 1].
        mask: true where the negative is valid; None: all are.
        kind: "mean" or "max".
        sim01: "clip" or "affine", the map f from cosines to [0, 1].

    Returns:
        One hardness in [0, 1] a row; the negatives' axis is gone.

    Raises:
        ValueError: an unknown kind or sim01, or a mask of another shape.
        TypeError: a mask that is not boolean.

    Source:
        arXiv:2603.20990v1 (signal magnitude; proposed reading). Differentiable except at clips and ties.

    Example:
        >>> round(float(hardness(jnp.array([0.2, 0.4]))), 4)
        0.3
    """
    one_of("kind", kind, HARDNESS)
    one_of("sim01", sim01, SIM01)
    sim_neg = at_least_float32(sim_neg)
    mask = boolean_mask("mask", mask, sim_neg.shape)
    level = jnp.clip(sim_neg, 0.0, 1.0) if sim01 == "clip" else (1.0 + sim_neg) / 2.0
    if kind == "mean":
        return masked_mean(level, mask)
    return jnp.where(jnp.any(mask, axis=-1), jnp.max(level, axis=-1, where=mask, initial=0.0), 0.0)


def safety(
    sim_pos: Float[Array, "*batch"],
    sim_neg: Float[Array, "*batch negatives"],
    mask: Bool[Array, "*batch negatives"] | None = None,
    kind: str = "max",
    tau: float = 0.8,
) -> Float[Array, "*batch"]:
    """How far the negatives stay below the labelled positive.

    "max": clip(s_i+ - max_k s_ik);  "mean": mean_k clip(s_i+ - s_ik);  "fraction": mean_k 1[s_ik < s_i+];
    "threshold": mean_k 1[s_ik < tau];  all 0 without valid negatives

    With "max", one negative at or above the positive makes the row unsafe (0).

    Args:
        sim_pos: cosine of query and positive, in [-1, 1].
        sim_neg: cosines of query and negatives.
        mask: true where the negative is valid; None: all are.
        kind: "max", "mean", "fraction" or "threshold".
        tau: cosine from which on "threshold" calls a negative unsafe.

    Returns:
        One safety in [0, 1] a row.

    Raises:
        ValueError: an unknown kind, or shapes that do not fit.
        TypeError: a mask that is not boolean.

    Source:
        arXiv:2603.20990v1 (max-margin safety; proposed reading). Differentiable except at clips and ties;
        "fraction" and "threshold" are steps, whose gradient is 0.

    Example:
        >>> round(float(safety(jnp.array(0.9), jnp.array([0.2, 0.4]))), 4)
        0.5
    """
    one_of("kind", kind, SAFETY)
    sim_pos, sim_neg = at_least_float32(sim_pos), at_least_float32(sim_neg)
    if sim_neg.ndim == 0 or sim_pos.shape != sim_neg.shape[:-1]:
        raise ValueError(
            f"sim_pos: expected the shape of sim_neg without its last axis, {sim_neg.shape[:-1]}, "
            f"got {sim_pos.shape}"
        )
    mask = boolean_mask("mask", mask, sim_neg.shape)
    positive = sim_pos[..., None]
    if kind == "max":
        margin = jnp.clip(sim_pos - masked_max(sim_neg, mask), 0.0, 1.0)
        return jnp.where(jnp.any(mask, axis=-1), margin, 0.0)
    if kind == "mean":
        return masked_mean(jnp.clip(positive - sim_neg, 0.0, 1.0), mask)
    below = sim_neg < (positive if kind == "fraction" else tau)
    return masked_mean(below.astype(sim_neg.dtype), mask)


def efficiency(hardness: Float[Array, "*batch"], safety: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Discriminative efficiency: the harmonic mean of hardness and safety.

    E = 2 H S / (H + S),  0 where H + S <= 1e-12

    Args:
        hardness: in [0, 1].
        safety: in [0, 1], same shape.

    Returns:
        The efficiency in [0, 1], same shape; its gradient is finite everywhere.

    Source:
        arXiv:2603.20990v1 (discriminative efficiency; proposed reading).

    Example:
        >>> efficiency(jnp.array([0.5, 0.0]), jnp.array([0.5, 0.0])).tolist()
        [0.5, 0.0]
    """
    total = hardness + safety
    positive = total > EFFICIENCY_FLOOR
    return jnp.where(positive, 2.0 * hardness * safety / jnp.where(positive, total, 1.0), 0.0)


_hardness, _safety = hardness, safety  # `eci` names its options as the paper names the parts


def eci(
    sim_pos: Float[Array, "batch"],
    sim_neg: Float[Array, "batch negatives"],
    mask: Bool[Array, "batch negatives"] | None = None,
    *,
    hardness: str = "mean",
    safety: str = "max",
    sim01: str = "clip",
    aggregate: str = "mean_of_products",
    tau: float = 0.8,
    axis_name: str | None = None,
) -> ECIResult:
    """Effective contrastive information of a source of hard negatives.

    ECI_i = ln(1 + K_i) * harmonic(H_i, S_i);  score = mean_i ECI_i ("mean_of_products")
    or  mean_i C_i * harmonic(mean_i H_i, mean_i S_i) ("product_of_means")

    A row is one (query, positive) pair; a query with several positives has several rows. A row without valid
    negatives counts in the means with 0 everywhere. Compare sources on the same rows only.

    Args:
        sim_pos: cosine of query and positive in the frozen target encoder.
        sim_neg: cosines of query and negatives; there may be none (K = 0).
        mask: true where the negative is valid; None: all are.
        hardness: "mean" or "max".
        safety: "max", "mean", "fraction" or "threshold".
        sim01: "clip" or "affine", for the hardness only.
        aggregate: "mean_of_products" or "product_of_means"; they rank sources differently where K varies.
        tau: cosine from which on safety "threshold" calls a negative unsafe.
        axis_name: inside ``shard_map``, the mapped axis over which the means are completed.

    Returns:
        An `ECIResult`: five values a row and the two numbers of the source.

    Raises:
        ValueError: an empty batch, shapes that do not fit, or an unknown option.
        TypeError: a mask that is not boolean.

    Source:
        arXiv:2603.20990v1; formula: proposed reading. Differentiable except at clips and ties.

    Example:
        >>> result = eci(jnp.array([0.9, 0.8]), jnp.array([[0.2, 0.4], [0.9, 0.1]]))
        >>> [round(float(x), 3) for x in result.eci], float(result.unsafe_rate)
        ([0.412, 0.0], 0.5)
    """
    one_of("hardness", hardness, HARDNESS)
    one_of("safety", safety, SAFETY)
    one_of("aggregate", aggregate, AGGREGATE)
    sim_pos, sim_neg = jnp.asarray(sim_pos), jnp.asarray(sim_neg)
    if sim_neg.ndim != 2:
        raise ValueError(f"sim_neg: expected shape [batch, negatives], got {sim_neg.shape}")
    if sim_neg.shape[0] == 0:
        raise ValueError("sim_neg: expected at least one row, got an empty batch")
    mask = boolean_mask("mask", mask, sim_neg.shape)
    row_hardness = _hardness(sim_neg, mask, hardness, sim01=sim01)
    row_safety = _safety(sim_pos, sim_neg, mask, safety, tau)
    capacity = information_capacity(jnp.sum(mask, axis=-1).astype(row_hardness.dtype))
    row_efficiency = efficiency(row_hardness, row_safety)
    row_eci = capacity * row_efficiency

    def mean(values: Float[Array, "batch"]) -> Float[Array, ""]:
        local = jnp.mean(values)
        return local if axis_name is None else jax.lax.pmean(local, axis_name)

    if aggregate == "mean_of_products":
        score = mean(row_eci)
    else:
        score = mean(capacity) * efficiency(mean(row_hardness), mean(row_safety))
    unsafe_rate = mean((row_safety == 0.0).astype(row_safety.dtype))
    return ECIResult(row_eci, capacity, row_hardness, row_safety, row_efficiency, score, unsafe_rate)


def similarities(
    q: Float[Array, "batch dim"], p: Float[Array, "batch dim"], n: Float[Array, "batch negatives dim"]
) -> tuple[Float[Array, "batch"], Float[Array, "batch negatives"]]:
    """Dot products of each query with its positive and with its negatives, accumulated in float32.

    s_i+ = <q_i, p_i>,  s_ik = <q_i, n_ik>

    Args:
        q: embeddings of the queries.
        p: embeddings of their positives.
        n: embeddings of their negatives.

    Returns:
        The two arrays of dot products.

    Raises:
        ValueError: shapes that do not fit.

    Source:
        arXiv:2603.20990v1 (cosines of a frozen encoder).

    Example:
        >>> sim_pos, sim_neg = similarities(jnp.eye(2), jnp.eye(2), jnp.ones((2, 3, 2)))
        >>> sim_pos.shape, sim_neg.shape
        ((2,), (2, 3))
    """
    if q.ndim != 2:
        raise ValueError(f"q: expected shape [batch, dim], got {q.shape}")
    if p.shape != q.shape:
        raise ValueError(f"p: expected the shape of q, {q.shape}, got {p.shape}")
    if n.ndim != 3 or n.shape[0] != q.shape[0] or n.shape[2] != q.shape[1]:
        raise ValueError(f"n: expected shape [{q.shape[0]}, negatives, {q.shape[1]}], got {n.shape}")
    # A product and a sum, where an einsum over a dimension that is sharded explicitly would be ambiguous.
    q, p, n = at_least_float32(q), at_least_float32(p), at_least_float32(n)
    return jnp.sum(q * p, axis=-1), jnp.sum(q[:, None, :] * n, axis=-1)


def eci_from_embeddings(
    q: Float[Array, "batch dim"],
    p: Float[Array, "batch dim"],
    n: Float[Array, "batch negatives dim"],
    mask: Bool[Array, "batch negatives"] | None = None,
    **options,
) -> ECIResult:
    """ECI from unit embeddings of queries, positives and negatives.

    s_i+ = <q_i, p_i>,  s_ik = <q_i, n_ik>, then `eci`

    Args:
        q: unit embeddings of the queries.
        p: unit embeddings of their positives.
        n: unit embeddings of their negatives.
        mask: true where the negative is valid; None: all are.
        **options: those of `eci`.

    Returns:
        An `ECIResult`.

    Raises:
        ValueError: shapes that do not fit, or rows that are not of length 1 within 1 % (rows of zeros, for
            empty texts, pass). The lengths are data, so they are checked outside of ``jit`` only.

    Source:
        arXiv:2603.20990v1; formula: proposed reading.

    Example:
        >>> q = jnp.array([[1.0, 0.0]])
        >>> round(float(eci_from_embeddings(q, q, jnp.array([[[0.6, 0.8]]])).score), 4)
        0.3327
    """
    q, p, n = jnp.asarray(q), jnp.asarray(p), jnp.asarray(n)
    unit_rows("q", q)
    unit_rows("p", p)
    unit_rows("n", n, mask if mask is None or jnp.shape(mask) == n.shape[:-1] else None)
    return eci(*similarities(q, p, n), mask, **options)


def eci_from_ids(
    q: Float[Array, "queries dim"],
    d: Float[Array, "documents dim"],
    query_ids: Int[Array, "batch"],
    positive_ids: Int[Array, "batch"],
    negative_ids: Int[Array, "batch negatives"],
    *,
    mesh: Mesh | None = None,
    axis_name: str = "data",
    block_rows: int = 1024,
    **options,
) -> ECIResult:
    """ECI of rows that name their documents, streamed: the negatives' embeddings are never held together.

    s_i+ = <q_i, d_positive>,  s_ik = <q_i, d_negative k>, then `eci`

    Peak memory beside inputs and results is about 4 block_rows (1 + negatives) dim bytes.

    Args:
        q: unit embeddings of the queries.
        d: unit embeddings of the documents; on a mesh sharded over ``axis_name``.
        query_ids: query of each row.
        positive_ids: positive document of each row.
        negative_ids: negative documents of each row, as `mine_negatives` returns them; -1 for a missing slot.
        mesh: where the documents are sharded; None: on one device.
        axis_name: the mesh axis over which documents are sharded.
        block_rows: rows whose documents are gathered at once.
        **options: those of `eci`, but axis_name.

    Returns:
        An `ECIResult`. Rows with a positive that no document has score 0 wherever safety counts.

    Raises:
        ValueError: shapes that do not fit, or, outside of ``jit``, embeddings that are not of length 1.

    Source:
        arXiv:2603.20990v1; formula: proposed reading.

    Example:
        >>> q, d = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.6, 0.8]])
        >>> result = eci_from_ids(q, d, jnp.array([0]), jnp.array([0]), jnp.array([[1, -1]]))
        >>> round(float(result.score), 4)
        0.3327
    """
    q, d = jnp.asarray(q), jnp.asarray(d)
    query_ids, positive_ids, negative_ids = (jnp.asarray(x) for x in (query_ids, positive_ids, negative_ids))
    unit_rows("q", q)
    unit_rows("d", d)
    if query_ids.ndim != 1 or positive_ids.shape != query_ids.shape:
        raise ValueError(
            f"positive_ids: expected the shape of query_ids, [batch], got {positive_ids.shape} "
            f"and {query_ids.shape}"
        )
    if negative_ids.ndim != 2 or negative_ids.shape[0] != query_ids.shape[0]:
        raise ValueError(
            f"negative_ids: expected shape [{query_ids.shape[0]}, negatives], got {negative_ids.shape}"
        )
    ids = jnp.concatenate([positive_ids[:, None], negative_ids], axis=1)
    sims = pair_similarities(q[query_ids], d, ids, mesh=mesh, axis_name=axis_name, block_rows=block_rows)
    valid = jnp.isfinite(sims[:, 1:])
    return eci(sims[:, 0], jnp.where(valid, sims[:, 1:], 0.0), valid, **options)


def rank_sources(
    sources: Mapping[
        str,
        tuple[Float[Array, "batch"], Float[Array, "batch negatives"], Bool[Array, "batch negatives"] | None],
    ],
    **options,
) -> list[SourceScore]:
    """Sources of negatives, the one with the highest ECI first.

    Args:
        sources: for each name, (sim_pos, sim_neg, mask) as `eci` takes them; the number of negatives may
            differ.
        **options: those of `eci`, the same for all sources.

    Returns:
        One `SourceScore` a source, by falling score; equal scores keep the order of the mapping. Not for
        ``jit``.

    Raises:
        ValueError: no source, or what `eci` raises.

    Warns:
        UserWarning: sources whose sim_pos differ: they are not scored on the same queries and positives.

    Source:
        arXiv:2603.20990v1 (ranking of sources before training).

    Example:
        >>> one = jnp.ones(1)
        >>> sources = {"easy": (one, jnp.array([[0.1]]), None), "hard": (one, jnp.array([[0.5]]), None)}
        >>> [row.name for row in rank_sources(sources)]
        ['hard', 'easy']
    """
    if not sources:
        raise ValueError("sources: expected at least one source, got none")
    positives = {name: np.asarray(at_least_float32(sim_pos)) for name, (sim_pos, _, _) in sources.items()}
    first, *others = positives
    for name in others:
        same = positives[name].shape == positives[first].shape and np.allclose(
            positives[name], positives[first], atol=1e-3
        )
        if not same:
            warnings.warn(
                f"sources {first!r} and {name!r} differ in sim_pos: "
                "scores compare only on the same queries and positives",
                stacklevel=2,
            )
    table = []
    for name, (sim_pos, sim_neg, mask) in sources.items():
        result = eci(sim_pos, sim_neg, mask, **options)
        table.append(
            SourceScore(
                name=name,
                score=float(result.score),
                capacity=float(jnp.mean(result.capacity)),
                hardness=float(jnp.mean(result.hardness)),
                safety=float(jnp.mean(result.safety)),
                efficiency=float(jnp.mean(result.efficiency)),
                unsafe_rate=float(result.unsafe_rate),
            )
        )
    return sorted(table, key=lambda row: -row.score)
