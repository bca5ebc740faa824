"""SVAMP with PaLM's rationales: the same comparison on real text, with one rationale for each question.

Patel et al., arXiv:2103.07191, in the split and with the rationales of Hsieh et al., arXiv:2305.02301.
Numbers become slots N0, N1, ... in the order of the text, and the equation is written in slots. A rationale
is kept if its equation has the value of the true one (true labels), or always (the teacher's labels);
negatives are written by the student. The test set has 200 questions: no significant difference is to be
expected.
"""

import gzip
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.claims import mean_interval
from experiments.parallel import in_parallel
from experiments.qcrd.comparison import KINDS, LabelKind
from experiments.qcrd.distillation import NAMES, Arm, Corpus, Recipe, programs, train_arm, train_judge
from experiments.run_dir import RunDir, Table
from jaxneg.language import equation_accuracy, equation_value

ARMS: tuple[Arm, ...] = ("finetune", "dss", "qcrd")
SPECIAL = ("<pad>", "</s>", "predict:", "explain:", "<sep>", "<mask>", "<unknown>", "<number>")
PAD, EOS, PREDICT, EXPLAIN, SEPARATOR, MASK, UNKNOWN, NUMBER = range(8)
QUESTION_LENGTH, LABEL_LENGTH, RATIONALE_LENGTH = 72, 16, 64
"""The longest text has 65 words, 1 rationale in 400 is cut."""
_WORD = re.compile(r"\d+(?:\.\d+)?|[a-z]+|[^\sa-z\d]")
REMEDY = "put SVAMP with PaLM's rationales there, as svamp_train.jsonl.gz and svamp_test.jsonl.gz"


class Row(NamedTuple):
    """A question with its slots filled in."""

    words: tuple[str, ...]
    """Of the text, numbers as slots."""
    numbers: tuple[str, ...]
    """What the slots stand for."""
    equation: str
    """The true one, in numbers."""
    rationale: tuple[str, ...]
    """The teacher's, words and slots; empty if it could not be parsed."""
    told: str
    """Its equation, in numbers."""


def svamp_folder() -> Path:
    """Where the files are looked for: ``qcrd`` in the folder that JAXNEG_DATA names."""
    root = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("JAXNEG_DATA", root.parent / "shared" / "data")) / "qcrd"


def load_svamp(split: str, folder: Path | None = None) -> list[Row]:
    """The questions of a split.

    Args:
        split: "train" or "test".
        folder: where ``svamp_<split>.jsonl.gz`` lies; None: `svamp_folder`.

    Returns:
        The questions in the order of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is no question. The message names file and line.
    """
    file = (folder or svamp_folder()) / f"svamp_{split}.jsonl.gz"
    if not file.is_file():
        raise FileNotFoundError(f"there is no {file}: {REMEDY}")
    rows = []
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                rows.append(
                    slotted(row["input"], row["equation"], row["palm_rationale"], row["palm_equation"])
                )
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{file}, line {number}: expected a question with input, equation, palm_rationale and"
                    f" palm_equation ({type(error).__name__}: {error}): {REMEDY}"
                ) from error
    return rows


def slotted(text: str, equation: str, rationale: str, told: str) -> Row:
    """A question with slots for its numbers.

    Example:
        >>> row = slotted("Ann had 3 figs and ate 1. How many?", "( 3.0 - 1.0 )", "3 - 1 = 2.", "(3 - 1)")
        >>> " ".join(row.words), row.numbers, " ".join(row.rationale)
        ('ann had N0 figs and ate N1 . how many ?', ('3', '1'), 'N0 - N1 = <number> .')
    """
    words, numbers = [], []
    for word in _WORD.findall(text.lower()):
        if word[0].isdigit():
            words.append(f"N{len(numbers)}")
            numbers.append(word)
        else:
            words.append(word)
    return Row(tuple(words), tuple(numbers), equation, in_slots(rationale, numbers), told)


def in_slots(text: str, numbers: Sequence[str]) -> tuple[str, ...]:
    """The words of a text with the first slot of a number's value for the number; other numbers are
    ``<number>``.

    Example:
        >>> in_slots("( 84.0 / 2.0 )", ("84", "2"))
        ('(', 'N0', '/', 'N1', ')')
    """
    places = {float(number): f"N{place}" for place, number in reversed(list(enumerate(numbers)))}
    return tuple(
        places.get(float(word), SPECIAL[NUMBER]) if word[0].isdigit() else word
        for word in _WORD.findall(text.lower())
    )


def in_numbers(words: Sequence[str], numbers: Sequence[str]) -> str:
    """An equation in slots as one in numbers; a slot that the text does not have stays, and has no value."""
    values = {f"N{place}": number for place, number in enumerate(numbers)}
    return " ".join(values.get(word, word) for word in words)


def vocabulary(rows: Sequence[Row]) -> tuple[str, ...]:
    """Words that questions, rationales and equations hold at least twice."""
    texts = (
        word for row in rows for word in (*row.words, *row.rationale, *in_slots(row.equation, row.numbers))
    )
    often = sorted(word for word, count in Counter(texts).items() if count > 1 and word not in SPECIAL)
    return (*SPECIAL, *often)


def tokens_of(
    texts: Sequence[Sequence[str]], ids: Mapping[str, int], length: int, prefix: int | None = None
) -> np.ndarray:
    """Texts as ids, with a prefix and an end, cut where they are too long, padded."""
    found = np.full((len(texts), length), PAD, np.int32)
    front = [] if prefix is None else [prefix]
    for row, words in enumerate(texts):
        tokens = [*front, *(ids.get(word, UNKNOWN) for word in words)]
        tokens = [*tokens[: length - 1], EOS]
        found[row, : len(tokens)] = tokens
    return found


def corpus_of(rows: Sequence[Row], kind: LabelKind, ids: Mapping[str, int], arm: Arm = "qcrd") -> Corpus:
    """What an arm learns from; distilling-step-by-step takes every rationale, as it is."""
    texts = [row.words for row in rows]
    labels = [
        in_slots(row.told if kind == "teacher" and row.told else row.equation, row.numbers) for row in rows
    ]
    told = [bool(row.rationale) for row in rows]
    kept = (
        told
        if kind == "teacher" or arm == "dss"
        else [
            there and equation_value(row.told) == equation_value(row.equation)
            for there, row in zip(told, rows, strict=True)
        ]
    )
    return Corpus(
        tokens_of(texts, ids, QUESTION_LENGTH),
        tokens_of(texts, ids, QUESTION_LENGTH, PREDICT),
        tokens_of(texts, ids, QUESTION_LENGTH, EXPLAIN),
        tokens_of(labels, ids, LABEL_LENGTH),
        tokens_of([row.rationale for row in rows], ids, RATIONALE_LENGTH)[:, None],
        np.array(kept)[:, None],
    )


def svamp_accuracy(
    train: Sequence[Row], test: Sequence[Row], recipe: Recipe, seed: int, arm: Arm, kind: LabelKind
) -> float:
    """Trains an arm and gives the share of the test equations that have the right value.

    Args:
        train: training questions.
        test: test questions.
        recipe: sizes and choices; vocabulary and lengths are replaced.
        seed: of the student and the order.
        arm: what it learns from.
        kind: of its labels; a question without a teacher's equation keeps the true one.

    Returns:
        A number between 0 and 1.
    """
    words = vocabulary(train)
    ids = {word: number for number, word in enumerate(words)}
    recipe = replace(recipe, vocab=len(words), **LENGTHS)
    corpus = corpus_of(train, kind, ids, arm)
    judge = None
    if arm == "qcrd":
        nothing = np.full_like(corpus.pos, recipe.pad)  # one sample a question: none is in the minority
        judge = train_judge(recipe, seed, corpus, nothing, np.zeros_like(corpus.pos_valid))
    course = train_arm(recipe, seed, arm, corpus, judge)
    questions = tokens_of([row.words for row in test], ids, QUESTION_LENGTH, PREDICT)
    found, _ = programs(recipe).write(jax.random.key(seed), course.student, questions, LABEL_LENGTH, 0.0)
    written = []
    for tokens, row in zip(np.asarray(found), test, strict=True):
        ended = [words[token] for token in tokens[: np.argmax(np.append(tokens, EOS) == EOS)]]
        written.append(in_numbers(ended, row.numbers))
    return equation_accuracy(written, [row.equation for row in test])


LENGTHS: dict[str, Any] = {
    "question_length": QUESTION_LENGTH,
    "label_length": LABEL_LENGTH,
    "rationale_length": RATIONALE_LENGTH,
    "eos": EOS,
    "pad": PAD,
    "separator": SEPARATOR,
    "mask": MASK,
}


def svamp_tables(recipe: Recipe, steps: int, seeds: Sequence[int], run_dir: RunDir) -> list[Table]:
    """Every arm with both kinds of labels on SVAMP; one line that says why not, where the files are absent.

    Args:
        recipe: sizes and choices.
        steps: of the training.
        seeds: of students and orders.
        run_dir: keeps what is finished, and shows the progress.

    Returns:
        The table.
    """
    title = "SVAMP, numbers as slots, PaLM's rationales: test equations of the right value (%, mean ± 95 %)"
    try:
        train, test = load_svamp("train"), load_svamp("test")
    except FileNotFoundError as error:
        return [Table(title, ["left out"], [[str(error)]])]
    recipe = replace(recipe, steps=steps)

    def one(item: tuple[int, LabelKind, Arm]) -> float:
        seed, kind, arm = item
        found = run_dir.stage(
            f"svamp_{arm}_{kind}_{seed}",
            lambda: {"accuracy": np.array(svamp_accuracy(train, test, recipe, seed, arm, kind))},
        )
        return float(found["accuracy"])

    items: list[tuple[int, LabelKind, Arm]] = [
        (seed, kind, arm) for seed in seeds for kind in KINDS for arm in ARMS
    ]
    found = dict(zip(items, in_parallel(one, items, run_dir, "Students on SVAMP"), strict=True))
    rows: list[list[str | float | int]] = []
    for kind in KINDS:
        of = {arm: 100 * np.array([found[seed, kind, arm] for seed in seeds]) for arm in ARMS}
        shown = [
            *((NAMES[arm], values) for arm, values in of.items()),
            ("QCRD minus DSS", of["qcrd"] - of["dss"]),
        ]
        for name, values in shown:
            estimate, _, high, _ = mean_interval(values)
            rows.append(
                [name, "true" if kind == "true" else "PaLM's", f"{estimate:.1f} ± {high - estimate:.1f}"]
            )
    return [Table(title, ["arm", "labels", f"{len(test)} questions"], rows)]
