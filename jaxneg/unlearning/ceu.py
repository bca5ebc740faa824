"""CE-U: cross-entropy against the model's own distribution without the label.

Implements Yang, "CE-U: Cross Entropy Unlearning", arXiv:2503.01224: unlike gradient ascent's, the gradient
vanishes once the label is no longer believed. The first answer tokens of a row are left out, as the paper's
training settings say.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxneg.unlearning.retain import ce_loss
from jaxneg.unlearning.sequence import IGNORE, next_tokens
from jaxneg.unlearning.soft_targets import lowered_label_ce


def ceu_loss(
    logits: Float[Array, "batch tokens vocab"],
    labels: Int[Array, "batch tokens"],
    ignore_first_n: int = 1,
    mean_tokens: Float[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Cross-entropy unlearning on the forget data.

    ``L[b] = sum_t CE(q, softmax(logits))[b,t] / mean_b n[b]`` with ``q`` the softmax of the logits, held
    constant, after the label's was set to minus infinity; its mean over the batch is the mean over all tokens
    that count.

    Args:
        logits: the policy's next-token logits in any floating dtype.
        labels: token ids, -100 where a token does not count.
        ignore_first_n: how many of each row's first labels do not count either, at least 0.
        mean_tokens: tokens that count in a row on average, where the rows are a part of a larger batch
            (`with_token_means`).

    Returns:
        One value for each sequence, in nats. NaN if no token counts, or for a label outside the vocabulary.

    Raises:
        TypeError: logits that are not floating, labels that are not integers.
        ValueError: shapes that do not match, an empty batch, a negative ignore_first_n.

    Source:
        arXiv:2503.01224 (the CE-U loss; the first tokens are those of its training settings).

    Example:
        >>> float(ceu_loss(jnp.zeros((1, 3, 4)), jnp.array([[-100, 2, 1]]))[0] / jnp.log(4))
        1.0
    """
    targets, _, in_vocabulary = next_tokens(logits, labels)
    mask = ceu_mask(labels, ignore_first_n)
    ce = jnp.where(in_vocabulary, lowered_label_ce(logits, logits, targets, jnp.inf), jnp.nan)
    return ce_loss(jnp.sum(jnp.where(mask, ce, 0), -1), jnp.sum(mask, -1), mean_tokens)


def ceu_mask(labels: Int[Array, "batch tokens"], ignore_first_n: int = 1) -> Bool[Array, "batch tokens"]:
    """The positions of the logits that count in CE-U.

    ``m[b,t] = labels[b,t+1] != -100`` and more than ``ignore_first_n`` labels are not -100 up to it.

    Args:
        labels: token ids, -100 where a token does not count.
        ignore_first_n: how many of each row's first labels do not count either, at least 0.

    Returns:
        A mask; the last position never counts.

    Raises:
        ValueError: a negative ignore_first_n.

    Source:
        arXiv:2503.01224, the training settings, as in the official code: a label at the row's first position,
        which is never predicted, is one of the first.

    Example:
        >>> ceu_mask(jnp.array([[-100, 5, 6, 7]])).tolist()
        [[False, True, True, False]]
    """
    if ignore_first_n < 0:
        raise ValueError(f"ignore_first_n: expected at least 0, got {ignore_first_n}")
    labelled = labels != IGNORE
    counted = labelled & (jnp.cumsum(labelled, -1) > ignore_first_n)
    return jnp.pad(counted[:, 1:], ((0, 0), (0, 1)))
