"""What a model knows: questions sorted by its own short answers into known, wrongly known and not known.

The three subsets are those of Song et al., "A Multifaceted Analysis of Negative Bias in Large Language Models
through the Lens of Parametric Knowledge", arXiv:2511.10881. Its thresholds were not to be had: the majority
of sampled answers, with a least share, is the project's own rule.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxneg.language.short_answers import UNPARSABLE

CORRECT, INCORRECT, INSUFFICIENT = 0, 1, 2


def knowledge_partition(
    samples: Int[Array, "questions samples"],
    gold: Int[Array, " questions"],
    idk_id: int,
    tau: float | Array = 0.5,
) -> Int[Array, " questions"]:
    """Sorts questions by the majority of sampled short answers.

    Insufficient (2) if the majority's share is below tau, or if the majority is a refusal or unparsable; else
    correct (0) if it is the right answer, incorrect (1) if not. Of answers that are equally frequent the one
    seen first is the majority.

    Args:
        samples: numbers of sampled answers, equal where the answers are (`answer_ids`); -1 for a text in
            which no answer was found. The samples of several forms of a question may stand side by side.
        gold: number of each right answer.
        idk_id: the number of a refusal.
        tau: least share of the majority, from 0 to 1.

    Returns:
        0, 1 or 2 for each question.

    Raises:
        TypeError: samples or gold that are not integers.
        ValueError: shapes that do not fit, no question, no sample, tau outside 0 to 1.

    Source:
        arXiv:2511.10881 (the subsets); the rule is the project's own.

    Example:
        >>> samples = jnp.array([[7, 7, 3], [3, 3, 7], [9, 9, 9]])
        >>> knowledge_partition(samples, jnp.array([7, 7, 7]), idk_id=9).tolist()
        [0, 1, 2]
    """
    samples, gold = jnp.asarray(samples), jnp.asarray(gold)
    for name, values in (("samples", samples), ("gold", gold)):
        if not jnp.issubdtype(values.dtype, jnp.integer):
            raise TypeError(f"{name}: expected an integer dtype, got {values.dtype}")
    if samples.ndim != 2 or samples.size == 0:
        raise ValueError(
            f"samples: expected the shape [questions, samples] with at least one, got {samples.shape}"
        )
    if gold.shape != samples.shape[:1]:
        raise ValueError(f"gold: expected one answer for each of {len(samples)} questions, got {gold.shape}")
    if isinstance(tau, float | int) and not 0 <= tau <= 1:
        raise ValueError(f"tau: expected a share from 0 to 1, got {tau}")
    counts = jnp.sum(samples[:, :, None] == samples[:, None, :], -1)
    # argmax gives the first of the largest counts: the majority that was seen first.
    first = jnp.argmax(counts, -1)
    # By comparison: a gather would be ambiguous on questions sharded over explicit axes.
    is_first = jnp.arange(samples.shape[-1]) == first[:, None]
    majority = jnp.sum(jnp.where(is_first, samples, 0), -1)
    share = jnp.max(counts, -1) / samples.shape[-1]
    unknown = (share < tau) | (majority == idk_id) | (majority == UNPARSABLE)
    return jnp.where(unknown, INSUFFICIENT, jnp.where(majority == gold, CORRECT, INCORRECT))


def multi_hop_partition(
    hops: Int[Array, "questions hops"], mask: Bool[Array, "questions hops"] | None = None
) -> Int[Array, " questions"]:
    """What is known of a question that takes several steps, from what is known of each step.

    Correct (0) if all steps are, insufficient (2) if any is, else incorrect (1).

    Args:
        hops: `knowledge_partition` of each question's single-hop questions.
        mask: true where there is such a step; None: everywhere.

    Returns:
        0, 1 or 2 for each question. One without any step is correct.

    Raises:
        ValueError: hops that are not two-dimensional, a mask of another shape.

    Source:
        The project's own rule.

    Example:
        >>> multi_hop_partition(jnp.array([[0, 0], [0, 1], [1, 2]])).tolist()
        [0, 1, 2]
    """
    hops = jnp.asarray(hops)
    if hops.ndim != 2:
        raise ValueError(f"hops: expected the shape [questions, hops], got {hops.shape}")
    if mask is None:
        mask = jnp.ones_like(hops, bool)
    if mask.shape != hops.shape:
        raise ValueError(f"mask: expected the shape of hops, {hops.shape}, got {mask.shape}")
    # The classes are in the order in which one step decides for all.
    return jnp.max(jnp.where(mask, hops, CORRECT), -1)


def partition_agreement(
    one: Int[np.ndarray, " questions"], other: Int[np.ndarray, " questions"]
) -> Int[np.ndarray, "3 3"]:
    """How two partitions of the same questions agree: two formats, two thresholds, or estimate and truth.

    ``A[i, j] = #{q: one[q] = i, other[q] = j}``.

    Args:
        one: 0, 1 or 2 for each question, the rows.
        other: the same, the columns.

    Returns:
        Counts, whose diagonal holds the questions on which both agree. Runs on the host.

    Raises:
        ValueError: shapes that differ.

    Source:
        The project's own report.

    Example:
        >>> partition_agreement([0, 1, 2, 2], [0, 1, 1, 2]).tolist()
        [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    """
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape:
        raise ValueError(f"other: expected the shape of one, {one.shape}, got {other.shape}")
    return np.array([[np.sum((one == i) & (other == j)) for j in range(3)] for i in range(3)])
