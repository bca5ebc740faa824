"""The language model of the world, trained from scratch on pools of fixed sequences of every format."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.neg_bias.world import (
    CORRECT,
    IDK,
    IGNORED,
    INCORRECT,
    KNOWN,
    LONGEST,
    NO,
    OFFSETS,
    UNTOLD,
    VALUES,
    VOCABULARY,
    YES,
    Sequences,
    World,
    another_value,
    chain_of_thought,
    draw_options,
    multiple_choice,
    placed,
    recalled,
    short_answers,
    statements,
    yes_no,
    yes_no_in_context,
    yes_no_with_option,
)
from jaxneg.nn.transformer import TransformerConfig, transformer
from jaxneg.train import init_state, make_step

SHARES = {"STMT": 0.25, "YN": 0.25, "CTX": 0.20, "COT": 0.10, "IDKO": 0.10, "SA": 0.05, "MC": 0.05}
"""Share of each format in a batch."""
POOL = 6000
"""Sequences of each format, drawn once."""
KNOWN_IN_IDKO = 0.6
"""Share of known facts, to be answered, in sequences that offer "I don't know"; the others are untold."""
EMBEDDING_STD = 0.02
"""Of the transformer's embedding. Here it starts at ``width^-0.5``, so that words are told apart from the
start: facts that are stated only are recalled more often then, .96 instead of .87 in the first world."""
WARM_UP = 100
WEIGHT_DECAY = 0.1
TRAINED_LENGTH = 17
"""Words in the longest training sequence: multiple choice, behind five pads."""

MODEL = TransformerConfig(
    vocab=VOCABULARY,
    width=64,
    layers=3,
    heads=4,
    activation="gelu",
    positions="learned",
    max_length=LONGEST,
)
"""The output layer is the embedding: equality of words is learned more easily so."""


def draw_pool(rng: np.random.Generator, world: World, size: int = POOL) -> Sequences:
    """The training sequences of every format, ``[formats, size, words]`` in the order of `SHARES`.

    Questions with yes and no are balanced; a wrong candidate is uniform among the other values. Questions
    about known facts also ask for the value at the relation: without that, answers are memorised instead of
    being derived from what statements taught.

    Args:
        rng: source of randomness.
        world: the facts.
        size: sequences of each format.

    Returns:
        The pool.

    Raises:
        ValueError: a world without a known or without an untold fact.
    """
    by_group = [np.flatnonzero(world.group == group) for group in range(5)]
    for name, group in (("known", KNOWN), ("untold", UNTOLD)):
        if not by_group[group].size:
            raise ValueError(f"world: expected at least one {name} fact, got none")
    stated = np.concatenate([by_group[group] for group in (KNOWN, CORRECT, INCORRECT)])
    known, untold = by_group[KNOWN], by_group[UNTOLD]

    def asked(facts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        fact = rng.choice(facts, size)
        value, yes = world.truth[fact], rng.permutation(size) % 2 == 0
        return fact, value, np.where(yes, value, another_value(rng, value)), np.where(yes, YES, NO)

    of_known = np.ones(size, bool)
    fact = rng.choice(stated, size)
    pools = {"STMT": statements(fact, world.stated[fact])}
    fact, value, candidate, answer = asked(known)
    pools["YN"] = recalled(yes_no(fact, candidate, answer), value, of_known)
    fact, value, _, answer = asked(np.concatenate([known, untold]))
    context = rng.integers(0, VALUES, size)
    candidate = np.where(answer == YES, context, another_value(rng, context))
    pools["CTX"] = yes_no_in_context(fact, context, candidate, answer)
    fact, value, candidate, answer = asked(known)
    pools["COT"] = recalled(chain_of_thought(fact, candidate, value, answer), value, of_known)
    told = rng.random(size) < KNOWN_IN_IDKO
    parts = [np.where(told, *pair) for pair in zip(asked(known), asked(untold), strict=True)]
    fact, value, candidate, answer = parts
    option = yes_no_with_option(fact, candidate, np.where(told, answer, IDK))
    pools["IDKO"] = recalled(option, value, told)
    fact = rng.choice(known, size)
    pools["SA"] = short_answers(fact, world.truth[fact])
    fact = rng.choice(known, size)
    options, right = draw_options(rng, world.truth[fact])
    pools["MC"] = recalled(multiple_choice(fact, options, right), world.truth[fact], of_known)
    found = [placed(pools[name], rng.integers(0, OFFSETS, size), TRAINED_LENGTH) for name in SHARES]
    return Sequences(*(np.stack(part).astype(np.int32) for part in zip(*found, strict=True)))


def rows_of_a_batch(batch: int) -> dict[str, int]:
    """How many rows of a batch each format has: the shares, rounded, what is left over to statements.

    Example:
        >>> rows_of_a_batch(128)
        {'STMT': 32, 'YN': 32, 'CTX': 26, 'COT': 13, 'IDKO': 13, 'SA': 6, 'MC': 6}
    """
    rows = {name: round(share * batch) for name, share in SHARES.items()}
    rows["STMT"] += batch - sum(rows.values())
    return rows


def target_loss(
    logits: Float[Array, "batch words vocabulary"], targets: Int[Array, "batch words"]
) -> Float[Array, ""]:
    """The mean cross-entropy over all targets."""
    wanted = targets != IGNORED
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    return jnp.where(wanted, losses, 0).sum() / wanted.sum()


@partial(jax.jit, static_argnames=("model", "steps", "batch", "learning_rate"))
def train(
    key: PRNGKeyArray,
    pool: Sequences,
    *,
    model: TransformerConfig,
    steps: int,
    batch: int,
    learning_rate: float,
) -> tuple[Any, Float[Array, " steps"]]:
    """The model after its training.

    Args:
        key: of the initial parameters and of the batches.
        pool: the sequences.
        model: its shapes.
        steps: optimisation steps.
        batch: sequences in a step.
        learning_rate: of AdamW, reached after the warm-up; it ends at 0 along a cosine.

    Returns:
        Parameters, and the loss of every step.
    """
    of_params, of_batches = jax.random.split(key)
    network = transformer(model)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(WARM_UP, steps // 2), steps)
    tx = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
    rows = rows_of_a_batch(batch)
    format_of_row = np.repeat(np.arange(len(rows)), list(rows.values()))

    def loss_fn(params: Any, batch: list[Array], key: PRNGKeyArray) -> tuple[Array, dict[str, Array]]:
        del key
        words, targets, recall = batch
        logits = network.apply(params, words)
        return target_loss(logits, targets) + target_loss(logits, recall), {}

    step = make_step(loss_fn, tx)

    def one(state: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        row = jax.random.randint(key, (batch,), 0, pool.words.shape[1])
        drawn = [jnp.asarray(part)[format_of_row, row] for part in pool]
        state, metrics = step(state, drawn)
        return state, metrics["loss"]

    params = network.init(of_params)
    embedding = params["embed"]["embedding"]
    params["embed"]["embedding"] = embedding * (model.width**-0.5 / EMBEDDING_STD)
    start = init_state(params, tx, key)
    state, losses = jax.lax.scan(one, start, jax.random.split(of_batches, steps))
    return state.params, losses
