"""ROUGE: how much of a reference's words a generated text has.

ROUGE-1 and ROUGE-L of Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, as computed by the
package rouge-score, which TOFU (arXiv:2401.06121) and MUSE (arXiv:2407.06460) use. It is imported when a
function is called.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float


class Rouge(NamedTuple):
    """The three shares of one kind of ROUGE, one value for each text."""

    precision: Float[np.ndarray, " texts"]
    recall: Float[np.ndarray, " texts"]
    f1: Float[np.ndarray, " texts"]


def rouge(
    generated: Sequence[str],
    reference: Sequence[str],
    kind: Literal["rouge1", "rouge2", "rougeL"] = "rougeL",
    *,
    stem: bool = True,
) -> Rouge:
    """ROUGE of generated texts against their references.

    For "rougeL", with LCS the length of the longest common subsequence of words: precision = LCS / words
    generated, recall = LCS / words of the reference, f1 = their harmonic mean.

    Args:
        generated: texts of the model.
        reference: the text that each should be.
        kind: of common words: "rouge1", "rouge2" or "rougeL".
        stem: whether Porter's stemmer runs first: yes in TOFU and open-unlearning, no in MUSE's own code.

    Returns:
        Precision, recall and f1 in float64. An empty text has 0.

    Raises:
        TypeError: a single text where a sequence of them belongs.
        ValueError: another number of texts than of references, no text, a kind that does not exist.
        ModuleNotFoundError: rouge-score is not installed.

    Source:
        Lin 2004.

    Example:
        >>> rouge(["the cat sat"], ["the cat sat down"]).recall.tolist()
        [0.75]
    """
    for name, texts in (("generated", generated), ("reference", reference)):
        if isinstance(texts, str):
            raise TypeError(f"{name}: expected a sequence of texts, got one text; put it into a list")
    if len(generated) != len(reference):
        raise ValueError(
            f"generated: expected a text for each of the {len(reference)} references, got {len(generated)}"
        )
    if not len(reference):
        raise ValueError("generated: expected at least one text, got none")
    if kind not in ("rouge1", "rouge2", "rougeL"):
        raise ValueError(f"kind: expected 'rouge1', 'rouge2' or 'rougeL', got {kind!r}")
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "ROUGE needs the package rouge-score: pip install 'jaxneg[experiments]'"
        ) from error
    scorer = RougeScorer([kind], use_stemmer=stem)
    scores = [
        scorer.score(target, prediction)[kind]
        for target, prediction in zip(reference, generated, strict=True)
    ]
    return Rouge(*np.array(scores, np.float64).T)


def rouge_l_recall(generated: Sequence[str], reference: Sequence[str]) -> Float[np.ndarray, " texts"]:
    """ROUGE-L recall with Porter's stemmer: what TOFU reports.

    ``recall = LCS(generated, reference) / words of the reference``.

    Args:
        generated: texts of the model.
        reference: the right answers.

    Returns:
        One value for each text, in float64, between 0 and 1.

    Raises:
        TypeError: a single text where a sequence of them belongs.
        ValueError: another number of texts than of references, or no text.
        ModuleNotFoundError: rouge-score is not installed.

    Source:
        arXiv:2401.06121, Section 2.2.

    Example:
        >>> rouge_l_recall(["He was born in Paris"], ["Paris"]).tolist()
        [1.0]
    """
    return rouge(generated, reference).recall
