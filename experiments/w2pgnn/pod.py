"""The paper's scale on a pod: GCC's pre-training of many selections at once, and the grid of feasibilities.

Both are many independent problems, which lie on the mesh axis "data". All pairs and triples of GCC's seven
networks are 56 selections; with several seeds each there is one for every chip.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from experiments.w2pgnn.pretraining import (
    GCC_MOCO,
    Encoder,
    ViewBatch,
    init_pretraining,
    make_pretraining_step,
)
from jaxneg import graphs
from jaxneg.train import Target

MESH = {"data": -1}


@dataclass(frozen=True)
class PodScale:
    """What is compiled ahead of time."""

    part: Literal["pretraining", "feasibility"] = "pretraining"
    """A step of pre-training of every run, or the feasibility of every cell of the grid."""
    runs: int = 256
    """Pre-trainings at once: selections and seeds."""
    view_nodes: int = 128
    """Most nodes of a view; GCC's walks of 256 hops visit about as many."""
    cells: int = 4096
    """Of the grid: selections, downstream sets and seeds."""
    bases: int = 5
    """Graphons of a basis, as many as topological clusters."""
    resolution: int = 64
    """Side of the graphons."""
    steps: int = 100
    """Of Adam on the mixture."""
    encoder: Encoder = field(default_factory=lambda: GCC_MOCO)
    """GCC's."""

    def __post_init__(self) -> None:
        for name in ("runs", "view_nodes", "cells", "bases", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"pod.{name}: expected at least 1, got {getattr(self, name)}")
        if self.resolution < 2:
            raise ValueError(f"pod.resolution: expected at least 2, got {self.resolution}")


class GridState(NamedTuple):
    """The grid keeps nothing but a count."""

    step: Int[Array, ""]


def pod_target(pod: PodScale) -> Target:
    """The step and its abstract arguments.

    Args:
        pod: the sizes.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    return _pretraining_target(pod) if pod.part == "pretraining" else _feasibility_target(pod)


def _pretraining_target(pod: PodScale) -> Target:
    encoder = pod.encoder
    step = make_pretraining_step(encoder)

    def every(state: Any, batch: dict[str, ViewBatch]) -> tuple[Any, dict[str, Array]]:
        state, metrics = jax.vmap(step)(state, batch)
        return state, {name: values.mean() for name, values in metrics.items()}

    def start(key: Array) -> Any:
        return jax.vmap(lambda k: init_pretraining(encoder, k))(jax.random.split(key, pod.runs))

    shape = (pod.runs, encoder.batch, pod.view_nodes)
    views = jax.eval_shape(
        lambda: ViewBatch(
            jnp.zeros((*shape, encoder.features)),
            jnp.zeros((*shape, pod.view_nodes), jnp.uint8),
            jnp.zeros(shape[:2], jnp.int32),
        )
    )
    return Target(
        step=every,
        state=jax.eval_shape(start, jax.random.key(0)),  # pyright: ignore[reportArgumentType]
        batch={"first": views, "second": views},
        mesh=MESH,
        rules=(("", P("data")),),  # every array has the runs on its leading axis
        fsdp=None,
    )


def _feasibility_target(pod: PodScale) -> Target:
    def every(state: GridState, batch: dict[str, Array]) -> tuple[GridState, dict[str, Array]]:
        mesh: Any = jax.sharding.get_abstract_mesh()
        result = graphs.feasibility_grid(batch["bases"], batch["targets"], mesh=mesh, steps=pod.steps)
        return GridState(state.step + 1), {"zeta": result.zeta, "alpha": result.alpha}

    side = (pod.resolution, pod.resolution)
    return Target(
        step=every,
        state=GridState(jax.ShapeDtypeStruct((), jnp.int32)),  # pyright: ignore[reportArgumentType]
        batch={
            "bases": jax.ShapeDtypeStruct((pod.cells, pod.bases, *side), jnp.float32),
            "targets": jax.ShapeDtypeStruct((pod.cells, *side), jnp.float32),
        },
        mesh=MESH,
        fsdp=None,
    )
