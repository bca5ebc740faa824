"""What a trained model answers about every fact, in every format, and how sure its knowledge is."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from experiments.neg_bias.world import (
    FACTS,
    FIRST_VALUE,
    IDK,
    LETTERS,
    NO,
    OFFSETS,
    VALUES,
    YES,
    Sequences,
    World,
    another_value,
    chain_of_thought,
    draw_options,
    multiple_choice,
    placed,
    short_answers,
    yes_no,
    yes_no_in_context,
    yes_no_with_option,
)
from jaxneg.language import ablate_heads, label_logits
from jaxneg.nn.transformer import TransformerConfig, transformer

FORMATS = ("YN", "context", "CoT", "IDK option")
SAMPLES = 10
"""Short answers drawn for each fact and variant, at temperature 1."""
CHOICES = 2
"""Multiple-choice questions among the variants of a fact, beside a short answer behind 0 to 5 pads."""


class Questions(NamedTuple):
    """The questions that every model of a seed is asked; twin 0 names the truth, twin 1 a wrong value.

    Attributes:
        candidate: value in question, ``[facts, 2]``.
        offset: pads in front, ``[facts, 2]``.
        options: of the multiple-choice questions, ``[CHOICES, facts, 4]``.
    """

    candidate: Int[np.ndarray, "facts 2"]
    offset: Int[np.ndarray, "facts 2"]
    options: Int[np.ndarray, "choices facts 4"]


def draw_questions(rng: np.random.Generator, world: World) -> Questions:
    """Wrong candidates, pads and options for every fact."""
    candidate = np.stack([world.truth, another_value(rng, world.truth)], axis=1)
    options = np.stack([draw_options(rng, world.truth)[0] for _ in range(CHOICES)])
    return Questions(candidate, rng.integers(0, OFFSETS, (FACTS, 2)), options)


@partial(jax.jit, static_argnames="model")
def next_word(
    params: Any,
    words: Int[Array, "rows words"],
    place: Int[Array, " rows"],
    ablated: Bool[Array, "layers heads"] | None = None,
    t_yes: Int[Array, " rows"] | None = None,
    *,
    model: TransformerConfig,
) -> Float[Array, "rows vocabulary"]:
    """The logits of the word that follows the one at ``place``.

    Args:
        params: of the model.
        words: sequences with their pads.
        place: of the last word that counts.
        ablated: heads whose attention to "yes" and "no" is made equal; None for none.
        t_yes: where "yes" stands, with "no" behind it, for the ablation.
        model: its shapes.

    Returns:
        Logits.
    """
    options = {}
    if ablated is not None and t_yes is not None:
        heads, place_of_yes = ablated, t_yes
        options["weights_hook"] = lambda weights, layer: ablate_heads(
            weights, heads[layer], place_of_yes, place_of_yes + 1
        )
    logits = transformer(model).apply(params, words, **options)
    return jnp.take_along_axis(logits, place[:, None, None], axis=1)[:, 0]


def answers(
    params: Any, sequences: Sequences, offset: np.ndarray, model: TransformerConfig, **options: Any
) -> Float[np.ndarray, "rows vocabulary"]:
    """The logits of the word that follows each sequence."""
    words = placed(sequences, offset).words
    place = offset + sequences.words.shape[1] - 1
    return np.asarray(next_word(params, words, place, **options, model=model))


def yes_no_logits(
    params: Any, questions: Questions, model: TransformerConfig, ablated: np.ndarray | None = None
) -> Float[np.ndarray, "facts 2 2"]:
    """The logits of yes and no to every question without context.

    Args:
        params: of the model.
        questions: what is asked.
        model: its shapes.
        ablated: heads whose attention to "yes" and "no" is made equal, ``[layers, heads]``; None for none.

    Returns:
        Logits by fact, twin, and word.
    """
    fact, candidate, offset = _rows(questions)
    asked = yes_no(fact, candidate, np.full(fact.size, YES))
    options = {} if ablated is None else {"ablated": jnp.asarray(ablated), "t_yes": offset + 1}
    found = answers(params, asked, offset, model, **options)
    return np.asarray(label_logits(jnp.asarray(found), [[YES], [NO]])).reshape(FACTS, 2, 2)


def ask_everything(
    params: Any, world: World, questions: Questions, rng: np.random.Generator, model: TransformerConfig
) -> dict[str, np.ndarray]:
    """Every format's answers, and samples of what the model takes for true.

    Args:
        params: of the model.
        world: the facts; the context of a question is the truth.
        questions: candidates, pads and options.
        rng: of the sampled answers.
        model: its shapes.

    Returns:
        ``logits [formats, facts, 2, 3]`` of yes, no and idk in the order of `FORMATS`; ``short [facts]``, the
        most probable value; ``top [facts]``, the probability of the most probable word of a short answer;
        ``samples [facts, variants, SAMPLES]``, sampled values, -1 for another word: the short answer behind 0
        to 5 pads, then the multiple choices.
    """
    fact, candidate, offset = _rows(questions)
    truth, any_answer = world.truth[fact], np.full(fact.size, YES)
    ask = partial(answers, params, model=model)
    thought = chain_of_thought(fact, candidate, truth, any_answer)
    until_then = Sequences(*(part[:, :7] for part in thought))
    value = _values(ask(until_then, offset)).argmax(-1)
    found = (
        ask(yes_no(fact, candidate, any_answer), offset),
        ask(yes_no_in_context(fact, truth, candidate, any_answer), offset),
        ask(chain_of_thought(fact, candidate, value, any_answer), offset),
        ask(yes_no_with_option(fact, candidate, any_answer), offset),
    )
    labels = [[YES], [NO], [IDK]]
    logits = np.stack(
        [np.asarray(label_logits(jnp.asarray(each), labels)).reshape(FACTS, 2, 3) for each in found]
    )

    facts = np.arange(FACTS)
    samples, short = [], []
    for pads in range(OFFSETS):
        recalled = ask(short_answers(facts, world.truth), np.full(FACTS, pads))
        short.append(recalled)
        drawn = _draw(rng, recalled) - FIRST_VALUE
        samples.append(np.where((drawn >= 0) & (drawn < VALUES), drawn, -1))
    for options in questions.options:
        letter = ask(multiple_choice(facts, options, np.zeros(FACTS, int)), questions.offset[:, 0])
        drawn = _draw(rng, letter) - LETTERS[0]
        chosen = np.take_along_axis(options, np.clip(drawn, 0, 3), 1)
        samples.append(np.where((drawn >= 0) & (drawn < 4), chosen, -1))
    first = np.stack(short)[questions.offset[:, 0], facts]
    return {
        "logits": logits,
        "short": _values(first).argmax(-1),
        "top": np.asarray(jax.nn.softmax(first, axis=-1)).max(-1),
        "samples": np.stack(samples, axis=1),
    }


def predictions(logits: Float[np.ndarray, "*facts 3"], *, option: bool) -> Int[np.ndarray, "*facts"]:
    """Answers as 1 for yes, 0 for no, and 2 for idk where that is offered."""
    chosen = logits[..., : 3 if option else 2].argmax(-1)
    return np.array([1, 0, 2])[chosen]


def _rows(questions: Questions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.repeat(np.arange(FACTS), 2), questions.candidate.ravel(), questions.offset.ravel()


def _values(logits: np.ndarray) -> np.ndarray:
    return logits[..., FIRST_VALUE : FIRST_VALUE + VALUES]


def _draw(rng: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    """`SAMPLES` words from each row at temperature 1."""
    noise = rng.gumbel(size=(SAMPLES, *logits.shape))
    return (logits + noise).argmax(-1).T
