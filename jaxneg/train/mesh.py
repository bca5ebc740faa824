"""Meshes, and which axis of which array goes to which axis of the mesh.

A mesh is described by its axes, ``{"data": 4, "model": 2}``. A parameter's ``PartitionSpec`` comes from the
first rule whose pattern is found in its path (``"decoder/mlp/kernel"``); failing that from the FSDP rule,
which shards the largest axis that divides (Zhao et al. 2023, arXiv:2304.11277; Rajbhandari et al. 2020,
arXiv:1910.02054, stage 3); failing that it is replicated. Optimizer state lies where its parameters lie.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Rules = Sequence[tuple[str, P]]

MIN_SIZE = 2**14
"""Arrays with fewer elements stay replicated under the FSDP rule: gathering them costs more than it saves."""


def make_mesh(
    axes: Mapping[str, int], *, devices: Sequence[Any] | None = None, explicit: bool = False
) -> Mesh:
    """A device mesh with named axes.

    Args:
      axes: Size of each axis by name, in order; one size may be -1 and takes what is left.
      devices: Devices to use, all of them; default ``jax.devices()``.
      explicit: Whether the axes are explicit (shardings are part of types) instead of auto
        (the compiler propagates shardings).

    Returns:
      The mesh.

    Raises:
      ValueError: If a size is not positive, or the sizes do not multiply to the number of devices.

    Example:
      >>> from jaxneg.train import make_mesh
      >>> mesh = make_mesh({"data": -1, "model": 1})
      >>> mesh.axis_names
      ('data', 'model')
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(axes)
    free = [name for name, size in sizes.items() if size == -1]
    if not sizes or len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"axes: expected positive sizes, at most one of them -1; got {dict(axes)}")
    if free:
        sizes[free[0]] = max(1, len(devices) // -math.prod(sizes.values()))
    if math.prod(sizes.values()) != len(devices):
        product = " x ".join(str(size) for size in axes.values())
        raise ValueError(f"axes: {dict(axes)} ({product}) does not fit {len(devices)} devices")
    kind = AxisType.Explicit if explicit else AxisType.Auto
    # Follows the links of a pod; an axis of the mesh need not be a whole axis of the pod.
    grid = create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(grid, tuple(sizes), axis_types=(kind,) * len(sizes))


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree key path as ``"a/b/c"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def partition_specs(
    tree: Any, mesh: Mesh, rules: Rules = (), *, fsdp: str | None = None, min_size: int = MIN_SIZE
) -> Any:
    """The ``PartitionSpec`` of every array of a tree.

    Args:
      tree: Parameters (arrays or ``ShapeDtypeStruct``s), or a train state with fields ``params`` and
        ``opt_state``: an array of its other fields whose path ends in a parameter's path takes that
        parameter's spec (after a leading task axis if it has one).
      mesh: The mesh, whose axes the specs name.
      rules: ``(pattern, spec)`` pairs; the first pattern that ``re.search`` finds in a path decides.
      fsdp: Mesh axis for the arrays that no rule decides: their largest divisible axis is sharded over it.
      min_size: Number of elements below which the FSDP rule leaves an array replicated.

    Returns:
      A tree of the same structure with a ``PartitionSpec`` for each array.

    Raises:
      ValueError: If a spec names an axis that the mesh lacks, names one twice, is longer than the array's
        rank, or does not divide its shape. The message names the path.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.train import make_mesh, partition_specs
      >>> specs = partition_specs({"w": jnp.zeros((8, 3))}, make_mesh({"data": -1}), [("w", jax.P("data"))])
      >>> specs["w"] == jax.P("data")
      True
    """
    if fsdp is not None and fsdp not in mesh.shape:
        raise ValueError(f"fsdp: the mesh has axes {tuple(mesh.axis_names)}, not {fsdp!r}")

    def spec_of(path: tuple[Any, ...], leaf: Any) -> P:
        name = path_name(path)
        for pattern, spec in rules:
            if re.search(pattern, name):
                return _checked(name, leaf.shape, spec, mesh, f"rule {pattern!r}")
        return _fsdp_spec(leaf, mesh, fsdp, min_size)

    if not (hasattr(tree, "params") and hasattr(tree, "opt_state")):
        return jax.tree_util.tree_map_with_path(spec_of, tree)

    specs = jax.tree_util.tree_map_with_path(spec_of, tree.params)
    shapes = {path: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree.params)}
    by_path = dict(zip(shapes, jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P)), strict=True))

    def follow(path: tuple[Any, ...], leaf: Any) -> P:
        # The longest suffix first: "inner/w" is itself a parameter's path, and so may "w" be.
        for start in range(len(path) + 1):
            if (suffix := path[start:]) in by_path:
                if leaf.shape == shapes[suffix]:
                    return by_path[suffix]
                if leaf.shape[1:] == shapes[suffix]:
                    return P(None, *by_path[suffix])
        return _fsdp_spec(leaf, mesh, fsdp, min_size)

    return jax.tree_util.tree_map_with_path(follow, tree._replace(params=None))._replace(params=specs)


def shardings(
    tree: Any, mesh: Mesh, rules: Rules = (), *, fsdp: str | None = None, min_size: int = MIN_SIZE
) -> Any:
    """The ``NamedSharding`` of every array of a tree: :func:`partition_specs` on the mesh.

    Args:
      tree: As in :func:`partition_specs`.
      mesh: As in :func:`partition_specs`.
      rules: As in :func:`partition_specs`.
      fsdp: As in :func:`partition_specs`.
      min_size: As in :func:`partition_specs`.

    Returns:
      A tree of the same structure with a ``NamedSharding`` for each array.

    Raises:
      ValueError: As in :func:`partition_specs`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.train import make_mesh, shardings
      >>> shardings({"w": jnp.zeros(3)}, make_mesh({"data": -1}))["w"].is_fully_replicated
      True
    """
    specs = partition_specs(tree, mesh, rules, fsdp=fsdp, min_size=min_size)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def batch_shardings(batch: Any, mesh: Mesh, spec: P) -> Any:
    """The ``NamedSharding`` of every array of a batch: ``spec``, or replicated for a scalar.

    Args:
      batch: Arrays or ``ShapeDtypeStruct``s with the examples on the leading axis.
      mesh: The mesh.
      spec: Partition of the leading axes, as ``P("data")``.

    Returns:
      A tree of the same structure with a ``NamedSharding`` for each array.

    Raises:
      ValueError: If the spec does not divide an array's shape. The message names the path.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.train import batch_shardings, make_mesh
      >>> mesh = make_mesh({"data": -1})
      >>> batch_shardings({"x": jnp.zeros((8, 2))}, mesh, jax.P("data"))["x"].spec == jax.P("data")
      True
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if not leaf.shape:
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, _checked(path_name(path), leaf.shape, spec, mesh, "batch_spec"))

    return jax.tree_util.tree_map_with_path(sharding, batch)


def _fsdp_spec(leaf: Any, mesh: Mesh, axis: str | None, min_size: int) -> P:
    if axis is None or math.prod(leaf.shape) < min_size:
        return P()
    divisible = [i for i, size in enumerate(leaf.shape) if size % mesh.shape[axis] == 0]
    if not divisible:
        return P()
    return P(*[None] * max(divisible, key=lambda i: leaf.shape[i]), axis)


def _checked(name: str, shape: tuple[int, ...], spec: P, mesh: Mesh, origin: str) -> P:
    where = f"{name or 'the array'!r}: {origin} gives {spec}"
    if len(spec) > len(shape):
        raise ValueError(f"{where}, longer than the rank of its shape {shape}")
    axes = [(entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in spec]
    named = [axis for entry in axes for axis in entry]
    if missing := [axis for axis in named if axis not in mesh.shape]:
        raise ValueError(f"{where}, but the mesh has axes {tuple(mesh.axis_names)}, not {missing[0]!r}")
    if len(set(named)) < len(named):
        raise ValueError(f"{where}, which names a mesh axis twice")
    for i, entry in enumerate(axes):
        parts = math.prod(mesh.shape[axis] for axis in entry)
        if shape[i] % parts:
            raise ValueError(f"{where}, but axis {i} of its shape {shape} does not divide by {parts}")
    return spec
