"""The multi-task network of this experiment: `jaxneg.nn.mlp` with the heads of all tasks side by side.

    h = relu(... relu(x W_1 + b_1) ... W_depth + b_depth)        predictions of all tasks = h V + c

The trunk's leaves are the shared parameters of the multi-task methods; the columns of V that belong to a head
see its own task alone.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxneg.nn import mlp

Params = dict[str, Any]

RULES = (
    (r"trunk/\d*[02468]/kernel$", P("data", "model")),
    (r"trunk/\d*[13579]/kernel$", P("model", "data")),
)
"""Partition of a wide network: layers lie over "model" by columns and by rows in turn."""


def is_trunk(path: str) -> bool:
    """Whether all tasks share the parameters at a path."""
    return path.startswith("trunk/")


def is_last_trunk_layer(path: str, depth: int) -> bool:
    """Whether a path leads into the last layer that all tasks share, of ``depth`` hidden layers."""
    return path.startswith(f"trunk/{depth - 1}/")


@partial(jax.jit, static_argnames=("features", "width", "depth", "tasks", "outputs"))
def init_network(
    key: jax.Array, features: int, width: int, depth: int, tasks: int, outputs: int = 1
) -> Params:
    """Draws a network: He's normal initialisation in the trunk, in the heads a tenth of ``1 / sqrt(width)``.

    Args:
        key: random key.
        features: numbers in an example.
        width: units of a hidden layer.
        depth: hidden layers.
        tasks: heads.
        outputs: numbers that a head predicts.

    Returns:
        Parameters of `jaxneg.nn.mlp` with one output of all heads together.

    Example:
        >>> import jax
        >>> init_network(jax.random.key(0), 5, 8, 2, tasks=3)["heads"]["0"]["kernel"].shape
        (8, 3)
    """
    first_key, hidden_key, head_key = jax.random.split(key, 3)
    first = jax.random.normal(first_key, (features, width)) * (2 / features) ** 0.5
    hidden = jax.random.normal(hidden_key, (depth - 1, width, width)) * (2 / width) ** 0.5
    trunk = [{"kernel": kernel, "bias": jnp.zeros(width)} for kernel in (first, *hidden)]
    kernel = jax.random.normal(head_key, (width, tasks * outputs)) * 0.1 / width**0.5
    head = {"kernel": kernel, "bias": jnp.zeros(tasks * outputs)}
    return {"trunk": {str(i): layer for i, layer in enumerate(trunk)}, "heads": {"0": head}}


def single_task_networks(params: Params, tasks: int) -> Params:
    """A network for each task alone, with the same trunk and its own head: where single-task training begins.

    Args:
        params: from `init_network`.
        tasks: heads.

    Returns:
        The parameters with a leading task axis on every leaf.

    Example:
        >>> import jax
        >>> params = init_network(jax.random.key(0), 5, 8, 2, tasks=3, outputs=2)
        >>> single_task_networks(params, 3)["heads"]["0"]["kernel"].shape
        (3, 8, 2)
    """
    trunk = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (tasks, *leaf.shape)), params["trunk"])
    heads = jax.tree.map(lambda leaf: jnp.stack(jnp.split(leaf, tasks, axis=-1)), params["heads"])
    return {"trunk": trunk, "heads": heads}


def predict(params: Params, x: Float[Array, "batch features"]) -> Float[Array, "batch tasks_and_outputs"]:
    """What all heads predict, task by task.

    Args:
        params: from `init_network`.
        x: examples.

    Returns:
        The predictions of an example in one row.
    """
    trunk, head = params["trunk"], params["heads"]["0"]["kernel"]
    widths = [trunk[str(i)]["kernel"].shape[1] for i in range(len(trunk))]
    return mlp(x.shape[1], widths, (head.shape[1],)).apply(params, x)[0]


def squared_errors(
    params: Params, x: Float[Array, "batch features"], y: Float[Array, "batch tasks outputs"]
) -> Float[Array, "tasks"]:
    """Mean squared error of each task over examples and outputs.

    Args:
        params: from `init_network`.
        x: examples.
        y: targets.

    Returns:
        One error for each task, in the square of the target's unit.
    """
    return jnp.mean((predict(params, x).reshape(y.shape) - y) ** 2, axis=(0, 2))
