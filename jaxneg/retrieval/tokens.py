"""Texts to token numbers: words `[a-z0-9]+` in lower case, without Lucene's 33 English stop words."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

LUCENE_STOP_WORDS = frozenset(
    (
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "for",
        "if",
        "in",
        "into",
        "is",
        "it",
        "no",
        "not",
        "of",
        "on",
        "or",
        "such",
        "that",
        "the",
        "their",
        "then",
        "there",
        "these",
        "they",
        "this",
        "to",
        "was",
        "will",
        "with",
    )
)
_WORD = re.compile(r"[a-z0-9]+")


class TokenIds(NamedTuple):
    """Padded token numbers and the vocabulary that numbers them.

    Attributes:
        ids: one row a text, -1 for padding.
        vocabulary: number of each token, 0 to len(vocabulary) - 1.
    """

    ids: Int[np.ndarray, "texts length"]
    vocabulary: dict[str, int]


def tokenize(
    texts: Iterable[str],
    *,
    stop_words: Collection[str] = LUCENE_STOP_WORDS,
    stemmer: Callable[[str], str] | None = None,
) -> list[list[str]]:
    """Lower-case words of each text, without stop words.

    Args:
        texts: any strings.
        stop_words: words to leave out, before stemming.
        stemmer: maps a word to its stem; None: words stay as they are.

    Returns:
        One list of tokens a text.

    Source:
        Lucene's StandardAnalyzer with its English stop words, the tokens that BM25 results are usually
        reported for.

    Example:
        >>> tokenize(["The wing of a plane"])
        [['wing', 'plane']]
    """
    words = ([word for word in _WORD.findall(text.lower()) if word not in stop_words] for text in texts)
    return [[stemmer(word) for word in row] if stemmer else row for row in words]


def token_ids(tokens: Sequence[Sequence[str]], vocabulary: Mapping[str, int] | None = None) -> TokenIds:
    """Numbers for tokens, padded with -1 to one rectangular array.

    Args:
        tokens: of `tokenize`.
        vocabulary: numbers to use, as for queries those of the documents: tokens outside of it are dropped.
            None: a new vocabulary in order of first occurrence.

    Returns:
        A `TokenIds`.

    Source:
        The input format of `bm25_index`.

    Example:
        >>> token_ids([["wing", "plane"], ["plane"]]).ids.tolist()
        [[0, 1], [1, -1]]
    """
    if vocabulary is None:
        numbers: dict[str, int] = {}
        rows = [[numbers.setdefault(token, len(numbers)) for token in row] for row in tokens]
    else:
        numbers = dict(vocabulary)
        rows = [[numbers[token] for token in row if token in numbers] for row in tokens]
    ids = np.full((len(rows), max([1, *map(len, rows)])), -1, np.int32)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    return TokenIds(ids, numbers)
