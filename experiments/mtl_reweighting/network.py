"""One trunk for all tasks and a linear head for each: the multi-task network of this experiment.

    h = relu(... relu(x W_1 + b_1) ... W_depth + b_depth)        prediction of task t = h V_t + c_t

The trunk's leaves are the shared parameters of the multi-task methods; a head sees its own task alone.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

Params = dict[str, Any]

RULES = (
    (r"trunk/\d*[02468]/kernel$", P("data", "model")),
    (r"trunk/\d*[13579]/kernel$", P("model", "data")),
    (r"heads/kernel$", P("model", None, None)),
)
"""Partition of a wide network: layers lie over "model" by columns and by rows in turn."""


def is_trunk(path: str) -> bool:
    """Whether all tasks share the parameters at a path."""
    return path.startswith("trunk/")


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
        ``{"trunk": [{"kernel", "bias"}, ...], "heads": {"kernel": [width, tasks, outputs], "bias"}}``.

    Example:
        >>> import jax
        >>> init_network(jax.random.key(0), 5, 8, 2, tasks=3)["heads"]["kernel"].shape
        (8, 3, 1)
    """
    *trunk_keys, head_key = jax.random.split(key, depth + 1)
    sizes = [features] + [width] * depth
    trunk = [
        {"kernel": jax.random.normal(k, (n, m)) * (2 / n) ** 0.5, "bias": jnp.zeros(m)}
        for k, n, m in zip(trunk_keys, sizes[:-1], sizes[1:], strict=True)
    ]
    kernel = jax.random.normal(head_key, (width, tasks, outputs)) * 0.1 / width**0.5
    return {"trunk": trunk, "heads": {"kernel": kernel, "bias": jnp.zeros((tasks, outputs))}}


def predict(params: Params, x: Float[Array, "batch features"]) -> Float[Array, "batch tasks outputs"]:
    """What every head predicts.

    Args:
        params: from `init_network`.
        x: examples.

    Returns:
        Predictions, one row for each example and task.
    """
    for layer in params["trunk"]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return jnp.einsum("bh,hto->bto", x, params["heads"]["kernel"]) + params["heads"]["bias"]


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
    return jnp.mean((predict(params, x) - y) ** 2, axis=(0, 2))
