"""IDK: fine-tuning on refusals ("I don't know") in place of the forget answers.

Implements the IDK+RT baseline of Zhang et al., arXiv:2404.05868 (Maini et al., arXiv:2401.06121): one
cross-entropy over the refusals and the retain data together.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxneg.unlearning.arguments import floating


def idk_loss(
    nll: Float[Array, " batch"],
    n_tokens: Int[Array, " batch"],
    retain_nll: Float[Array, " retain"],
    retain_n_tokens: Int[Array, " retain"],
    mean_tokens: Float[Array, " batch"] | None = None,
    retain_mean_tokens: Float[Array, " retain"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " retain"]]:
    """Cross-entropy over the concatenation of refusals and retain answers, as a share for each of them.

    ``(S[b] B / N, S_r[b] B_r / N)`` with ``N = sum n + sum n_r``: the two means add up to
    ``(sum S + sum S_r) / N``, one mean over all tokens of both.

    Args:
        nll: ``S``, negative log-likelihoods of the refusals, nats.
        n_tokens: ``n``, the number of tokens of each.
        retain_nll: ``S_r``, negative log-likelihoods of the retain answers, nats.
        retain_n_tokens: ``n_r``, the number of tokens of each.
        mean_tokens: tokens in a row on average, where the refusals are a part of a larger batch
            (`with_token_means`).
        retain_mean_tokens: the same for the retain answers.

    Returns:
        One value for each refusal, and one for each retain answer. NaN if no token counts.

    Raises:
        TypeError: a likelihood that is not floating.
        ValueError: shapes that differ, an empty batch.

    Source:
        arXiv:2404.05868, the IDK+RT baseline, as in the official code.

    Example:
        >>> idk, retain = idk_loss(jnp.array([4.0]), jnp.array([2]), jnp.array([1.0, 1.0]), jnp.array([1, 1]))
        >>> float(idk.mean() + retain.mean())
        1.5
    """
    (nll,) = floating(nll=nll)
    (retain_nll,) = floating(retain_nll=retain_nll)
    total = _total(nll, n_tokens, mean_tokens) + _total(retain_nll, retain_n_tokens, retain_mean_tokens)
    return nll * nll.size / total, retain_nll * retain_nll.size / total


def _total(nll: Array, n_tokens: Array, mean_tokens: Array | None) -> Array:
    if jnp.shape(n_tokens) != nll.shape:
        raise ValueError(f"n_tokens: expected the shape of its nll, {nll.shape}, got {jnp.shape(n_tokens)}")
    return jnp.sum(n_tokens if mean_tokens is None else mean_tokens)
