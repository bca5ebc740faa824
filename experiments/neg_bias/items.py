"""Questions for a real model, as `jaxneg.language.Item`: TOFU's real ones, or a file of the user's."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxneg.language import Item
from jaxneg.unlearning import load_tofu

TOFU_SETS = ("real_authors_perturbed", "world_facts_perturbed")


def load_items(path: Path | None = None) -> list[Item]:
    """The questions.

    Args:
        path: JSON lines, one of three kinds, told apart by their fields: ``question, answer, wrong`` and
            perhaps ``id, aliases, passage``; GSM8k's ``question, answer`` with "#### 42" at the end of the
            answer, whose wrong answers are numbers near the right one; MuSiQue-Ans's ``paragraphs,
            answer_aliases``, whose wrong answers are those of three other questions. None for the 217
            questions about real authors and world facts that TOFU holds.

    Returns:
        Items.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that cannot be used; the message names file, line and remedy.
    """
    if path is None:
        return [
            Item(f"{name}/{number}", row.question, row.answer, _others(row.answer, row.perturbed_answers))
            for name in TOFU_SETS
            for number, row in enumerate(load_tofu(name))
        ]
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give a file of JSON lines with question, answer, wrong")
    rows = list(_rows(path))
    if not rows:
        raise ValueError(f"{path} holds no question")
    items = []
    for number, (line, row) in enumerate(rows):
        try:
            items.append(_item(row, number, [other for _, other in rows]))
        except (KeyError, TypeError, ValueError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{path}, line {line}: {what}: expected question, answer and wrong, or the fields of GSM8k or"
                " MuSiQue"
            ) from error
    return items


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}): get the file again") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected an object, got {line.strip()[:40]!r}")
            yield number, row


def _item(row: dict[str, Any], number: int, rows: list[dict[str, Any]]) -> Item:
    name, question, answer = str(row.get("id", number)), row["question"], str(row["answer"])
    if "wrong" in row:
        wrong, aliases = tuple(map(str, row["wrong"])), tuple(map(str, row.get("aliases", ())))
        return Item(name, question, answer, wrong, aliases, row.get("passage"))
    if "paragraphs" in row:
        aliases = tuple(row.get("answer_aliases", ()))
        texts = [part["paragraph_text"] for part in row["paragraphs"] if part.get("is_supporting")]
        near = [str(rows[(number + step) % len(rows)]["answer"]) for step in range(1, len(rows))]
        known = {answer.lower(), *(alias.lower() for alias in aliases)}
        wrong = [other for other in dict.fromkeys(near) if other.lower() not in known]
        return Item(name, question, answer, tuple(wrong[:3]), aliases, "\n".join(texts) or None)
    found = re.search(r"####\s*(-?[\d,]+)\s*$", answer)
    if found is None:
        raise ValueError(f"answer: expected '#### ' and a number at its end, got {answer[-20:]!r}")
    value = int(found[1].replace(",", ""))
    return Item(name, question, str(value), tuple(str(value + shift) for shift in (1, -1, 10)))


def _others(answer: str, wrong: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(each for each in dict.fromkeys(wrong) if each != answer)
