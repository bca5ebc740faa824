"""UNDIAL: distillation from the reference with the forget tokens' logits lowered.

Implements Dong et al., "UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large
Language Models", arXiv:2402.10052. The official code averages over all positions, prompt and padding
included, and where a label is -100 it lowers the logit of entry V - 100, as negative indices count from the
end; ``masked=False`` follows it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxneg.unlearning.arguments import check_positive
from jaxneg.unlearning.retain import ce_loss, check_logits
from jaxneg.unlearning.sequence import IGNORE, next_tokens
from jaxneg.unlearning.soft_targets import lowered_label_ce


def undial_loss(
    logits: Float[Array, "batch tokens vocab"],
    ref_logits: Float[Array, "batch tokens vocab"],
    labels: Int[Array, "batch tokens"],
    beta: float | Array = 10.0,
    *,
    masked: bool = True,
    mean_tokens: Float[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Self-distillation towards the reference without its belief in the forget tokens.

    ``L[b] = sum_t CE(softmax(ref_logits - beta onehot(label)), softmax(logits))[b,t] / mean_b n[b]``, whose
    mean over the batch is the mean over all its tokens.

    Args:
        logits: the policy's next-token logits in any floating dtype.
        ref_logits: the reference's; no gradient flows into them.
        labels: token ids, -100 where a token does not count.
        beta: by how much the label's logit is lowered, above 0.
        masked: whether only the positions that predict a label count; False follows the official code, which
            needs a vocabulary of at least 100.
        mean_tokens: tokens in a row on average, where the rows are a part of a larger batch
            (`with_token_means`).

    Returns:
        One value for each sequence, at least 0, in nats. NaN if no token counts, or for a label outside the
        vocabulary.

    Raises:
        TypeError: logits that are not floating, labels that are not integers.
        ValueError: shapes or vocabularies that differ, an empty batch, beta that is not positive, a
            vocabulary below 100 where masked is False.

    Source:
        arXiv:2402.10052 (the adjusted logits); the official code for ``masked=False``.

    Example:
        >>> logits = jnp.zeros((1, 2, 4))
        >>> float(undial_loss(logits, logits, jnp.array([[0, 1]]))[0] / jnp.log(4)).__round__(4)
        1.0
    """
    check_positive(beta=beta)
    check_logits(logits, ref_logits)
    targets, mask, in_vocabulary = next_tokens(logits, labels)
    if not masked:
        vocab = logits.shape[-1]
        if vocab < -IGNORE:
            raise ValueError(
                f"logits: expected a vocabulary of at least {-IGNORE} for masked=False, where {IGNORE} counts"
                f" from its end, got {vocab}"
            )
        targets = jnp.where(mask, targets, vocab + IGNORE)
        in_vocabulary = in_vocabulary | ~mask
    ce = lowered_label_ce(logits, ref_logits, targets, beta)
    ce = jnp.where(in_vocabulary, ce, jnp.nan)
    if not masked:
        return jnp.mean(ce[:, :-1], -1)
    return ce_loss(jnp.sum(jnp.where(mask, ce, 0), -1), jnp.sum(mask, -1), mean_tokens)
