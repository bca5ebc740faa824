"""PDU: unlearning under a constraint on the retain loss, whose multiplier rises while it is violated.

Implements Entesari et al., "Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language
Models", arXiv:2506.05314, as the official code has it: a forget loss that flattens the logits, and dual
ascent on the weight of the retain loss.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxneg.unlearning.arguments import check_positive
from jaxneg.unlearning.retain import ce_loss
from jaxneg.unlearning.sequence import IGNORE, answer_lengths, check_labelled


def pdu_forget_loss(
    logits: Float[Array, "batch tokens vocab"],
    labels: Int[Array, "batch tokens"],
    mean_tokens: Float[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """How far the largest logit stands above the mean, squared: 0 where the model prefers no token.

    ``L[b] = sum_t m[b,t] (max_v logits[b,t,v] - mean_v logits[b,t,v])^2 / mean_b sum_t m[b,t]`` with
    ``m = labels != -100``, *unshifted*; its mean over the batch is the mean over all tokens that count.

    Args:
        logits: the policy's next-token logits in any floating dtype.
        labels: token ids, -100 where a token does not count.
        mean_tokens: labels in a row on average, where the rows are a part of a larger batch
            (`with_token_means`).

    Returns:
        One value for each sequence, at least 0. NaN if no token counts.

    Raises:
        TypeError: logits that are not floating, labels that are not integers.
        ValueError: shapes that do not match, an empty batch.

    Source:
        arXiv:2506.05314 (the forget loss), as in the official code.

    Example:
        >>> pdu_forget_loss(jnp.array([[[4.0, 0.0], [0.0, 0.0]]]), jnp.array([[1, 1]])).tolist()
        [2.0]
    """
    check_labelled(logits, labels)
    squared = _above_mean(logits) ** 2
    return ce_loss(jnp.sum(jnp.where(labels != IGNORE, squared, 0), -1), answer_lengths(labels), mean_tokens)


@jax.custom_jvp
def _above_mean(logits: Array) -> Array:
    """The maximum minus the mean, in float32 or wider."""
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    return jnp.max(logits, -1).astype(wide) - jnp.mean(logits, -1, dtype=wide)


@_above_mean.defjvp
def _above_mean_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The place of the maximum is found again in the backward pass: it is as large as the logits.
    return _above_mean(*primals), jax.checkpoint(_above_mean_tangent)(*primals, *tangents)


def _above_mean_tangent(logits: Array, tangent: Array) -> Array:
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    highest = logits == jnp.max(logits, -1, keepdims=True)
    share = highest / jnp.sum(highest, -1, keepdims=True, dtype=wide)
    return jnp.sum((share - 1 / logits.shape[-1]) * tangent, -1)


class DualAscentState(NamedTuple):
    """State of `dual_ascent_retain`.

    count: updates so far.
    retain_weight: lambda, the weight of the retain loss in the next update.
    """

    count: Int[Array, ""]
    retain_weight: Float[Array, ""]


def dual_ascent_retain(
    eps: float,
    step: float = 1.0,
    *,
    initial: float = 50.0,
    forget_weight: float = 1.0,
    warm_up: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """PDU's link of an ``optax.chain``: from two losses' gradients to one, with the multiplier as its state.

    ``g = w_f grad(forget) + lambda grad(retain)``, then ``lambda <- max(0, lambda + step (retain - eps))``.

    ``update(jacobian, state, params, losses=[forget, retain])`` takes gradients with a leading axis of two,
    as `make_unlearn_losses` gives them to ``jaxneg.train.make_step``; with ``pullback=``, a function from the
    two weights to the gradient of the weighted losses, and {} for the Jacobian, one backward pass will do
    (``jacobian="weighted"``).

    Args:
        eps: how large the retain loss may be, nats.
        step: of the dual ascent, above 0.
        initial: lambda at the start, at least 0 (50 to 100 in the official code's settings).
        forget_weight: w_f, above 0.
        warm_up: in how many of the first updates lambda stays (five epochs in the official code's settings).

    Returns:
        An ``init``/``update`` pair.

    Raises:
        ValueError: a step or a weight that is not positive, a negative initial or warm_up; in ``update`` a
            missing ``losses=``, or losses or gradients that are not two.

    Source:
        arXiv:2506.05314 (dual ascent on the retain constraint).

    Example:
        >>> tx = optax.chain(dual_ascent_retain(eps=0.5, step=2.0, initial=1.0), optax.sgd(1.0))
        >>> params, losses = jnp.zeros(1), jnp.array([3.0, 1.0])
        >>> updates, state = tx.update(jnp.array([[1.0], [10.0]]), tx.init(params), params, losses=losses)
        >>> updates.tolist(), float(state[0].retain_weight)
        ([-11.0], 2.0)
    """
    check_positive(step=step, forget_weight=forget_weight)
    for name, value in (("initial", initial), ("warm_up", warm_up)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")

    def init(params: optax.Params) -> DualAscentState:
        del params
        return DualAscentState(jnp.zeros((), jnp.int32), jnp.asarray(initial, float))

    def update(
        updates: Any,
        state: Any,
        params: optax.Params | None = None,
        *,
        losses: Float[Array, "2"] | None = None,
        pullback: Callable[[Array], Any] | None = None,
        **extra: Any,
    ) -> tuple[Any, DualAscentState]:
        del params, extra
        if losses is None:
            raise ValueError("losses: expected those of forget and retain; pass update(..., losses=losses)")
        if jnp.shape(losses) != (2,):
            raise ValueError(f"losses: expected those of forget and retain, got shape {jnp.shape(losses)}")
        weights = jnp.stack([jnp.full_like(state.retain_weight, forget_weight), state.retain_weight])
        combined = _weighted(weights, updates) if pullback is None else pullback(weights)
        excess = (losses[1] - eps).astype(state.retain_weight.dtype)
        ascended = jnp.maximum(0, state.retain_weight + step * excess)
        retain_weight = jnp.where(state.count < warm_up, state.retain_weight, ascended)
        return combined, DualAscentState(jnp.asarray(optax.safe_increment(state.count)), retain_weight)

    return optax.GradientTransformationExtraArgs(init, update)


def _weighted(weights: Array, jacobian: Any) -> Any:
    def combined(rows: Array) -> Array:
        if rows.ndim == 0 or rows.shape[0] != 2:
            raise ValueError(f"updates: expected gradients with a leading axis of 2, got shape {rows.shape}")
        forget, retain = rows
        return weights[0].astype(rows.dtype) * forget + weights[1].astype(rows.dtype) * retain

    return jax.tree.map(combined, jacobian)
