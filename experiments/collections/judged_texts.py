"""Texts with graded judgments, kept as a list of pairs: millions of documents need no matrix."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

WhereUnknown = Literal["error", "drop"]
"""What to do with a judgment whose query or document has no text."""


class Judgments(NamedTuple):
    """Judged pairs in the order of the file, each once."""

    query: Int[np.ndarray, "judgments"]
    document: Int[np.ndarray, "judgments"]
    grade: Float[np.ndarray, "judgments"]
    """Relevant above 0."""


@dataclass(frozen=True)
class JudgedTexts:
    """A collection as it is stored."""

    name: str
    doc_ids: list[str]
    texts: list[str]
    """Title and text of each document."""
    query_ids: list[str]
    queries: list[str]
    judgments: Judgments
    """Rows of ``queries`` and of ``texts``."""

    def positives(self) -> Int[np.ndarray, "queries positives"]:
        """Relevant documents of each query, -1 for padding: what `jaxneg.retrieval.mine_negatives` takes as
        ``positive_ids``. A query without any has a row of -1.
        """
        relevant = self.judgments.grade > 0
        query, document = self.judgments.query[relevant], self.judgments.document[relevant]
        order = np.argsort(query, kind="stable")
        query, document = query[order], document[order]
        count = np.bincount(query, minlength=len(self.queries))
        rows = np.full((len(self.queries), max(1, count.max(initial=0))), -1, np.int32)
        place = np.arange(len(query)) - np.repeat(np.cumsum(count) - count, count)
        rows[query, place] = document
        return rows

    def grades(self) -> Float[np.ndarray, "queries documents"]:
        """The judgments as a matrix, 0 where there is none. Refused where it would not fit into memory."""
        shape = len(self.queries), len(self.texts)
        if shape[0] * shape[1] > 2**30:
            raise ValueError(
                f"{self.name}: a matrix of {shape[0]} queries and {shape[1]} documents needs more than "
                "4 GiB: use judgments or positives() instead"
            )
        matrix = np.zeros(shape, np.float32)
        matrix[self.judgments.query, self.judgments.document] = self.judgments.grade
        return matrix


def judged_pairs(
    lines: Iterable[tuple[str, str, str, str]],
    query_ids: Sequence[str],
    doc_ids: Sequence[str],
    queries_file: Path,
    docs_file: Path,
    *,
    unknown: WhereUnknown = "error",
) -> Judgments:
    """Judgments by row of query and document.

    Args:
        lines: (where, query, document, grade) of each line.
        query_ids: of the queries, in their order.
        doc_ids: of the documents.
        queries_file: where the queries come from, for messages.
        docs_file: where the documents come from.
        unknown: "error", or "drop" judgments whose query or document there is none of.

    Returns:
        The judgments; a pair that is repeated with the same grade counts once.

    Raises:
        ValueError: an unknown query or document, a grade that is no finite number, or two grades for a pair.
    """
    rows = {identifier: row for row, identifier in enumerate(query_ids)}
    columns = {identifier: column for column, identifier in enumerate(doc_ids)}
    grades: dict[tuple[int, int], float] = {}
    for where, query, document, grade in lines:
        missing = None
        if query not in rows:
            missing = f"query {query!r} is not in {queries_file.name}"
        elif document not in columns:
            missing = f"document {document!r} is not in {docs_file.name}"
        if missing is not None:
            if unknown == "drop":
                continue
            raise ValueError(f'{where}: {missing}: add it or remove the line (or read with unknown="drop")')
        try:
            value = float(grade)
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            raise ValueError(
                f"{where}: relevance {grade!r} is not a number: write 1 for relevant, 0 for not relevant"
            )
        if grades.setdefault((rows[query], columns[document]), value) != value:
            raise ValueError(
                f"{where}: query {query!r} and document {document!r} were judged before, with another grade: "
                "keep one of the lines"
            )
    pairs = np.array(list(grades), np.int32).reshape(-1, 2)
    return Judgments(pairs[:, 0], pairs[:, 1], np.array(list(grades.values()), np.float32))
