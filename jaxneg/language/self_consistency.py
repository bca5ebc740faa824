"""Self-consistency: of several sampled answers the one that most samples agree on.

Implements the vote of Wang et al., "Self-Consistency Improves Chain of Thought Reasoning in Language Models",
arXiv:2203.11171, as QCRD uses it to sort rationales, arXiv:2405.13014, Section 3.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

UNPARSABLE = -1
"""The answer of a sample in which none was found."""


def self_consistency(
    answers: Int[Array, "questions samples"],
) -> tuple[Int[Array, " questions"], Bool[Array, "questions samples"]]:
    """The answer that most samples of a question give, and which samples give it.

    ``majority = argmax_a #{k: answers[k] = a}``; ties go to the answer that appears first, and a sample
    without an answer never wins.

    Args:
        answers: ids of answers that are compared as equal or not, -1 where none could be parsed.

    Returns:
        The majority, -1 where no sample has an answer, and whether each sample agrees with it: its rationale
        is a positive.

    Raises:
        TypeError: answers that are not integers.
        ValueError: another shape, or no samples.

    Source:
        arXiv:2203.11171, Section 2; arXiv:2405.13014, Section 3.

    Example:
        >>> majority, positive = self_consistency(jnp.array([[4, 7, 7, -1]]))
        >>> majority.tolist(), positive.tolist()
        ([7], [[False, True, True, False]])
    """
    answers = jnp.asarray(answers)
    if not jnp.issubdtype(answers.dtype, jnp.integer):
        raise TypeError(f"answers: expected an integer dtype, got {answers.dtype}")
    if answers.ndim != 2 or answers.shape[1] == 0:
        raise ValueError(
            f"answers: expected the shape [questions, samples], at least one sample, got {answers.shape}"
        )
    parsed = answers != UNPARSABLE
    agreeing = jnp.where(parsed, (answers[:, :, None] == answers[:, None, :]).sum(-1), 0)
    # The first of the largest counts is the first appearance of an answer. Masked sums, since a gather would
    # be ambiguous on questions sharded over explicit axes.
    first = jnp.arange(answers.shape[1]) == jnp.argmax(agreeing, -1)[:, None]
    majority = jnp.where(first, answers, 0).sum(-1, dtype=answers.dtype)
    return majority, parsed & (answers == majority[:, None])
