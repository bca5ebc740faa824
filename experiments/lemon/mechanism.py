"""Why negatives from text neighbourhoods should help, and where they hurt: shares, hardness and cost.

Plausible: the entity occurs somewhere in training on the same side of the same relation. False: the corrupted
triple is true in validation or test. Hard: a model trained on uniform negatives takes it for true.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.lemon.graphs import Graph
from experiments.lemon.training import Arrays, Draw
from jaxneg.kg import filter_known, is_known, kge_score, known_triples
from jaxneg.kg.arguments import SIDES

POSITIVES, DRAWS = 2000, 16
"""Training triples, and draws for each side of each, from which shares are counted."""


def plausible_and_false(graph: Graph, arrays: Arrays, draw: Draw, seed: int) -> tuple[float, float]:
    """Shares of drawn entities that are plausible, and that are false negatives.

    Args:
        graph: the graph.
        arrays: of the graph.
        draw: the sampler.
        seed: of positives and draws.

    Returns:
        Both shares, over both sides.
    """
    rng = np.random.default_rng(seed)
    triples = graph.train[rng.choice(len(graph.train), min(POSITIVES, len(graph.train)), replace=False)]
    held_out = known_triples(np.concatenate([graph.valid, graph.test]), len(graph.entities))
    plausible, false = [], []
    for i, side in enumerate(SIDES):
        drawn, untrue = _drawn(side, arrays, draw, jnp.asarray(triples), held_out, jnp.uint32(2 * seed + i))
        slot = np.zeros((len(graph.relations), len(graph.entities)), bool)
        slot[graph.train[:, 1], graph.train[:, 0 if side == "head" else 2]] = True
        plausible.append(slot[triples[:, 1][:, None], np.asarray(drawn)].mean())
        false.append(np.asarray(untrue).mean())
    return float(np.mean(plausible)), float(np.mean(false))


@partial(jax.jit, static_argnums=0)
def _drawn(side: str, arrays: Arrays, draw: Draw, triples: Array, held_out: Any, seed: Array) -> Any:
    of_sample, of_filter = jax.random.split(jax.random.key(seed))

    def sample(key: Array) -> Array:
        return draw.sample(key, triples, side, DRAWS)

    drawn = filter_known(of_filter, sample(of_sample), triples, arrays.known, side, draw=sample)
    return drawn, is_known(held_out, triples, drawn, side)


def hardness(model: str, params: Any, graph: Graph, arrays: Arrays, draw: Draw, seed: int) -> float:
    """Mean probability ``sigmoid(s)`` that a model gives to drawn negatives.

    Args:
        model: its name.
        params: its tables, trained on uniform negatives for a while.
        graph: the graph.
        arrays: of the graph.
        draw: the sampler.
        seed: of positives and draws.

    Returns:
        The mean over both sides.
    """
    rng = np.random.default_rng(seed)
    triples = jnp.asarray(
        graph.train[rng.choice(len(graph.train), min(POSITIVES, len(graph.train)), replace=False)]
    )
    held_out = known_triples(graph.test, len(graph.entities))
    means = []
    for i, side in enumerate(SIDES):
        drawn, _ = _drawn(side, arrays, draw, triples, held_out, jnp.uint32(2 * seed + i))
        h, r, t = triples.T
        scores = kge_score(model, params, *((h, r, drawn) if side == "tail" else (drawn, r, t)), side=side)
        means.append(float(jnp.mean(jax.nn.sigmoid(scores))))
    return float(np.mean(means))


def drawing_seconds(
    arrays: Arrays, first: Draw, second: Draw, batch_size: int, negatives: int, pairs: int
) -> tuple[float, float, float]:
    """Seconds of two samplers for a batch of filtered negatives, timed in turn, and the median ratio.

    Args:
        arrays: of the graph.
        first: a sampler.
        second: another, of the same shapes, so that both are the same program.
        batch_size: positives.
        negatives: of each.
        pairs: of samples.

    Returns:
        Median seconds of both, and the median of second over first.
    """
    triples = arrays.train[: min(batch_size, len(arrays.train))]

    @jax.jit
    def program(draw: Draw, seed: Array) -> Array:
        of_sample, of_filter = jax.random.split(jax.random.key(seed))

        def sample(key: Array) -> Array:
            return draw.sample(key, triples, "tail", negatives)

        return filter_known(of_filter, sample(of_sample), triples, arrays.known, "tail", draw=sample)

    def seconds(draw: Draw, seed: int) -> float:
        began = time.perf_counter()
        for i in range(10):
            program(draw, jnp.uint32(10 * seed + i)).block_until_ready()
        return (time.perf_counter() - began) / 10

    for draw in (first, second):  # warm
        seconds(draw, 0)
    times = np.array(
        [
            (seconds(first, i), seconds(second, i))
            if i % 2
            else (seconds(second, i), seconds(first, i))[::-1]
            for i in range(pairs)
        ]
    )
    ours, theirs = np.median(times, axis=0)
    return float(ours), float(theirs), float(np.median(times[:, 1] / times[:, 0]))
