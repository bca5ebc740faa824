"""Periodic grids in Fourier space: wavenumbers, the 2/3 rule, the weights of a half spectrum.

The half spectrum is that of ``rfftn``: the last axis has ``N // 2 + 1`` modes. Derivatives leave out the
Nyquist mode, whose ``i k`` would make a real field complex.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from jaxneg.coulomb.arguments import require, whole


@dataclass(frozen=True)
class SpectralGrid:
    """A periodic box of ``shape`` points that are ``dx`` apart.

    Attributes:
        shape: points along each axis, 1 to 3 axes of 4 points or more; the field points along axis 0.
        dx: distance between points, in Debye lengths.
        dealias: keep the modes up to 2/3 of the Nyquist wavenumber in products (the 2/3 rule), or all.
        padding: empty modes behind the last axis of the spectrum, so that a mesh divides it.

    Raises:
        ValueError: a shape or distance that is none.

    Source:
        S. A. Orszag, J. Atmos. Sci. 28, 1074 (1971), for the 2/3 rule.

    Example:
        >>> SpectralGrid((8, 6)).spectrum_shape
        (8, 4)
    """

    shape: tuple[int, ...]
    dx: float = 1.0
    dealias: bool = True
    padding: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not 1 <= len(self.shape) <= 3:
            raise ValueError(f"shape: expected 1 to 3 axes, got {self.shape}")
        for size in self.shape:
            whole("shape", size, 4)
        require("dx", self.dx, 0, open_low=True)
        whole("padding", self.padding, 0)

    @property
    def dimensions(self) -> int:
        """Space dimensions."""
        return len(self.shape)

    @property
    def volume(self) -> float:
        """Of the box, in Debye lengths."""
        return math.prod(self.shape) * self.dx**self.dimensions

    @property
    def spectrum_shape(self) -> tuple[int, ...]:
        """Of a half spectrum, padding included."""
        return (*self.shape[:-1], self.shape[-1] // 2 + 1 + self.padding)

    @property
    def k_max(self) -> float:
        """The largest wavenumber along an axis that products keep."""
        return (2 / 3 if self.dealias else 1.0) * math.pi / self.dx

    def wavenumber(self, axis: int, *, derivative: bool = False) -> Float[Array, "..."]:
        """Wavenumbers along an axis, shaped so that they broadcast over a half spectrum.

        Args:
            axis: of space.
            derivative: with 0 in place of the Nyquist mode.

        Returns:
            ``2 pi m / (N dx)``, in numpy's order.
        """
        size, axes = self.shape[axis], self.dimensions
        if axis in (axes - 1, -1):
            mode = np.arange(size // 2 + 1 + self.padding)
        else:
            mode = np.fft.fftfreq(size, 1 / size)
        if derivative and size % 2 == 0:
            mode = np.where(np.abs(mode) == size // 2, 0, mode)
        shape = [1] * axes
        shape[axis] = len(mode)
        return _unfolded((2 * math.pi / (size * self.dx) * mode).reshape(shape))

    def k2(self) -> Float[Array, "..."]:
        """Squared wavenumbers of a half spectrum, Nyquist modes included."""
        total: Any = sum(self.wavenumber(axis) ** 2 for axis in range(self.dimensions))
        return total

    def inverse_k2(self) -> Float[Array, "..."]:
        """``1 / k^2``, and 0 for k = 0: the solution of Poisson's equation without a mean."""
        k2 = self.k2()
        return jnp.where(k2 > 0, 1 / jnp.where(k2 > 0, k2, 1), 0)

    def kept(self) -> Bool[Array, "..."]:
        """Modes that products keep: all of ``|k_j| <= 2/3 k_Nyquist``, padding left out."""
        limit = self.k_max * (1 + 1e-6)
        kept: Any = jnp.ones(self.spectrum_shape, bool)
        for axis in range(self.dimensions):
            kept &= jnp.abs(self.wavenumber(axis)) <= limit
        return kept

    def weights(self) -> Float[Array, "..."]:
        """How often each mode of a half spectrum stands in the whole one: 2, or 1 on its own mirror image."""
        mode = np.arange(self.spectrum_shape[-1])
        alone = (mode == 0) | (2 * mode == self.shape[-1])
        weight = np.where(alone, 1.0, 2.0) * (2 * mode <= self.shape[-1])
        return jnp.broadcast_to(_unfolded(weight), self.spectrum_shape)


def power_spectrum(field_hat: Complex[Array, "*batch modes"], grid: SpectralGrid) -> Float[Array, "..."]:
    """The structure factor of one configuration.

    ``S(k) = |rfftn(f)|^2 dx^(2 d) / V``

    Args:
        field_hat: half spectra, ``[*batch, *grid.spectrum_shape]``.
        grid: their grid.

    Returns:
        Real numbers of the same shape.

    Raises:
        ValueError: a spectrum of another grid.

    Source:
        arXiv:2207.00467, the definition of a static structure factor.

    Example:
        >>> grid = SpectralGrid((8,))
        >>> power_spectrum(jnp.fft.rfftn(jnp.ones(8)), grid).tolist()
        [8.0, 0.0, 0.0, 0.0, 0.0]
    """
    same_grid("field_hat", field_hat, grid)
    scale = grid.dx ** (2 * grid.dimensions) / grid.volume
    return scale * (jnp.real(field_hat) ** 2 + jnp.imag(field_hat) ** 2)


def _unfolded(values: np.ndarray) -> Array:
    """Numbers that a compiler does not look into.

    It would compute the operators of whole grids at compile time, one element after the other.
    """
    return jax.lax.optimization_barrier(jnp.asarray(values, jnp.result_type(float)))


def same_grid(name: str, spectrum: Array, grid: SpectralGrid) -> None:
    """Raises ValueError unless an array's last axes are those of a grid's half spectrum."""
    if jnp.shape(spectrum)[-grid.dimensions :] != grid.spectrum_shape:
        raise ValueError(
            f"{name}: expected a half spectrum {grid.spectrum_shape} of the grid {grid.shape} on the last"
            f" axes, got shape {jnp.shape(spectrum)}"
        )
