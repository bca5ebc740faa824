"""Membership inference: can one see from the model that a text was in its training data?

Implements the attacks of open-unlearning (Dorna et al., arXiv:2506.12618): the loss (Yeom et al.,
arXiv:1709.01604), its ratio to the text's compressed length and its difference to a reference's (Carlini et
al., arXiv:2012.07805), Min-k% (Shi et al., arXiv:2310.16789), Min-k%++ (Zhang et al., arXiv:2404.02936) and
the norm of the gradient (Wang et al., arXiv:2402.17012). Each score is lower for what the model has seen.
`auc` compares two sets of scores and `privleak` two models (MUSE, arXiv:2407.06460).
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from jaxneg.unlearning.arguments import floating
from jaxneg.unlearning.memorization import without_last
from jaxneg.unlearning.sequence import log_sum_exp, token_nll


def min_k(
    logits: Float[Array, "batch tokens vocab"],
    labels: Int[Array, "batch tokens"],
    k: float = 0.2,
    *,
    with_last: bool = False,
) -> Float[Array, " batch"]:
    """Min-k%: the mean loss of a text's least likely tokens.

    ``score[b] = -mean of the max(1, int(k n)) lowest log p(x_t | x_<t)``.

    Args:
        logits: next-token logits in any floating dtype.
        labels: token ids, -100 where a token does not count.
        k: share of the tokens, above 0, at most 1: 0.2 by default, 0.4 in MUSE.
        with_last: whether a row's last label counts; in open-unlearning it is the end of the answer and does
            not.

    Returns:
        Nats, one score for each row, lower for a text that was trained on. NaN for a row of which no token
        counts.

    Raises:
        TypeError: logits that are not floating, labels that are not integers.
        ValueError: shapes that do not match, an empty batch, rows of fewer than two tokens, k outside (0, 1].

    Source:
        arXiv:2310.16789, equation (1).

    Example:
        >>> logits = jnp.zeros((1, 4, 8))
        >>> float(min_k(logits, jnp.array([[-100, 1, 2, 3]]))[0] / jnp.log(8))
        1.0
    """
    _check_share(k)
    nll, counted = token_nll(logits, labels)
    return _mean_of_lowest(-nll, counted if with_last else without_last(counted), k)


def min_k_pp(
    logits: Float[Array, "batch tokens vocab"],
    labels: Int[Array, "batch tokens"],
    k: float = 0.2,
    *,
    with_last: bool = False,
) -> Float[Array, " batch"]:
    """Min-k%++: Min-k% of log-likelihoods that are measured against the whole vocabulary's.

    ``z_t = (log p(x_t) - mu_t) / sigma_t`` with ``mu_t = sum_v p_v log p_v`` and ``sigma_t^2 = max(1e-6,
    sum_v p_v (log p_v)^2 - mu_t^2)``; ``score[b] = -mean of the max(1, int(k n)) lowest z``.

    Args:
        logits: next-token logits in any floating dtype.
        labels: token ids, -100 where a token does not count.
        k: share of the tokens, above 0, at most 1.
        with_last: whether a row's last label counts; in open-unlearning it is the end of the answer and does
            not.

    Returns:
        One score for each row, lower for a text that was trained on. NaN for a row of which no token counts.

    Raises:
        TypeError: logits that are not floating, labels that are not integers.
        ValueError: shapes that do not match, an empty batch, rows of fewer than two tokens, k outside (0, 1].

    Source:
        arXiv:2404.02936, equation (2).

    Example:
        >>> min_k_pp(jnp.eye(4)[None], jnp.array([[-100, 1, 2, 3]])).shape
        (1,)
    """
    _check_share(k)
    nll, counted = token_nll(logits, labels)
    log_p = logits.astype(nll.dtype) - log_sum_exp(logits)[..., None]
    p = jnp.exp(log_p)
    # A vocabulary entry that cannot occur has log p of minus infinity and contributes nothing.
    log_p = jnp.where(p > 0, log_p, 0)
    mean = jnp.sum(p * log_p, -1)
    variance = jnp.sum(p * jnp.square(log_p), -1) - jnp.square(mean)
    z = (-nll - mean) * jax.lax.rsqrt(jnp.maximum(variance, 1e-6))
    return _mean_of_lowest(z, counted if with_last else without_last(counted), k)


def zlib_score(avg_loss: ArrayLike, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
    """The loss against what a general compressor makes of the text.

    ``score[i] = avg_loss[i] / bytes of zlib(texts[i])``.

    Args:
        avg_loss: average loss of each text, nats per token (`average_loss`).
        texts: the texts themselves.

    Returns:
        One score for each text in float64, lower for a text that was trained on. Runs on the host.

    Raises:
        ValueError: another number of texts than of losses.

    Source:
        arXiv:2012.07805, Section 5.2.

    Example:
        >>> zlib_score([1.1], ["aaa"]).shape
        (1,)
    """
    losses = np.asarray(avg_loss, np.float64)
    if losses.shape != (len(texts),):
        raise ValueError(f"avg_loss: expected one for each of {len(texts)} texts, got shape {losses.shape}")
    return losses / np.array([len(zlib.compress(text.encode())) for text in texts])


def reference_score(
    avg_loss: Float[Array, " texts"], ref_avg_loss: Float[Array, " texts"]
) -> Float[Array, " texts"]:
    """The loss against that of a model that never saw the texts.

    ``score[i] = avg_loss[i] - ref_avg_loss[i]``.

    Args:
        avg_loss: average loss of each text under the model, nats per token.
        ref_avg_loss: the same under the reference.

    Returns:
        Nats per token, lower for a text that was trained on.

    Raises:
        TypeError: losses that are not floating.
        ValueError: shapes that differ, no text.

    Source:
        arXiv:2012.07805, Section 5.2.

    Example:
        >>> reference_score(jnp.array([1.0]), jnp.array([3.0])).tolist()
        [-2.0]
    """
    avg_loss, ref_avg_loss = floating(avg_loss=avg_loss, ref_avg_loss=ref_avg_loss)
    return avg_loss - ref_avg_loss


def gradient_norm_score(
    apply: Callable[[Any, Array], Array],
    params: Any,
    tokens: Int[Array, "batch tokens"],
    labels: Int[Array, "batch tokens"],
    order: float = 2.0,
    *,
    with_last: bool = False,
) -> Float[Array, " batch"]:
    """How far a text still moves the model: the norm of its loss's gradient.

    ``score[b] = mean over the parameter arrays of ||grad of mean_t -log p(x_t | x_<t)||_order``.

    Args:
        apply: ``apply(params, tokens [1, T]) -> logits [1, T, V]``.
        params: the model's parameters; the mean runs over the tree's leaves.
        tokens: what the model reads.
        labels: token ids, -100 where a token does not count.
        order: of the norm: 1, 2 or infinity.
        with_last: whether a row's last label counts; in open-unlearning it is the end of the answer and does
            not.

    Returns:
        One score for each row, lower for a text that was trained on. The rows are taken one after the other,
        so that one gradient is held at a time.

    Raises:
        ValueError: an order that does not exist, shapes that do not match.

    Source:
        arXiv:2402.17012.

    Example:
        >>> row = jnp.ones((1, 3), int)
        >>> gradient_norm_score(lambda params, tokens: params[tokens], jnp.zeros((8, 8)), row, row).shape
        (1,)
    """
    if order not in (1, 2, float("inf")):
        raise ValueError(f"order: expected 1, 2 or infinity, got {order}")
    if tokens.shape != labels.shape:
        raise ValueError(f"tokens: expected the shape of labels, {labels.shape}, got {tokens.shape}")

    def loss(params: Any, row: Array, row_labels: Array) -> Array:
        nll, counted = token_nll(apply(params, row[None]), row_labels[None])
        if not with_last:
            counted = without_last(counted)
        return jnp.sum(jnp.where(counted, nll, 0)) / counted.sum()

    def score(row: tuple[Array, Array]) -> Array:
        gradient = jax.tree.leaves(jax.grad(loss)(params, *row))
        norms = [
            jnp.linalg.norm(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)).ravel(), ord=order)
            for leaf in gradient
        ]
        return jnp.mean(jnp.stack(norms))

    return jax.lax.map(score, (tokens, labels))


def auc(negative: ArrayLike, positive: ArrayLike) -> Float[Array, ""]:
    """Area under the ROC curve: how often a positive has the higher score.

    ``AUC = mean over all pairs of [positive > negative] + [positive = negative] / 2``.

    Args:
        negative: scores of one set. With the scores of this module: the forget set.
        positive: scores of the other. With the scores of this module: the holdout set; the AUC is then 1 if
            every forget text is likelier than every holdout text, as in open-unlearning.

    Returns:
        Between 0 and 1, NaN if a score is.

    Raises:
        ValueError: an array that is not one-dimensional, or empty.

    Source:
        Mann and Whitney 1947; equal to ``sklearn.metrics.roc_auc_score`` with labels 0 and 1.

    Example:
        >>> float(auc([1.0, 2.0], [2.0, 3.0]))
        0.875
    """
    negative, positive = jnp.asarray(negative), jnp.asarray(positive)
    for name, scores in (("negative", negative), ("positive", positive)):
        if scores.ndim != 1 or scores.size == 0:
            raise ValueError(f"{name}: expected a one-dimensional array of scores, got shape {scores.shape}")
    ordered = jnp.sort(negative)
    below, not_above = (jnp.searchsorted(ordered, positive, side=side) for side in ("left", "right"))
    area = jnp.mean((below + not_above) / (2 * negative.size))
    return jnp.where(jnp.isnan(negative).any() | jnp.isnan(positive).any(), jnp.nan, area)


def privleak(auc_unlearned: float, auc_retrained: float, *, complement: bool = False) -> float:
    """Privacy leakage: how far the unlearned model's AUC is from the retrained one's, in percent.

    ``100 (AUC_unlearned - AUC_retrained) / AUC_retrained``.

    Args:
        auc_unlearned: AUC of Min-40% scores on forget against holdout texts, of the unlearned model.
        auc_retrained: the same of the model that never saw the forget texts.
        complement: whether to take 1 - AUC of both. MUSE's AUC is high where the holdout texts are the
            likelier, so that too little forgetting has a negative sign; for ``auc(forget, holdout)``, as
            open-unlearning computes it, say True.

    Returns:
        Percent, 0 if nothing leaks.

    Raises:
        ValueError: an AUC outside 0 to 1, or nothing to divide by.

    Source:
        arXiv:2407.06460, equation (4); the complement as in arXiv:2506.12618.

    Example:
        >>> privleak(0.75, 0.5)
        50.0
    """
    unlearned, retrained = float(auc_unlearned), float(auc_retrained)
    for name, value in (("auc_unlearned", unlearned), ("auc_retrained", retrained)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
    if complement:
        unlearned, retrained = 1 - unlearned, 1 - retrained
    if retrained == 0:
        raise ValueError(f"auc_retrained: expected an AUC to compare with, got {auc_retrained}")
    return 100 * (unlearned - retrained) / retrained


def _check_share(k: float) -> None:
    if not 0 < k <= 1:
        raise ValueError(f"k: expected a share above 0 and at most 1, got {k}")


def _mean_of_lowest(values: Array, counted: Array, k: float) -> Array:
    """Minus the mean of the lowest ``max(1, int(k n))`` values that count."""
    # In Python's arithmetic, where int(0.29 * 100) is 28, for every possible length of a row.
    table = np.array([max(1, int(k * n)) for n in range(values.shape[-1] + 1)])
    n = counted.sum(-1)
    # Read off the table by comparison: a gather would be ambiguous on rows sharded over explicit axes.
    number = jnp.sum(jnp.where(np.arange(len(table)) == n[:, None], table, 0), -1)
    lowest = jnp.sort(jnp.where(counted, values, jnp.inf), -1)
    chosen = np.arange(values.shape[-1]) < number[:, None]
    mean = -jnp.sum(jnp.where(chosen, lowest, 0), -1) / number
    return jnp.where(n > 0, mean, jnp.nan)
