"""Mistakes are refused in words: the argument, what was expected, what came."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg import coulomb
from jaxneg.coulomb import ChemotaxisConfig, SdftConfig, SpectralGrid

GRID = SpectralGrid((8, 8))
ZERO = jnp.zeros((8, 5), complex)


def mesh():
    return jax.make_mesh((8,), ("data",))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SdftConfig((8, 8), dt=5.0), ValueError, "dt: expected at most 0.114, above which sdft_etd"),
        (
            lambda: SdftConfig((8, 8), dt=5.0, scheme="sdft_etdrk2"),
            ValueError,
            "dt: expected at most 1.76, above which sdft_etdrk2 does not follow",
        ),
        (lambda: SdftConfig((8, 8), dt=0.0), ValueError, "dt: expected a finite number above 0, got 0.0"),
        (lambda: SdftConfig((8, 8), dt=np.nan), ValueError, "dt: expected a finite number above 0, got nan"),
        (lambda: SdftConfig((8, 8), g=1.0), ValueError, "g: expected at most dx^d = 0.25, a pair of ions"),
        (
            lambda: SdftConfig((8, 8), g=-1.0),
            ValueError,
            "g: expected a finite number of 0 or more, got -1.0",
        ),
        (
            lambda: SdftConfig((8, 8), scheme="euler"),
            ValueError,
            "scheme: expected one of linear_exact, sdft",
        ),
        (lambda: SdftConfig((8,), walls=True), ValueError, "walls: expected a box of 2 or 3 axes"),
        (lambda: SdftConfig((8, 2)), ValueError, "shape: expected a whole number of 4 or more, got 2"),
        (lambda: SpectralGrid((8,) * 4), ValueError, "shape: expected 1 to 3 axes, got (8, 8, 8, 8)"),
        (lambda: SpectralGrid((8,), -1.0), ValueError, "dx: expected a finite number above 0, got -1.0"),
        (lambda: ChemotaxisConfig((512,), mu2=1.0), ValueError, "dt: unstable: expected a grid Reynolds"),
        (
            lambda: ChemotaxisConfig((64, 64), mu2=4.0, dt=0.01),
            ValueError,
            "at most 3 and a drift of at most 0.7",
        ),
        (lambda: ChemotaxisConfig((8,), mu1=-1.0), ValueError, "mu1: expected a finite number of 0 or more"),
        (
            lambda: coulomb.sharded_rfftn(jnp.ones((8, 12, 4)), mesh()),
            ValueError,
            "x: axis 1 of (8, 12, 4) has 12 points, which the 8 devices of the mesh {'data': 8} do not",
        ),
        (lambda: coulomb.sharded_rfftn(jnp.ones(8), mesh()), ValueError, "x: expected 2 or 3 axes for slabs"),
        (
            lambda: coulomb.sdft_init(jax.random.key(0), SdftConfig((12, 8)), mesh()),
            ValueError,
            "shape: axis 0 of (12, 8) has 12 points, which the 8 devices",
        ),
        (
            lambda: coulomb.sharded_irfftn(jnp.ones((8, 8, 4), complex), mesh(), 9),
            ValueError,
            "spectrum: expected 5 modes on the last axis for size = 9, got shape (8, 8, 4)",
        ),
        (
            lambda: jax.eval_shape(
                lambda: coulomb.sdft_step(
                    coulomb.SdftState(ZERO, ZERO), jax.random.key(0), SdftConfig((8, 6))
                )
            ),
            ValueError,
            "state: expected a half spectrum (8, 4) of the grid (8, 6) on the last axes, got shape (8, 5)",
        ),
        (
            lambda: jax.eval_shape(
                lambda: coulomb.sdft_run(jax.random.key(0), SdftConfig((8, 8)), 5, every=2)
            ),
            ValueError,
            "steps: expected a multiple of every = 2, got 5",
        ),
        (
            lambda: coulomb.etdrk2_step(ZERO, 0, 1, GRID, -0.1),
            ValueError,
            "dt: expected a finite number above 0",
        ),
        (
            lambda: coulomb.chemotaxis_rhs(ZERO[:4], 0, 1, GRID),
            ValueError,
            "rho_hat: expected a half spectrum",
        ),
        (lambda: coulomb.structure_factor(jnp.float32(1.0), 1.0), ValueError, "kvec: expected wavevectors"),
        (
            lambda: coulomb.structure_factor(ZERO, 1.0),
            TypeError,
            "kvec: expected real numbers, got dtype complex",
        ),
        (
            lambda: coulomb.propagator(1.0, 1.0, 1.0, -1.0),
            ValueError,
            "t: expected a finite number of 0 or more",
        ),
        (
            lambda: coulomb.ou_noise_factor(1.0, 1.0, 1.0, 1.0, -1.0),
            ValueError,
            "g: expected a finite number",
        ),
        (
            lambda: coulomb.casimir_force(0.0, 1.0, 2),
            ValueError,
            "H: expected a finite number above 0, got 0.0",
        ),
        (
            lambda: coulomb.casimir_force(1.0, 1.0, 1),
            ValueError,
            "d: expected a whole number of 2 or more, got 1",
        ),
        (lambda: coulomb.casimir_amplitude(1.0, 2.5), ValueError, "d: expected a whole number of 2 or more"),
        (
            lambda: coulomb.casimir_force_quench(0.0, 1.0, 1.0),
            ValueError,
            "t: expected a finite number above 0",
        ),
        (
            lambda: coulomb.wall_pressure(1.0, 4),
            ValueError,
            "d: expected one of 2, 3 space dimensions, got 4",
        ),
        (lambda: coulomb.conductivity_integral(1.0, 4), ValueError, "d: expected one of 1, 2, 3 space"),
        (
            lambda: coulomb.mode_sum_force(jnp.ones(3), 1.0, 1.0),
            ValueError,
            "s_ex: expected one number for each",
        ),
        (lambda: coulomb.real_space_tail(1.0, 1.0, 1.0, 2, "nq"), ValueError, "field: expected 'nn' or 'qq'"),
        (
            lambda: coulomb.second_harmonic(jnp.ones(8), 1.0, 1.0, 1.0),
            ValueError,
            "C: expected a correlation in",
        ),
        (
            lambda: coulomb.radial_spectrum(jnp.ones((8, 5)), GRID, jnp.array([1.0, 0.5])),
            ValueError,
            "edges: expected at least two rising wavenumbers",
        ),
        (lambda: coulomb.log_slope(jnp.ones(1), jnp.ones(1)), ValueError, "y: expected as many points as x"),
        (lambda: coulomb.mean_with_error(jnp.ones(3)), ValueError, "series: expected [times, ...] with four"),
        (lambda: coulomb.correlation_time(jnp.ones(1), 1.0), ValueError, "C: expected [lags, ...] with two"),
        (
            lambda: coulomb.correlation_time(jnp.ones(5), 1.0, 2.0),
            ValueError,
            "level: expected a finite number",
        ),
        (
            lambda: coulomb.maxwell_wall_pressure(None, SdftConfig((8, 8))),
            ValueError,
            "cfg: expected walls=True",
        ),
        (lambda: coulomb.exponents(0), ValueError, "d: expected a whole number of 1 or more, got 0"),
        (
            lambda: coulomb.grid_correlation(SpectralGrid((8, 8), padding=1), 1.0),
            ValueError,
            "grid: expected no",
        ),
    ],
)
def test_mistakes(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_exact_steps_take_any_time():
    """A step of which no explicit scheme would survive the thousandth part."""
    cfg = SdftConfig((8, 8), Ef=5.0, dt=1e4, scheme="linear_exact")
    state = jax.jit(lambda a, b: coulomb.sdft_step(coulomb.sdft_init(a, cfg), b, cfg))(
        jax.random.key(0), jax.random.key(1)
    )
    assert np.isfinite(np.asarray(state.n)).all()
    assert np.abs(np.asarray(state.n)).max() > 0


def test_traced_numbers_pass():
    """What cannot be looked at is not refused."""
    found = jax.jit(lambda dt: coulomb.propagator(1.0, 0.5, 1.0, dt))(-1.0)
    assert found.shape == (2, 2)
