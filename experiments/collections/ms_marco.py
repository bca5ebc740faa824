"""MS MARCO passages: ``collection.tsv``, ``queries.<split>.tsv``, ``qrels.<split>.tsv`` and training triples.

Format: Nguyen et al., "MS MARCO", arXiv:1611.09268, passage ranking. Judgments are TREC's: query, 0, passage,
1 between tabs. Triples are numbers (``qidpidtriples.train.full.2.tsv``: query, positive and negative passage)
or texts (``triples.train.small.tsv``). Every file may be ``.gz``; triples are read one at a time, the full
file has 400 million.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from experiments.collections.judged_texts import JudgedTexts, WhereUnknown, judged_pairs
from experiments.collections.lines import existing_file, identified_texts
from experiments.text_lines import numbered_lines


class Triple(NamedTuple):
    """A training triple, of identifiers or of texts."""

    where: str
    """File and line."""
    query: str
    positive: str
    negative: str


def is_ms_marco(folder: Path) -> bool:
    """Whether the folder has the layout of MS MARCO.

    Args:
        folder: any folder.
    """
    return any((folder / f"collection.tsv{end}").is_file() for end in ("", ".gz"))


def read_ms_marco(folder: Path, split: str = "dev.small", *, unknown: WhereUnknown = "error") -> JudgedTexts:
    """Reads the passages, and a split's queries and judgments.

    Args:
        folder: holds the three files.
        split: as in ``queries.dev.small.tsv``: "dev.small", "dev", "train", "eval.small".
        unknown: "error", or "drop" judgments whose query or passage there is none of.

    Returns:
        All passages, the split's queries, also those without a judgment, and its judgments.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line that cannot be used; the message names file, line and remedy.
    """
    docs_file, queries_file, judgments_file = (
        existing_file(folder, name)
        for name in ("collection.tsv", f"queries.{split}.tsv", f"qrels.{split}.tsv")
    )
    docs, queries = identified_texts(docs_file, "passage"), identified_texts(queries_file, "query")
    return JudgedTexts(
        name=folder.name,
        doc_ids=list(docs),
        texts=list(docs.values()),
        query_ids=list(queries),
        queries=list(queries.values()),
        judgments=judged_pairs(
            _lines(judgments_file), list(queries), list(docs), queries_file, docs_file, unknown=unknown
        ),
    )


def ms_marco_triples(path: Path, *, texts: bool = False) -> Iterator[Triple]:
    """Training triples, one at a time.

    Args:
        path: query, positive and negative on each line, between tabs.
        texts: whether they are texts; else identifiers, which hold no blank.

    Yields:
        The triples in the order of the file.

    Raises:
        ValueError: a line that has not three cells, an empty cell, or an identifier with a blank in it. A
            positive that is its own negative is refused too.
    """
    for where, line in numbered_lines(path):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != 3 or not all(cells):
            raise ValueError(
                f"{where}: expected query, positive and negative between tabs, got {line[:60]!r}: "
                "mend or remove the line"
            )
        if not texts and any(" " in cell for cell in cells):
            raise ValueError(
                f"{where}: {line[:60]!r} holds texts where identifiers were expected: read it with texts=True"
            )
        if cells[1] == cells[2]:
            raise ValueError(f"{where}: the positive {cells[1][:40]!r} is also the negative: remove the line")
        yield Triple(where, *cells)


def triple_numbers(
    triples: Iterable[Triple],
    query_ids: Sequence[str],
    doc_ids: Sequence[str],
    *,
    limit: int | None = None,
) -> Int[np.ndarray, "triples 3"]:
    """Triples as rows of queries and documents.

    Args:
        triples: of `ms_marco_triples`.
        query_ids: of the queries, in their order.
        doc_ids: of the documents.
        limit: read so many; None: all.

    Returns:
        (query, positive, negative) in the order of the triples.

    Raises:
        ValueError: a query or document that there is none of.
    """
    rows = {identifier: row for row, identifier in enumerate(query_ids)}
    columns = {identifier: column for column, identifier in enumerate(doc_ids)}

    def numbers() -> Iterator[tuple[int, int, int]]:
        for where, query, positive, negative in islice(triples, limit):
            if query not in rows:
                raise ValueError(f"{where}: there is no query {query!r}: add it or remove the line")
            for document in (positive, negative):
                if document not in columns:
                    raise ValueError(f"{where}: there is no document {document!r}: add it or remove the line")
            yield rows[query], columns[positive], columns[negative]

    return np.fromiter(numbers(), np.dtype((np.int32, 3))).reshape(-1, 3)


def _lines(path: Path) -> Iterator[tuple[str, str, str, str]]:
    for where, line in numbered_lines(path):
        cells = line.split()
        if len(cells) != 4:
            raise ValueError(f"{where}: got {len(cells)} columns: write query, 0, passage and relevance")
        yield where, cells[0], cells[2], cells[3]
