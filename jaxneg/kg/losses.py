"""Losses of positive and negative triples.

Papers: Sun et al., arXiv:1902.10197, equations 5 and 6 (log-sigmoid loss with a margin, self-adversarial
weights); Bordes et al., NeurIPS 2013 (margin ranking). Sub-sampling weights as in RotatE's ``dataloader.py``,
after word2vec.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxneg.kg.arguments import triple_rows
from jaxneg.kg.scores import Params

FIRST_COUNT = 4
"""How often a (head, relation) or (tail, relation) that occurs once is said to occur."""


def positive_loss(pos: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """``-log sigmoid(s)`` of positive triples, one value a triple.

    Args:
        pos: scores.

    Returns:
        Losses.

    Source:
        arXiv:1902.10197, equation 5.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(positive_loss(jnp.array(0.0))), 4)
        0.6931
    """
    return -jax.nn.log_sigmoid(pos.astype(jnp.promote_types(pos.dtype, jnp.float32)))


def negative_loss(
    neg: Float[Array, "*b n"], alpha: float | Float[Array, ""] | None = None
) -> Float[Array, "*b"]:
    """``-sum_j p_j log sigmoid(-s_j)`` over the negatives of each positive, one value a positive.

    p_j = 1 / n, or, self-adversarially, softmax_j(alpha s_j) without a gradient.

    Args:
        neg: scores of the negatives.
        alpha: adversarial temperature, a multiplier; None: all negatives count alike, as they do with 0.

    Returns:
        Losses.

    Source:
        arXiv:1902.10197, equations 5 and 6.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(negative_loss(jnp.array([0.0, 0.0]), alpha=1.0)), 4)
        0.6931
    """
    neg = neg.astype(jnp.promote_types(neg.dtype, jnp.float32))
    log_likelihood = jax.nn.log_sigmoid(-neg)
    if alpha is None:
        return -jnp.mean(log_likelihood, axis=-1)
    weight = jax.lax.stop_gradient(jax.nn.softmax(alpha * neg, axis=-1))
    return -jnp.sum(weight * log_likelihood, axis=-1)


def kge_loss(
    pos: Float[Array, "b"],
    neg: Float[Array, "b n"],
    w: Float[Array, "b"] | None = None,
    alpha: float | Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """The loss of a batch: weighted means of `positive_loss` and `negative_loss`, halved.

    L = (sum_i w_i l+_i / sum_i w_i + sum_i w_i l-_i / sum_i w_i) / 2

    It is reduced, since the weights of a batch are relative to each other; the two parts are not.

    Args:
        pos: scores of positives.
        neg: scores of the negatives of each.
        w: weights, as `subsampling_weights` gives them; None: all are 1.
        alpha: adversarial temperature; None: all negatives count alike.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes that do not fit, no negatives.

    Source:
        arXiv:1902.10197, equations 5 and 6; RotatE's ``train_step``.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(kge_loss(jnp.zeros(2), jnp.zeros((2, 3)))), 4)
        0.6931
    """
    if neg.ndim != pos.ndim + 1 or neg.shape[:-1] != pos.shape or neg.shape[-1] < 1:
        raise ValueError(f"neg: expected the shape of pos, {pos.shape}, and negatives, got {neg.shape}")
    losses = (positive_loss(pos) + negative_loss(neg, alpha)) / 2
    if w is None:
        return jnp.mean(losses)
    if w.shape != pos.shape:
        raise ValueError(f"w: expected the shape of pos, {pos.shape}, got {w.shape}")
    w = w.astype(losses.dtype)
    return jnp.sum(w * losses) / jnp.sum(w)


def margin_loss(pos: Float[Array, "*b"], neg: Float[Array, "*b n"], margin: float) -> Float[Array, "*b n"]:
    """Margin ranking loss ``max(0, margin - s+ + s-)``, one value a negative.

    Args:
        pos: scores of positives.
        neg: scores of the negatives of each.
        margin: distance that a positive should keep from its negatives.

    Returns:
        Losses.

    Source:
        Bordes et al. 2013, equation 1.

    Example:
        >>> import jax.numpy as jnp
        >>> margin_loss(jnp.array([2.0]), jnp.array([[0.0, 2.0]]), 1.0).tolist()
        [[0.0, 1.0]]
    """
    return jax.nn.relu(margin - pos[..., None] + neg)


def l3_regularization(params: Params) -> Float[Array, ""]:
    """``||E||_3^3 + ||R||_3^3`` over the whole tables, for DistMult and ComplEx.

    Args:
        params: tables as of `kge_init`.

    Returns:
        A scalar, to be added with a coefficient of 1e-5 or so.

    Source:
        RotatE's ``train_step``.

    Example:
        >>> import jax.numpy as jnp
        >>> float(l3_regularization({"entity": jnp.array([[-1.0, 2.0]]), "relation": jnp.array([[1.0]])}))
        10.0
    """

    def cubes(table: Array) -> Array:
        return jnp.sum(jnp.abs(table.astype(jnp.promote_types(table.dtype, jnp.float32))) ** 3)

    return cubes(params["entity"]) + cubes(params["relation"])


def subsampling_weights(triples: Int[Array, "triples 3"]) -> Float[Array, "triples"]:
    """Weights that let frequent (head, relation) and (tail, relation) pairs count less, one a triple.

    w = 1 / sqrt(c(h, r) + c(t, r)), where c counts triples with the pair, plus 3. A triple that is listed
    twice counts twice.

    Args:
        triples: head, relation, tail of the training triples.

    Returns:
        Weights.

    Raises:
        ValueError: not ``[triples, 3]``.

    Source:
        RotatE's ``dataloader.py``, ``count_frequency``.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(subsampling_weights(jnp.array([[0, 0, 1]]))[0]) ** -2)
        8
    """
    triples = triple_rows("triples", triples)
    counts = sum(_pair_counts(triples[:, i], triples[:, 1]) for i in (0, 2))
    return 1 / jnp.sqrt(counts + 2.0 * (FIRST_COUNT - 1))


def _pair_counts(entity: Array, relation: Array) -> Array:
    """How often each row's pair occurs, by sorting: the pairs are too many for one 32-bit number."""
    order = jnp.lexsort((relation, entity))
    e, r = entity[order], relation[order]
    changes = jnp.concatenate([jnp.zeros(1, bool), (e[1:] != e[:-1]) | (r[1:] != r[:-1])])
    group = jnp.cumsum(changes)
    counts = jax.ops.segment_sum(jnp.ones_like(group), group, len(group))
    return jnp.zeros_like(group).at[order].set(counts[group])
