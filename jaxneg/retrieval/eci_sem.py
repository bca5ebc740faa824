"""ECI_sem: the semantic residual form of ECI, from one negative for each sampled (query, positive) pair.

Paper: "ECI_sem: Semantic Residual Effective Contrastive Information for Evaluating Hard Negatives",
arXiv:2603.20990, version 3. formula: proposed reading of arXiv:2603.20990. The text fixes the ingredients
(target consistency, semantic locality, lexical residuality, a log-determinant that rewards diversity); the
exact equations were not available, so there are no equation numbers to cite. Version 1 has another formula:
see `jaxneg.retrieval.eci`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxneg.retrieval.arguments import explicit_sharding, unit_rows
from jaxneg.retrieval.masked import at_least_float32

# Shorter tangent vectors than this have no direction.
DIRECTION_FLOOR = 1e-12


class ECISemResult(NamedTuple):
    """ECI_sem of a sample of triples.

    Attributes:
        score: ln det(I + lam A), at least 0, in nats.
        weights: a_i b_i c_i of each triple, in [0, 1].
    """

    score: Float[Array, ""]
    weights: Float[Array, "triples"]


def lexical_overlap(
    query_tokens: Int[Array, "triples query_length"],
    doc_tokens: Int[Array, "triples doc_length"],
    idf: Float[Array, "vocabulary"],
) -> Float[Array, "triples"]:
    """Share of the query's inverse document frequency that also occurs in the document.

    sum of idf(t) over the distinct query tokens that the document has / sum of idf(t) over the distinct query
    tokens

    Args:
        query_tokens: token numbers of the queries, -1 for padding.
        doc_tokens: token numbers of the documents, -1 for padding.
        idf: inverse document frequency of each token, for example ln(1 + N / (1 + df)).

    Returns:
        One share in [0, 1] a triple; 0 for a query without tokens.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: tokens that are not integers.

    Source:
        arXiv:2603.20990v3 (lexical residuality is one minus this; proposed reading).

    Example:
        >>> lexical_overlap(jnp.array([[0, 1, 1]]), jnp.array([[1, 2]]), jnp.ones(3)).tolist()
        [0.5]
    """
    query_tokens, doc_tokens, idf = jnp.asarray(query_tokens), jnp.asarray(doc_tokens), at_least_float32(idf)
    for name, tokens in (("query_tokens", query_tokens), ("doc_tokens", doc_tokens)):
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"{name}: expected integer token numbers, got dtype {tokens.dtype}")
        if tokens.ndim != 2 or tokens.shape[0] != query_tokens.shape[0]:
            raise ValueError(
                f"{name}: expected shape [triples, length] with as many triples as query_tokens, "
                f"got {tokens.shape}"
            )
    if idf.ndim != 1:
        raise ValueError(f"idf: expected shape [vocabulary], got {idf.shape}")
    length = query_tokens.shape[1]
    earlier = jnp.tril(jnp.ones((length, length), bool), -1)
    repeated = jnp.any((query_tokens[:, :, None] == query_tokens[:, None, :]) & earlier, axis=-1)
    counted = (query_tokens >= 0) & ~repeated
    present = jnp.any(query_tokens[:, :, None] == doc_tokens[:, None, :], axis=-1)
    value = idf.at[jnp.maximum(query_tokens, 0)].get(
        mode="clip", out_sharding=explicit_sharding(query_tokens)
    )
    total = jnp.sum(value, axis=-1, where=counted)
    shared = jnp.sum(value, axis=-1, where=counted & present)
    return jnp.where(total > 0, shared / jnp.where(total > 0, total, 1.0), 0.0)


def triple_weights(
    sim_pos: Float[Array, "triples"],
    sim_neg: Float[Array, "triples"],
    overlap: Float[Array, "triples"],
    *,
    tau: float = 0.05,
) -> tuple[
    Float[Array, "triples"], Float[Array, "triples"], Float[Array, "triples"], Float[Array, "triples"]
]:
    """Target consistency, semantic locality, lexical residuality of each triple, and their product.

    a = sigmoid((s+ - s-) / tau),  b = clip(s-),  c = 1 - overlap,  w = a b c

    Args:
        sim_pos: cosine of query and positive.
        sim_neg: cosine of query and negative.
        overlap: `lexical_overlap` of query and negative.
        tau: temperature of the consistency, positive.

    Returns:
        (a, b, c, w), each in [0, 1].

    Raises:
        ValueError: a tau that is not positive.

    Source:
        arXiv:2603.20990v3; formula: proposed reading.

    Example:
        >>> round(float(triple_weights(jnp.array(0.5), jnp.array(0.5), jnp.array(0.2))[3]), 4)
        0.2
    """
    if isinstance(tau, (int, float)) and tau <= 0:
        raise ValueError(f"tau: expected a positive number, got {tau}")
    sim_pos, sim_neg, overlap = (at_least_float32(x) for x in (sim_pos, sim_neg, overlap))
    consistency = jax.nn.sigmoid((sim_pos - sim_neg) / tau)
    locality = jnp.clip(sim_neg, 0.0, 1.0)
    residuality = 1.0 - overlap
    return consistency, locality, residuality, consistency * locality * residuality


def query_directions(
    q: Float[Array, "triples dim"], p: Float[Array, "triples dim"], n: Float[Array, "triples dim"]
) -> Float[Array, "triples dim"]:
    """Unit direction in which a pairwise loss moves each query on the sphere.

    v = unit((I - q q^T)(n - p)),  0 where that vector is shorter than 1e-12

    Args:
        q: unit embeddings of the queries.
        p: unit embeddings of their positives.
        n: unit embeddings of their negatives.

    Returns:
        One unit vector (or zero vector) a triple, orthogonal to its query.

    Source:
        arXiv:2603.20990v3; formula: proposed reading.

    Example:
        >>> q, n = jnp.array([[1.0, 0.0]]), jnp.array([[0.6, 0.8]])
        >>> query_directions(q, q, n).tolist()
        [[0.0, 1.0]]
    """
    q, p, n = (at_least_float32(x) for x in (q, p, n))
    step = n - p
    tangent = step - q * jnp.sum(q * step, axis=-1, keepdims=True)
    squared = jnp.sum(tangent**2, axis=-1, keepdims=True)
    long_enough = squared > DIRECTION_FLOOR**2
    return jnp.where(long_enough, tangent / jnp.sqrt(jnp.where(long_enough, squared, 1.0)), 0.0)


def information_matrix(
    directions: Float[Array, "triples dim"], weights: Float[Array, "triples"]
) -> Float[Array, "dim dim"]:
    """Weighted second moment of the directions.

    A = (1 / M) sum_i w_i v_i v_i^T

    Args:
        directions: of `query_directions`.
        weights: of `triple_weights`.

    Returns:
        A symmetric positive semi-definite matrix.

    Source:
        arXiv:2603.20990v3; formula: proposed reading.

    Example:
        >>> information_matrix(jnp.eye(2), jnp.array([1.0, 0.0])).tolist()
        [[0.5, 0.0], [0.0, 0.0]]
    """
    scaled = directions * weights[:, None]
    # Each device adds up its own triples; under explicit axes that has to be asked for.
    product = jnp.einsum(
        "md,me->de",
        scaled,
        directions,
        precision="highest",
        out_sharding=explicit_sharding(directions, PartitionSpec(None, None)),
    )
    return product / directions.shape[0]


def eci_sem(
    q: Float[Array, "triples dim"],
    p: Float[Array, "triples dim"],
    n: Float[Array, "triples dim"],
    overlap: Float[Array, "triples"],
    *,
    tau: float = 0.05,
    lam: float = 10.0,
) -> ECISemResult:
    """Semantic residual ECI of a sample of (query, positive, negative) triples.

    ln det(I_d + lam A),  A = (1 / M) sum_i w_i v_i v_i^T; taken as ln det(I_M + (lam / M) W^1/2 V V^T W^1/2)
    where the sample is smaller than the dimension

    At least 0, monotone in every weight, unchanged by rotations of the embedding space. Compare sources with
    the same number of triples.

    Args:
        q: unit embeddings of the queries.
        p: unit embeddings of their positives.
        n: unit embeddings of their negatives, one each.
        overlap: `lexical_overlap` of query and negative, in [0, 1].
        tau: temperature of the target consistency, positive.
        lam: scale of the information matrix, positive.

    Returns:
        An `ECISemResult`: the score in nats and the weight of each triple.

    Raises:
        ValueError: an empty sample, shapes that do not fit, tau or lam not positive, or rows that are not of
            length 1 within 1 % (rows of zeros pass; checked outside of ``jit`` only).

    Source:
        arXiv:2603.20990v3; formula: proposed reading.

    Example:
        >>> q, p, n = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0]]), jnp.array([[0.6, 0.8]])
        >>> round(float(eci_sem(q, p, n, jnp.zeros(1)).score), 3)
        1.946
    """
    q, p, n, overlap = jnp.asarray(q), jnp.asarray(p), jnp.asarray(n), jnp.asarray(overlap)
    if q.ndim != 2 or q.shape[0] == 0:
        raise ValueError(f"q: expected shape [triples, dim] with at least one triple, got {q.shape}")
    for name, rows in (("p", p), ("n", n)):
        if rows.shape != q.shape:
            raise ValueError(f"{name}: expected the shape of q, {q.shape}, got {rows.shape}")
    if overlap.shape != q.shape[:1]:
        raise ValueError(f"overlap: expected shape {q.shape[:1]}, got {overlap.shape}")
    if isinstance(lam, (int, float)) and lam <= 0:
        raise ValueError(f"lam: expected a positive number, got {lam}")
    for name, rows in (("q", q), ("p", p), ("n", n)):
        unit_rows(name, rows)
    q, p, n = (at_least_float32(x) for x in (q, p, n))
    sim_pos, sim_neg = jnp.sum(q * p, axis=-1), jnp.sum(q * n, axis=-1)
    *_, weights = triple_weights(sim_pos, sim_neg, overlap, tau=tau)
    directions = query_directions(q, p, n)
    triples, dim = q.shape
    if dim <= triples:
        small = lam * information_matrix(directions, weights)
    else:
        rooted = directions * jnp.sqrt(jnp.where(weights > 0, weights, 1.0))[:, None]
        rooted = jnp.where(weights[:, None] > 0, rooted, 0.0)
        kernel = jnp.einsum(
            "md,nd->mn",
            rooted,
            rooted,
            precision="highest",
            out_sharding=explicit_sharding(rooted, PartitionSpec(None, None)),
        )
        small = (lam / triples) * kernel
    factor = jnp.linalg.cholesky(jnp.eye(small.shape[0], dtype=small.dtype) + small)
    return ECISemResult(2.0 * jnp.sum(jnp.log(jnp.diagonal(factor))), weights)
