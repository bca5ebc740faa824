"""LEMON's training step at the size of Wikidata5M on 256 chips: the entity table by rows over ``model``.

Wikidata5M (Wang et al., arXiv:1911.06136) has 4,594,485 entities, 822 relations and 20,614,279 training
triples. Neighbourhoods and known triples are part of the state, one copy on each chip: they are small beside
the table, and their look-ups are local that way.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, PRNGKeyArray

from jaxneg.kg import (
    MODELS,
    KGEState,
    KnownTriples,
    Neighbourhoods,
    default_clusters,
    init_kge_state,
    kge_init,
    make_kge_step,
    sample_lemon,
)
from jaxneg.kg.candidate_sets import CandidateSets
from jaxneg.kg.known_triples import SortedTriples
from jaxneg.train import Target

RULES = ((r"^entity$", P("model", None)),)


@dataclass(frozen=True)
class PodScale:
    """The step that is compiled ahead of time."""

    entities: int = 4_594_485
    """Of Wikidata5M; the table gets rows of zeros until the mesh axis "model" divides it."""
    relations: int = 822
    """Of Wikidata5M."""
    triples: int = 20_614_279
    """Training triples, which no negative may repeat."""
    model: str = "RotatE"
    """TransE, DistMult, ComplEx, RotatE or pRotatE."""
    dimensions: int = 256
    """RotatE keeps two numbers for each: 512 numbers an entity."""
    batch_size: int = 8192
    """Positives of a step, on all chips together."""
    negatives: int = 256
    """Of each positive."""
    update: str = "all"
    """"all" rows of the entity table, or the "touched" ones."""
    data: int = 16
    """Size of the mesh axis that shards batches."""
    model_axis: int = 16
    """Size of the mesh axis that shards the entity table."""

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"pod.model: expected one of {', '.join(MODELS)}, got {self.model!r}")
        if self.batch_size % self.data:
            raise ValueError(
                f"pod.batch_size: expected a multiple of pod.data = {self.data}, got {self.batch_size}"
            )


class PodState(NamedTuple):
    """What a step passes on."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    key: PRNGKeyArray
    neighbourhoods: Neighbourhoods
    known: KnownTriples


def lemon_step_target(pod: PodScale, mix: float, alpha: float | None, learning_rate: float) -> Target:
    """The step and its abstract arguments.

    Args:
        pod: the sizes.
        mix: of LEMON.
        alpha: adversarial temperature; None: all negatives count alike.
        learning_rate: of Adam.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    tx = optax.adam(learning_rate)

    def step(state: PodState, batch: dict[str, Array]) -> tuple[PodState, dict[str, Array]]:
        def sample(key: Array, triples: Array, side: str) -> Array:
            anchors = triples[:, 2 if side == "tail" else 0]
            return sample_lemon(key, state.neighbourhoods, anchors, pod.negatives, mix)

        update = make_kge_step(
            pod.model, tx, sample, alpha=alpha, known=state.known, rounds=2, update=pod.update
        )
        inner, metrics = update(KGEState(*state[:4]), batch)
        return PodState(*inner, state.neighbourhoods, state.known), metrics

    def start(key: PRNGKeyArray) -> KGEState:
        params = kge_init(
            key,
            pod.model,
            pod.entities,
            pod.relations,
            pod.dimensions,
            gamma=9.0,
            row_multiple=pod.model_axis,
        )
        return init_kge_state(params, tx, key)

    def ids(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    clusters = default_clusters(pod.entities)
    # With thousands of entities a cluster is its own neighbourhood.
    neighbourhoods = Neighbourhoods(
        members=ids(pod.entities),
        start=ids(clusters + 1),
        order=ids(clusters, clusters),
        labels=ids(pod.entities),
        own=CandidateSets(ids(pod.entities), ids(clusters + 1)),
    )
    # A hub of Wikidata5M has up to millions of triples.
    side = SortedTriples(
        ids(pod.entities + 1), ids(pod.triples + 1), ids(pod.triples + 1), steps=22, longest=2**21
    )
    inner = jax.eval_shape(start, jax.random.key(0))  # pyright: ignore[reportArgumentType]
    return Target(
        step=step,
        state=PodState(*inner, neighbourhoods, KnownTriples(side, side, pod.entities)),  # pyright: ignore
        batch={
            "triples": ids(pod.batch_size, 3),
            "weight": jax.ShapeDtypeStruct((pod.batch_size,), jnp.float32),
        },
        mesh={"data": pod.data, "model": pod.model_axis},
        rules=RULES,
        fsdp=None,
    )
