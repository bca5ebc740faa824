"""Losses of rationale distillation: one rationale taken as the truth, and many that are weighed and opposed.

Implements Hsieh et al., "Distilling Step-by-Step!", arXiv:2305.02301, Section 3.2, and Wang et al., "QCRD:
Quality-guided Contrastive Rationale Distillation for Large Language Models", arXiv:2405.13014, equations 2 to
8. The second has no released code; what the equations leave open is marked *our reading*.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

Scheme = Literal["minmax", "maxmin", "sampling", "mean", "wmean"]
"""How a set of rationales becomes one number: the nearest positive and the most distant negative, the other
way round, one of each at random, the mean, the mean weighted by the scores."""

SELECTING = ("minmax", "maxmin", "sampling")
"""The schemes that take one rationale of each set."""


def sequence_ce(
    logits: Float[Array, "*batch tokens vocab"],
    targets: Int[Array, "*batch tokens"],
    mask: Bool[Array, "*batch tokens"],
) -> Float[Array, "*batch"]:
    """Cross-entropy of each sequence, the mean over its own tokens.

    ``l = sum_t m_t (logsumexp(z_t) - z_t[y_t]) / sum_t m_t``; a mean of each sequence, not of the batch,
    since sequences are compared with one another and with a margin in nats per token.

    Args:
        logits: position t holds those of ``targets[..., t]``; any floating dtype, sums run in float32 or
            wider.
        targets: token ids; what they are where the mask is 0 does not matter.
        mask: 1 where a token counts, its end included.

    Returns:
        Nats per token. A sequence without tokens has 0, and a zero gradient.

    Raises:
        TypeError: logits that are not floating, targets that are not integers.
        ValueError: shapes that do not match.

    Source:
        arXiv:2405.13014, Section 3, the loss l(f(x), r).

    Example:
        >>> ce = sequence_ce(jnp.zeros((2, 3, 8)), jnp.zeros((2, 3), int), jnp.ones((2, 3), bool))
        >>> (ce / jnp.log(8)).round(3).tolist()
        [1.0, 1.0]
    """
    nll, counted = _token_nll(logits, targets, mask)
    return nll.sum(-1) / jnp.maximum(counted.sum(-1), 1)


def token_mean_ce(
    logits: Float[Array, "*batch tokens vocab"],
    targets: Int[Array, "*batch tokens"],
    mask: Bool[Array, "*batch tokens"],
) -> Float[Array, ""]:
    """Cross-entropy of a batch, one mean over all its tokens: the loss of both tasks of
    distilling-step-by-step.

    ``L = sum_{b,t} m_bt nll_bt / sum_{b,t} m_bt``

    Args:
        logits: as in `sequence_ce`.
        targets: likewise.
        mask: likewise.

    Returns:
        Nats per token, a scalar; 0 if no token counts.

    Raises:
        TypeError: logits that are not floating, targets that are not integers.
        ValueError: shapes that do not match.

    Source:
        arXiv:2305.02301, equations 3 and 4, as the official trainer averages.

    Example:
        >>> ce = token_mean_ce(jnp.zeros((2, 3, 8)), jnp.zeros((2, 3), int), jnp.ones((2, 3), bool))
        >>> float((ce / jnp.log(8)).round(3))
        1.0
    """
    nll, counted = _token_nll(logits, targets, mask)
    return nll.sum() / jnp.maximum(counted.sum(), 1)


def contrastive_rationale_loss(
    ce_pos: Float[Array, "batch positives"],
    ce_neg: Float[Array, "batch negatives"],
    valid_pos: Bool[Array, "batch positives"],
    valid_neg: Bool[Array, "batch negatives"],
    score_pos: Float[Array, "batch positives"] | None = None,
    score_neg: Float[Array, "batch negatives"] | None = None,
    beta: float | Array = 0.2,
    delta: float | Array = 3.0,
    scheme: Scheme = "minmax",
    key: jax.Array | None = None,
    *,
    uniform: Float[ArrayLike, "batch 2"] | None = None,
) -> tuple[Float[Array, " batch"], dict[str, Array]]:
    """Good rationales are to be likely, bad ones unlikely up to a margin; a judge's scores weigh both.

    ``L_i = l(S_pos) - beta l(S_neg)`` with ``l(S_pos) = s_j l_j``, j the positive of the least l, and
    ``l(S_neg) = (1 - s_j) min(l_j - delta, 0)``, j the negative of the largest (scheme "minmax").

    The scores carry no gradient. Without them s is 1 for positives and 0 for negatives (equations 4 and 5).
    *Our reading*: s is the score of the rationale that was selected, ties take the first, an empty set adds
    0. "mean" is the mean of the weighed terms; "wmean" weighs by ``s_j / sum s`` and ``(1 - s_j) / sum (1 -
    s)`` and no further.

    Args:
        ce_pos: l of the positives, nats per token (`sequence_ce`).
        ce_neg: l of the negatives; K may be 0.
        valid_pos: 1 where there is a positive.
        valid_neg: 1 where there is a negative.
        score_pos: the judge's scores of the positives, 0 to 1.
        score_neg: of the negatives.
        beta: weight of the negatives.
        delta: margin in nats per token, from which on a negative is bad enough.
        scheme: see `Scheme`.
        key: randomness of the scheme "sampling".
        uniform: numbers in [0, 1) in place of the key, for the positive and for the negative: the entry
            ``floor(u n)`` of the n valid ones is taken.

    Returns:
        One value for each example, whose mean is equation 3, and ``pos_term`` and ``neg_term`` ``[batch]``
        (before beta), ``pos_index`` and ``neg_index`` ``[batch]`` (what was selected; -1 where all are
        averaged, 0 in an empty set).

    Raises:
        TypeError: costs or scores that are not floating.
        ValueError: shapes that do not match, one of the scores without the other, an unknown scheme,
            "sampling" without a key, "wmean" without scores.

    Source:
        arXiv:2405.13014, equations 3 to 7 and Table 5.

    Example:
        >>> pos, neg = jnp.array([[1.0, 2.0]]), jnp.array([[0.5]])
        >>> loss, aux = contrastive_rationale_loss(pos, neg, jnp.ones((1, 2), bool), jnp.ones((1, 1), bool))
        >>> loss.tolist(), aux["neg_term"].tolist()
        ([1.5], [-2.5])
    """
    if scheme not in get_args(Scheme):
        raise ValueError(f"scheme: expected one of {', '.join(get_args(Scheme))}, got {scheme!r}")
    if (score_pos is None) != (score_neg is None):
        raise ValueError("score_pos, score_neg: expected both or neither, got one of them")
    if scheme == "wmean" and score_pos is None:
        raise ValueError("scheme: 'wmean' weighs by score_pos and score_neg, got none")
    if scheme == "sampling" and key is None and uniform is None:
        raise ValueError("key: the scheme 'sampling' draws, expected a key, got None")
    cost_pos, mask_pos, trust = _set("pos", ce_pos, valid_pos, score_pos, 1.0)
    cost_neg, mask_neg, quality = _set("neg", ce_neg, valid_neg, score_neg, 0.0)
    if cost_pos.shape[0] != cost_neg.shape[0]:
        raise ValueError(
            f"ce_neg: expected as many examples as ce_pos, {cost_pos.shape[0]}, got {cost_neg.shape[0]}"
        )
    margin, doubt = jnp.minimum(cost_neg - delta, 0), 1 - quality

    if scheme in SELECTING:
        if scheme == "sampling":
            if uniform is None:
                assert key is not None
                uniform = jax.random.uniform(key, (cost_pos.shape[0], 2))
            drawn = jnp.asarray(uniform)
            pos_index, neg_index = _drawn(drawn[:, 0], mask_pos), _drawn(drawn[:, 1], mask_neg)
        else:
            sign = 1 if scheme == "minmax" else -1
            pos_index = _lowest(sign * cost_pos, mask_pos)
            neg_index = _lowest(-sign * margin, mask_neg)
        pos_term = _taken(trust * cost_pos, pos_index, mask_pos)
        neg_term = _taken(doubt * margin, neg_index, mask_neg)
    else:
        averaged = (jnp.ones_like(trust), jnp.ones_like(doubt)) if scheme == "mean" else (trust, doubt)
        costs = (trust * cost_pos, doubt * margin) if scheme == "mean" else (cost_pos, margin)
        pos_term, neg_term = (
            _mean(cost, weight, mask)
            for cost, weight, mask in zip(costs, averaged, (mask_pos, mask_neg), strict=True)
        )
        pos_index, neg_index = (jnp.where(mask.any(-1), -1, 0) for mask in (mask_pos, mask_neg))
    aux = {"pos_term": pos_term, "neg_term": neg_term, "pos_index": pos_index, "neg_index": neg_index}
    return pos_term - beta * neg_term, aux


def discriminator_loss(
    score_pos: Float[Array, "batch positives"],
    score_neg: Float[Array, "batch negatives"],
    valid_pos: Bool[Array, "batch positives"],
    valid_neg: Bool[Array, "batch negatives"],
    denominator: Literal["neg", "all"] = "neg",
) -> Float[Array, ""]:
    """The judge's own loss: positives are to score high, negatives low.

    ``L_D = mean_i -log(sum_j exp(s_ij^pos) / sum_j exp(s_ij^neg))``, over the examples that have both.

    A log-ratio, which may be negative; it is bounded because scores lie in [0, 1].

    Args:
        score_pos: scores of the positives, 0 to 1.
        score_neg: of the negatives.
        valid_pos: 1 where there is a positive.
        valid_neg: 1 where there is a negative.
        denominator: "neg" as printed; "all" sums positives and negatives, as InfoNCE does.

    Returns:
        A scalar, since examples without a positive or without a negative are left out of the mean; 0 where
        no example has both.

    Raises:
        TypeError: scores that are not floating.
        ValueError: shapes that do not match, an unknown denominator.

    Source:
        arXiv:2405.13014, equation 2.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> float(discriminator_loss(0.9 * one, 0.4 * one, one, one).round(3))
        -0.5
    """
    if denominator not in ("neg", "all"):
        raise ValueError(f"denominator: expected 'neg' or 'all', got {denominator!r}")
    pos, mask_pos, _ = _set("pos", score_pos, valid_pos, None, 1.0, name="score")
    neg, mask_neg, _ = _set("neg", score_neg, valid_neg, None, 1.0, name="score")
    if pos.shape[0] != neg.shape[0]:
        raise ValueError(
            f"score_neg: expected as many examples as score_pos, {pos.shape[0]}, got {neg.shape[0]}"
        )
    counted = mask_pos.any(-1) & mask_neg.any(-1)

    def log_sum(scores: Array, mask: Array) -> Array:
        # Scores lie in [0, 1]: their exponentials need no shift.
        return jnp.log(jnp.where(counted, jnp.where(mask, jnp.exp(scores), 0).sum(-1), 1))

    if denominator == "all":
        below = log_sum(jnp.concatenate([pos, neg], -1), jnp.concatenate([mask_pos, mask_neg], -1))
    else:
        below = log_sum(neg, mask_neg)
    values = jnp.where(counted, below - log_sum(pos, mask_pos), 0)
    return values.sum() / jnp.maximum(counted.sum(), 1)


def qcrd_total(
    l_pred: ArrayLike,
    l_cl: ArrayLike,
    l_d: ArrayLike,
    alphas: Sequence[float] | Float[ArrayLike, "3"] = (0.5, 0.5, 0.5),
    iteration: int | Array = 0,
    decay: float = 0.9,
) -> Float[Array, ""]:
    """The three losses of QCRD together.

    ``L = alpha_1 L_pred + alpha_2 L_cl + alpha_3 decay^n L_D``

    Student and judge share no parameter, so the last weight only scales the judge's gradient.

    Args:
        l_pred: cross-entropy of the labels.
        l_cl: mean of `contrastive_rationale_loss`.
        l_d: `discriminator_loss`.
        alphas: the three weights.
        iteration: n.
        decay: of the last weight, for each iteration.

    Returns:
        The sum.

    Raises:
        ValueError: other than three weights.

    Source:
        arXiv:2405.13014, equation 8.

    Example:
        >>> float(qcrd_total(1.0, 2.0, -1.0, iteration=0))
        1.0
    """
    weights = jnp.asarray(alphas)
    if weights.shape != (3,):
        raise ValueError(f"alphas: expected three weights, got shape {weights.shape}")
    return weights[0] * l_pred + weights[1] * l_cl + weights[2] * decay ** jnp.asarray(iteration) * l_d


def dss_loss(pred_ce: ArrayLike, expl_ce: ArrayLike, alpha: float | Array = 0.5) -> Array:
    """The multi-task loss of distilling-step-by-step.

    ``L = alpha L_pred + (1 - alpha) L_expl``

    Args:
        pred_ce: cross-entropy of the labels under "predict:" (`token_mean_ce`).
        expl_ce: of the rationales under "explain:".
        alpha: weight of the first, 0 to 1.

    Returns:
        Their sum, of the shape of both.

    Source:
        arXiv:2305.02301, equation 2, with the weights of its official code.

    Example:
        >>> float(dss_loss(1.0, 3.0))
        2.0
    """
    return alpha * jnp.asarray(pred_ce) + (1 - alpha) * jnp.asarray(expl_ce)


def _token_nll(logits: Array, targets: Array, mask: Array) -> tuple[Array, Array]:
    """Negative log-likelihoods in float32 or wider, 0 where the mask is 0, and the mask."""
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits: expected a floating dtype, got {logits.dtype}")
    if not jnp.issubdtype(jnp.result_type(targets), jnp.integer):
        raise TypeError(f"targets: expected an integer dtype, got {jnp.result_type(targets)}")
    for name, array in (("targets", targets), ("mask", mask)):
        if jnp.shape(array) != logits.shape[:-1]:
            raise ValueError(
                f"{name}: expected the shape of logits without the vocabulary, {logits.shape[:-1]},"
                f" got {jnp.shape(array)}"
            )
    counted = jnp.asarray(mask) != 0
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # A masked sum, where a gather would be ambiguous on a vocabulary sharded over explicit axes.
    chosen = jnp.asarray(targets)[..., None] == jnp.arange(logits.shape[-1])
    at_target = jnp.where(chosen, wide, 0).sum(-1)
    return jnp.where(counted, jax.nn.logsumexp(wide, -1) - at_target, 0), counted


def _set(
    which: str, values: Array, valid: Array, scores: Array | None, default: float, name: str = "ce"
) -> tuple[Array, Array, Array]:
    """Costs, mask and scores of one set, zero where there is none, so that no NaN comes in."""
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"{name}_{which}: expected a floating dtype, got {values.dtype}")
    if values.ndim != 2:
        raise ValueError(f"{name}_{which}: expected the shape [batch, rationales], got {values.shape}")
    if jnp.shape(valid) != values.shape:
        raise ValueError(
            f"valid_{which}: expected the shape of {name}_{which}, {values.shape}, got {jnp.shape(valid)}"
        )
    wide = jnp.promote_types(values.dtype, jnp.float32)
    mask = jnp.asarray(valid) != 0
    given = jnp.full(values.shape, default, wide) if scores is None else jnp.asarray(scores)
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise TypeError(f"score_{which}: expected a floating dtype, got {given.dtype}")
    if given.shape != values.shape:
        raise ValueError(
            f"score_{which}: expected the shape of {name}_{which}, {values.shape}, got {given.shape}"
        )
    weights = jax.lax.stop_gradient(jnp.where(mask, given, default).astype(wide))
    return jnp.where(mask, values, 0).astype(wide), mask, weights


def _lowest(costs: Array, mask: Array) -> Array:
    """The first index of the least cost; 0 in an empty set."""
    if costs.shape[1] == 0:
        return jnp.zeros_like(mask.any(-1), int)
    return jnp.argmin(jnp.where(mask, costs, jnp.inf), -1)


def _drawn(uniform: Array, mask: Array) -> Array:
    """The entry ``floor(u n)`` of the n valid ones, in their order; 0 in an empty set."""
    if mask.shape[1] == 0:
        return jnp.zeros_like(mask.any(-1), int)
    rank = jnp.floor(uniform * mask.sum(-1)).astype(int)
    return jnp.argmax(mask & (jnp.cumsum(mask, -1) == rank[:, None] + 1), -1)


def _taken(costs: Array, index: Array, mask: Array) -> Array:
    chosen = (jnp.arange(costs.shape[1]) == index[:, None]) & mask
    return jnp.where(chosen, costs, 0).sum(-1)


def _mean(costs: Array, weights: Array, mask: Array) -> Array:
    weights = jnp.where(mask, weights, 0)
    total = weights.sum(-1)
    return (weights * costs).sum(-1) / jnp.where(total > 0, total, 1)
