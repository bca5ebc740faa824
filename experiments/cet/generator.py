"""A controlled world of pooling bias: what is relevant and what is selected are known.

Each of N documents of a query has content x_r and selection features x_s, both normal; two hidden directions
make relevance z_r = x_r . u_r and what the pool was made by, z_s = c z_r + sqrt(1 - c^2) x_s . u_s. The first
5 % by z_r are relevant, the first 10 % by z_s are pooled, and labels are both. The weak retriever is z_s
itself; the strong one is z_r with a little noise, so that its unlabelled documents are often relevant.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.cet.training import (
    Arm,
    Listed,
    Recipe,
    Run,
    Stage,
    draw_triples,
    train,
    without_stages,
)
from jaxneg.retrieval import (
    denoise_weight,
    ndcg_at_k,
    oracle_weight,
    perc_pos_weight,
    pool_labels,
    top_negatives,
)

UNIFORM, WEAK, STRONG = "uniform", "weak", "strong"
NAIVE_WEAK, NAIVE_STRONG = Arm("naive", WEAK), Arm("naive", STRONG)
CET = Arm("CET, tau 1", STRONG, "coupled")
MEAN = replace(CET, name="CET, tau 1, mean weight 1", normalise="mean")
LOOSE = replace(CET, name="CET, tau 10", tau=10.0)
ORACLE = Arm("oracle", STRONG, filter="oracle")
SHARED = replace(CET, name="CET, tau 1, shared inputs", inputs="shared")
ARMS: tuple[Arm, ...] = (
    Arm("naive", UNIFORM),
    NAIVE_WEAK,
    NAIVE_STRONG,
    ORACLE,
    Arm("denoised", STRONG, filter="denoise"),
    Arm("below 95 % of the positive", STRONG, filter="perc-pos"),
    replace(CET, name="CET, tau 0.5", tau=0.5),
    CET,
    MEAN,
    replace(CET, name="CET, tau 2", tau=2.0),
    replace(MEAN, name="CET, tau 2, mean weight 1", tau=2.0),
    replace(CET, name="CET, tau 5", tau=5.0),
    LOOSE,
    replace(CET, name="constant weight, tau 1", weighting="constant"),
    replace(CET, name="CET, tau 1, positives too", positive_ips=True),
    Arm("naive, shared inputs", STRONG, inputs="shared"),
    SHARED,
    replace(SHARED, name="CET, tau 2, shared inputs", tau=2.0),
    replace(SHARED, name="CET, tau 10, shared inputs", tau=10.0),
)
"""All that is trained; the tables show every one."""
DECISIVE: tuple[Arm, ...] = (NAIVE_WEAK, NAIVE_STRONG, ORACLE, CET, MEAN, LOOSE)
"""What the claims need."""

REFERENCE: dict[tuple[str, str], tuple[float, float]] = {
    ("naive", UNIFORM): (0.923, np.nan),
    ("naive", WEAK): (0.949, np.nan),
    ("naive", STRONG): (0.928, np.nan),
    ("oracle", STRONG): (0.974, 0.0),
    ("CET, tau 0.5", STRONG): (0.924, 0.001),
    ("CET, tau 1", STRONG): (0.961, 0.001),
    ("CET, tau 1, mean weight 1", STRONG): (0.958, 0.01),
    ("CET, tau 2", STRONG): (0.937, 0.36),
    ("CET, tau 2, mean weight 1", STRONG): (0.937, 0.38),
    ("CET, tau 5", STRONG): (0.924, 0.96),
    ("CET, tau 10", STRONG): (0.926, 1.02),
}
"""nDCG@10 and weight of false over true negatives in an independent run, 5 seeds."""


@dataclass(frozen=True)
class World:
    """Sizes of the generator."""

    queries: int = 300
    """The last third is for testing."""
    documents: int = 200
    """Of each query."""
    features: int = 16
    """Numbers in x_r and in x_s."""
    correlation: float = 0.5
    """Of z_r and z_s."""
    noise: float = 0.3
    """Of the strong retriever."""
    relevant: float = 0.05
    """Share of the documents."""
    pooled: float = 0.1
    """Share of the documents."""
    listed: int = 20
    """Documents of a retriever that negatives are drawn from."""

    @property
    def trained(self) -> int:
        """Queries to train on."""
        return self.queries - self.queries // 3


@dataclass(frozen=True)
class Sample:
    """One draw of the world."""

    data: dict[str, np.ndarray]
    """``x_r`` and, as the pool saw it, ``x_s`` with z_s, ``[queries, documents, ...]``."""
    relevant: np.ndarray
    label: np.ndarray
    retrievers: dict[str, np.ndarray]
    """Scores ``[queries, documents]``."""
    negatives: dict[str, np.ndarray]
    """Documents ``[queries, n]``."""


def sample(world: World, seed: int) -> Sample:
    """Draws the world.

    Args:
        world: sizes.
        seed: of the draw.

    Returns:
        Features, truth, labels and lists.
    """
    rng = np.random.default_rng([seed, 0])
    shape = world.queries, world.documents
    x_r, x_s = rng.normal(size=(2, *shape, world.features)).astype(np.float32)
    directions = rng.normal(size=(2, world.features))
    u_r, u_s = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    z_r = x_r @ u_r
    z_s = world.correlation * z_r + np.sqrt(1 - world.correlation**2) * (x_s @ u_s)
    everything = np.ones(shape, bool)
    pool = jax.jit(pool_labels, static_argnums=2)
    relevant = np.asarray(pool(z_r, everything, max(1, round(world.relevant * world.documents))))
    label = np.asarray(pool(z_s, relevant, max(1, round(world.pooled * world.documents))))
    retrievers = {
        UNIFORM: rng.random(shape),
        WEAK: z_s,
        STRONG: z_r + world.noise * rng.normal(size=shape),
    }
    first = jax.jit(top_negatives, static_argnums=2)
    lists = {
        name: np.asarray(first(scores, label, world.documents if name == UNIFORM else world.listed))
        for name, scores in retrievers.items()
    }
    pooling = np.concatenate([x_s, z_s[..., None]], axis=-1).astype(np.float32)
    return Sample({"content": x_r, "pooling": pooling}, relevant, label, retrievers, lists)


def see(data: dict[str, Array], queries: Array, documents: Array) -> tuple[Array, Array]:
    """What both models see of pairs."""
    return data["content"][queries, documents], data["pooling"][queries, documents]


def compare(
    world: World,
    recipe: Recipe,
    *,
    seeds: int,
    steps: int,
    batch: int,
    arms: tuple[Arm, ...] = ARMS,
    progress: Callable[[Any], Any] = iter,
    stage: Stage = without_stages,
) -> dict[str, np.ndarray]:
    """Trains every arm on every draw of the world.

    Args:
        world: sizes.
        recipe: of the training.
        seeds: draws.
        steps: of a training.
        batch: pairs in a step.
        arms: the arms.
        progress: wraps the arms.
        stage: keeps the results of an arm.

    Returns:
        ``ndcg``, ``mrr``, ``false_weight`` and ``false_share``, of the negatives that are relevant,
        ``[arms, seeds]``; ``retrievers`` ``[2, seeds]``, nDCG@10 of the weak and the strong one.
    """
    drawn = [sample(world, seed) for seed in range(seeds)]
    trained, every = np.arange(world.trained), np.arange(world.documents, dtype=np.int32)
    relevant = np.stack([each.relevant for each in drawn])
    data = {name: jnp.stack([each.data[name] for each in drawn]) for name in drawn[0].data}
    tested = jnp.asarray(relevant[:, world.trained :])
    listed = Listed(jnp.broadcast_to(every, relevant.shape), jnp.asarray(relevant))
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    triples = {
        name: np.stack(
            [
                draw_triples(
                    np.random.default_rng([seed, 1]), each.label, each.negatives[name], trained, steps, batch
                )
                for seed, each in enumerate(drawn)
            ]
        )
        for name in {WEAK, *(arm.negatives for arm in arms)}
    }

    def run(arm: Arm, weight: np.ndarray) -> dict[str, np.ndarray]:
        runs = Run(keys, *(jnp.asarray(x) for x in (triples[arm.negatives], weight, false_of(arm))))
        return train(see, data, listed, runs, arm, recipe, own_data=True)

    def false_of(arm: Arm) -> np.ndarray:
        return np.stack(
            [
                each.relevant[t[..., 0], t[..., 2]]
                for each, t in zip(drawn, triples[arm.negatives], strict=True)
            ]
        )

    def weights_of(arm: Arm) -> np.ndarray:
        if arm.filter == "oracle":
            return np.asarray(oracle_weight(false_of(arm)))
        scores = [each.retrievers[STRONG] for each in drawn]
        if arm.filter == "denoise":
            scores = run(NAIVE_WEAK, np.ones((seeds, steps, batch), np.float32))["scores"]
        weights = []
        for each, of, t in zip(drawn, scores, triples[arm.negatives], strict=True):
            query, positive, negative = np.moveaxis(t, -1, 0)
            if arm.filter == "denoise":
                threshold = float(np.median(of[trained][each.label[trained]]))
                weights.append(denoise_weight(of[query, negative], threshold))
            elif arm.filter == "perc-pos":
                weights.append(perc_pos_weight(of[query, positive], of[query, negative]))
            else:
                weights.append(np.ones(query.shape, np.float32))
        return np.asarray(weights)

    def measure(arm: Arm) -> dict[str, np.ndarray]:
        result = run(arm, weights_of(arm))
        return {
            **{name: result[name][:, world.trained :].mean(axis=1) for name in ("ndcg", "mrr")},
            "false_weight": np.zeros(seeds) if arm.filter == "oracle" else result["false_weight"],
            "false_share": false_of(arm).mean(axis=(1, 2)),
        }

    found = [stage(place, partial(measure, arm)) for place, arm in enumerate(progress(arms))]
    alone = [
        np.mean(
            ndcg_at_k(jnp.stack([each.retrievers[name][world.trained :] for each in drawn]), tested), axis=1
        )
        for name in (WEAK, STRONG)
    ]
    return {
        **{name: np.stack([of[name] for of in found]) for name in found[0]},
        "retrievers": np.stack(alone),
    }
