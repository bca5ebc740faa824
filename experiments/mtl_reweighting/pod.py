"""A Nash-MTL step that fills a pod: the same network, wide, with its Jacobian sharded like its parameters."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from experiments.mtl_reweighting.methods import weighted_step
from experiments.mtl_reweighting.network import RULES, init_network, is_trunk, squared_errors
from jaxneg.train import Target, TrainState, init_state


def nash_step_target(
    width: int, depth: int, tasks: int, batch: int, mesh: Mapping[str, int], features: int, outputs: int
) -> Target:
    """The Nash-MTL step of a multi-task network, with the shapes to compile it for.

    Args:
        width: units of a hidden layer.
        depth: hidden layers.
        tasks: heads, and rows of the Jacobian.
        batch: examples of a global batch.
        mesh: axes ``data`` and ``model``.
        features: numbers in an example.
        outputs: numbers that a head predicts.

    Returns:
        The step, its state, its batch and how they lie on the mesh.
    """
    step, transform = weighted_step(
        lambda params, b: squared_errors(params, b["x"], b["y"]), "Nash-MTL", tasks, is_trunk
    )

    def begin(key: jax.Array) -> TrainState:
        return init_state(init_network(key, features, width, depth, tasks, outputs), transform, key)

    return Target(
        step=step,
        state=jax.eval_shape(begin, jax.random.key(0)),
        batch={
            "x": jax.ShapeDtypeStruct((batch, features), jnp.float32),
            "y": jax.ShapeDtypeStruct((batch, tasks, outputs), jnp.float32),
        },
        mesh=mesh,
        rules=RULES,
    )
