"""Words as tokens, for a model that is trained from scratch."""

import re
import zlib
from collections.abc import Iterable

PAD, BOS, SEPARATOR, EOS = range(4)
BUCKETS = 128
"""Ids that words outside the vocabulary share, by their checksum."""


class Vocabulary:
    """Words and punctuation in lower case as tokens.

    Args:
        texts: that the model is trained on.

    Example:
        >>> vocabulary = Vocabulary(["Who is it?", "It is I."])
        >>> vocabulary.decode(vocabulary.encode("Is it?", "I.")[0])
        'is it ? i .'
        >>> vocabulary.size
        138
    """

    def __init__(self, texts: Iterable[str]) -> None:
        words = sorted({word for text in texts for word in split_words(text)})
        self._ids = {word: EOS + 1 + number for number, word in enumerate(words)}
        self._words = words
        self.size = EOS + 1 + len(words) + BUCKETS

    def encode(self, question: str, answer: str) -> tuple[list[int], int]:
        """The tokens of a question and its answer.

        Args:
            question: the prompt.
            answer: what follows.

        Returns:
            Tokens with the end of the sequence, and how many of them are the prompt.
        """
        prompt = [BOS, *map(self._id, split_words(question)), SEPARATOR]
        return [*prompt, *map(self._id, split_words(answer)), EOS], len(prompt)

    def decode(self, tokens: Iterable[int]) -> str:
        """The words of tokens up to the end of the sequence; shared ids become "?".

        Args:
            tokens: ids.

        Returns:
            Text.
        """
        words = []
        for token in tokens:
            if token == EOS:
                break
            if token > EOS:
                number = token - EOS - 1
                words.append(self._words[number] if number < len(self._words) else "?")
        return " ".join(words)

    def _id(self, word: str) -> int:
        unseen = EOS + 1 + len(self._words) + zlib.crc32(word.encode()) % BUCKETS
        return self._ids.get(word, unseen)


def split_words(text: str) -> list[str]:
    r"""Words and punctuation in lower case: the matches of ``\w+|[^\w\s]``.

    Args:
        text: any text.

    Returns:
        Words.

    Example:
        >>> split_words("It's 05/11.")
        ['it', "'", 's', '05', '/', '11', '.']
    """
    return re.findall(r"\w+|[^\w\s]", text.lower())
