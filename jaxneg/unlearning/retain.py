"""What keeps the rest of the model: the retain loss (RT) and the divergence from the reference (KL).

Implements the retain terms of Zhang et al., arXiv:2404.05868, Section 2. The paper writes D(pi || pi_ref);
the official code takes KL(pi_ref || pi) over *all* positions, prompt and padding included. The code is
followed, ``mask`` and ``direction`` offer the rest. As in `sequence`, the derivative is spelled out so that
no softmax is stored.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxneg.unlearning.arguments import floating
from jaxneg.unlearning.sequence import log_sum_exp


def ce_loss(
    nll: Float[Array, " batch"],
    n_tokens: Int[Array, " batch"],
    mean_tokens: Float[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Cross-entropy (the retain loss RT), as one value for each sequence.

    ``L[b] = S[b] / mean_b n[b]``, whose mean over the batch is the mean over all its tokens, `token_mean_ce`.

    Args:
        nll: ``S``, the sequences' negative log-likelihoods, nats (`sequence_nll`).
        n_tokens: ``n``, the number of tokens of each sequence.
        mean_tokens: tokens in a row on average, where the rows are a part of a larger batch
            (`with_token_means`).

    Returns:
        One value for each sequence. NaN if no token counts.

    Raises:
        TypeError: nll that is not floating.
        ValueError: shapes that differ, an empty batch.

    Source:
        arXiv:2404.05868, Section 2.

    Example:
        >>> float(ce_loss(jnp.array([2.0, 4.0]), jnp.array([1, 2])).mean())
        2.0
    """
    (nll,) = floating(nll=nll)
    if mean_tokens is None:
        if jnp.shape(n_tokens) != nll.shape:
            raise ValueError(f"n_tokens: expected the shape of nll, {nll.shape}, got {jnp.shape(n_tokens)}")
        mean_tokens = jnp.mean(n_tokens, dtype=nll.dtype)
    return nll / mean_tokens


def kl_retain_loss(
    logits: Float[Array, "batch tokens vocab"],
    ref_logits: Float[Array, "batch tokens vocab"],
    mask: Bool[Array, "batch tokens"] | None = None,
    *,
    direction: Literal["forward", "reverse"] = "forward",
    mean_tokens: Float[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Divergence between reference and policy on the retain data, as one value for each sequence.

    ``L[b] = sum_t m[b,t] KL(pi_ref || pi)[b,t] / mean_b sum_t m[b,t]``; its mean over the batch is the mean
    over all positions that count. "reverse" takes ``KL(pi || pi_ref)``.

    Args:
        logits: the policy's next-token logits in any floating dtype.
        ref_logits: the reference's; no gradient flows into them.
        mask: the positions that count; all of them where None, as in the official code, whose weight
            therefore depends on how far rows are padded.
        direction: "forward" or "reverse".
        mean_tokens: positions that the mask leaves in a row on average, where the rows are a part of a larger
            batch (`with_token_means`).

    Returns:
        One value for each sequence, at least 0, in nats. NaN if the mask leaves no position.

    Raises:
        TypeError: logits that are not floating.
        ValueError: vocabularies or shapes that differ, an empty batch, a direction that does not exist.

    Source:
        arXiv:2404.05868, Section 2.

    Example:
        >>> kl_retain_loss(jnp.zeros((2, 3, 8)), jnp.zeros((2, 3, 8))).tolist()
        [0.0, 0.0]
    """
    if direction not in _DIVERGENCES:
        raise ValueError(f"direction: expected 'forward' or 'reverse', got {direction!r}")
    check_logits(logits, ref_logits)
    divergence = _DIVERGENCES[direction](logits, jax.lax.stop_gradient(ref_logits))
    if mask is None:
        return divergence.mean(-1)
    if mask.shape != divergence.shape:
        raise ValueError(f"mask: expected the shape [batch, tokens], {divergence.shape}, got {mask.shape}")
    return ce_loss(jnp.sum(jnp.where(mask, divergence, 0), -1), jnp.sum(mask, -1), mean_tokens)


def check_logits(
    logits: Float[Array, "batch tokens vocab"], ref_logits: Float[Array, "batch tokens vocab"]
) -> None:
    """Refuses logits of policy and reference that do not belong together.

    Args:
        logits: the policy's.
        ref_logits: the reference's.

    Raises:
        TypeError: logits that are not floating.
        ValueError: vocabularies or shapes that differ, an empty batch.

    Example:
        >>> check_logits(jnp.zeros((2, 3, 8)), jnp.zeros((2, 3, 8)))
    """
    for name, array in (("logits", logits), ("ref_logits", ref_logits)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {array.dtype}")
        if array.ndim != 3:
            raise ValueError(f"{name}: expected the shape [batch, tokens, vocab], got {array.shape}")
        if array.size == 0:
            raise ValueError(
                f"{name}: expected at least one example, got an empty batch of shape {array.shape}"
            )
    if ref_logits.shape[-1] != logits.shape[-1]:
        raise ValueError(
            f"ref_logits: expected the policy's vocabulary of {logits.shape[-1]}, got {ref_logits.shape[-1]}"
        )
    if ref_logits.shape != logits.shape:
        raise ValueError(f"ref_logits: expected the shape of logits, {logits.shape}, got {ref_logits.shape}")


@jax.custom_jvp
def _forward_kl(logits: Array, ref_logits: Array) -> Array:
    """KL(ref || policy) at each position."""
    return _kl(ref_logits, logits, log_sum_exp(ref_logits), log_sum_exp(logits))


@_forward_kl.defjvp
def _forward_kl_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    logits, ref_logits = primals
    lse, ref_lse = log_sum_exp(logits), log_sum_exp(ref_logits)
    tangent = jax.checkpoint(_forward_kl_tangent)
    return (
        _kl(ref_logits, logits, ref_lse, lse),
        tangent(logits, ref_logits, lse, ref_lse, tangents[0]),
    )


def _forward_kl_tangent(
    logits: Array, ref_logits: Array, lse: Array, ref_lse: Array, tangent: Array
) -> Array:
    return jnp.sum((softmax(logits, lse) - softmax(ref_logits, ref_lse)) * tangent, -1)


@jax.custom_jvp
def _reverse_kl(logits: Array, ref_logits: Array) -> Array:
    """KL(policy || ref) at each position."""
    return _kl(logits, ref_logits, log_sum_exp(logits), log_sum_exp(ref_logits))


@_reverse_kl.defjvp
def _reverse_kl_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    logits, ref_logits = primals
    lse, ref_lse = log_sum_exp(logits), log_sum_exp(ref_logits)
    divergence = _kl(logits, ref_logits, lse, ref_lse)
    tangent = jax.checkpoint(_reverse_kl_tangent)
    return divergence, tangent(logits, ref_logits, lse, ref_lse, divergence, tangents[0])


def _reverse_kl_tangent(
    logits: Array, ref_logits: Array, lse: Array, ref_lse: Array, divergence: Array, tangent: Array
) -> Array:
    p = softmax(logits, lse)
    log_ratio = bounded(logits) - bounded(ref_logits) - (lse - ref_lse)[..., None]
    return jnp.sum(p * (log_ratio - divergence[..., None]) * tangent, -1)


def _kl(p_logits: Array, q_logits: Array, p_lse: Array, q_lse: Array) -> Array:
    difference = bounded(p_logits) - bounded(q_logits)
    return jnp.sum(softmax(p_logits, p_lse) * difference, -1) + q_lse - p_lse


def bounded(logits: Float[Array, "*axes vocab"]) -> Float[Array, "*axes vocab"]:
    """Logits of minus infinity as very low ones: an entry of probability 0 then contributes 0, not NaN.

    Args:
        logits: in any floating dtype.

    Returns:
        Finite logits in float32 or wider.

    Example:
        >>> bool(jnp.isfinite(bounded(jnp.array([-jnp.inf, 0.0]))).all())
        True
    """
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    return jnp.maximum(logits.astype(wide), jnp.finfo(wide).min / 4)


def softmax(logits: Float[Array, "*axes vocab"], lse: Float[Array, "*axes"]) -> Float[Array, "*axes vocab"]:
    """Probabilities from logits and their log-sum-exp, which fuse into what reads them.

    Args:
        logits: in any floating dtype.
        lse: of `log_sum_exp`.

    Returns:
        Probabilities in the dtype of ``lse``.

    Example:
        >>> softmax(jnp.zeros(2), jnp.log(2.0)).round(2).tolist()
        [0.5, 0.5]
    """
    return jnp.exp(logits.astype(lse.dtype) - lse[..., None])


_DIVERGENCES = {"forward": _forward_kl, "reverse": _reverse_kl}
