"""Memorisation under teacher forcing: how much of an answer the model predicts right.

Implements exact memorisation (Tirumala et al., arXiv:2205.10770) and extraction strength (Carlini et al.,
arXiv:2012.07805, Section 6.1) as open-unlearning's metrics have them (Dorna et al., arXiv:2506.12618): the
last label of a row, the end of the answer, does not count.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxneg.unlearning.sequence import next_tokens


def exact_memorization(
    logits: Float[Array, "batch tokens vocab"], labels: Int[Array, "batch tokens"]
) -> Float[Array, " batch"]:
    """Share of an answer's tokens that are the model's first choice.

    ``EM[b] = mean_t [argmax_v logits[b, t, v] = labels[b, t+1]]`` over the answer's tokens but the last.

    Args:
        logits: next-token logits in any floating dtype.
        labels: token ids, -100 on the prompt and the padding; one label after the answer ends it.

    Returns:
        One share for each row; NaN for a row of fewer than two labels.

    Raises:
        TypeError: logits that are not floating, labels that are not integers.
        ValueError: shapes that do not match, an empty batch, rows of fewer than two tokens.

    Source:
        arXiv:2205.10770, Section 3; arXiv:2506.12618.

    Example:
        >>> logits = jnp.eye(4)[jnp.array([[1, 0, 3, 0]])]
        >>> exact_memorization(logits, jnp.array([[-100, 1, 2, 3]])).tolist()
        [0.5]
    """
    right, counted = _right(logits, labels)
    return right.sum(-1) / counted.sum(-1)


def extraction_strength(
    logits: Float[Array, "batch tokens vocab"],
    labels: Int[Array, "batch tokens"],
    *,
    at_least_one: bool = True,
) -> Float[Array, " batch"]:
    """Share of an answer that follows from its shortest sufficient prefix.

    ``ES[b] = 1 - k/n`` with n the answer's tokens but the last, and k the smallest prefix after which all of
    them are the model's first choice.

    Args:
        logits: next-token logits in any floating dtype.
        labels: token ids, -100 on the prompt and the padding; one label after the answer ends it.
        at_least_one: whether k stops at n - 1, as in the official code, so that an answer whose last token is
            predicted wrong counts 1/n; otherwise it counts 0.

    Returns:
        One share for each row; NaN for a row of fewer than two labels.

    Raises:
        TypeError: logits that are not floating, labels that are not integers.
        ValueError: shapes that do not match, an empty batch, rows of fewer than two tokens.

    Source:
        arXiv:2012.07805, Section 6.1; arXiv:2506.12618.

    Example:
        >>> logits = jnp.eye(4)[jnp.array([[3, 2, 0, 0]])]
        >>> extraction_strength(logits, jnp.array([[-100, 1, 2, 0]])).tolist()
        [0.5]
    """
    right, counted = _right(logits, labels)
    n = counted.sum(-1)
    prefix = jnp.max(jnp.where(counted & ~right, jnp.cumsum(counted, -1), 0), -1)
    if at_least_one:
        prefix = jnp.minimum(prefix, n - 1)
    return jnp.where(n > 0, 1 - prefix / n, jnp.nan)


def without_last(counted: Bool[Array, "batch tokens"]) -> Bool[Array, "batch tokens"]:
    """A mask without the last position of each row that counts: where the end of the answer is predicted.

    Args:
        counted: the positions that count, from `token_nll`.

    Returns:
        The same, one position fewer in each row that has any.

    Example:
        >>> without_last(jnp.array([[False, True, True, False]])).tolist()
        [[False, True, False, False]]
    """
    order = jnp.cumsum(counted, -1)
    return counted & (order < order[:, -1:])


def _right(logits: Array, labels: Array) -> tuple[Array, Array]:
    targets, counted, _ = next_tokens(logits, labels)
    counted = without_last(counted)
    return counted & (jnp.argmax(logits, -1) == targets), counted
