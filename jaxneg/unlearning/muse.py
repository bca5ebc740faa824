"""MUSE's two measures of memorisation in texts: verbatim and of knowledge.

Implements the metrics of Shi et al., "MUSE: Machine Unlearning Six-Way Evaluation for Language Models",
arXiv:2407.06460, Section 3. Its third, the privacy leakage, is `privleak`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxneg.unlearning.rouge import rouge

STOP_WORDS = ("\n\n", "\nQuestion", "Question:")
"""Where a short answer ends: at the first of these."""


def verbmem(
    generated: Sequence[str], reference: Sequence[str], *, stem: bool = False
) -> Float[np.ndarray, " texts"]:
    """Verbatim memorisation: how close a continuation is to the text that was to be forgotten.

    ``ROUGE-L F1(f(x[:l]), x[l:])``; MUSE reports the mean over the texts, for continuations of 128 tokens.

    Args:
        generated: greedy continuations of the texts' beginnings.
        reference: the true continuations, cut to as many tokens.
        stem: whether Porter's stemmer runs first; MUSE's own code has none, open-unlearning's has.

    Returns:
        One value for each text, in float64, between 0 and 1.

    Raises:
        TypeError: a single text where a sequence of them belongs.
        ValueError: another number of texts than of references, or no text.
        ModuleNotFoundError: rouge-score is not installed.

    Source:
        arXiv:2407.06460, Section 3 (VerbMem).

    Example:
        >>> verbmem(["on the mat"], ["on the mat"]).tolist()
        [1.0]
    """
    return rouge(generated, reference, stem=stem).f1


def knowmem(
    generated: Sequence[str], reference: Sequence[str], *, stem: bool = False
) -> Float[np.ndarray, " texts"]:
    r"""Knowledge memorisation: how close short answers are to the right ones.

    ``ROUGE-L F1(first answer in f(prompt), a)``, where the answer ends at a blank line or the next question.
    MUSE reports the mean over the questions.

    Args:
        generated: greedy continuations of `knowmem_prompt`, 32 tokens each, uncut.
        reference: the right answers.
        stem: whether Porter's stemmer runs first; MUSE's own code has none, open-unlearning's has.

    Returns:
        One value for each text, in float64, between 0 and 1.

    Raises:
        TypeError: a single text where a sequence of them belongs.
        ValueError: another number of texts than of references, or no text.
        ModuleNotFoundError: rouge-score is not installed.

    Source:
        arXiv:2407.06460, Section 3 (KnowMem).

    Example:
        >>> knowmem(["Hogwarts\n\nQuestion: Who?"], ["Hogwarts"]).tolist()
        [1.0]
    """
    if not isinstance(generated, str):
        generated = [first_answer(text) for text in generated]
    return rouge(generated, reference, stem=stem).f1


def first_answer(text: str) -> str:
    r"""What of a continuation is the answer: all before the first of `STOP_WORDS`.

    Args:
        text: the continuation.

    Returns:
        Its beginning.

    Example:
        >>> first_answer("Paris\nQuestion: And of Spain?")
        'Paris'
    """
    for word in STOP_WORDS:
        text = text.split(word)[0]
    return text


def knowmem_prompt(question: str, examples: Sequence[tuple[str, str]] = ()) -> str:
    r"""The prompt of MUSE's questions, after solved examples.

    Args:
        question: what is asked.
        examples: questions with their answers.

    Returns:
        The prompt, which ends where the answer begins.

    Source:
        arXiv:2407.06460, the official code.

    Example:
        >>> knowmem_prompt("Who?", [("Where?", "There.")])
        'Question: Where?\nAnswer: There.\n\nQuestion: Who?\nAnswer: '
    """
    solved = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in examples)
    return f"{solved}Question: {question}\nAnswer: "
