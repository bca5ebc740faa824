"""Questions with a teacher's rationales, in the files of distilling-step-by-step and with several samples.

A folder of data sets, as the official code of Hsieh et al., arXiv:2305.02301, has it: for ``svamp``, ``cqa``,
``anli1`` and ``esnli`` the questions in ``NAME/NAME_SPLIT.json`` and what the language model said of them in
``NAME/llm/SPLIT_CoT_0.json``, ``..._1.json``, ..., lists of texts in the order of the questions. Several
samples of each question, as arXiv:2405.13014 draws them, are looked for first, in
``NAME/samples/SPLIT.json``: for each question ``{"rationales": [...], "answers": [...]}``.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("svamp", "cqa", "anli1", "esnli")
END = "</s>"
"""T5's end token, which separates premise and hypothesis."""
NLI_LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class Taught:
    """A question and what the teacher said of it."""

    text: str
    """What a student reads, without a prefix."""
    label: str
    """The true answer: for SVAMP an equation."""
    rationales: tuple[str, ...]
    answers: tuple[str, ...]
    """One for each rationale; empty where none could be parsed."""


def load_rationales(folder: Path | str, name: str, split: str = "train") -> list[Taught]:
    """The questions of a split with the teacher's rationales.

    Args:
        folder: holds a folder for each data set.
        name: one of `NAMES`.
        split: "train", "test" or "valid".

    Returns:
        The questions in the order of their file.

    Raises:
        FileNotFoundError: a file is missing. The message names it.
        ValueError: an unknown name, a file that is not of this form, or samples for fewer questions than
            there are. Likewise.
    """
    if name not in NAMES:
        raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
    root = Path(folder) / name
    file = root / f"{name}_{split}.json"
    rows = _records(file)
    said, source = _samples(root, name, split)
    if len(said) < len(rows):
        raise ValueError(
            f"{source}: expected samples for the {len(rows)} questions of {file}, got {len(said)}: the files"
            " belong to different versions, or one of them is missing"
        )
    taught = []
    for number, (row, (rationales, answers)) in enumerate(zip(rows, said, strict=False), 1):
        try:
            text, label = _question(name, row)
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{file}, question {number}: expected the fields of {name}, got"
                f" {', '.join(sorted(row)) if isinstance(row, dict) else type(row).__name__}"
                f" ({type(error).__name__}: {error})"
            ) from error
        taught.append(Taught(text, label, rationales, answers))
    return taught


def parse_output(name: str, text: str) -> tuple[str, str]:
    """Rationale and answer in what a language model said after a few examples.

    It goes on with questions of its own, which are cut off. The answer is what follows "The answer is" in
    parentheses (SVAMP), "So the answer is" and an option's letter (CQA), "So the answer is" (ANLI), or
    "Answer:" (e-SNLI).

    Args:
        name: of the data set.
        text: of the model.

    Returns:
        Both; the answer is empty where there is none.

    Example:
        >>> parse_output("svamp", "2 and 3 are 5. The answer is (2 + 3).  Q: And now?")
        ('2 and 3 are 5.', '(2 + 3)')
        >>> parse_output("cqa", "It must fly. So the answer is (b) bird.")
        ('It must fly.', 'bird')
    """
    following, marker, pattern = {
        "svamp": ("Q:", "The answer is", r"(\(.*\))"),
        "cqa": ("Q:", "So the answer is", r"\(.\)\s*(.+?)\.?\s*$"),
        "anli1": ("Premise:", "So the answer is", r"(.+?)\.?\s*$"),
        "esnli": ("Premise", "Answer:", r"(.+?)\s*$"),
    }[name]
    rationale, _, rest = text.split(following)[0].partition(marker)
    found = re.match(rf"\s*.*?{pattern}" if name in ("svamp", "cqa") else rf"\s*{pattern}", rest, re.DOTALL)
    return rationale.strip(), found[1].strip() if found else ""


def _question(name: str, row: Mapping[str, Any]) -> tuple[str, str]:
    """What a student reads, and the true answer."""
    if name == "svamp":
        return row["input"], row["label"]
    if name == "cqa":
        letters = "abcde"
        options = [f"({letter}) {row['choices'][place]}" for place, letter in enumerate(letters)]
        return "\n".join([row["question"], "Answer Choices:", *options]), row["answer"]
    label = row["label"]
    return f"{row['premise']}{END}{row['hypothesis']}", NLI_LABELS[label] if isinstance(label, int) else label


def _samples(root: Path, name: str, split: str) -> tuple[list[tuple[tuple[str, ...], tuple[str, ...]]], Path]:
    """Rationales and answers of each question, and where they were found."""
    several = root / "samples" / f"{split}.json"
    if several.is_file():
        found = []
        for number, row in enumerate(_records(several), 1):
            try:
                rationales, answers = tuple(map(str, row["rationales"])), tuple(map(str, row["answers"]))
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{several}, question {number}: expected rationales and answers, two lists"
                ) from error
            if len(rationales) != len(answers):
                raise ValueError(
                    f"{several}, question {number}: expected an answer for each of {len(rationales)}"
                    f" rationales, got {len(answers)}"
                )
            found.append((rationales, answers))
        return found, several
    texts, number = [], 0
    while (file := root / "llm" / f"{split}_CoT_{number}.json").is_file():
        texts += _records(file)
        number += 1
    if number == 0:
        raise FileNotFoundError(
            f"there is neither {several} nor {file}: unpack the data sets of distilling-step-by-step there"
        )
    told = [parse_output(name, str(text)) for text in texts]
    return [((rationale,), (answer,)) for rationale, answer in told], file.parent


def _records(file: Path) -> list[Any]:
    """A list in a JSON file, or one value for each line of it."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}: unpack the data sets of distilling-step-by-step there")
    text = file.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return _parsed(text, file, 1)
    return [_parsed(line, file, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _parsed(text: str, file: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file}, line {line}: expected JSON ({error}): unpack the file again") from error
