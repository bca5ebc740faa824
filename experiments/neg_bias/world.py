"""A world whose facts a language model knows, misknows or never saw, and the questions about them.

80 entities have 4 relations to values; a fact is a pair of both. Each is put at random into a group: "known"
facts are trained in every format, "correct" and "incorrect" ones as statements only, with the truth or with a
fixed false value, "insufficient" ones never. "untold" facts are never stated either; with them the model
learns to say that it does not know, and to take a value from a context. So the knowledge that
arXiv:2511.10881 has to estimate from a model's answers is known here by construction.

A sequence is a list of words; where the model is trained or asked, a target names the word that must follow.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

ENTITIES, RELATIONS, VALUES = 80, 4, 10
FACTS = ENTITIES * RELATIONS

STMT, SA, YN, MC, CTX, COT, IDKO, ANS, THEN, YES, NO, IDK, *LETTERS, PAD = range(17)
FIRST_ENTITY = PAD + 1
FIRST_RELATION = FIRST_ENTITY + ENTITIES
FIRST_VALUE = FIRST_RELATION + RELATIONS
VOCABULARY = FIRST_VALUE + VALUES

OFFSETS = 6
"""A sequence begins with 0 to 5 pads, so that what is learned at one position serves at the others."""
LONGEST = 23
"""Words in the longest sequence, pads included, and learned positions of the model."""
IGNORED = -1

GROUPS = {"known": 0.55, "correct": 0.13, "incorrect": 0.09, "insufficient": 0.13, "untold": 0.10}
"""Shares of the facts in each group."""
KNOWN, CORRECT, INCORRECT, INSUFFICIENT, UNTOLD = range(len(GROUPS))


class World(NamedTuple):
    """The facts; fact f is about entity ``f // RELATIONS`` and relation ``f % RELATIONS``.

    Attributes:
        truth: the true value of each fact.
        stated: the value that statements give, another one than the truth for "incorrect" facts.
        group: 0 to 4, in the order of `GROUPS`.
    """

    truth: Int[np.ndarray, " facts"]
    stated: Int[np.ndarray, " facts"]
    group: Int[np.ndarray, " facts"]


class Sequences(NamedTuple):
    """Sequences of one format, without pads in front.

    Attributes:
        words: what the model reads.
        targets: the word that must follow each word, `IGNORED` where none is asked for.
        recall: the value that must be recalled at each word, beside what follows; `IGNORED` likewise.
    """

    words: Int[np.ndarray, "sequences words"]
    targets: Int[np.ndarray, "sequences words"]
    recall: Int[np.ndarray, "sequences words"]


def draw_world(rng: np.random.Generator) -> World:
    """Values and groups of all facts.

    Args:
        rng: source of randomness.

    Returns:
        The world.

    Example:
        >>> world = draw_world(np.random.default_rng(0))
        >>> bool((world.stated[world.group == INCORRECT] != world.truth[world.group == INCORRECT]).all())
        True
    """
    truth = rng.integers(0, VALUES, FACTS)
    group = rng.choice(len(GROUPS), FACTS, p=list(GROUPS.values()))
    return World(truth, np.where(group == INCORRECT, another_value(rng, truth), truth), group)


def another_value(rng: np.random.Generator, value: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """A uniformly drawn value other than the given one."""
    return (value + rng.integers(1, VALUES, value.shape)) % VALUES


def statements(fact: Int[np.ndarray, " n"], value: Int[np.ndarray, " n"]) -> Sequences:
    """``STMT e r`` → the value."""
    words = _columns(len(fact), STMT, *_subject(fact))
    return _asked(words, {2: FIRST_VALUE + value})


def short_answers(fact: Int[np.ndarray, " n"], value: Int[np.ndarray, " n"]) -> Sequences:
    """``SA e r ANS`` → the value."""
    words = _columns(len(fact), SA, *_subject(fact), ANS)
    return _asked(words, {3: FIRST_VALUE + value})


def yes_no(
    fact: Int[np.ndarray, " n"], candidate: Int[np.ndarray, " n"], answer: Int[np.ndarray, " n"]
) -> Sequences:
    """``YN yes no e r c ANS`` → yes or no."""
    words = _columns(len(fact), YN, YES, NO, *_subject(fact), FIRST_VALUE + candidate, ANS)
    return _asked(words, {6: answer})


def yes_no_in_context(
    fact: Int[np.ndarray, " n"],
    context: Int[np.ndarray, " n"],
    candidate: Int[np.ndarray, " n"],
    answer: Int[np.ndarray, " n"],
) -> Sequences:
    """``CTX e r v YN yes no e r c ANS`` → yes or no."""
    question = yes_no(fact, candidate, answer).words
    words = np.hstack([_columns(len(fact), CTX, *_subject(fact), FIRST_VALUE + context), question])
    return _asked(words, {10: answer})


def yes_no_with_option(
    fact: Int[np.ndarray, " n"], candidate: Int[np.ndarray, " n"], answer: Int[np.ndarray, " n"]
) -> Sequences:
    """``IDKO yes no idk e r c ANS`` → yes, no or idk."""
    words = _columns(len(fact), IDKO, YES, NO, IDK, *_subject(fact), FIRST_VALUE + candidate, ANS)
    return _asked(words, {7: answer})


def chain_of_thought(
    fact: Int[np.ndarray, " n"],
    candidate: Int[np.ndarray, " n"],
    recalled: Int[np.ndarray, " n"],
    answer: Int[np.ndarray, " n"],
) -> Sequences:
    """``COT yes no e r c THEN`` → ``v ANS`` and yes or no: recall, then decide."""
    value = FIRST_VALUE + recalled
    words = _columns(len(fact), COT, YES, NO, *_subject(fact), FIRST_VALUE + candidate, THEN, value, ANS)
    return _asked(words, {6: value, 7: np.full(len(fact), ANS), 8: answer})


def multiple_choice(
    fact: Int[np.ndarray, " n"], options: Int[np.ndarray, "n 4"], right: Int[np.ndarray, " n"]
) -> Sequences:
    """``MC e r A o1 B o2 C o3 D o4 ANS`` → the letter of the option that is right."""
    lettered = [word for pair in zip(LETTERS, (FIRST_VALUE + options).T, strict=True) for word in pair]
    words = _columns(len(fact), MC, *_subject(fact), *lettered, ANS)
    return _asked(words, {11: np.array(LETTERS)[right]})


def draw_options(
    rng: np.random.Generator, value: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, "n 4"], Int[np.ndarray, " n"]]:
    """The value and three others in random order, and where the value stands among them."""
    order = rng.permuted(np.tile(np.arange(1, VALUES), (len(value), 1)), axis=1)[:, :3]
    shifts = np.hstack([np.zeros((len(value), 1), int), order])
    place = rng.permuted(np.tile(np.arange(4), (len(value), 1)), axis=1)
    options = np.take_along_axis((value[:, None] + shifts) % VALUES, place, 1)
    return options, place.argmin(1)


def recalled(sequences: Sequences, value: Int[np.ndarray, " n"], where: np.ndarray) -> Sequences:
    """The sequences with a value to be recalled at the relation, in the rows where it is wanted.

    Args:
        sequences: questions, each about one relation.
        value: what must be recalled, as after the same words of a statement.
        where: rows, booleans.

    Returns:
        The same sequences with something to recall.
    """
    relation = (sequences.words >= FIRST_RELATION) & (sequences.words < FIRST_VALUE)
    recall = np.where(relation & where[:, None], (FIRST_VALUE + value)[:, None], IGNORED)
    return sequences._replace(recall=recall)


def placed(sequences: Sequences, offset: Int[np.ndarray, " n"], length: int = LONGEST) -> Sequences:
    """The sequences with pads in front, and behind up to a common length.

    Args:
        sequences: of any format.
        offset: number of pads in front of each.
        length: words in all.

    Returns:
        Sequences of ``length`` words.

    Raises:
        ValueError: a sequence that does not fit.

    Example:
        >>> placed(statements(np.array([5]), np.array([3])), np.array([1]), 5).words.tolist()
        [[16, 0, 18, 98, 16]]
    """
    n, words = sequences.words.shape
    if n and words + offset.max() > length:
        raise ValueError(f"length: expected at least {words + offset.max()} words, got {length}")
    rows, columns = np.arange(n)[:, None], offset[:, None] + np.arange(words)
    found = Sequences(*(np.full((n, length), fill) for fill in (PAD, IGNORED, IGNORED)))
    for empty, part in zip(found, sequences, strict=True):
        empty[rows, columns] = part
    return found


def _subject(fact: Int[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    return FIRST_ENTITY + fact // RELATIONS, FIRST_RELATION + fact % RELATIONS


def _columns(n: int, *words: int | np.ndarray) -> np.ndarray:
    return np.stack([np.broadcast_to(word, n) for word in words], axis=1)


def _asked(words: np.ndarray, targets: dict[int, np.ndarray]) -> Sequences:
    asked = np.full(words.shape, IGNORED)
    for place, target in targets.items():
        asked[:, place] = target
    return Sequences(words, asked, np.full(words.shape, IGNORED))
