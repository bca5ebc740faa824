"""Questions that a model knows, misknows or does not know, asked in every format of the bias analysis.

After Song et al., "A Multifaceted Analysis of Negative Bias in Large Language Models through the Lens of
Parametric Knowledge", arXiv:2511.10881: the same knowledge asked for as a short answer, as yes or no, and by
multiple choice, with context, with the option not to know, with a chain of thought. The paper's own prompts
were not to be had; these are the project's.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

Format = Literal[
    "SA", "YN", "negated-YN", "right-YN", "wrong-YN", "TF", "correct", "right", "MC", "MC-yn", "MC-ny"
]
"""Short answer; yes or no, plainly, of the negation ("Is it false that"), and with either direction ("Is it
right that", "Is it wrong that"); other words for the answers (True/False, Correct/Incorrect, Right/Wrong);
multiple choice, and the yes-no question as one, in both orders of the options."""

FORMATS: tuple[str, ...] = get_args(Format)

UNKNOWN = "I don't know"

_WORDS = {"TF": ("True", "False"), "correct": ("Correct", "Incorrect"), "right": ("Right", "Wrong")}
_OPENINGS = {"negated-YN": "Is it false that", "right-YN": "Is it right that", "wrong-YN": "Is it wrong that"}
_REVERSED = ("negated-YN", "wrong-YN")
_EXTRAS = ("context", "idk", "cot")
_SWAPPED = "no-first"


@dataclass(frozen=True)
class Item:
    """A question with its answer and wrong ones."""

    id: str
    """Unique; what is drawn for the item depends on it alone."""
    question: str
    answer: str
    wrong: tuple[str, ...]
    """Answers of the same kind that are wrong, at least one."""
    aliases: tuple[str, ...] = ()
    """Other ways to write the answer."""
    passage: str | None = None
    """A text from which the answer follows, for the scenario "context"."""

    def __post_init__(self) -> None:
        if not self.question.strip() or not self.answer.strip():
            raise ValueError(f"item {self.id!r}: expected a question and an answer, got {self}")
        if not self.wrong or self.answer in self.wrong:
            raise ValueError(
                f"item {self.id!r}: expected at least one wrong answer, none of them {self.answer!r}, got"
                f" {list(self.wrong)}"
            )


class Prompt(NamedTuple):
    """A prompt and what is right.

    Attributes:
        text: what the model reads.
        spans: where in the text, as (first, past the last) character: "instruction", and "yes" and "no", the
            words in it, in formats that answer with such words.
        gold: index of the right label; -1 for short answers.
        labels: what may be answered: the affirmative, the negative, and ``UNKNOWN`` where it is offered; the
            letters, for multiple choice; none for short answers.
        item: id of the item.
        positive: whether the candidate is the item's answer; None in formats without a candidate.
    """

    text: str
    spans: Mapping[str, tuple[int, int]]
    gold: int
    labels: tuple[str, ...]
    item: str
    positive: bool | None


def make_prompts(items: Sequence[Item], fmt: str, scenario: str = "plain") -> list[Prompt]:
    """Prompts of all items in a format and a scenario.

    Formats with a candidate answer have two for each item, first with its answer, then with one of the wrong
    ones: exactly balanced.

    Args:
        items: what is asked; what is drawn at random is drawn from their ids.
        fmt: one of `FORMATS`.
        scenario: "plain", or some of "context" (the passage comes first), "idk" (the option not to know),
            "cot" (a chain of thought before the answer) and "no-first" (the negative word is named first),
            joined by "+". The last three exist for formats that answer with two words.

    Returns:
        The prompts, in the order of the items.

    Raises:
        ValueError: a format or a scenario that does not exist, a scenario that the format does not have, no
            items, two items with one id, or an item without the passage that the scenario needs.

    Source:
        arXiv:2511.10881, the formats and scenarios of its abstract; the wording is the project's own.

    Example:
        >>> item = Item("sea", "What covers most of the Earth?", "water", ("sand", "ice"))
        >>> [(prompt.positive, prompt.labels[prompt.gold]) for prompt in make_prompts([item], "YN")]
        [(True, 'Yes'), (False, 'No')]
    """
    if fmt not in FORMATS:
        raise ValueError(f"fmt: expected one of {', '.join(FORMATS)}, got {fmt!r}")
    extras = _extras(fmt, scenario)
    if not items:
        raise ValueError("items: expected at least one, got none")
    seen = set()
    for item in items:
        if item.id in seen:
            raise ValueError(f"items: expected ids that differ, got {item.id!r} twice")
        seen.add(item.id)
        if "context" in extras and item.passage is None:
            raise ValueError(f"items: {scenario!r} needs a passage, and item {item.id!r} has none")
    if fmt in ("SA", "MC"):
        return [_direct(item, fmt, extras) for item in items]
    return [_judged(item, fmt, extras, positive=positive) for item in items for positive in (True, False)]


def scenarios_of(fmt: str) -> tuple[str, ...]:
    """What may be joined to a scenario in a format.

    Example:
        >>> scenarios_of("MC")
        ('context',)
    """
    return (*_EXTRAS, _SWAPPED) if _words(fmt) else ("context",)


def wrong_answer(item: Item) -> str:
    """The wrong answer that stands in the item's negative prompt: drawn by the item's id, not by difficulty.

    Example:
        >>> wrong_answer(Item("sea", "What covers most of the Earth?", "water", ("sand", "ice"))) != "water"
        True
    """
    return item.wrong[_draw(item, "wrong", len(item.wrong))[0]]


def token_positions(
    offsets: Sequence[tuple[int, int]], spans: Mapping[str, tuple[int, int]]
) -> tuple[int, int, int, int]:
    """Where the attention score finds "Yes", "No", and the rows between instruction and end.

    Args:
        offsets: first and past the last character of each token of the rendered prompt; tokens of the chat
            template have empty ones.
        spans: of a `Prompt`.

    Returns:
        ``t_yes, t_no``, the last token of each word; ``lo``, the first token after the instruction; ``hi``,
        the number of tokens.

    Raises:
        ValueError: a prompt that names no such words, or words that no token covers.

    Example:
        >>> spans = {"instruction": (0, 7), "yes": (0, 3), "no": (4, 6)}
        >>> token_positions([(0, 3), (3, 6), (6, 7), (7, 12)], spans)
        (0, 1, 3, 4)
    """
    found = []
    for name in ("yes", "no"):
        if name not in spans:
            raise ValueError(f"spans: expected {name!r}, got {sorted(spans)}: the prompt names no such word")
        begin, end = spans[name]
        covering = [at for at, (first, past) in enumerate(offsets) if first < end and past > begin]
        if not covering:
            raise ValueError(f"offsets: no token covers {name!r}, characters {begin} to {end}")
        found.append(covering[-1])
    after = [at for at, (_, past) in enumerate(offsets) if past > spans["instruction"][1]]
    if not after:
        raise ValueError("offsets: no token comes after the instruction")
    return found[0], found[1], after[0], len(offsets)


def _extras(fmt: str, scenario: str) -> list[str]:
    extras = [] if scenario == "plain" else scenario.split("+")
    known = scenarios_of(fmt)
    if len(set(extras)) < len(extras) or not set(extras) <= set(known):
        raise ValueError(
            f"scenario: expected plain, or some of {', '.join(known)} joined by '+' for {fmt},"
            f" got {scenario!r}"
        )
    return extras


def _words(fmt: str) -> tuple[str, str] | None:
    """The words that a format answers with, the affirmative first."""
    if fmt in ("SA", "MC", "MC-yn", "MC-ny"):
        return None
    return _WORDS.get(fmt, ("Yes", "No"))


def _draw(item: Item, what: str, number: int) -> list[int]:
    """A permutation that depends on the item's id alone, the same on every machine."""
    digest = hashlib.sha256(f"{what}/{item.id}".encode()).digest()
    return np.random.default_rng(list(digest)).permutation(number).tolist()


def _context(item: Item, extras: Sequence[str]) -> str:
    return f"Context: {item.passage}\n" if "context" in extras else ""


def _direct(item: Item, fmt: str, extras: Sequence[str]) -> Prompt:
    """A question to answer in words, or by choosing."""
    text, labels, gold = f"{_context(item, extras)}Question: {item.question}\n", (), -1
    if fmt == "MC":
        chosen = [item.wrong[index] for index in _draw(item, "options", len(item.wrong))[:3]]
        options = [item.answer, *chosen]
        options = [options[index] for index in _draw(item, "order", len(options))]
        text, labels = _lettered(text, options)
        gold = options.index(item.answer)
        instruction = "Answer with the letter only."
    else:
        instruction = "Answer with a short phrase."
    begin = len(text)
    text += f"{instruction}\nAnswer:"
    return Prompt(text, {"instruction": (begin, begin + len(instruction))}, gold, labels, item.id, None)


def _judged(item: Item, fmt: str, extras: Sequence[str], *, positive: bool) -> Prompt:
    """A candidate answer to judge."""
    candidate = item.answer if positive else wrong_answer(item)
    correct = f'"{candidate}" is the correct answer to the question "{item.question}"'
    if fmt in _OPENINGS:
        question = f"Question: {_OPENINGS[fmt]} {correct}?\n"
    elif fmt in _WORDS:
        question = f"Statement: {correct}.\n"
    else:
        question = f'Question: Is "{candidate}" the correct answer to the question "{item.question}"?\n'
    text = _context(item, extras)
    words = _words(fmt)
    if words is None:
        options = ["Yes", "No"] if fmt == "MC-yn" else ["No", "Yes"]
        text, letters = _lettered(text + question, options)
        labels = letters if fmt == "MC-yn" else letters[::-1]
        instruction = "Answer with the letter only."
        begin = len(text)
        text += f"{instruction}\nAnswer:"
        spans = {"instruction": (begin, begin + len(instruction))}
    else:
        instruction = _instruction(fmt, words, extras)
        begin = len(text)
        spans = {"instruction": (begin, begin + len(instruction))}
        for name, word in zip(("yes", "no"), words, strict=True):
            found = next(re.finditer(rf"\b{word}\b", instruction))
            spans[name] = (begin + found.start(), begin + found.end())
        text += f"{instruction}\n{question}" + ("Thoughts:" if "cot" in extras else "Answer:")
        labels = (*words, UNKNOWN) if "idk" in extras else words
    affirmative = positive != (fmt in _REVERSED)
    return Prompt(text, spans, 0 if affirmative else 1, labels, item.id, positive)


def _instruction(fmt: str, words: tuple[str, str], extras: Sequence[str]) -> str:
    first, second = words[::-1] if _SWAPPED in extras else words
    if "cot" in extras:
        ends = [f"'Answer: {word}'" for word in (first, second)]
        if "idk" in extras:
            ends[:2] = [", ".join(ends), f"'Answer: {UNKNOWN}'"]
        return f"Think step by step, then finish with {ends[0]} or {ends[1]}."
    if "idk" in extras:
        return f"Answer {first}, {second}, or {UNKNOWN}."
    return f"{'Judge the statement' if fmt in _WORDS else 'Answer the question'} with {first} or {second}."


def _lettered(text: str, options: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    letters = tuple("ABCD"[: len(options)])
    return text + "".join(f"{a}. {option}\n" for a, option in zip(letters, options, strict=True)), letters
