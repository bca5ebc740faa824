"""A BEIR data set: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``, each also as ``.gz``.

Format: Thakur et al., "BEIR", arXiv:2104.08663. Corpus and queries have ``_id`` and ``text``, the corpus
``title`` too; a split has a header and then query, document and grade between tabs.
"""

from collections.abc import Iterator
from pathlib import Path

from experiments.collections.judged_texts import JudgedTexts, WhereUnknown, judged_pairs
from experiments.collections.lines import existing_file, json_records
from experiments.text_lines import numbered_lines

HEADER = ("query-id", "corpus-id", "score")


def is_beir(folder: Path) -> bool:
    """Whether the folder has the layout of BEIR.

    Args:
        folder: any folder.
    """
    return any((folder / f"corpus.jsonl{end}").is_file() for end in ("", ".gz"))


def read_beir(folder: Path, split: str = "test", *, unknown: WhereUnknown = "error") -> JudgedTexts:
    """Reads a split of a BEIR data set.

    Args:
        folder: of the data set, as it is unpacked.
        split: "train", "dev" or "test".
        unknown: "error", or "drop" judgments whose query or document there is none of.

    Returns:
        All documents, the queries that the split judges, in the order of ``queries.jsonl``, and its
        judgments.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line that cannot be used; the message names file, line and remedy.
    """
    docs_file, queries_file = (existing_file(folder, f"{name}.jsonl") for name in ("corpus", "queries"))
    try:
        judgments_file = existing_file(folder / "qrels", f"{split}.tsv")
    except FileNotFoundError as error:
        splits = sorted({path.name.split(".")[0] for path in (folder / "qrels").glob("*.tsv*")})
        raise FileNotFoundError(
            f"{folder}: there is no split {split!r}: expected a file qrels/{split}.tsv or one of "
            f"{', '.join(splits) or 'qrels/train.tsv, qrels/dev.tsv, qrels/test.tsv'}"
        ) from error
    docs, queries = json_records(docs_file, "_id"), json_records(queries_file, "_id")
    lines = list(_lines(judgments_file))
    judged = {query for _, query, _, _ in lines}
    kept = [identifier for identifier in queries if identifier in judged]
    return JudgedTexts(
        name=folder.name,
        doc_ids=list(docs),
        texts=[f"{record.get('title') or ''} {record['text']}".strip() for record in docs.values()],
        query_ids=kept,
        queries=[queries[identifier]["text"] for identifier in kept],
        judgments=judged_pairs(lines, kept, list(docs), queries_file, docs_file, unknown=unknown),
    )


def _lines(path: Path) -> Iterator[tuple[str, str, str, str]]:
    for number, (where, line) in enumerate(numbered_lines(path)):
        cells = line.split("\t")
        if len(cells) != 3:
            raise ValueError(f"{where}: got {len(cells)} columns: write {', '.join(HEADER)} between tabs")
        if number == 0 and tuple(cells) == HEADER:
            continue
        yield where, cells[0], cells[1], cells[2]
