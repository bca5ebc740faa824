"""Word problems with slots for their numbers, and a simulated teacher who makes mistakes.

A person has things, gains, loses, doubles or triples them, while other people do the like; how many does the
first one have? Numbers are slots N0, N1, ... in the order of the text, as in solvers of SVAMP (Patel et al.,
arXiv:2103.07191), so that the answer is a list of operations, and every rationale can be checked exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

NAMES = ("ann", "ben", "cara", "dan", "eva", "finn", "gwen", "hugo")
OBJECTS = ("apples", "books", "coins", "dolls", "eggs", "figs", "games", "hats")
ADDING = ("finds", "buys", "gets", "wins", "collects", "picks", "earns", "receives", "makes", "borrows")
SUBTRACTING = ("loses", "sells", "eats", "breaks", "donates", "drops", "returns", "mails", "uses", "burns")
FACTORS = {"doubles": "2", "triples": "3"}
OPERATORS = ("+", "-", "*")
MOST_EVENTS, MOST_DISTRACTORS = 4, 2
SLOTS = tuple(f"N{number}" for number in range(1 + MOST_EVENTS + MOST_DISTRACTORS))
PAD, EOS, PREDICT, EXPLAIN, SEPARATOR, MASK = range(6)
"""The decoder begins with padding, as T5's does."""
SPECIAL = ("<pad>", "</s>", "predict:", "explain:", "<sep>", "<mask>")
WORDS = (
    *SPECIAL,
    *("has", "them", "how", "many", "does", "have", ".", "?", "start", "so", "then", ";"),
    *(*OPERATORS, *FACTORS.values(), *SLOTS, *NAMES, *OBJECTS, *ADDING, *SUBTRACTING, *FACTORS),
)
IDS = {word: number for number, word in enumerate(WORDS)}
OPERANDS = {*SLOTS, *FACTORS.values()}
CHANGERS = {*ADDING, *SUBTRACTING, *FACTORS}

Operations = tuple[str, ...]
"""An answer: a slot, then operators and operands in turn."""


class Event(NamedTuple):
    """What befalls the main person."""

    verb: str
    operator: str
    operand: str


@dataclass(frozen=True)
class Problem:
    """A text and what happens in it."""

    words: tuple[str, ...]
    first: str
    """The slot of what the main person has at the beginning."""
    events: tuple[Event, ...]
    slots: int
    """Numbers in the text."""

    @property
    def answer(self) -> Operations:
        """The operations from left to right."""
        return answer_of(self.first, self.events)


def answer_of(first: str, events: Sequence[Event]) -> Operations:
    """The operation list of events.

    Example:
        >>> answer_of("N0", [Event("finds", "+", "N2"), Event("doubles", "*", "2")])
        ('N0', '+', 'N2', '*', '2')
    """
    return (first, *(word for event in events for word in (event.operator, event.operand)))


def draw_problem(
    rng: np.random.Generator, events: Sequence[int] = (2, 3, 4), distractors: Sequence[int] = (0, 1, 2)
) -> Problem:
    """A random problem.

    Args:
        rng: randomness.
        events: how many events there may be, each number as likely; 4 at most.
        distractors: how many sentences on other people; 2 at most.

    Returns:
        The problem.

    Example:
        >>> problem = draw_problem(np.random.default_rng(0))
        >>> problem.words[1], problem.words[-1], problem.answer[0]
        ('has', '?', 'N0')
    """
    main, *others = rng.permutation(NAMES)
    thing = rng.choice(OBJECTS)
    sentences: list[tuple[str, str, bool]] = [(main, "has", True)]
    for _ in range(rng.choice(events)):
        kind = rng.choice(3, p=(0.42, 0.42, 0.16))
        sentences.append((main, str(rng.choice((ADDING, SUBTRACTING, tuple(FACTORS))[kind])), True))
    for _ in range(rng.choice(distractors)):
        verb = str(rng.choice(("has", *ADDING, *SUBTRACTING)))
        sentences.insert(int(rng.integers(1, len(sentences) + 1)), (str(rng.choice(others)), verb, False))
    words, happened, slots = [], [], 0
    for name, verb, counts in sentences:
        operand = FACTORS.get(verb, f"N{slots}")
        words += [name, verb, *(("them",) if verb in FACTORS else (operand, thing)), "."]
        slots += verb not in FACTORS
        if counts:
            operator = "*" if verb in FACTORS else "+" if verb in ADDING else "-"
            happened.append(Event(verb, operator, operand))
    words += ["how", "many", thing, "does", main, "have", "?"]
    return Problem(tuple(map(str, words)), happened[0].operand, tuple(happened[1:]), slots)


def rationale_of(first: str, events: Sequence[Event], style: int) -> tuple[str, ...]:
    """The events told in one of the teacher's two styles.

    Example:
        >>> " ".join(rationale_of("N0", [Event("finds", "+", "N2")], 0))
        'start N0 ; finds N2 so + ;'
        >>> " ".join(rationale_of("N0", [Event("finds", "+", "N2")], 1))
        'start N0 then + N2'
    """
    if style == 1:
        return "start", first, *(word for each in events for word in ("then", each.operator, each.operand))
    told = ["start", first, ";"]
    for verb, operator, operand in events:
        told += (
            [verb, "so", operator, operand, ";"] if verb in FACTORS else [verb, operand, "so", operator, ";"]
        )
    return tuple(told)


def parse_rationale(words: Sequence[str]) -> Operations | None:
    """The operation list that a rationale of either style tells, or None if it is none.

    Example:
        >>> parse_rationale("start N0 ; finds N2 so + ; doubles so * 2 ;".split())
        ('N0', '+', 'N2', '*', '2')
        >>> parse_rationale("start N0 then + then".split()) is None
        True
    """
    if len(words) < 2 or words[0] != "start" or words[1] not in SLOTS:
        return None
    found, rest = [words[1]], list(words[2:])
    if rest[:1] == [";"]:
        rest = rest[1:]
        while rest:
            piece, rest = rest[:5], rest[5:]
            if len(piece) < 5 or piece[0] not in CHANGERS or piece[4] != ";":
                return None
            if piece[1] == "so":
                operator, operand = piece[2:4]
            elif piece[2] == "so":
                operand, _, operator = piece[1:4]
            else:
                return None
            found += [operator, operand]
    else:
        while rest:
            piece, rest = rest[:3], rest[3:]
            if len(piece) < 3 or piece[0] != "then":
                return None
            found += piece[1:]
    right = all(word in (OPERATORS if place % 2 == 0 else OPERANDS) for place, word in enumerate(found[1:]))
    return tuple(found) if right else None


class Sample(NamedTuple):
    """What the teacher said once."""

    rationale: tuple[str, ...]
    answer: Operations


def ask_teacher(rng: np.random.Generator, problem: Problem, error: float = 0.12) -> Sample:
    """One sample of a teacher who gets every event wrong with some probability.

    Half of the mistakes swap the operator, * for +; half take a random slot of the text, sometimes the right
    one.

    Args:
        rng: randomness.
        problem: the question.
        error: probability of a mistake in an event.

    Returns:
        Rationale and answer, which agree with one another.

    Example:
        >>> problem = draw_problem(rng := np.random.default_rng(0))
        >>> ask_teacher(rng, problem, error=0.0).answer == problem.answer
        True
    """
    told = []
    for event in problem.events:
        if rng.random() < error:
            if rng.random() < 0.5:
                event = event._replace(operator={"+": "-", "-": "+", "*": "+"}[event.operator])
            else:
                event = event._replace(operand=f"N{rng.integers(problem.slots)}")
        told.append(event)
    return Sample(rationale_of(problem.first, told, int(rng.integers(2))), answer_of(problem.first, told))


def token_row(
    words: Sequence[str], length: int, prefix: int | None = None, *, end: bool = True
) -> np.ndarray:
    """The ids of words, with a prefix and an end, padded.

    Raises:
        ValueError: more tokens than the row has room for.

    Example:
        >>> token_row(("N0", "+"), 4).tolist() == [IDS["N0"], IDS["+"], EOS, PAD]
        True
    """
    ids = [*(() if prefix is None else (prefix,)), *(IDS[word] for word in words), *((EOS,) if end else ())]
    if len(ids) > length:
        raise ValueError(f"words: expected at most {length} tokens, got {len(ids)}: {' '.join(words)}")
    return np.array(ids + [PAD] * (length - len(ids)), np.int32)


def words_of(ids: Sequence[int] | np.ndarray) -> tuple[str, ...]:
    """The words before the end token.

    Example:
        >>> words_of([IDS["N0"], EOS, IDS["+"]])
        ('N0',)
    """
    words = []
    for number in ids:
        if number in (EOS, PAD):
            break
        words.append(WORDS[number])
    return tuple(words)
