"""Answers as text: when two short answers are the same, and which label a generated text ends in.

The rules are the project's own; arXiv:2511.10881 compares a model's short answers with the truth as well, but
its rules were not to be had.
"""

import re
import string
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

UNPARSABLE = -1

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " ") | {"'": "", "’": ""})
_REFUSALS = (
    "i dont know",
    "i do not know",
    "dont know",
    "not sure",
    "im not sure",
    "i am not sure",
    "unknown",
    "cannot answer",
    "no idea",
)


def normalized_answer(text: str) -> str:
    r"""A short answer without what does not matter: capitals, punctuation, articles, spaces, later lines.

    Args:
        text: what was generated, or a reference.

    Returns:
        Lower-case words, one space between them; empty where nothing is left.

    Example:
        >>> normalized_answer(" The  U.S. President\nQuestion: Who")
        'u s president'
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    words = first.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", words).split())


def answers_match(text: str, answers: Sequence[str]) -> bool:
    """Whether a text says one of the answers: it is the answer, or holds it as whole words.

    Args:
        text: what was generated.
        answers: the answer and its aliases.

    Returns:
        Whether it does.

    Example:
        >>> answers_match("It is in Paris.", ["Paris"]), answers_match("Parisian", ["Paris"])
        (True, False)
    """
    said = f" {normalized_answer(text)} "
    return any(f" {answer} " in said for answer in map(normalized_answer, answers) if answer)


def answer_ids(
    samples: Sequence[str], answers: Sequence[str]
) -> tuple[Int[np.ndarray, " samples"], int, int]:
    """Sampled texts as numbers, for `knowledge_partition`.

    Args:
        samples: short answers to one question.
        answers: its answer and aliases.

    Returns:
        A number for each sample, equal where the texts are the same; `UNPARSABLE` where nothing is left of a
        text; the number of right answers, 0; the number of refusals, 1.

    Raises:
        ValueError: no samples or no answers.

    Example:
        >>> answer_ids(["Paris.", "Rome", "the rome", "I don't know", "?"], ["Paris"])[0].tolist()
        [0, 2, 2, 1, -1]
    """
    if not samples or not answers:
        raise ValueError(
            f"samples: expected at least one, and an answer, got {len(samples)} and {len(answers)}"
        )
    known: dict[str, int] = {}
    found = []
    for sample in samples:
        text = normalized_answer(sample)
        if not text:
            found.append(UNPARSABLE)
        elif answers_match(sample, answers):
            found.append(0)
        elif text.startswith(_REFUSALS):
            found.append(1)
        else:
            found.append(known.setdefault(text, len(known) + 2))
    return np.array(found), 0, 1


def parse_label(text: str, labels: Sequence[str], *, marker: str | None = None) -> int:
    """Which label a generated text gives as its answer.

    Args:
        text: what was generated.
        labels: what may be answered.
        marker: None to take the first label in the text; "Answer:" to take the first one after the last
            marker, where a chain of thought ends.

    Returns:
        The label's index, or `UNPARSABLE` where there is none: never taken as a "No".

    Example:
        >>> parse_label("No doubt ... Answer: Yes", ["Yes", "No"], marker="Answer:")
        0
        >>> parse_label("Nobody can tell", ["Yes", "No"])
        -1
    """
    if marker is not None:
        _, found, text = text.rpartition(marker)
        if not found:
            return UNPARSABLE
    matches = []
    for number, label in enumerate(labels):
        match = re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text, re.IGNORECASE)
        if match:
            matches.append((match.start(), -len(label), number))
    return min(matches)[2] if matches else UNPARSABLE
