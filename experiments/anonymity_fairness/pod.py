"""Updates of every classifier of the paper's grid, laid over a pod."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from experiments.anonymity_fairness.grid import tabular_mlp
from jaxneg.fairness.training import L2, ConfigState, begin, grid_step
from jaxneg.train import Target


class GridState(NamedTuple):
    """The states of all configurations, which lie on the leading axis of every array."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    configs: ConfigState


def grid_target(
    configs: int, chips: int, rows: int, columns: int, updates: int, batch_size: int = 200
) -> Target:
    """Updates of all configurations' networks, each on its own released table.

    Args:
        configs: Settings times seeds, a multiple of the chips.
        chips: Size of the mesh axis "config".
        rows: Training rows of a table.
        columns: Its features.
        updates: Of every network in one step.
        batch_size: Rows of an update.

    Returns:
        What `jaxneg.train.compile_for` compiles.

    Raises:
        ValueError: The chips do not divide the configurations.
    """
    if configs % chips:
        raise ValueError(f"pod.configs: expected a multiple of the {chips} chips, got {configs}")
    network = tabular_mlp(columns)
    update = grid_step(network.apply, batch_size)

    def of_config(state: ConfigState, x: Array, y: Array, weight: Array) -> tuple[ConfigState, Array]:
        cumulative = jnp.cumsum(weight)

        def one(state: ConfigState, _: None) -> tuple[ConfigState, Array]:
            return update(state, x, y, cumulative, jnp.float32(1e-3), jnp.float32(L2))

        state, losses = jax.lax.scan(one, state, length=updates)
        return state, losses[-1]

    def step(state: GridState, batch: dict[str, Array]) -> tuple[GridState, dict[str, Float[Array, ""]]]:
        moved, losses = jax.vmap(of_config)(state.configs, batch["x"], batch["y"], batch["weight"])
        return state._replace(step=state.step + updates, configs=moved), {"loss": jnp.mean(losses)}

    def start(key: Array) -> GridState:
        def of_key(key: Array) -> ConfigState:
            return begin(network.init(key), key)

        return GridState(jnp.zeros((), jnp.int32), (), (), jax.vmap(of_key)(jax.random.split(key, configs)))

    return Target(
        step=step,
        state=jax.eval_shape(start, jax.random.key(0)),  # pyright: ignore[reportArgumentType]
        batch={
            "x": jax.ShapeDtypeStruct((configs, rows, columns), jnp.float32),
            "y": jax.ShapeDtypeStruct((configs, rows), jnp.int32),
            "weight": jax.ShapeDtypeStruct((configs, rows), jnp.float32),
        },
        mesh={"config": chips},
        rules=((r"^configs/", P("config")),),
        fsdp=None,
        batch_spec=P("config"),
    )
