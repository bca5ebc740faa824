"""A step of the three-dimensional driven electrolyte on a pod, in slabs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Complex, Int, PRNGKeyArray

from jaxneg.coulomb import SdftConfig, SdftState, sdft_init, sdft_step
from jaxneg.train import Target

CHIPS = 256


class SlabState(NamedTuple):
    """What a step passes on.

    Attributes:
        step: its number.
        n: half spectrum of the density, the second axis sharded.
        q: of the charges.
        key: random key, which the step's number is folded into.
    """

    step: Int[Array, ""]
    n: Complex[Array, "x y half"]
    q: Complex[Array, "x y half"]
    key: PRNGKeyArray


def slab_step_target(points: int, chips: int = CHIPS) -> Target:
    """An exponential Euler step of the non-linear theory on ``points^3`` cells, and its abstract arguments.

    The field and the plasma parameter are the batch, so that one program serves all.

    Args:
        points: along each axis, a multiple of the chips.
        chips: of the mesh.

    Returns:
        What `jaxneg.train.compile_for` compiles.

    Raises:
        ValueError: chips that do not divide the grid.
    """
    shape = (points,) * 3
    if points % chips:
        raise ValueError(f"points: expected a multiple of the {chips} chips, got {points}")

    def step(state: SlabState, batch: dict[str, Array]) -> tuple[SlabState, dict[str, Array]]:
        mesh = jax.sharding.get_abstract_mesh()
        cfg = SdftConfig(shape, Ef=batch["Ef"], g=batch["g"])
        found = sdft_step(SdftState(state.n, state.q), jax.random.fold_in(state.key, state.step), cfg, mesh)
        size = jnp.sqrt(jnp.mean(jnp.abs(found.q) ** 2))
        return state._replace(step=state.step + 1, n=found.n, q=found.q), {"charges": size}

    def start(key: PRNGKeyArray) -> SlabState:
        found = sdft_init(key, SdftConfig(shape))
        return SlabState(jnp.zeros((), jnp.int32), found.n, found.q, key)

    number = jax.ShapeDtypeStruct((), jnp.float32)
    return Target(
        step=step,
        state=jax.eval_shape(start, jax.random.key(0)),  # pyright: ignore[reportArgumentType]
        batch={"Ef": number, "g": number},
        mesh={"data": chips},
        rules=((r"^(n|q)$", P(None, "data")),),
    )
