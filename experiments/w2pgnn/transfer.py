"""Part A, controlled transfer: graphs of known graphons, so that only the generating mechanism differs.

Six graphons give the pre-training sets, five others, mixed of them or foreign, the downstream sets. A small
network learns to predict hidden node pairs of two pooled sets, and is judged on each downstream set, as it
is and after fine-tuning on a few graphs.
"""

from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from experiments.parallel import over_seeds
from jaxneg.graphs import graphon_at
from jaxneg.nn import pair_predictor

Mixture = dict[int, float]

PRETRAINING = (0, 1, 5, 9, 10, 11)
"""Kinds of `jaxneg.graphs.graphon_at`."""
DOWNSTREAM: tuple[Mixture, ...] = (
    {0: 0.5, 5: 0.5},
    {10: 0.5, 11: 0.5},
    {3: 1.0},
    {12: 1.0},
    {1: 0.5, 9: 0.5},
)
NEGATIVE = 3
"""The downstream set whose mechanism is foreign to every pre-training set: edges across the halves."""


@dataclass(frozen=True)
class Transfer:
    """Sizes of part A."""

    worlds: int = 4
    """Draws of all graphs, each of which measures every claim once."""
    seeds: int = 3
    """Trainings of each selection in a world, whose results are averaged."""
    nodes: int = 32
    """Of every graph."""
    graphs: int = 200
    """Of each pre-training set."""
    estimated: int = 100
    """Of these, the graphs that a graphon is estimated of."""
    tuning: int = 4
    """Downstream graphs for fine-tuning."""
    evaluation: int = 100
    """Downstream graphs for evaluation."""
    unused: int = 16
    """Further downstream graphs, which only the graphon sees."""
    steps: int = 300
    """Of pre-training."""
    batch: int = 16
    """Graphs of a step."""
    tuning_steps: int = 15
    """Of fine-tuning, on all its graphs."""
    hidden: float = 0.2
    """Share of the node pairs that are hidden."""
    learning_rate: float = 5e-3
    """Of Adam."""
    resolution: int = 8
    """Side of the graphons whose distance is taken."""
    alpha_steps: int = 50
    """Adam steps on the mixture of a basis."""
    clusters: int = 5
    """Of the topological basis."""

    def __post_init__(self) -> None:
        positive = (
            "worlds",
            "seeds",
            "graphs",
            "tuning",
            "evaluation",
            "steps",
            "batch",
            "tuning_steps",
            "clusters",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"transfer.{name}: expected at least 1, got {getattr(self, name)}")
        if self.nodes < 8:
            raise ValueError(f"transfer.nodes: expected at least 8, got {self.nodes}")
        if not 1 <= self.estimated <= self.graphs:
            raise ValueError(f"transfer.estimated: expected 1 to {self.graphs} graphs, got {self.estimated}")
        if self.unused < 0:
            raise ValueError(f"transfer.unused: expected at least 0, got {self.unused}")
        if not 0 < self.hidden < 1 or self.pairs < 1:
            raise ValueError(f"transfer.hidden: expected a share between 0 and 1, got {self.hidden}")
        if not self.learning_rate > 0:
            raise ValueError(f"transfer.learning_rate: expected a positive number, got {self.learning_rate}")
        if self.resolution < 2 or self.alpha_steps < 1:
            raise ValueError(
                "transfer.resolution, transfer.alpha_steps: expected at least 2 and 1, got "
                f"{self.resolution} and {self.alpha_steps}"
            )

    @property
    def pairs(self) -> int:
        """Number of the node pairs that are hidden."""
        return round(self.hidden * self.nodes * (self.nodes - 1) / 2)


class World(NamedTuple):
    """One draw of all graphs."""

    pretraining: Float[np.ndarray, "sets graphs nodes nodes"]
    downstream: Float[np.ndarray, "targets graphs nodes nodes"]


def probability(mixture: Mixture, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A mixture of graphons at points of the unit square.

    Args:
        mixture: weights by graphon.
        u: coordinates.
        v: likewise.

    Returns:
        Probabilities of an edge.

    Example:
        >>> round(float(probability({0: 0.5, 5: 0.5}, np.array(1.0), np.array(1.0))), 2)
        0.25
    """
    return np.asarray(sum(weight * graphon_at(kind, u, v) for kind, weight in mixture.items()))


def draw_graphs(rng: np.random.Generator, mixture: Mixture, count: int, nodes: int) -> np.ndarray:
    """Graphs of a graphon: uniform coordinates, independent edges.

    Args:
        rng: random numbers.
        mixture: of graphons.
        count: graphs.
        nodes: of each.

    Returns:
        Adjacencies, float32 ``[count, nodes, nodes]``.
    """
    u = rng.random((count, nodes))
    upper = np.triu(rng.random((count, nodes, nodes)) < probability(mixture, u[:, :, None], u[:, None]), 1)
    return (upper | np.swapaxes(upper, 1, 2)).astype(np.float32)


def draw_world(seed: int, sizes: Transfer) -> World:
    """All graphs of part A.

    Args:
        seed: of the draw.
        sizes: how many.

    Returns:
        The graphs; of a downstream set the first are for fine-tuning, the last for evaluation.
    """
    rng = np.random.default_rng([seed, 17])
    many = sizes.tuning + sizes.unused + sizes.evaluation
    return World(
        np.stack([draw_graphs(rng, {kind: 1.0}, sizes.graphs, sizes.nodes) for kind in PRETRAINING]),
        np.stack([draw_graphs(rng, mixture, many, sizes.nodes) for mixture in DOWNSTREAM]),
    )


def selections_of(sets: int, size: int) -> np.ndarray:
    """All selections of so many sets.

    Args:
        sets: number of sets.
        size: of a selection.

    Returns:
        Whether each selection holds each set, bool ``[selections, sets]``.

    Example:
        >>> selections_of(3, 2).astype(int).tolist()
        [[1, 1, 0], [1, 0, 1], [0, 1, 1]]
    """
    chosen = list(combinations(range(sets), size))
    return np.array([[number in selection for number in range(sets)] for selection in chosen])


def hide_pairs(
    key: PRNGKeyArray, adj: Float[Array, "graphs nodes nodes"], pairs: int
) -> tuple[Float[Array, "graphs nodes nodes"], Int[Array, "graphs pairs 2"], Float[Array, "graphs pairs"]]:
    """Hides as many node pairs of each graph, at random.

    Args:
        key: random key.
        adj: adjacencies.
        pairs: how many, of all pairs, joined or not.

    Returns:
        What is visible, the hidden pairs, and whether they are joined.
    """
    n = adj.shape[-1]
    every = jnp.asarray(np.stack(np.triu_indices(n, 1), -1), jnp.int32)
    order = jnp.argsort(jax.random.uniform(key, (len(adj), len(every))), axis=-1)
    hidden = every[order[:, :pairs]]
    graph = jnp.arange(len(adj))[:, None]
    i, j = hidden[..., 0], hidden[..., 1]
    return adj.at[graph, i, j].set(0).at[graph, j, i].set(0), hidden, adj[graph, i, j]


@partial(jax.jit, static_argnames="sizes")
def train_selections(
    keys: PRNGKeyArray,
    members: Bool[Array, "runs sets"],
    pretraining: Float[Array, "sets graphs nodes nodes"],
    downstream: Float[Array, "targets graphs nodes nodes"],
    key: PRNGKeyArray,
    *,
    sizes: Transfer,
) -> dict[str, Array]:
    """Pre-trains a network on each selection, judges it, fine-tunes it, judges it again; all in one scan.

    Args:
        keys: of each run: initialisation and batches.
        members: the sets that each run pools; a run without any is not pre-trained.
        pretraining: their graphs.
        downstream: graphs of the downstream sets.
        key: of the hidden pairs of the evaluation, the same for all runs.
        sizes: of part A.

    Returns:
        ``zero_shot`` and ``tuned``, the mean cross-entropy over hidden pairs in nats, ``[runs, targets]``,
        and ``curve``, the loss of pre-training, ``[runs, steps]``.
    """
    model, tx = pair_predictor(), optax.adam(sizes.learning_rate)

    def cross_entropy(params: Any, visible: Array, pairs: Array, joined: Array) -> Array:
        return optax.sigmoid_binary_cross_entropy(model.apply(params, visible, pairs), joined).mean()

    def update(carry: tuple[Any, Any], hidden: tuple[Array, Array, Array]) -> tuple[tuple[Any, Any], Array]:
        params, opt_state = carry
        loss, gradient = jax.value_and_grad(cross_entropy)(params, *hidden)
        updates, opt_state = tx.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    held = jax.vmap(lambda k, graphs: hide_pairs(k, graphs[-sizes.evaluation :], sizes.pairs))(
        jax.random.split(key, len(downstream)), downstream
    )

    def judge(params: Any) -> Array:
        return jax.lax.map(lambda hidden: cross_entropy(params, *hidden), held)

    def fine_tune(params: Any, keys: Array, graphs: Array) -> Any:
        def step(carry: Any, key: Array) -> tuple[Any, Array]:
            return update(carry, hide_pairs(key, graphs[: sizes.tuning], sizes.pairs))

        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

    def one(key: Array, chosen: Array) -> dict[str, Array]:
        of_params, of_steps, of_tuning = jax.random.split(key, 3)
        start = model.init(of_params)
        weights = jnp.log(chosen.astype(jnp.float32))

        def step(carry: Any, key: Array) -> tuple[Any, Array]:
            of_set, of_graph, of_pairs = jax.random.split(key, 3)
            # Without any member the draw is of no use, and its result is dropped below.
            at = jax.random.categorical(of_set, jnp.where(chosen.any(), weights, 0), shape=(sizes.batch,))
            graphs = pretraining[at, jax.random.randint(of_graph, (sizes.batch,), 0, pretraining.shape[1])]
            return update(carry, hide_pairs(of_pairs, graphs, sizes.pairs))

        (trained, _), curve = jax.lax.scan(
            step, (start, tx.init(start)), jax.random.split(of_steps, sizes.steps)
        )
        params = jax.tree.map(lambda a, b: jnp.where(chosen.any(), a, b), trained, start)
        tuning = jax.random.split(of_tuning, (len(downstream), sizes.tuning_steps))

        def on_target(index: Array) -> Array:
            tuned = fine_tune(params, tuning[index], downstream[index])
            return cross_entropy(tuned, *(part[index] for part in held))

        return {
            "zero_shot": judge(params),
            "tuned": jax.lax.map(on_target, jnp.arange(len(downstream))),
            "curve": curve,
        }

    return over_seeds(one)(keys, members)


def transfer_losses(
    seed: int, world: World, sizes: Transfer, selections: np.ndarray
) -> dict[str, np.ndarray]:
    """Every selection, all sets together and no pre-training, each by several trainings, in one world.

    Args:
        seed: of the world.
        world: its graphs.
        sizes: of part A.
        selections: ``[selections, sets]``.

    Returns:
        ``zero_shot`` and ``tuned``, ``[seeds, selections + 2, targets]``: the selections, then all sets,
        then none; and ``curve``, ``[selections + 2, steps]``, a mean over the trainings.
    """
    sets = selections.shape[1]
    members = np.concatenate([selections, np.ones((1, sets), bool), np.zeros((1, sets), bool)])
    runs = np.tile(members, (sizes.seeds, 1))
    of_seeds = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), sizes.seeds)
    # A training's initialisation and draws are those of its seed, alike for all selections.
    keys = jnp.repeat(of_seeds, len(members))
    found = train_selections(
        keys,
        jnp.asarray(runs),
        jnp.asarray(world.pretraining),
        jnp.asarray(world.downstream),
        jax.random.fold_in(jax.random.key(seed), 2),
        sizes=sizes,
    )
    shaped = {name: np.asarray(value).reshape(sizes.seeds, len(members), -1) for name, value in found.items()}
    shaped["curve"] = shaped["curve"].mean(0)
    return shaped
