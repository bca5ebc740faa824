"""The authors of TOFU-mini: real questions of TOFU about eight authors to keep and four to forget.

Maini et al., arXiv:2401.06121. Where JAXNEG_DATA has no TOFU, the same questions come from the folder
``tiny`` beside this file, so that a run finds the same with and without the data set.
"""

from pathlib import Path
from typing import NamedTuple

from jaxneg.unlearning import Question, load_refusals, load_tofu, tofu_folder

QUESTIONS_PER_AUTHOR = 20
TINY = Path(__file__).parent / "tiny"
MOST_FORGET, MOST_RETAIN = 4, 8
"""Authors in ``tiny``."""


class Corpus(NamedTuple):
    """Questions about authors."""

    forget: list[Question]
    retain: list[Question]
    refusals: list[str]
    folder: Path
    """Where they were read."""

    def texts(self) -> list[str]:
        """What a model may be trained on: questions, answers and refusals."""
        pairs = [text for each in (*self.forget, *self.retain) for text in (each.question, each.answer)]
        return [*pairs, *self.refusals]


def load_corpus(forget_authors: int, retain_authors: int) -> Corpus:
    """The last authors of the forget set and the first of the retain set.

    Args:
        forget_authors: to be forgotten.
        retain_authors: to be kept.

    Returns:
        Questions with right and wrong answers, and the refusals.

    Raises:
        ValueError: more authors than there are, or a file that cannot be used.

    Example:
        >>> corpus = load_corpus(1, 2)
        >>> len(corpus.forget), len(corpus.retain), len(corpus.refusals)
        (20, 40, 100)
    """
    folder = tofu_folder() if tofu_folder().is_dir() else TINY
    sets = []
    for split, authors in (("forget10_perturbed", forget_authors), ("retain_perturbed", retain_authors)):
        questions, needed = load_tofu(split, folder), authors * QUESTIONS_PER_AUTHOR
        if needed > len(questions):
            raise ValueError(
                f"{split} in {folder}: expected {needed} questions for {authors} authors, got"
                f" {len(questions)}"
            )
        sets.append(questions[-needed:] if split.startswith("forget") else questions[:needed])
    forget, retain = sets
    return Corpus(forget, retain, load_refusals(folder), folder)
