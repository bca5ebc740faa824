"""Real FFTs of arrays that lie in slabs over a mesh.

A real array is sharded along its first axis. Each device transforms the other axes of its slab, one
all-to-all gives it whole columns of the first axis in exchange for its share of the second, and the first
axis is transformed. The spectrum stays in this transposed layout, sharded along its second axis, where all
that a spectral method does to it is elementwise; the way back is the same in reverse. This is the slab
decomposition of the FFTW and P3DFFT libraries (D. Pekurovsky, SIAM J. Sci. Comput. 34, C192, 2012).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Complex, Float

from jaxneg.coulomb.grid import SpectralGrid

AnyMesh = Mesh | AbstractMesh


def sharded_rfftn(x: Float[Array, "*shape"], mesh: AnyMesh) -> Complex[Array, "*modes"]:
    """``jnp.fft.rfftn`` of an array in slabs.

    Args:
        x: real array of 2 or 3 axes, the first sharded over all axes of the mesh.
        mesh: the mesh; it must divide the first axis, and of three axes the second too.

    Returns:
        The half spectrum, its second axis sharded. In two dimensions that is the half axis: zeros behind it
        fill it up to a multiple of the mesh (`slab_grid` says how many).

    Raises:
        ValueError: another number of axes, or an axis that the mesh does not divide.

    Source:
        As the module says.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
        >>> sharded_rfftn(jnp.ones((4, 4, 4)), mesh).shape
        (4, 4, 3)
    """
    shape = jnp.shape(x)
    check_slabs("x", shape, mesh)
    axes, parts = mesh.axis_names, mesh.size

    def local(slab: Array) -> Array:
        spectrum = jnp.fft.rfft(slab, axis=-1)
        if slab.ndim == 3:
            spectrum = jnp.fft.fft(spectrum, axis=1)
        else:
            spectrum = jnp.pad(spectrum, ((0, 0), (0, -spectrum.shape[1] % parts)))
        columns = jax.lax.all_to_all(spectrum, axes, split_axis=1, concat_axis=0, tiled=True)
        return jnp.fft.fft(columns, axis=0)

    return jax.shard_map(local, mesh=mesh, in_specs=P(axes), out_specs=P(None, axes))(x)


def sharded_irfftn(
    spectrum: Complex[Array, "*modes"], mesh: AnyMesh, size: int | None = None
) -> Float[Array, "*shape"]:
    """``jnp.fft.irfftn`` of a half spectrum as `sharded_rfftn` gives it.

    Args:
        spectrum: half spectrum of 2 or 3 axes, the second sharded over all axes of the mesh.
        mesh: the mesh.
        size: points along the last axis. None: in three dimensions the even number that fits, in two, where
            the half axis is padded, as many as along the first.

    Returns:
        The real array, its first axis sharded.

    Raises:
        ValueError: another number of axes, a size that does not fit, an axis that the mesh does not divide.

    Source:
        As the module says.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
        >>> x = jnp.arange(64.0).reshape(4, 4, 4)
        >>> bool(jnp.allclose(sharded_irfftn(sharded_rfftn(x, mesh), mesh), x, atol=1e-4))
        True
    """
    shape = jnp.shape(spectrum)
    if len(shape) not in (2, 3):
        raise ValueError(f"spectrum: expected 2 or 3 axes, got shape {shape}")
    if size is None:
        size = 2 * (shape[2] - 1) if len(shape) == 3 else shape[0]
    half = size // 2 + 1
    expected = half if len(shape) == 3 else half + -half % mesh.size
    if shape[-1] != expected:
        raise ValueError(
            f"spectrum: expected {expected} modes on the last axis for size = {size}, got shape {shape}"
        )
    check_slabs("spectrum", (*shape[:-1], size), mesh)
    axes = mesh.axis_names

    def local(columns: Array) -> Array:
        columns = jnp.fft.ifft(columns, axis=0)
        slab = jax.lax.all_to_all(columns, axes, split_axis=0, concat_axis=1, tiled=True)
        slab = jnp.fft.ifft(slab, axis=1) if slab.ndim == 3 else slab[:, :half]
        return jnp.fft.irfft(slab, size, axis=-1)

    return jax.shard_map(local, mesh=mesh, in_specs=P(None, axes), out_specs=P(axes))(spectrum)


def slab_grid(grid: SpectralGrid, mesh: AnyMesh) -> SpectralGrid:
    """A grid whose spectrum a mesh divides: in two dimensions with padding behind the half axis.

    Args:
        grid: the grid.
        mesh: the mesh.

    Returns:
        The grid with its padding.

    Raises:
        ValueError: a grid of one dimension, or one that the mesh does not divide.

    Example:
        >>> slab_grid(SpectralGrid((8, 8)), jax.make_mesh((1,), ("data",))).padding
        0
    """
    check_slabs("shape", grid.shape, mesh)
    half = grid.shape[-1] // 2 + 1
    return SpectralGrid(grid.shape, grid.dx, grid.dealias, -half % mesh.size if grid.dimensions == 2 else 0)


def check_slabs(name: str, shape: tuple[int, ...], mesh: AnyMesh) -> None:
    """Raises ValueError unless a mesh divides the axes of which slabs and columns are made."""
    if len(shape) not in (2, 3):
        raise ValueError(f"{name}: expected 2 or 3 axes for slabs, got shape {shape}")
    for axis in range(len(shape) - 1):
        if shape[axis] % mesh.size:
            raise ValueError(
                f"{name}: axis {axis} of {tuple(shape)} has {shape[axis]} points, which the {mesh.size}"
                f" devices of the mesh {dict(mesh.shape)} do not divide"
            )


class Transforms(NamedTuple):
    """How an integrator goes to Fourier space and back, and where its random numbers lie.

    Attributes:
        grid: the grid, with the padding of its spectra.
        forward: real arrays ``[fields, *shape]`` to half spectra.
        inverse: half spectra ``[fields, *modes]`` to real arrays.
        normal: ``(key, shape)`` to independent standard normal numbers ``[fields, *shape]`` in the layout of
            real arrays, the same on every mesh.
    """

    grid: SpectralGrid
    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    normal: Callable[..., Array]


def transforms(grid: SpectralGrid, mesh: AnyMesh | None = None) -> Transforms:
    """FFTs of several fields at once, on one device or in slabs over a mesh."""
    if mesh is None:
        axes = tuple(range(1, grid.dimensions + 1))
        return Transforms(
            grid,
            lambda fields: jnp.fft.rfftn(fields, axes=axes),
            lambda spectra: jnp.fft.irfftn(spectra, grid.shape, axes=axes),
            jax.random.normal,
        )
    padded = slab_grid(grid, mesh)
    slabs = P(None, mesh.axis_names)

    def normal(key: Any, shape: tuple[int, ...]) -> Array:
        # One key for all devices: the numbers of a slab do not depend on who draws them.
        sharding = NamedSharding(mesh, slabs) if isinstance(mesh, Mesh) else slabs
        if AxisType.Explicit in mesh.axis_types:
            return jax.random.normal(key, shape, out_sharding=sharding)
        return jax.lax.with_sharding_constraint(jax.random.normal(key, shape), sharding)

    return Transforms(
        padded,
        jax.vmap(lambda field: sharded_rfftn(field, mesh)),
        jax.vmap(lambda spectrum: sharded_irfftn(spectrum, mesh, grid.shape[-1])),
        normal,
    )
