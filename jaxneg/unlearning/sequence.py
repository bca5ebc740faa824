"""Log-likelihoods of token sequences: what every unlearning loss starts from.

Implements the token conventions of Zhang et al., "Negative Preference Optimization: From Catastrophic
Collapse to Effective Unlearning", arXiv:2404.05868, Section 2 and its official code: next-token shift, labels
of -100 are ignored, a sequence's negative log-likelihood is the *sum* over its tokens.

The log-likelihood is log-sum-exp minus the label's logit, and its derivative, softmax minus one-hot, is
spelled out below: differentiating through ``log_softmax`` would keep a second array of the logits' size in
float32.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

IGNORE = -100
"""The label of a token that does not count: prompt and padding."""


def sequence_nll(
    logits: Float[Array, "batch tokens vocab"], labels: Int[Array, "batch tokens"]
) -> tuple[Float[Array, " batch"], Int[Array, " batch"]]:
    """Negative log-likelihood of each sequence, summed over its tokens.

    ``S[b] = -sum_t log softmax(logits[b, t])[labels[b, t+1]]`` over the t with ``labels[b, t+1] != -100``.

    Args:
        logits: next-token logits in any floating dtype; sums run in float32 or wider.
        labels: token ids, -100 where a token does not count.

    Returns:
        ``S`` in nats, and the number of terms of each sum. A row without any label has S = 0, no terms and a
        zero gradient. A label outside the vocabulary gives NaN. (`answer_lengths` counts the unshifted row.)

    Raises:
        TypeError: logits that are not floating, labels that are not integers.
        ValueError: shapes that do not match, an empty batch, rows of fewer than two tokens.

    Source:
        arXiv:2404.05868, Section 2.

    Example:
        >>> nll, n_tokens = sequence_nll(jnp.zeros((2, 3, 8)), jnp.array([[1, 2, 3], [-100, -100, 5]]))
        >>> (nll / jnp.log(8)).round(3).tolist(), n_tokens.tolist()
        ([2.0, 1.0], [2, 1])
    """
    nll, mask = token_nll(logits, labels)
    return nll.sum(-1), mask.sum(-1, dtype=jnp.int32)


def token_nll(
    logits: Float[Array, "batch tokens vocab"], labels: Int[Array, "batch tokens"]
) -> tuple[Float[Array, "batch tokens"], Bool[Array, "batch tokens"]]:
    """Negative log-likelihood of each next token; position t holds that of label t + 1.

    ``nll[b, t] = logsumexp(logits[b, t]) - logits[b, t, labels[b, t+1]]``, zero where the label is -100.

    Args:
        logits: next-token logits in any floating dtype.
        labels: token ids, -100 where a token does not count.

    Returns:
        ``nll`` in nats, and the mask of the positions that count. The last position never counts.

    Raises:
        TypeError: logits that are not floating, labels that are not integers.
        ValueError: shapes that do not match, an empty batch, rows of fewer than two tokens.

    Source:
        arXiv:2404.05868, Section 2.

    Example:
        >>> nll, mask = token_nll(jnp.zeros((1, 3, 8)), jnp.array([[1, 2, -100]]))
        >>> mask.tolist()
        [[True, False, False]]
    """
    targets, mask, in_vocabulary = next_tokens(logits, labels)
    nll = jnp.where(in_vocabulary, _nll(logits, targets), jnp.nan)
    return jnp.where(mask, nll, 0), mask


def next_tokens(
    logits: Float[Array, "batch tokens vocab"], labels: Int[Array, "batch tokens"]
) -> tuple[Int[Array, "batch tokens"], Bool[Array, "batch tokens"], Bool[Array, "batch tokens"]]:
    """What each position of the logits predicts: label t + 1, and -100 at the last position.

    Args:
        logits: next-token logits in any floating dtype; only their shape and dtype are looked at.
        labels: token ids, -100 where a token does not count.

    Returns:
        The targets, the mask of those that count, and where they are ids of the vocabulary.

    Raises:
        TypeError: logits that are not floating, labels that are not integers.
        ValueError: shapes that do not match, an empty batch, rows of fewer than two tokens.

    Example:
        >>> next_tokens(jnp.zeros((1, 3, 8)), jnp.array([[1, 2, 3]]))[0].tolist()
        [[2, 3, -100]]
    """
    check_labelled(logits, labels)
    # Shifting the labels instead of the logits spares a copy of the logits.
    targets = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)
    return targets, targets != IGNORE, (targets >= 0) & (targets < logits.shape[-1])


def token_mean_ce(
    logits: Float[Array, "batch tokens vocab"], labels: Int[Array, "batch tokens"]
) -> Float[Array, ""]:
    """Cross-entropy of the next token, one mean over all tokens of the batch that count.

    ``CE = sum_b S[b] / sum_b n[b]``, not a mean of the sequences' means. On a mesh the sums are global.

    Args:
        logits: next-token logits in any floating dtype.
        labels: token ids, -100 where a token does not count.

    Returns:
        CE in nats per token; NaN if no token counts, for which `check_labels` has a message.

    Raises:
        TypeError: logits that are not floating, labels that are not integers.
        ValueError: shapes that do not match, an empty batch, rows of fewer than two tokens.

    Source:
        arXiv:2404.05868, Section 2 (the retain loss).

    Example:
        >>> float(token_mean_ce(jnp.zeros((2, 3, 8)), jnp.ones((2, 3), int)) / jnp.log(8))
        1.0
    """
    nll, n_tokens = sequence_nll(logits, labels)
    return nll.sum() / n_tokens.sum()


def answer_lengths(labels: Int[Array, "batch tokens"]) -> Int[Array, " batch"]:
    """How many labels of each row are not -100, the first one included: SimNPO's and TOFU's length.

    ``n[b] = #{t: labels[b, t] != -100}``; differs from `sequence_nll`'s count where a row's first token is
    labelled.

    Args:
        labels: token ids, -100 where a token does not count.

    Returns:
        Tokens in each row.

    Source:
        arXiv:2410.07163 and arXiv:2401.06121, the official codes.

    Example:
        >>> answer_lengths(jnp.array([[4, 5, -100], [-100, 5, -100]])).tolist()
        [2, 1]
    """
    return (labels != IGNORE).sum(-1, dtype=jnp.int32)


def check_labels(labels: Mapping[str, np.ndarray] | np.ndarray, vocab_size: int) -> None:
    """Refuses labels that no loss can use. For the data pipeline: it reads values, so it does not run under
    jit.

    Args:
        labels: integer arrays ``[batch, tokens]``, one or several by name.
        vocab_size: how many logits the model gives a token.

    Raises:
        TypeError: labels that are not integers.
        ValueError: no rows, an id outside the vocabulary (first row and position are named), or a batch in
            which every label that could be predicted is -100.

    Example:
        >>> check_labels(np.array([[-100, 3, 2]]), vocab_size=4)
    """
    for name, values in (labels if isinstance(labels, Mapping) else {"labels": labels}).items():
        ids = np.asarray(values)
        if not np.issubdtype(ids.dtype, np.integer):
            raise TypeError(f"{name}: expected an integer dtype, got {ids.dtype}")
        if not len(ids):
            raise ValueError(f"{name}: expected at least one row, got none: the set is empty")
        outside = np.argwhere((ids != IGNORE) & ((ids < 0) | (ids >= vocab_size)))
        if len(outside):
            row, position = outside[0]
            raise ValueError(
                f"{name}: expected ids from 0 to {vocab_size - 1} or {IGNORE},"
                f" got {ids[row, position]} in row {row} at position {position}"
            )
        if (ids[:, 1:] == IGNORE).all():
            raise ValueError(
                f"{name}: expected at least one token to learn from, got {IGNORE} in all {len(ids)} rows;"
                " label the answers' tokens"
            )


def check_labelled(logits: Float[Array, "batch tokens vocab"], labels: Int[Array, "batch tokens"]) -> None:
    """Refuses logits and labels that do not belong together; looks at shapes and dtypes alone.

    Args:
        logits: next-token logits.
        labels: token ids.

    Raises:
        TypeError: logits that are not floating, labels that are not integers.
        ValueError: shapes that do not match, an empty batch, rows of fewer than two tokens.

    Example:
        >>> check_labelled(jnp.zeros((2, 3, 8)), jnp.zeros((2, 3), int))
    """
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits: expected a floating dtype, got {logits.dtype}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels: expected an integer dtype, got {labels.dtype}")
    if logits.ndim != 3:
        raise ValueError(f"logits: expected the shape [batch, tokens, vocab], got {logits.shape}")
    if labels.shape != logits.shape[:2]:
        raise ValueError(
            f"labels: expected the shape [batch, tokens] of logits, {logits.shape[:2]}, got {labels.shape}"
        )
    if logits.shape[0] == 0 or logits.shape[2] == 0:
        raise ValueError(
            f"logits: expected at least one row and one vocabulary entry, got shape {logits.shape}"
        )
    if logits.shape[1] < 2:
        raise ValueError(f"logits: expected at least two tokens in a row, got {logits.shape[1]}")


@jax.custom_jvp
def _nll(logits: Array, targets: Array) -> Array:
    """Log-sum-exp minus the target's logit, in float32 or wider; anything for a target outside."""
    return _nll_and_lse(logits, targets)[0]


@_nll.defjvp
def _nll_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    logits, targets = primals
    nll, lse = _nll_and_lse(logits, targets)
    # Recomputed in the backward pass from the logits, so that the softmax is never stored.
    tangent = jax.checkpoint(_nll_tangent)
    return nll, tangent(logits, targets, lse, tangents[0])


def _nll_and_lse(logits: Array, targets: Array) -> tuple[Array, Array]:
    lse = log_sum_exp(logits)
    if jax.sharding.get_abstract_mesh().empty:
        inside = jnp.clip(targets, 0, logits.shape[-1] - 1)
        at_target = jnp.take_along_axis(logits, inside[..., None], -1)[..., 0]
    else:
        # On a mesh a masked reduction, which every shard of the vocabulary does for itself.
        at_target = jnp.max(jnp.where(one_hot(logits, targets), logits, -jnp.inf), -1)
    return lse - at_target.astype(lse.dtype), lse


def _nll_tangent(logits: Array, targets: Array, lse: Array, tangent: Array) -> Array:
    probabilities = jnp.exp(logits.astype(lse.dtype) - lse[..., None])
    return jnp.sum((probabilities - one_hot(logits, targets)) * tangent, -1)


def one_hot(logits: Float[Array, "*axes vocab"], targets: Int[Array, "*axes"]) -> Bool[Array, "*axes vocab"]:
    """Where the vocabulary's entry is the target; nowhere for a target outside of it.

    Args:
        logits: of the vocabulary; only their shape is looked at.
        targets: token ids.

    Returns:
        A mask, which fuses into what reads it.

    Example:
        >>> one_hot(jnp.zeros(3), jnp.array(1)).tolist()
        [False, True, False]
    """
    return targets[..., None] == jnp.arange(logits.shape[-1], dtype=targets.dtype)


def log_sum_exp(logits: Float[Array, "*axes vocab"]) -> Float[Array, "*axes"]:
    """``log sum_v exp(logits[v])`` in float32 or wider, without a float32 copy of the logits.

    Args:
        logits: in any floating dtype.

    Returns:
        One value for each position.

    Example:
        >>> float(log_sum_exp(jnp.zeros(4, jnp.bfloat16)) / jnp.log(4))
        1.0
    """
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    highest = jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True)).astype(wide)
    return highest[..., 0] + jnp.log(jnp.sum(jnp.exp(logits.astype(wide) - highest), -1))
