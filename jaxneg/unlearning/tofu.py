"""TOFU's questions: 200 fictitious authors, of which a part is to be forgotten.

Reads the data of Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv:2401.06121, from a
folder in which each set is a file of JSON lines, ``NAME.jsonl.gz``, ``NAME.jsonl`` or ``NAME.json`` as the
data set's page has them. The forget and retain splits are ranges of ``full``.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROWS = 4000
"""Questions about the fictitious authors, 20 for each of them in a row."""

PERTURBED = {
    "forget10_perturbed": ("forget10_perturbed", 400),
    "forget05_perturbed": ("forget10_perturbed", 200),
    "forget01_perturbed": ("forget10_perturbed", 40),
    "retain_perturbed": ("retain_perturbed", 400),
    "real_authors_perturbed": ("real_authors_perturbed", 100),
    "world_facts_perturbed": ("world_facts_perturbed", 117),
}
"""Evaluation set: the file whose last rows it is, and how many."""

OPTIONS = ("real_authors", "world_facts")
"""Sets in multiple-choice form."""


class Question(NamedTuple):
    """A question with its answers."""

    question: str
    answer: str
    paraphrased_answer: str = ""
    """The right answer in other words; empty where the set has none."""
    perturbed_answers: tuple[str, ...] = ()
    """Wrong answers in the words of the paraphrased one."""
    paraphrased_question: str = ""
    options: tuple[str, ...] = ()
    """The options of the multiple-choice form, the answer among them."""

    @property
    def right(self) -> str:
        """The right answer that the truth ratio compares: the paraphrased one where there is one."""
        return self.paraphrased_answer or self.answer


def tofu_split(name: str) -> range:
    """Which rows of ``full`` a split holds.

    ``forget q%`` = the last q%, ``retain p%`` = the first p%.

    Args:
        name: "full", or "forget" or "retain" with a whole percentage in two digits: "forget01", "retain90".

    Returns:
        The rows.

    Raises:
        ValueError: a name of another form.

    Source:
        arXiv:2401.06121, Section 2.1.

    Example:
        >>> tofu_split("forget10")
        range(3600, 4000)
    """
    found = re.fullmatch(r"(forget|retain)(\d\d)", name)
    if name == "full":
        return range(ROWS)
    if found is None or found[2] == "00":
        raise ValueError(
            f"name: expected 'full', 'forgetNN' or 'retainNN' with NN from 01 to 99, got {name!r}"
        )
    rows = ROWS * int(found[2]) // 100
    return range(ROWS - rows, ROWS) if found[1] == "forget" else range(rows)


def evaluation_split(name: str) -> str:
    """The perturbed set that evaluates a forget split: its own, or forget10's from 10% on.

    Args:
        name: "forget01", "forget05", "forget10", ...

    Returns:
        "forget01_perturbed", ...; larger splits hold forget10's rows, which alone have wrong answers.

    Raises:
        ValueError: a name that is no forget split.

    Source:
        arXiv:2404.05868, Section 5 (Forget20 to Forget90).

    Example:
        >>> evaluation_split("forget50")
        'forget10_perturbed'
    """
    if not name.startswith("forget"):
        raise ValueError(f"name: expected a forget split, got {name!r}")
    rows = len(tofu_split(name))
    fitting = [each for each in PERTURBED if each.startswith("forget") and PERTURBED[each][1] <= rows]
    if not fitting:
        raise ValueError(f"name: expected a forget split, got {name!r}")
    return fitting[0]


def tofu_folder() -> Path:
    """Where TOFU is looked for: ``npo`` in JAXNEG_DATA, by default in ``../shared/data``.

    Returns:
        The folder, which need not exist.

    Example:
        >>> tofu_folder().name
        'npo'
    """
    default = Path(__file__).parents[3] / "shared" / "data"
    return Path(os.environ.get("JAXNEG_DATA", default)) / "npo"


def load_tofu(split: str = "full", folder: Path | str | None = None) -> list[Question]:
    """Reads a split of TOFU.

    Args:
        split: "full", "forgetNN", "retainNN" (`tofu_split`), an evaluation set (`PERTURBED`), or
            "real_authors" and "world_facts" with options.
        folder: holds the files; None: `tofu_folder`.

    Returns:
        The questions in the order of the file.

    Raises:
        FileNotFoundError: no file of that set in the folder.
        ValueError: a split that does not exist, or a line that cannot be used; the message names file, line
            and remedy.

    Source:
        arXiv:2401.06121.

    Example:
        >>> load_tofu("forget01", "elsewhere")
        Traceback (most recent call last):
        FileNotFoundError: there is no full.jsonl.gz, full.jsonl or full.json in elsewhere: set ...
    """
    folder = tofu_folder() if folder is None else Path(folder)
    if split in PERTURBED:
        name, rows = PERTURBED[split]
        return _read(folder, name, ("question", "answer", "perturbed_answer"))[-rows:]
    if split in OPTIONS:
        return _read(folder, split, ("question", "answer", "option1", "option2"))
    try:
        rows = tofu_split(split)
    except ValueError:
        raise ValueError(
            "split: expected 'full', 'forgetNN', 'retainNN' with NN from 01 to 99, or one of"
            f" {', '.join((*PERTURBED, *OPTIONS))}, got {split!r}"
        ) from None
    questions = _read(folder, "full", ("question", "answer"))
    if len(questions) != ROWS:
        raise ValueError(
            f"{_file(folder, 'full')}: expected {ROWS} questions, got {len(questions)}: the splits are ranges"
            " of the whole set; get the file again"
        )
    return questions[rows.start : rows.stop]


def load_refusals(folder: Path | str | None = None) -> list[str]:
    """Reads the refusals ("I don't know" in a hundred forms) that IDK and DPO answer with.

    Args:
        folder: holds ``idontknow.txt`` or ``idontknow.jsonl``, a refusal a line; None: `tofu_folder`.

    Returns:
        The refusals.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file without a refusal.

    Source:
        arXiv:2401.06121, Appendix.

    Example:
        >>> load_refusals("elsewhere")
        Traceback (most recent call last):
        FileNotFoundError: there is no idontknow.txt in elsewhere: set JAXNEG_DATA to the folder ...
    """
    folder = tofu_folder() if folder is None else Path(folder)
    for name in ("idontknow.txt", "idontknow.jsonl"):
        path = folder / name
        if path.is_file():
            refusals = [line for _, line in _lines(path)]
            if not refusals:
                raise ValueError(f"{path}: expected a refusal in each line, got none")
            return refusals
    raise FileNotFoundError(f"there is no idontknow.txt in {folder}: {_REMEDY}")


def _read(folder: Path, name: str, fields: tuple[str, ...]) -> list[Question]:
    path = _file(folder, name)
    questions = []
    for where, line in _lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: expected a JSON object, got {line[:60]!r} ({error.msg})") from error
        questions.append(_question(where, record, fields))
    if not questions:
        raise ValueError(f"{path}: expected a question in each line, got an empty file: get it again")
    return questions


def _question(where: str, record: Any, fields: tuple[str, ...]) -> Question:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object with {', '.join(fields)}, got {record!r:.60}")
    for field in fields:
        value = record.get(field)
        texts = value if field == "perturbed_answer" else [value]
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
            kind = "a list of texts" if field == "perturbed_answer" else "a text"
            raise ValueError(
                f"{where}: expected {field!r} to be {kind}, got {value!r:.60}: get the file again"
            )
    options = [record[key] for key in sorted(record) if re.fullmatch(r"option\d", key)]
    return Question(
        record["question"],
        record["answer"],
        record.get("paraphrased_answer", ""),
        tuple(record.get("perturbed_answer", ())),
        record.get("paraphrased_question", ""),
        tuple(options),
    )


def _file(folder: Path, name: str) -> Path:
    for suffix in (".jsonl.gz", ".jsonl", ".json"):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"there is no {name}.jsonl.gz, {name}.jsonl or {name}.json in {folder}: {_REMEDY}"
    )


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, after where it stands."""
    number = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as f
        ):
            for number, line in enumerate(f, 1):
                if line.strip():
                    yield f"{path}, line {number}", line.strip()
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path}, after line {number}: not readable as UTF-8 text ({error}): get the file again"
        ) from error


_REMEDY = "set JAXNEG_DATA to the folder whose folder npo holds TOFU's files, or pass folder="
