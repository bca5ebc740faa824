"""Every arm on the word problems, with true labels and with the teacher's, seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.qcrd.distillation import (
    WITH_NEGATIVES,
    Arm,
    Corpus,
    Course,
    Recipe,
    programs,
    train_arm,
    train_judge,
)
from experiments.qcrd.word_problems import (
    EOS,
    EXPLAIN,
    MASK,
    PAD,
    PREDICT,
    SEPARATOR,
    WORDS,
    Operations,
    Problem,
    Sample,
    ask_teacher,
    draw_problem,
    parse_rationale,
    token_row,
    words_of,
)
from jaxneg.language import self_consistency

LabelKind = Literal["true", "teacher"]
KINDS: tuple[LabelKind, ...] = ("true", "teacher")
PORTIONS = 5
"""Parts of an iteration that the costs of the negatives are averaged over: the first and the last show
whether they rise."""


@dataclass(frozen=True)
class World:
    """Sizes of the questions; hashable."""

    questions: int = 1000
    test_questions: int = 2000
    events: tuple[int, ...] = (2, 3, 4)
    distractors: tuple[int, ...] = (0, 1, 2)
    samples: int = 5
    error: float = 0.12
    positives: int = 5
    """The most different positives of a question that are kept; the scheme minmax needs each once."""

    @property
    def question_length(self) -> int:
        """Tokens of the longest text, with a prefix and an end."""
        return 5 * (1 + max(self.events) + max(self.distractors)) + 9

    @property
    def label_length(self) -> int:
        """Tokens of the longest label, with its end."""
        return 2 * max(self.events) + 2

    @property
    def rationale_length(self) -> int:
        """Tokens of the longest rationale, with its end."""
        return 5 * max(self.events) + 4


class Questions(NamedTuple):
    """Questions, what the teacher said of each, and what it is mostly agreed on."""

    problems: list[Problem]
    said: list[list[Sample]]
    majority: list[Operations]
    positive: np.ndarray
    """Whether a sample agrees with the majority, ``[Q, K]``."""


def draw_questions(rng: np.random.Generator, count: int, world: World) -> Questions:
    """Questions and the teacher's samples.

    Args:
        rng: randomness.
        count: how many questions.
        world: sizes.

    Returns:
        The questions.

    Example:
        >>> found = draw_questions(np.random.default_rng(0), 3, World())
        >>> found.positive.shape, len(found.said[0])
        ((3, 5), 5)
    """
    problems = [draw_problem(rng, world.events, world.distractors) for _ in range(count)]
    said = [[ask_teacher(rng, problem, world.error) for _ in range(world.samples)] for problem in problems]
    numbers = [[_number(sample.answer, samples) for sample in samples] for samples in said]
    majority, positive = (np.asarray(found) for found in self_consistency(jnp.array(numbers)))
    agreed = [samples[number].answer for samples, number in zip(said, majority, strict=True)]
    return Questions(problems, said, agreed, positive)


def _number(answer: Operations, samples: Sequence[Sample]) -> int:
    """The first sample of the question that has this answer stands for it."""
    return next(number for number, sample in enumerate(samples) if sample.answer == answer)


def corpus_of(questions: Questions, arm: Arm, kind: LabelKind, world: World) -> Corpus:
    """What an arm learns from.

    Args:
        questions: questions and samples.
        arm: finetuning and distilling-step-by-step take the teacher's first sample, as it is.
        kind: whether labels are true, or the teacher's: of the first sample, or of the majority.
        world: sizes.

    Returns:
        Its arrays.
    """
    first = arm in ("finetune", "dss")
    texts = [problem.words for problem in questions.problems]
    if kind == "true":
        labels = [problem.answer for problem in questions.problems]
    else:
        labels = [said[0].answer for said in questions.said] if first else questions.majority
    sets = [
        [said[0].rationale]
        if first
        else list(dict.fromkeys(s.rationale for s, agrees in zip(said, agreeing, strict=True) if agrees))
        for said, agreeing in zip(questions.said, questions.positive, strict=True)
    ]
    pos, valid = rationale_rows(sets, min(world.positives, max(map(len, sets))), world)
    length = world.question_length
    return Corpus(
        np.stack([token_row(text, length) for text in texts]),
        np.stack([token_row(text, length, PREDICT) for text in texts]),
        np.stack([token_row(text, length, EXPLAIN) for text in texts]),
        np.stack([token_row(label, world.label_length) for label in labels]),
        pos,
        valid,
    )


def rationale_rows(
    sets: Sequence[Sequence[Sequence[str]]], most: int, world: World
) -> tuple[np.ndarray, np.ndarray]:
    """Sets of rationales as ids ``[Q, most, T]``, the first ``most`` of each, and which of them there are."""
    tokens = np.full((len(sets), most, world.rationale_length), PAD, np.int32)
    valid = np.zeros((len(sets), most), bool)
    for row, rationales in enumerate(sets):
        for place, words in enumerate(rationales[:most]):
            tokens[row, place], valid[row, place] = token_row(words, world.rationale_length), True
    return tokens, valid


def right_rationales(tokens: np.ndarray, problems: Sequence[Problem]) -> np.ndarray:
    """Which rationales ``[Q, T]`` tell the right operations, in either style."""
    return np.array(
        [
            parse_rationale(words_of(row)) == problem.answer
            for row, problem in zip(tokens, problems, strict=True)
        ]
    )


def right_labels(tokens: np.ndarray, problems: Sequence[Problem]) -> np.ndarray:
    """Which labels ``[Q, L]`` are the right operation list."""
    return np.array([words_of(row) == problem.answer for row, problem in zip(tokens, problems, strict=True)])


def recipe_of(world: World, **choices: Any) -> Recipe:
    """The recipe with the vocabulary and the lengths of the word problems.

    Example:
        >>> recipe_of(World(), steps=10).vocab
        68
    """
    return Recipe(
        vocab=len(WORDS),
        question_length=world.question_length,
        label_length=world.label_length,
        rationale_length=world.rationale_length,
        eos=EOS,
        pad=PAD,
        separator=SEPARATOR,
        mask=MASK,
        **choices,
    )


def draw_world(world: World, seed: int) -> tuple[Questions, Questions]:
    """The training and the test questions of a seed."""
    rng = np.random.default_rng((seed, 0))
    return draw_questions(rng, world.questions, world), draw_questions(rng, world.test_questions, world)


def teacher_accuracy(world: World, seed: int) -> dict[str, np.ndarray]:
    """How often one sample of the teacher and the majority of its samples are right, "one" and "majority"."""
    train, _ = draw_world(world, seed)
    truth = [problem.answer for problem in train.problems]
    return {
        "one": _share([said[0].answer for said in train.said], truth),
        "majority": _share(train.majority, truth),
    }


def run_arm(world: World, recipe: Recipe, seed: int, arm: Arm, kind: LabelKind) -> dict[str, np.ndarray]:
    """Trains and tests one arm.

    Args:
        world: sizes of the questions.
        recipe: sizes and choices of the training.
        seed: of questions, teacher, student and order.
        arm: what it learns from.
        kind: of its labels.

    Returns:
        ``accuracy`` on the test questions, and ``validity`` of the rationales where the arm learns any;
        ``pred_loss``, ``pos_ce``, ``neg_ce``, ``pos_score`` and ``neg_score`` ``[iterations, PORTIONS]``
        where there are any; ``valid_negatives`` ``[iterations]``; with a judge ``of_teacher`` and
        ``of_student``, its scores of rationales of test questions, and which of them are right,
        ``of_teacher_right`` and ``of_student_right``.
    """
    train, test = draw_world(world, seed)
    made, key, judge = programs(recipe), jax.random.key(seed), None
    corpus = corpus_of(train, arm, kind, world)
    if arm == "qcrd":
        minority = [
            [s.rationale for s, agrees in zip(said, agreeing, strict=True) if not agrees]
            for said, agreeing in zip(train.said, train.positive, strict=True)
        ]
        judge = train_judge(recipe, seed, corpus, *rationale_rows(minority, 2, world))
    course = train_arm(
        recipe,
        seed,
        arm,
        corpus,
        judge,
        lambda tokens: float(right_rationales(tokens, train.problems).mean()),
    )
    rows = corpus_of(test, "finetune", "true", world)
    labels, _ = made.write(key, course.student, rows.predict, recipe.label_length, 0.0)
    found: dict[str, Any] = {"accuracy": right_labels(np.asarray(labels), test.problems).mean()}
    if arm != "finetune":
        told, _ = made.write(key, course.student, rows.explain, recipe.rationale_length, 0.0)
        found["validity"] = right_rationales(np.asarray(told), test.problems).mean()
    for metric in ("pred_loss", "pos_ce", "neg_ce", "pos_score", "neg_score"):
        if metric in course.metrics and (arm in WITH_NEGATIVES or not metric.startswith("neg")):
            found[metric] = _portions(course.metrics[metric], recipe.refresh)
    if arm in WITH_NEGATIVES:
        found["valid_negatives"] = course.valid_negatives
    return found | (_judged(world, recipe, course, test, rows) if arm == "qcrd" else {})


def _judged(
    world: World, recipe: Recipe, course: Course, test: Questions, rows: Corpus
) -> dict[str, np.ndarray]:
    """Scores of test questions' rationales: the teacher's samples, and one of the student's at its tau."""
    made = programs(recipe)
    sets = [[sample.rationale for sample in said] for said in test.said]
    told, _ = rationale_rows(sets, len(sets[0]), world)
    right = [
        [sample.answer == problem.answer for sample in said]
        for said, problem in zip(test.said, test.problems, strict=True)
    ]
    written, mask = made.write(
        jax.random.key(1), course.student, rows.explain, recipe.rationale_length, recipe.temperature
    )
    of_student = made.score(course.judge, rows.question, written[:, None], mask[:, None])
    return {
        "of_teacher": np.asarray(made.score(course.judge, rows.question, told, told != recipe.pad)),
        "of_teacher_right": np.array(right),
        "of_student": np.asarray(of_student)[:, 0],
        "of_student_right": right_rationales(np.asarray(written), test.problems),
    }


def _share(answers: Sequence[Operations], truth: Sequence[Operations]) -> np.ndarray:
    return np.array([answer == true for answer, true in zip(answers, truth, strict=True)]).mean(
        keepdims=True
    )[0]


def _portions(values: np.ndarray, refresh: int) -> np.ndarray:
    """Means over parts of each iteration, ``[iterations, PORTIONS]``."""
    periods = np.split(values, range(refresh, len(values), refresh))
    return np.array([[part.mean() for part in np.array_split(period, PORTIONS)] for period in periods])
