"""The Multi-Domain Sentiment data as they are published, features already counted: ``processed_acl``.

J. Blitzer, M. Dredze and F. Pereira, "Biographies, Bollywood, Boom-boxes and Blenders", ACL 2007. A folder
for each domain with ``positive.review``, ``negative.review`` and ``unlabeled.review``; a line is a review:
words and pairs of words with their counts, ``great:2 a_great:1 ... #label#:positive``. The labelled reviews
are to train on, the others, which have labels too, to test on (M. Chen et al., ICML 2012).
"""

from collections import Counter
from pathlib import Path

import numpy as np

from experiments.fedka.sources import COLUMNS, REVIEW_DOMAINS, Domain, Domains
from experiments.text_lines import numbered_lines

LABELS = {"negative": 0, "positive": 1}
TRAIN, TEST = ("positive.review", "negative.review"), ("unlabeled.review",)

Review = tuple[dict[str, int], int]


def read_reviews(path: Path) -> list[Review]:
    r"""The reviews of a file.

    Args:
        path: such as ``processed_acl/books/positive.review``.

    Returns:
        The counts of each review, and 1 if it is positive.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no review. The message names it, and the remedy.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "positive.review"
        >>> _ = path.write_text("great:2 a_great:1 #label#:positive\n")
        >>> read_reviews(path)
        [({'great': 2, 'a_great': 1}, 1)]
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}: processed_acl holds a folder for each of {', '.join(REVIEW_DOMAINS)},"
            f" with {', '.join(TRAIN + TEST)} in each"
        )
    reviews = []
    for where, line in numbered_lines(path):
        *words, last = line.split()
        mark, _, label = last.rpartition(":")
        if mark != "#label#" or label not in LABELS:
            raise ValueError(
                f"{where}: expected '#label#:positive' or '#label#:negative' at the end, got {last!r}:"
                " correct or remove the line"
            )
        counts = {}
        for word in words:
            name, _, count = word.rpartition(":")
            if not name or not count.isdecimal() or int(count) < 1:
                raise ValueError(f"{where}: expected 'word:count', got {word!r}: correct or remove the line")
            counts[name] = int(count)
        reviews.append((counts, LABELS[label]))
    if not reviews:
        raise ValueError(f"{path} holds no review: get the file again")
    return reviews


def load_processed_acl(folder: Path, columns: int = COLUMNS) -> Domains:
    """All four domains, in the columns that the most reviews have.

    Args:
        folder: ``processed_acl``.
        columns: how many words and pairs of words to count, those that the most reviews of all domains have.

    Returns:
        Logarithms of one plus the counts, as `experiments.fedka.sources.load_reviews` gives them.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a line is no review.
    """
    read = {
        name: [
            [review for file in files for review in read_reviews(folder / name / file)]
            for files in (TRAIN, TEST)
        ]
        for name in REVIEW_DOMAINS
    }
    seen: Counter[str] = Counter()
    for splits in read.values():
        for counts, _ in (review for split in splits for review in split):
            seen.update(counts.keys())
    kept = sorted(seen, key=lambda word: (-seen[word], word))[:columns]
    place = {word: column for column, word in enumerate(kept)}

    def table(reviews: list[Review]) -> tuple[np.ndarray, np.ndarray]:
        x = np.zeros((len(reviews), len(place)), np.float32)
        for row, (counts, _) in enumerate(reviews):
            for word, count in counts.items():
                if word in place:
                    x[row, place[word]] = count
        return np.log1p(x), np.array([label for _, label in reviews], np.int32)

    parts = (Domain(name, *table(train), *table(test)) for name, (train, test) in read.items())
    return Domains("Amazon reviews, processed_acl", tuple(parts), 2)
