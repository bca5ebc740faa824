"""Where the examples of a batch lie inside a network, under auto and explicit mesh axes."""

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array


def rows_like(indices: Array) -> P | None:
    """How the rows that indices choose from a table are sharded under explicit axes: as the indices are."""
    sharding = jax.typeof(indices).sharding
    return P(*sharding.spec, None) if AxisType.Explicit in sharding.mesh.axis_types else None


def over_data(x: Array) -> Array:
    """Under auto axes, keeps examples apart: left alone, XLA may follow the parameters' shards instead."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if kinds.get("data") != AxisType.Auto or x.shape[0] % mesh.shape["data"]:
        return x
    return jax.lax.with_sharding_constraint(x, P("data", *[P.UNCONSTRAINED] * (x.ndim - 1)))


def reshape_examples(x: Array, *shape: int) -> Array:
    """Each example with another shape; under explicit axes only the examples stay sharded."""
    sharding = jax.typeof(x).sharding
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    out_sharding = P(sharding.spec[0], *[None] * len(shape)) if explicit else None
    return jax.lax.reshape(x, (x.shape[0], *shape), out_sharding=out_sharding)
