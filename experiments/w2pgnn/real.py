"""Part B, real networks: contrastive pre-training on selections of networks, judged by classifying nodes of
others.

Each encoder is pre-trained on random-walk views of a selection, frozen, and embeds every node of the
downstream networks; a ridge classifier on the embeddings tells the nodes' labels.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray

from experiments.parallel import over_seeds
from experiments.w2pgnn.networks import EMBEDDED, FILE, Network, load_network
from experiments.w2pgnn.pretraining import (
    Encoder,
    ViewBatch,
    init_pretraining,
    inputs,
    make_pretraining_step,
    model_of,
)
from experiments.w2pgnn.views import Views, graph_views, walk_views
from jaxneg.nn import mean_statistics

PRETRAINING = ("pubmed", "film", "facebook_pages", "github", "twitch_de", "wiki_crocodile")
DOWNSTREAM = ("usa_airport", "europe_airport", "brazil_airport", "wiki_chameleon")


@dataclass(frozen=True)
class Real:
    """Sizes of part B."""

    pretraining: tuple[str, ...] = PRETRAINING
    """Networks by name, or edges:PATH, tu:FOLDER, smiles:FILE#DOMAIN."""
    downstream: tuple[str, ...] = DOWNSTREAM
    """Likewise; nodes, or the graphs of a collection, must have labels."""
    selected: tuple[int, ...] = (2,)
    """Numbers of networks in a selection."""
    seeds: int = 6
    """Trainings of each selection, with views, initialisation and folds of their own."""
    seed_nodes: int = 1000
    """Of each pre-training network, two views each; all where it has fewer."""
    restart: float = 0.5
    """Probability that a walk returns to its seed."""
    walk_steps: int = 128
    """Of a walk."""
    view_nodes: int = 32
    """Most nodes of a view."""
    ego_graphs: int = 60
    """2-hop ego networks of each network (graphs of a collection), of which graphons are estimated."""
    ego_least: int = 8
    """Nodes of such a graph, at least."""
    ego_most: int = 300
    """Likewise, at most."""
    resolution: int = 32
    """Side of the graphons whose distance is taken."""
    alpha_steps: int = 30
    """Adam steps on the mixture of a basis."""
    clusters: int = 5
    """Of the topological basis."""
    folds: int = 5
    """Of the classifier's cross-validation."""
    ridge: float = 1.0
    """Of the classifier, on standardised embeddings."""
    encoder: Encoder = field(default_factory=Encoder)
    """What is pre-trained."""

    def __post_init__(self) -> None:
        for name in (
            "seeds",
            "seed_nodes",
            "walk_steps",
            "ego_graphs",
            "ego_least",
            "alpha_steps",
            "clusters",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"real.{name}: expected at least 1, got {getattr(self, name)}")
        if len(self.pretraining) < 2 or not self.downstream:
            raise ValueError(
                "real.pretraining, real.downstream: expected at least two networks and one, got "
                f"{len(self.pretraining)} and {len(self.downstream)}"
            )
        if both := set(self.pretraining) & set(self.downstream):
            raise ValueError(
                f"real.downstream: expected other networks than real.pretraining, got {min(both)!r}"
            )
        if not self.selected or not all(1 <= size < len(self.pretraining) for size in self.selected):
            raise ValueError(
                f"real.selected: expected numbers from 1 to {len(self.pretraining) - 1}, got {self.selected}"
            )
        if not 0 <= self.restart < 1:
            raise ValueError(f"real.restart: expected at least 0 and below 1, got {self.restart}")
        for name in ("view_nodes", "resolution", "folds"):
            if getattr(self, name) < 2:
                raise ValueError(f"real.{name}: expected at least 2, got {getattr(self, name)}")
        if self.ego_most < self.ego_least:
            raise ValueError(f"real.ego_most: expected at least {self.ego_least}, got {self.ego_most}")
        if not self.ridge > 0:
            raise ValueError(f"real.ridge: expected a positive number, got {self.ridge}")


STAND_IN = ("usa_airport", "europe_airport", "facebook_ego348"), ("brazil_airport",)
"""Pre-training and downstream networks, where the usual ones are not there: those that lie beside this
module."""


class Networks(NamedTuple):
    """The networks of a run."""

    pretraining: list[Network]
    downstream: list[Network]
    selected: tuple[int, ...]
    stand_in: bool
    """Whether these are the embedded ones, in place of those that were asked for."""


def load_networks(real: Real) -> Networks:
    """Reads the networks; where no named one can be had, for want of the data file, the embedded ones.

    Args:
        real: names them.

    Returns:
        The networks.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a network is none, or a downstream one has no labels.
    """
    names = (*real.pretraining, *real.downstream)
    of_file = [name for name in names if ":" not in name]
    # Who names a file of his own wants to know that it is missing.
    missing = not FILE.is_file() and of_file == list(names) and not set(names) <= set(EMBEDDED)
    first, second = STAND_IN if missing else (real.pretraining, real.downstream)
    networks = [load_network(name) for name in (*first, *second)]
    found = Networks(
        networks[: len(first)], networks[len(first) :], (1, 2) if missing else real.selected, missing
    )
    for network in found.downstream:
        if network.labels is None:
            raise ValueError(
                f"{network.name}: a downstream network needs labels: add {network.name}.nodelabel beside "
                "its edge list, or choose another"
            )
        counts = np.bincount(network.labels)
        if len(counts) < 2 or counts.min() < real.folds:
            raise ValueError(
                f"{network.name}: expected at least two classes with {real.folds} members each, one for "
                f"each fold, got {counts.tolist()}"
            )
    return found


def pretraining_views(networks: list[Network], real: Real, seed: int) -> Views:
    """Two views of random nodes of every network.

    Args:
        networks: the networks; all give as many nodes, some twice where a network has fewer.
        real: sizes.
        seed: of nodes and walks.

    Returns:
        Views, ``[networks, seed_nodes, 2, ...]``.
    """
    rng = np.random.default_rng([seed, 23])
    parts = []
    for network in networks:
        joined = np.flatnonzero(network.degree)  # a node alone is a view that looks like any other
        nodes = rng.choice(joined, real.seed_nodes, replace=len(joined) < real.seed_nodes)
        parts.append(_walks(network, np.stack([nodes, nodes], 1), real, rng))
    return Views(*(np.stack(part) for part in zip(*parts, strict=True)))


def downstream_views(network: Network, real: Real, seed: int) -> Views:
    """A view of every node of a network, or the graphs of a collection.

    Args:
        network: the network.
        real: sizes.
        seed: of the walks.

    Returns:
        Views, ``[items, ...]``.
    """
    if network.graph is not None:
        return graph_views(network, real.view_nodes, real.encoder.positions)
    return _walks(network, np.arange(network.n), real, np.random.default_rng([seed, 29]))


def _walks(network: Network, nodes: np.ndarray, real: Real, rng: np.random.Generator) -> Views:
    return walk_views(
        network,
        nodes,
        rng,
        restart=real.restart,
        steps=real.walk_steps,
        most=real.view_nodes,
        positions=real.encoder.positions,
    )


@partial(jax.jit, static_argnames="encoder")
def train_encoders(
    key: PRNGKeyArray,
    members: Bool[Array, "runs networks"],
    views: ViewBatch,
    downstream: tuple[ViewBatch, ...],
    *,
    encoder: Encoder,
) -> tuple[tuple[Array, ...], Array]:
    """Pre-trains an encoder on each selection, in one scan, and embeds the downstream views.

    Args:
        key: of initialisation and batches, alike for all selections.
        members: the networks of each run; a run without any is not pre-trained.
        views: of the pre-training networks, ``[networks, nodes, 2, ...]``.
        downstream: views of each downstream network.
        encoder: what learns.

    Returns:
        Embeddings of each downstream network, ``[runs, items, width]``; the loss, ``[runs, steps]``.
    """
    model, step = model_of(encoder), make_pretraining_step(encoder)

    def drawn(key: Array, chosen: Array) -> dict[str, ViewBatch]:
        of_network, of_node = jax.random.split(key)
        weights = jnp.where(chosen.any(), jnp.log(chosen.astype(jnp.float32)), 0)
        at = jax.random.categorical(of_network, weights, shape=(encoder.batch,))
        node = jax.random.randint(of_node, (encoder.batch,), 0, views.sizes.shape[1])
        pair = jax.tree.map(lambda leaf: leaf[at, node], views)
        return {
            name: jax.tree.map(lambda leaf, i=i: leaf[:, i], pair)
            for i, name in enumerate(("first", "second"))
        }

    def one(chosen: Array) -> tuple[tuple[Array, ...], Array]:
        of_state, of_draws = jax.random.split(key)
        start = init_pretraining(encoder, of_state)
        keys = jax.random.split(of_draws, encoder.steps)

        def body(state, key):
            state, metrics = step(state, drawn(key, chosen))
            return state, metrics["loss"]

        trained, curve = jax.lax.scan(body, start, keys)
        params = jax.tree.map(lambda a, b: jnp.where(chosen.any(), a, b), trained.encoder, start.encoder)
        batches = [drawn(jax.random.fold_in(of_draws, number), chosen)["first"] for number in range(4)]
        stats = mean_statistics([model.statistics(params, *inputs(batch)) for batch in batches])
        embedded = tuple(
            # In parts, for the features of all nodes' views may not fit on a device.
            jax.lax.map(lambda view: model.evaluate(params, stats, *inputs(view)), each, batch_size=256)
            for each in downstream
        )
        return embedded, curve

    return over_seeds(one)(members)


def accuracy(embeddings: np.ndarray, labels: np.ndarray, real: Real, seed: int) -> float:
    """Accuracy of a ridge classifier on frozen embeddings, by stratified cross-validation.

    Args:
        embeddings: ``[items, width]``.
        labels: classes.
        real: ridge and folds.
        seed: of the folds.

    Returns:
        The mean over the folds, 0 to 1.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(real.folds, shuffle=True, random_state=seed)
    classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=real.ridge))
    return float(np.mean(cross_val_score(classifier, embeddings, labels, cv=folds)))


def accuracies(seed: int, networks: Networks, real: Real, selections: np.ndarray) -> dict[str, np.ndarray]:
    """Every selection, all networks together and no pre-training, with one seed.

    Args:
        seed: of views, training and folds.
        networks: the networks.
        real: sizes.
        selections: ``[selections, networks]``.

    Returns:
        ``accuracy``, ``[selections + 2, targets]``: the selections, then all networks, then none; and
        ``curve``.
    """
    sets = selections.shape[1]
    members = np.concatenate([selections, np.ones((1, sets), bool), np.zeros((1, sets), bool)])
    views = ViewBatch(*map(jnp.asarray, pretraining_views(networks.pretraining, real, seed)))
    downstream = tuple(
        ViewBatch(*map(jnp.asarray, downstream_views(network, real, seed))) for network in networks.downstream
    )
    embedded, curve = train_encoders(
        jax.random.key(seed), jnp.asarray(members), views, downstream, encoder=real.encoder
    )
    found = [
        [accuracy(of_run, np.asarray(network.labels), real, seed) for of_run in np.asarray(of_network)]
        for of_network, network in zip(embedded, networks.downstream, strict=True)
    ]
    return {"accuracy": np.array(found).T, "curve": np.asarray(curve)}
