"""How well yes-no questions are answered, and how far the answers lean to "No".

The symptom is that of Yu et al., "Correcting Negative Bias in Large Language Models through Negative
Attention Score Alignment", arXiv:2408.00137: precision of "Yes" above its recall. The negative bias, the soft
bias and the bootstrap over items are the project's own definitions; Song et al., arXiv:2511.10881, measure
the same thing, but their formula was not to be had.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

NO, YES, NO_ANSWER = 0, 1, 2
"""Answers; the last is a refusal, or a text in which no answer was found."""

METRICS = (
    "accuracy_all",
    "accuracy_answered",
    "precision",
    "recall",
    "f1",
    "weighted_f1",
    "pr_gap",
    "fnr",
    "fpr",
    "negative_bias",
    "no_rate",
    "gold_no_rate",
    "idk_rate",
)
"""The keys of `binary_metrics`."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def binary_metrics(gold: Int[np.ndarray, " items"], pred: Int[np.ndarray, " items"]) -> dict[str, float]:
    """Counts and rates of yes-no answers; "Yes" is the positive class.

    ``negative_bias = FN/(TP+FN) - FP/(FP+TN)``, between -1 and 1, 0 without bias, above 0 where "No" is said
    too often; ``pr_gap = precision - recall``. Items without an answer are left out of TP, FP, FN and TN, and
    of all rates but ``accuracy_all`` (where they are wrong), ``gold_no_rate`` and ``idk_rate``. A share of
    nothing is 0.

    Args:
        gold: 1 where the right answer is Yes, 0 where it is No.
        pred: 1 for Yes, 0 for No, 2 for neither.

    Returns:
        `METRICS` by name, in float64; ``weighted_f1`` weighs the F1 of both classes by how many answered
        items have that right answer. Runs on the host.

    Raises:
        TypeError: answers that are not integers.
        ValueError: shapes that differ or are not one-dimensional, no item, a number that is no answer.

    Source:
        arXiv:2408.00137 (precision and recall of "Yes"); the rest is the project's own.

    Example:
        >>> metrics = binary_metrics([1, 1, 0, 0], [1, 0, 0, 2])
        >>> metrics["negative_bias"], metrics["idk_rate"]
        (0.5, 0.25)
    """
    gold, pred = _checked(gold, pred, 1)
    return {name: float(value) for name, value in _metrics(_counts(gold, pred).sum(0)).items()}


def soft_bias(
    logit_yes: Float[Array, " items"], logit_no: Float[Array, " items"], gold: Int[Array, " items"]
) -> Float[Array, ""]:
    """How far the logits lean to "No", whatever the right answer is.

    ``(mean of z over gold Yes + mean of z over gold No) / 2`` with ``z = logit_no - logit_yes``: each class
    counts the same, so that an unbalanced set feigns no bias.

    Args:
        logit_yes: logit of "Yes" for each item (`label_logits`).
        logit_no: logit of "No".
        gold: 1 where the right answer is Yes, 0 where it is No.

    Returns:
        Nats, 0 without bias, above 0 towards "No"; a class without an item contributes 0.

    Raises:
        TypeError: logits that are not floating.
        ValueError: shapes that differ.

    Source:
        The project's own definition.

    Example:
        >>> float(soft_bias(jnp.array([2.0, 0.0]), jnp.array([0.0, 4.0]), jnp.array([1, 0])))
        1.0
    """
    gold = jnp.asarray(gold)
    logits = []
    for name, values in (("logit_yes", jnp.asarray(logit_yes)), ("logit_no", jnp.asarray(logit_no))):
        if not jnp.issubdtype(values.dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {values.dtype}")
        if values.shape != gold.shape:
            raise ValueError(f"{name}: expected the shape of gold, {gold.shape}, got {values.shape}")
        logits.append(values.astype(jnp.promote_types(values.dtype, jnp.float32)))
    z = logits[1] - logits[0]
    means = [
        jnp.sum(jnp.where(gold == answer, z, 0)) / jnp.maximum(jnp.sum(gold == answer), 1)
        for answer in (YES, NO)
    ]
    return (means[0] + means[1]) / 2


def paired_bootstrap(
    gold: Int[np.ndarray, "items twins"],
    pred: Int[np.ndarray, "items twins"],
    metric: str = "negative_bias",
    *,
    draws: int = 2000,
    confidence: float = 0.95,
    key: Array | None = None,
) -> Interval:
    """Percentile interval of a metric over items, all questions about an item drawn together.

    Each draw takes as many items as there are, with replacement, and computes the metric on all their
    questions; the interval is between the quantiles ``(1 - confidence) / 2`` and ``(1 + confidence) / 2``.

    Args:
        gold: right answers of the questions about each item, 1 or 0: a positive and a negative twin, say.
        pred: answers, 1, 0, or 2 for neither.
        metric: one of `METRICS`.
        draws: bootstrap samples.
        confidence: of the interval, between 0 and 1.
        key: randomness; None: always the same draws, so that a report does not change.

    Returns:
        The interval. Runs on the host, in float64.

    Raises:
        TypeError: answers that are not integers.
        ValueError: shapes that differ or are not two-dimensional, no item, a number that is no answer, a
            metric that does not exist, no draw, a confidence outside (0, 1).

    Source:
        Efron 1979; the pairing is the project's own.

    Example:
        >>> low, high = paired_bootstrap([[1, 0]] * 4, [[1, 0]] * 4)
        >>> low, high
        (0.0, 0.0)
    """
    gold, pred = _checked(gold, pred, 2)
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    counts = _counts(gold, pred).sum(1)
    key = jax.random.key(0) if key is None else key
    chosen = np.asarray(jax.random.randint(key, (draws, len(counts)), 0, len(counts)))
    # How often each draw has each item, so that a draw's counts are one product.
    times = np.apply_along_axis(np.bincount, 1, chosen, minlength=len(counts))
    values = _metrics((times @ counts).T)[metric]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def _checked(gold: ArrayLike, pred: ArrayLike, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    checked = {"gold": np.asarray(gold), "pred": np.asarray(pred)}
    for (name, values), allowed in zip(checked.items(), ((NO, YES), (NO, YES, NO_ANSWER)), strict=True):
        if not np.issubdtype(values.dtype, np.integer):
            raise TypeError(f"{name}: expected an integer dtype, got {values.dtype}")
        if values.ndim != dimensions or values.size == 0:
            shape = "[items]" if dimensions == 1 else "[items, twins]"
            raise ValueError(f"{name}: expected the shape {shape} with at least one, got {values.shape}")
        wrong = values[~np.isin(values, allowed)]
        if wrong.size:
            expected = "1 (Yes) or 0 (No)" if name == "gold" else "1 (Yes), 0 (No) or 2 (neither)"
            raise ValueError(f"{name}: expected {expected}, got {wrong[0]}")
    if checked["gold"].shape != checked["pred"].shape:
        raise ValueError(
            f"pred: expected the shape of gold, {checked['gold'].shape}, got {checked['pred'].shape}"
        )
    return checked["gold"], checked["pred"]


def _counts(gold: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """TP, FP, FN, TN, gold Yes and gold No without an answer, as zeros and ones on a last axis."""
    yes, no = gold == YES, gold == NO
    silent = pred == NO_ANSWER
    cases = (
        yes & (pred == YES),
        no & (pred == YES),
        yes & (pred == NO),
        no & (pred == NO),
        yes & silent,
        no & silent,
    )
    return np.stack(cases, -1).astype(np.int64)


def _metrics(counts: np.ndarray) -> dict[str, np.ndarray]:
    """`METRICS` from the counts of `_counts` on the first axis."""
    tp, fp, fn, tn, silent_yes, silent_no = counts
    answered, silent = tp + fp + fn + tn, silent_yes + silent_no
    items = answered + silent
    f1, f1_no = _share(2 * tp, 2 * tp + fp + fn), _share(2 * tn, 2 * tn + fp + fn)
    precision, recall = _share(tp, tp + fp), _share(tp, tp + fn)
    fnr, fpr = _share(fn, tp + fn), _share(fp, fp + tn)
    return {
        "accuracy_all": _share(tp + tn, items),
        "accuracy_answered": _share(tp + tn, answered),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "weighted_f1": _share((tp + fn) * f1 + (fp + tn) * f1_no, answered),
        "pr_gap": precision - recall,
        "fnr": fnr,
        "fpr": fpr,
        "negative_bias": fnr - fpr,
        "no_rate": _share(fn + tn, answered),
        "gold_no_rate": _share(fp + tn + silent_no, items),
        "idk_rate": _share(silent, items),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)
