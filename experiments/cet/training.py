"""Trains relevance and selection models on triples: every arm of both experiments is the same few lines.

A triple is (query, positive, negative) in numbers. What the models see of a (query, document) pair comes from
a function of the problem, so that a whole training, all its steps and the evaluation, is one program.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from experiments.parallel import over_seeds
from jaxneg.nn import Model, mlp
from jaxneg.retrieval import coupled_weights, init_cet, make_cet_step, mrr_at_k, ndcg_at_k

CUTOFF = 10
"""Rank at which both metrics are cut off."""
RECENT = 100
"""Last steps whose triples tell what false negatives weigh."""

See = Callable[[Any, Array, Array], tuple[Array, Array]]
"""``(data, queries [n], documents [n]) -> (content [n, a], what the pooling process saw [n, b])``."""

Stage = Callable[[int, Callable[[], dict[str, np.ndarray]]], dict[str, np.ndarray]]
"""``(place of an arm, how to measure it) -> its results``, from where they were kept if they were."""


@dataclass(frozen=True)
class Arm:
    """A way of training the relevance model."""

    name: str
    negatives: str
    """Where they come from."""
    weighting: Literal["coupled", "constant", "none"] = "none"
    tau: float = 1.0
    normalise: Literal["none", "mean"] = "none"
    positive_ips: bool = False
    inputs: Literal["separate", "shared"] = "separate"
    filter: Literal["", "oracle", "denoise", "perc-pos"] = ""
    """Negatives that get no weight."""


@dataclass(frozen=True)
class Recipe:
    """What all arms of an experiment share."""

    hidden: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    dropout: float = 0.0
    """Share of the hidden units that are left out in training."""


class Run(NamedTuple):
    """One training; a leading axis where there are several."""

    key: PRNGKeyArray
    triples: Int[Array, "steps batch 3"]
    pair_weight: Float[Array, "steps batch"]
    """1, or 0 for a negative that the arm's filter leaves out."""
    false: Bool[Array, "steps batch"]
    """True where the negative is relevant."""


class Listed(NamedTuple):
    """What is ranked: candidates of each query, and all true relevance."""

    documents: Int[Array, "queries candidates"]
    relevant: Bool[Array, "queries documents"]


def without_stages(place: int, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Keeps nothing."""
    del place
    return compute()


def scorer(features: int, recipe: Recipe) -> Model:
    """A perceptron of one hidden layer that scores rows; its units drop out where it gets a key.

    Args:
        features: numbers in a row.
        recipe: hidden units and dropout.

    Returns:
        ``init(key)`` and ``apply(params, rows [n, features], key=None) -> scores [n]``.

    Example:
        >>> model = scorer(3, Recipe(hidden=4))
        >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 3))).shape
        (5,)
    """
    layer, output = mlp(features, (), (recipe.hidden,)), mlp(recipe.hidden, (), (1,))

    def init(key: PRNGKeyArray) -> dict[str, Any]:
        first, last = jax.random.split(key)
        return {"hidden": layer.init(first), "output": output.init(last)}

    def apply(params: dict[str, Any], rows: Array, key: PRNGKeyArray | None = None) -> Array:
        (units,) = layer.apply(params["hidden"], rows)
        units = jnp.tanh(units)
        if key is not None and recipe.dropout:
            kept = jax.random.bernoulli(key, 1 - recipe.dropout, units.shape)
            units = jnp.where(kept, units / (1 - recipe.dropout), 0.0)
        (scores,) = output.apply(params["output"], units)
        return scores[:, 0]

    return Model(init, apply)


def draw_triples(
    rng: np.random.Generator,
    label: Bool[np.ndarray, "queries documents"],
    negatives: Int[np.ndarray, "queries n"],
    queries: Int[np.ndarray, "some"],
    steps: int,
    batch: int,
) -> Int[np.ndarray, "steps batch 3"]:
    """Triples: a query with a label and a negative, one of its positives, one of its negatives, uniformly.

    Args:
        rng: where chance comes from.
        label: what is labelled positive.
        negatives: documents of each query, -1 where there is none.
        queries: those to draw from.
        steps: batches.
        batch: triples in a batch.

    Returns:
        Query, positive and negative of each.

    Raises:
        ValueError: no query has both.
    """
    usable = queries[label[queries].any(axis=1) & (negatives[queries] >= 0).any(axis=1)]
    if usable.size == 0:
        raise ValueError(
            f"none of {len(queries)} queries has both a labelled document and a negative: "
            "make the pool deeper, or the list of negatives longer"
        )
    query = rng.choice(usable, (steps, batch))

    def one_of_each(where: np.ndarray) -> np.ndarray:
        """A random column that is true, for each drawn query."""
        order, count = np.argsort(~where, axis=1, kind="stable"), where.sum(axis=1)
        return order[query, (rng.random(query.shape) * count[query]).astype(int)]

    negative = negatives[query, one_of_each(negatives >= 0)]
    return np.stack([query, one_of_each(label), negative], axis=-1).astype(np.int32)


def train(
    see: See, data: Any, listed: Listed, runs: Run, arm: Arm, recipe: Recipe, *, own_data: bool = False
) -> dict[str, np.ndarray]:
    """Trains an arm in every run, and ranks with its relevance model.

    Args:
        see: what the models see of pairs.
        data: the first argument of ``see``.
        listed: what is ranked.
        runs: seeds, or seeds and folds, on one leading axis.
        arm: how to train.
        recipe: what all arms share.
        own_data: whether each run has data and a list of its own, on the leading axis of theirs.

    Returns:
        ``ndcg`` and ``mrr`` ``[runs, queries]`` at 10, ``scores`` ``[runs, queries, candidates]`` of the
        relevance model, and ``false_weight`` ``[runs]``, the mean weight of false negatives over that of true
        ones at the end (NaN where nothing is weighed).
    """
    choices = arm.weighting, arm.normalise, arm.positive_ips, arm.inputs
    program = _program(see, recipe, own_data, *choices)
    return {k: np.asarray(v) for k, v in program(data, listed, runs, jnp.float32(arm.tau)).items()}


@lru_cache
def _program(
    see: See, recipe: Recipe, own_data: bool, weighting: Any, normalise: Any, positive_ips: bool, inputs: Any
) -> Callable[..., dict[str, Array]]:
    """One compilation for all arms that make the same choices; tau is an argument."""

    def seen(data: Any, queries: Array, documents: Array) -> dict[str, Array]:
        content, pooling = see(data, queries, documents)
        if inputs == "shared":
            content = pooling = jnp.concatenate([content, pooling], axis=1)
        return {"R": content, "S": pooling}

    def one(data: Any, listed: Listed, tau: Array, run: Run) -> dict[str, Array]:
        probe = seen(data, run.triples[0, :1, 0], run.triples[0, :1, 1])
        models = {name: scorer(rows.shape[1], recipe) for name, rows in probe.items()}
        decay = optax.adamw(recipe.learning_rate, weight_decay=recipe.weight_decay)
        tx = optax.chain(optax.clip_by_global_norm(recipe.clip_norm), decay)
        step = make_cet_step(
            models["R"].apply,
            models["S"].apply,
            tx,
            tx,
            tau,
            weighting=weighting,
            normalise=normalise,
            positive_ips=positive_ips,
            dropout=recipe.dropout > 0,
        )
        for_R, for_S, for_run = jax.random.split(run.key, 3)
        state = init_cet(for_run, models["R"].init(for_R), models["S"].init(for_S), tx, tx)

        def update(state: Any, of_step: Any) -> tuple[Any, None]:
            (query, positive, negative), weight = of_step
            pos, neg = seen(data, query, positive), seen(data, query, negative)
            batch = {m: {"pos": pos[m], "neg": neg[m]} for m in models}
            return step(state, batch, None, weight)[0], None

        by_column = jnp.moveaxis(run.triples, -1, 1)
        columns = tuple(by_column[:, i] for i in range(3))
        state, _ = jax.lax.scan(update, state, (columns, run.pair_weight))

        queries, candidates = listed.documents.shape
        rows = jnp.repeat(jnp.arange(queries), candidates)
        ranked = seen(data, rows, jnp.maximum(listed.documents, 0).reshape(-1))["R"]
        scores = models["R"].apply(state.params["R"], ranked).reshape(queries, candidates)
        found = listed.documents >= 0
        everywhere = jnp.full(listed.relevant.shape, -jnp.inf)
        place = jnp.where(found, listed.documents, listed.relevant.shape[1])  # beyond the end: dropped
        everywhere = everywhere.at[jnp.arange(queries)[:, None], place].set(scores, mode="drop")
        return {
            "ndcg": ndcg_at_k(everywhere, listed.relevant, CUTOFF),
            "mrr": mrr_at_k(everywhere, listed.relevant, CUTOFF),
            "scores": scores,
            "false_weight": _false_weight(data, state.params, models, tau, run, by_column),
        }

    def _false_weight(
        data: Any, params: Any, models: dict[str, Model], tau: Array, run: Run, by_column: Array
    ) -> Array:
        if weighting == "none":
            return jnp.full((), jnp.nan)
        query, positive, negative = (by_column[-RECENT:, i].reshape(-1) for i in range(3))
        false = run.false[-RECENT:].reshape(-1)
        sides = {"pos": positive, "neg": negative} if positive_ips else {"neg": negative}
        found = {
            f"{side}_{m}": models[m].apply(params[m], seen(data, query, documents)[m])
            for side, documents in sides.items()
            for m in models
        }
        weight, _ = coupled_weights(found.pop("neg_R"), found.pop("neg_S"), tau, **found)
        return jnp.mean(weight, where=false) / jnp.mean(weight, where=~false)

    def all_runs(data: Any, listed: Listed, runs: Run, tau: Array) -> dict[str, Array]:
        if own_data:
            return over_seeds(lambda data, listed, run: one(data, listed, tau, run))(data, listed, runs)
        return over_seeds(lambda run: one(data, listed, tau, run))(runs)

    return jax.jit(all_runs)
