"""Trains one embedding model with one way of drawing negatives, and ranks held-out triples with it.

Uniform, LEMON and SANS differ only in the sets that they draw from, and self-adversarial losses only in a
temperature (which is 0 without), so that all of them are one compiled program for each graph.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.lemon.graphs import Graph
from jaxneg.kg import (
    CandidateSets,
    EntityNeighbourhoods,
    KGEState,
    KnownTriples,
    Neighbourhoods,
    filtered_ranks,
    init_kge_state,
    kge_init,
    kge_score,
    khop_neighbourhoods,
    known_triples,
    make_kge_step,
    nscaching_refresh,
    ranking_metrics,
    relation_cardinality,
    restarting_adam,
    sample_bernoulli,
    sample_cache,
    sample_candidates,
    subsampling_weights,
)

CACHE_SIZE = FRESH_CANDIDATES = 50
"""N1 and N2 of NSCaching (arXiv:1812.06410, Section 5)."""


@dataclass(frozen=True)
class GraphPlan:
    """How a graph is trained on: model, budget and LEMON's settings, the same for every sampler."""

    graph: str
    """A folder below JAXNEG_DATA/lemon, a path, or "umls"; "-core3" takes the part of core number 3."""
    model: str = "TransE"
    """TransE, DistMult, ComplEx, RotatE or pRotatE."""
    dimensions: int = 64
    """Of the embeddings."""
    gamma: float = 6.0
    """Margin inside the score."""
    batch_size: int = 512
    """Positives of a step."""
    negatives: int = 32
    """Of each positive."""
    learning_rate: float = 5e-3
    """Of Adam, in the first half of the steps."""
    drop: float = 0.1
    """Factor of the learning rate in the second half."""
    clusters: tuple[int, ...] = (100, 20)
    """Numbers of LEMON's clusters to choose from on the validation triples."""
    n_min: int = 64
    """Least number of candidates of a LEMON neighbourhood."""

    def __post_init__(self) -> None:
        for name in ("dimensions", "batch_size", "negatives", "n_min"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.clusters or min(self.clusters) < 1:
            raise ValueError(f"clusters: expected at least one positive number, got {self.clusters}")
        if not self.gamma > 0 or not self.learning_rate > 0:
            raise ValueError(
                f"gamma, learning_rate: expected positive numbers, got {self.gamma}, {self.learning_rate}"
            )


@dataclass(frozen=True)
class Arm:
    """A way of drawing negatives, and the loss."""

    sampler: str
    """uniform, bernoulli, nscaching, sans, lemon, or lemon_code: as in the authors' code."""
    mix: float = 0.0
    """Of LEMON and SANS: share of uniform draws."""
    clusters: int = 0
    """Of LEMON."""
    adversarial: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        shown = {
            "bernoulli": "Bernoulli",
            "nscaching": "NSCaching",
            "sans": "SANS-2",
            "lemon_code": "LEMON's code",
        }
        text = (
            f"LEMON, K={self.clusters}" if self.sampler == "lemon" else shown.get(self.sampler, self.sampler)
        )
        if self.sampler == "lemon" or self.mix > 0:
            text += f", mix {self.mix:g}"
        return f"{text} + self-adversarial" if self.adversarial else text


def arms_of(plan: GraphPlan, mixes: tuple[float, ...], rivals: bool) -> list[Arm]:
    """All arms of a graph: each LEMON setting, its rivals, and the self-adversarial losses."""
    local = [Arm(sampler, mix) for sampler in ("sans", "lemon_code") for mix in dict.fromkeys((0.0, *mixes))]
    plain = [Arm("uniform"), *local, *([Arm("bernoulli"), Arm("nscaching")] if rivals else [])]
    lemon = [Arm("lemon", mix, clusters) for clusters in plan.clusters for mix in mixes]
    adversarial = [Arm(sampler, adversarial=True) for sampler in ("uniform", "sans", "lemon_code")]
    first = [Arm("lemon", mix, plan.clusters[0], adversarial=True) for mix in mixes]
    return [*plain, *lemon, *adversarial, *first]


class Arrays(NamedTuple):
    """A graph on the device, with what its samplers need."""

    train: Array
    weight: Array
    head_probability: Array
    tail_cache_row: Array
    """Cache of each training triple's (head, relation)."""
    head_cache_row: Array
    """Cache of each training triple's (relation, tail)."""
    tail_cache_key: Array
    """Head and relation of each tail cache."""
    head_cache_key: Array
    """Relation and tail of each head cache."""
    known: KnownTriples


class Draw(NamedTuple):
    """Where an arm draws from.

    Attributes:
        sets: candidate sets, padded to the longest of the graph.
        row: the set of each entity; -1 stands for all entities.
        kept: whether the entity that stays decides, and not the one that is replaced.
        mix: share of uniform draws.
        alpha: adversarial temperature; 0: all negatives count alike.
    """

    sets: CandidateSets
    row: Array
    kept: Array
    mix: Array
    alpha: Array

    def sample(self, key: Array, triples: Array, side: str, n: int) -> Array:
        """``n`` entities for each triple."""
        tail = side == "tail"
        entity = jnp.where(self.kept, triples[:, 0 if tail else 2], triples[:, 2 if tail else 0])
        return sample_candidates(key, self.sets, self.row[entity], n, self.row.shape[0], self.mix)


def on_device(graph: Graph) -> Arrays:
    """What every training on a graph shares."""
    train = graph.train
    tail_key, tail_row = np.unique(train[:, :2], axis=0, return_inverse=True)
    head_key, head_row = np.unique(train[:, 1:], axis=0, return_inverse=True)
    return Arrays(
        train=jnp.asarray(train),
        weight=subsampling_weights(jnp.asarray(train)),
        head_probability=relation_cardinality(train, len(graph.relations)).head_probability,
        tail_cache_row=jnp.asarray(tail_row.reshape(-1).astype(np.int32)),
        head_cache_row=jnp.asarray(head_row.reshape(-1).astype(np.int32)),
        tail_cache_key=jnp.asarray(tail_key),
        head_cache_key=jnp.asarray(head_key),
        known=known_triples(train, len(graph.entities), len(graph.relations)),
    )


def draws(
    graph: Graph,
    nb: Mapping[int, Neighbourhoods],
    published: EntityNeighbourhoods,
    arms: list[Arm],
    alpha: float,
) -> dict[Arm, Draw]:
    """Where each arm draws from; NSCaching and Bernoulli have their own ways.

    Args:
        graph: the graph.
        nb: LEMON's neighbourhoods by number of clusters.
        published: those of the authors' code.
        arms: the arms.
        alpha: temperature of the self-adversarial ones.

    Returns:
        A draw for each arm, all of the same shapes.
    """
    entities = len(graph.entities)
    nothing = CandidateSets(jnp.zeros(1, jnp.int32), jnp.zeros(entities + 1, jnp.int32))
    sans = (
        khop_neighbourhoods(graph.train, entities, 2, "reach")
        if any(a.sampler == "sans" for a in arms)
        else nothing
    )
    longest = max(len(each.members) for each in (sans, published.sets, *nb.values()))

    def draw(arm: Arm) -> Draw:
        sets, row = nothing, jnp.full(entities, -1, jnp.int32)
        if arm.sampler == "sans":
            sets, row = sans, jnp.arange(entities, dtype=jnp.int32)
        elif arm.sampler == "lemon_code":
            sets, row = published
        elif arm.sampler == "lemon":
            found = nb[arm.clusters]
            sets, row = CandidateSets(found.members, found.start), found.labels
        padded = CandidateSets(
            jnp.pad(sets.members, (0, longest - len(sets.members))),
            jnp.pad(sets.start, (0, entities + 1 - len(sets.start)), mode="edge"),
        )
        return Draw(
            padded,
            row,
            jnp.bool_(arm.sampler in ("sans", "lemon_code")),
            jnp.float32(arm.mix),
            jnp.float32(alpha * arm.adversarial),
        )

    return {arm: draw(arm) for arm in arms}


def schedule(triples: int, batch_size: int, steps: int, seed: int) -> np.ndarray:
    """Rows of the training triples in each batch: shuffled anew in each epoch, ``[steps, batch]``.

    Example:
        >>> rows = schedule(5, 2, 4, seed=0)
        >>> rows.shape, len(set(rows[:2].ravel().tolist()))
        ((4, 2), 4)
    """
    rng = np.random.default_rng(seed)
    batch_size = min(batch_size, triples)
    per_epoch = triples // batch_size
    epochs = [
        rng.permutation(triples)[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        for _ in range(-(-steps // per_epoch))
    ]
    return np.concatenate(epochs)[:steps].astype(np.int32)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _train(
    plan: GraphPlan,
    sampler: str,
    relations: int,
    max_steps: int,
    arrays: Arrays,
    draw: Draw,
    batches: Array,
    seed: Array,
) -> tuple[Any, Array]:
    entities = arrays.known.num_entities
    of_tables, of_steps, of_caches = jax.random.split(jax.random.key(seed), 3)
    params = kge_init(of_tables, plan.model, entities, relations, plan.dimensions, plan.gamma)
    tx = restarting_adam(plan.learning_rate, max_steps, plan.drop)

    def step_with(sample: Any) -> Any:
        return make_kge_step(plan.model, tx, sample, alpha=draw.alpha, known=arrays.known)

    def batch_of(rows: Array) -> dict[str, Array]:
        return {"triples": arrays.train[rows], "weight": arrays.weight[rows]}

    start = init_kge_state(params, tx, of_steps)
    if sampler == "nscaching":
        return _train_with_caches(plan, step_with, batch_of, arrays, start, batches, of_caches)
    if sampler == "bernoulli":

        def sample(key: Array, triples: Array, side: str) -> Any:
            del side
            return sample_bernoulli(key, triples, arrays.head_probability, plan.negatives, entities)

    else:

        def sample(key: Array, triples: Array, side: str) -> Any:
            return draw.sample(key, triples, side, plan.negatives)

    step = step_with(sample)

    def body(state: KGEState, rows: Array) -> tuple[KGEState, Array]:
        state, metrics = step(state, batch_of(rows))
        return state, metrics["loss"]

    state, losses = jax.lax.scan(body, start, batches)
    return state.params, losses


def _train_with_caches(
    plan: GraphPlan,
    step_with: Any,
    batch_of: Any,
    arrays: Arrays,
    start: KGEState,
    batches: Array,
    key: Array,
) -> tuple[Any, Array]:
    """NSCaching: caches are refreshed at the end of each epoch, for all pairs at once."""
    entities = arrays.known.num_entities
    per_epoch = max(arrays.train.shape[0] // batches.shape[1], 1)
    first = {
        side: jax.random.randint(jax.random.fold_in(key, i), (len(keys), CACHE_SIZE), 0, entities)
        for i, (side, keys) in enumerate((("tail", arrays.tail_cache_key), ("head", arrays.head_cache_key)))
    }

    def refreshed(caches: dict[str, Array], params: Any, key: Array) -> dict[str, Array]:
        (h, r), (s, t) = arrays.tail_cache_key.T, arrays.head_cache_key.T
        score = {
            "tail": lambda c: kge_score(plan.model, params, h, r, c, side="tail"),
            "head": lambda c: kge_score(plan.model, params, c, s, t, side="head"),
        }
        keys = dict(zip(score, jax.random.split(key), strict=True))
        return {
            side: nscaching_refresh(keys[side], caches[side], score[side], FRESH_CANDIDATES, entities)
            for side in score
        }

    def body(carry: tuple[KGEState, dict[str, Array]], rows: Array) -> Any:
        state, caches = carry
        place = {"tail": arrays.tail_cache_row[rows], "head": arrays.head_cache_row[rows]}

        def sample(key: Array, triples: Array, side: str) -> Array:
            del triples
            return sample_cache(key, caches[side], place[side], plan.negatives)

        state, metrics = step_with(sample)(state, batch_of(rows))
        caches = jax.lax.cond(
            state.step % per_epoch == 0,
            lambda: refreshed(caches, state.params, jax.random.fold_in(key, state.step)),
            lambda: caches,
        )
        return (state, caches), metrics["loss"]

    (state, _), losses = jax.lax.scan(body, (start, first), batches)
    return state.params, losses


def train(
    plan: GraphPlan, graph: Graph, arrays: Arrays, arm: Arm, draw: Draw, steps: int, seed: int
) -> tuple[Any, np.ndarray, float]:
    """Trains with one arm.

    Args:
        plan: of the graph.
        graph: the graph.
        arrays: of `on_device`.
        arm: whose own ways of drawing, if it has any, are taken.
        draw: of `draws`.
        steps: updates.
        seed: of tables, batches and negatives.

    Returns:
        Tables, losses of all steps, and the seconds that it took, with compiling where it is the first of its
        kind.
    """
    batches = jnp.asarray(schedule(len(graph.train), plan.batch_size, steps, seed))
    sampler = arm.sampler if arm.sampler in ("bernoulli", "nscaching") else "sets"
    began = time.perf_counter()
    params, losses = jax.block_until_ready(
        _train(plan, sampler, len(graph.relations), steps, arrays, draw, batches, jnp.uint32(seed))
    )
    return params, np.asarray(losses), time.perf_counter() - began


def evaluate(
    model: str, params: Any, triples: np.ndarray, known: KnownTriples, chunk: int = 64
) -> dict[str, float]:
    """MRR, H@1 and H@10 of filtered, realistic ranks, both sides."""
    ranks = filtered_ranks(params, jnp.asarray(triples), known, chunk, model=model)
    metrics = ranking_metrics(ranks.realistic)
    return {name: float(metrics[name]) for name in ("MRR", "HITS@1", "HITS@10")}
