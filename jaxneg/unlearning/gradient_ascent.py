"""Gradient ascent on the forget data: the loss whose divergence is linear in the number of steps.

Implements the GA loss of Zhang et al., arXiv:2404.05868, Section 2 (Jang et al., arXiv:2210.01504).
"""

from jaxtyping import Array, Float, Int

from jaxneg.unlearning.retain import ce_loss


def ga_loss(
    nll: Float[Array, " batch"],
    n_tokens: Int[Array, " batch"],
    mean_tokens: Float[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Gradient ascent: the negative cross-entropy, so that its minimisation unlearns.

    ``L[b] = -S[b] / mean_b n[b]``, whose mean over the batch is minus the cross-entropy over all its tokens.

    Args:
        nll: ``S``, the sequences' negative log-likelihoods on the forget data, nats (`sequence_nll`).
        n_tokens: ``n``, the number of tokens of each sequence.
        mean_tokens: tokens in a row on average, where the rows are a part of a larger batch
            (`with_token_means`).

    Returns:
        One value for each sequence; unbounded below. NaN if no token counts.

    Raises:
        TypeError: nll that is not floating.
        ValueError: shapes that differ, an empty batch.

    Source:
        arXiv:2404.05868, Section 2.

    Example:
        >>> import jax.numpy as jnp
        >>> float(ga_loss(jnp.array([2.0, 4.0]), jnp.array([1, 2])).mean())
        -2.0
    """
    return -ce_loss(nll, n_tokens, mean_tokens)
