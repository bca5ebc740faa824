"""The stochastic integrators: their laws, their order, walls, replicas, and slabs over a mesh."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg import coulomb
from jaxneg.coulomb import ChemotaxisConfig, SdftConfig, SdftState, SpectralGrid

KEY = jax.random.key(0)


def noiseless(shape, amplitude=0.3):
    rng = np.random.default_rng(1)
    axes = range(len(shape))
    smooth = [
        np.fft.irfftn(np.fft.rfftn(rng.normal(size=shape)) * low_pass(shape), shape, axes) for _ in "nq"
    ]
    fields = [amplitude * f / f.std() for f in (f - f.mean() for f in smooth)]
    return SdftState(*(jnp.fft.rfftn(jnp.asarray(f)) for f in fields))


def low_pass(shape):
    grid = SpectralGrid(shape)
    return np.exp(-2 * np.asarray(grid.k2()))


@pytest.fixture(scope="module")
def ensemble():
    """Many exact steps from stationary configurations, without and with walls: mean spectra over g."""

    def spectra(cfg):
        def one(key):
            first, second = jax.random.split(key)
            state = coulomb.sdft_step(coulomb.sdft_init(first, cfg), second, cfg)
            nq = jnp.imag(state.n * jnp.conj(state.q)) * cfg.dx**2 / np.prod(cfg.grid.shape)
            return jnp.stack([*(coulomb.power_spectrum(x, cfg.grid) for x in state), nq]) / cfg.g

        return np.asarray(jax.jit(lambda keys: jax.vmap(one)(keys).mean(0))(jax.random.split(KEY, 4000)))

    plain = SdftConfig((8, 6), Ef=2.0, dt=0.4, g=0.1, scheme="linear_exact")
    return {
        walls: (replace(plain, walls=walls), spectra(replace(plain, walls=walls))) for walls in (False, True)
    }


@pytest.mark.parametrize("walls", [False, True])
def test_exact_steps_keep_the_stationary_law(ensemble, walls):
    cfg, found = ensemble[walls]
    grid = cfg.grid
    S = coulomb.mode_structure_factor(grid.k2(), grid.wavenumber(0, derivative=True), cfg.Ef)
    expected = np.stack([np.broadcast_to(x, grid.spectrum_shape) for x in S])
    expected[0, 0, 0] = 0  # the number of ions is fixed
    if (
        walls
    ):  # a cosine of no wave has twice the variance in the doubled box; its crest cannot lie on Nyquist's
        expected = expected * np.where(np.arange(grid.spectrum_shape[-1]) == 0, 2, 1)
        expected[..., -1] = 0
    scale = np.sqrt(expected[0] * expected[1])
    for values, theory in zip(found, (expected[0], expected[1], expected[2]), strict=True):
        size = np.maximum(np.abs(theory), scale)
        # |Gaussian|^2 varies by its mean, a real mode's by sqrt(2) of it.
        np.testing.assert_allclose(values, theory, atol=1e-6 + 5 * np.sqrt(2 / 4000) * size.max())
        np.testing.assert_array_less(np.abs(values - theory), 1e-6 + 6 * np.sqrt(2 / 4000) * size)


@pytest.fixture(scope="module")
def run_scheme():
    return jax.jit(
        lambda cfg, state, steps: jax.lax.fori_loop(
            0, steps, lambda i, s: coulomb.sdft_step(s, jax.random.fold_in(KEY, i), cfg), state
        )
    )


def test_without_noise_the_schemes_converge(run_scheme):
    """With g = 0 halving the step quarters the error of ETDRK2, and halves that of exponential Euler."""
    shape, T = (12, 12), 0.4
    with jax.enable_x64(True):
        start = noiseless(shape)

        def at(scheme, steps):
            cfg = SdftConfig(shape, dx=1.0, Ef=1.5, g=0.0, dt=T / steps, scheme=scheme)
            return np.asarray(run_scheme(cfg, start, steps).n)

        exact = at("sdft_etdrk2", 128)
        for scheme, order in (("sdft_etdrk2", 2), ("sdft_etd", 1)):
            coarse, fine = (np.abs(at(scheme, steps) - exact).max() for steps in (4, 8))
            assert 2**order * 0.75 < coarse / fine < 2**order * 1.4
        # Density is conserved, and the charge's mean stays 0.
        assert abs(exact[0, 0] - np.asarray(start.n)[0, 0]) < 1e-12


def test_exponential_euler_is_its_formula():
    """One step with noise against numpy, drawn from the same key."""
    cfg = SdftConfig((8, 6), Ef=1.0, g=0.05)
    with jax.enable_x64(True):
        state = jax.jit(coulomb.sdft_init)(KEY, cfg)
        found = jax.jit(coulomb.sdft_step)(state, jax.random.key(3), cfg)
        eta = np.asarray(jax.random.normal(jax.random.key(3), (4, 8, 6)))
        grid = cfg.grid
        kept, poisson = np.asarray(grid.kept()), np.asarray(grid.inverse_k2())
        ik = [1j * np.asarray(grid.wavenumber(a, derivative=True)) for a in (0, 1)]
        step = jax.jit(lambda t: coulomb.propagator(grid.k2(), ik[0].imag, 1.0, t))
        U, half = np.asarray(step(0.05)), np.asarray(step(0.025))
    n_hat, q_hat = (kept * np.asarray(x) for x in state)
    n, q, *slopes = (np.fft.irfft2(x) for x in (n_hat, q_hat, *(k * poisson * q_hat for k in ik)))
    size = np.sqrt(0.05 * 0.05 / 0.25)
    plus, minus = (
        size * np.sqrt(np.maximum(1 + n + sign * q, 0)) * part for sign, part in ((1, eta[:2]), (-1, eta[2:]))
    )
    flux_n, flux_q = 0.05 * q * slopes + plus + minus, 0.05 * n * slopes + plus - minus
    div = [
        kept * sum(k * np.fft.rfftn(f) for k, f in zip(ik, flux, strict=True)) for flux in (flux_n, flux_q)
    ]
    expected = np.einsum("...ij,j...->i...", U, [n_hat, q_hat]) + np.einsum("...ij,j...->i...", half, div)
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-12)


def test_walls_reflect():
    """Densities stay even about the walls, and what the walls feel is the gradient along them there."""
    cfg = SdftConfig((8, 5), Ef=2.0, g=0.05, walls=True)
    state, _ = jax.jit(lambda key: coulomb.sdft_run(key, cfg, 5))(KEY)
    for spectrum in state:
        field = np.fft.irfftn(np.asarray(spectrum), cfg.grid.shape)
        np.testing.assert_allclose(field, field[:, ::-1], atol=1e-5)
        assert field.std() > 0.05
    np.testing.assert_allclose(
        coulomb.density_fields(state, cfg)[1], np.fft.irfftn(np.asarray(state.q), (8, 10))[:, :5], atol=1e-5
    )
    # The potential on a grid four times finer, half a cell before the first point.
    grid = cfg.grid
    slope = 1j * grid.wavenumber(0, derivative=True) * grid.inverse_k2() * state.q
    fine = np.zeros((8, 21), complex)
    fine[:, :6] = np.asarray(slope)
    along = 4 * np.fft.irfftn(fine, (8, 40))
    expected = (np.mean(along[:, -2] ** 2) + np.mean(along[:, 18] ** 2)) / 2 / (2 * 0.05)
    np.testing.assert_allclose(coulomb.maxwell_wall_pressure(state, cfg), expected, rtol=1e-4)


def test_current_is_its_mean_over_the_box():
    cfg = SdftConfig((8, 6), Ef=1.5)
    state = jax.jit(coulomb.sdft_init)(KEY, cfg)
    n, _ = np.asarray(coulomb.density_fields(state, cfg))
    grid = cfg.grid
    slope = np.fft.irfftn(
        np.asarray(1j * grid.wavenumber(0, derivative=True) * grid.inverse_k2() * state.q), (8, 6)
    )
    np.testing.assert_allclose(coulomb.electric_current(state, cfg), 1.5 - np.mean(n * slope), rtol=1e-6)


def test_runs_are_steps_and_map_over_fields():
    cfg = SdftConfig((8, 8), g=0.05)

    def run(Ef):
        return coulomb.sdft_run(KEY, replace(cfg, Ef=Ef), 4, observe=lambda s: jnp.abs(s.q) ** 2, every=2)

    fields = jnp.array([0.0, 2.0])
    last, seen = jax.jit(jax.vmap(run))(fields)
    assert seen.shape == (2, 2, 8, 5)
    np.testing.assert_allclose(seen[:, -1], jnp.abs(last.q) ** 2)
    first, later = jax.random.split(KEY)
    driven = replace(cfg, Ef=2.0)
    state = coulomb.sdft_init(first, driven)
    step = jax.jit(coulomb.sdft_step)
    for i in range(4):
        state = step(state, jax.random.fold_in(later, i), driven)
    np.testing.assert_allclose(last.n[1], state.n, atol=1e-5)


@pytest.fixture(scope="module", params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(request.param,) * 2)


def test_sharded_transforms(mesh):
    rng = np.random.default_rng(0)
    for shape, size in (((8, 16, 6), None), ((16, 16), None), ((8, 8, 5), 5), ((8, 12), 12)):
        x = rng.normal(size=shape).astype(np.float32)
        placed = jax.device_put(x, NamedSharding(mesh, P(("data", "model"))))
        found = jax.jit(lambda x: coulomb.sharded_rfftn(x, mesh))(placed)
        assert found.sharding.shard_shape(found.shape)[1] * 8 == found.shape[1]
        expected = np.fft.rfftn(x)
        values = np.asarray(found)
        np.testing.assert_allclose(values[..., : expected.shape[-1]], expected, atol=1e-4)
        np.testing.assert_array_equal(values[..., expected.shape[-1] :], 0)
        back = jax.jit(lambda y, size=size: coulomb.sharded_irfftn(y, mesh, size))(found)
        np.testing.assert_allclose(back, x, atol=1e-5)
        assert back.sharding.shard_shape(back.shape)[0] * 8 == shape[0]


def test_a_step_in_slabs_is_the_step(mesh):
    """The same noise on every mesh, in three dimensions."""
    cfg = SdftConfig((8, 8, 4), Ef=2.0, g=0.02)

    def run(mesh):
        return jax.jit(lambda key: coulomb.sdft_step(coulomb.sdft_init(key, cfg, mesh), key, cfg, mesh))(KEY)

    for found, expected in zip(run(mesh), run(None), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_chemotaxis_in_slabs_is_the_same():
    """In two dimensions, where the spectrum is padded."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    cfg = ChemotaxisConfig((16, 8), mu1=0.5, mu2=1.0, dt=0.05)

    def run(mesh):
        start = jax.jit(lambda key: coulomb.chemotaxis_init(key, cfg, mesh))(KEY)
        return np.asarray(jax.jit(lambda x, key: coulomb.chemotaxis_step(x, key, cfg, mesh))(start, KEY))

    found, expected = run(mesh), run(None)
    np.testing.assert_allclose(found[:, :5], expected, atol=1e-4)
    np.testing.assert_array_equal(found[:, 5:], 0)


def test_in_one_dimension_the_couplings_are_one():
    """Only mu2 - mu1 / 2 counts, and mu1 = 2 mu2 is linear."""
    grid = SpectralGrid((32,))
    rho_hat = jnp.fft.rfftn(jnp.asarray(np.random.default_rng(0).normal(size=32))).at[0].set(0)
    drift = jax.jit(coulomb.chemotaxis_rhs, static_argnums=3)
    one = drift(rho_hat, 0.0, 0.5, grid)
    scale = float(jnp.abs(one).max())
    np.testing.assert_allclose(drift(rho_hat, 1.0, 1.0, grid), one, atol=1e-5 * scale)
    np.testing.assert_allclose(drift(rho_hat, 2.0, 1.0, grid), 0 * one, atol=1e-5 * scale)
    np.testing.assert_allclose(coulomb.chemotaxis_rhs(rho_hat, 0, 0.5, grid), one, atol=1e-5 * scale)
    assert abs(complex(one[0])) < 1e-12 * scale


def test_linear_chemotaxis_has_its_law():
    """White, or with a mass S = Dn k^2 / (D k^2 + sigma), and the exact step keeps it; the mean stays 0."""
    cfg = ChemotaxisConfig((16,), D=0.5, Dn=2.0, sigma=0.3, dt=1.5)

    def one(key):
        first, second = jax.random.split(key)
        return coulomb.power_spectrum(
            coulomb.chemotaxis_step(coulomb.chemotaxis_init(first, cfg), second, cfg), cfg.grid
        )

    found = np.asarray(jax.jit(lambda keys: jax.vmap(one)(keys).mean(0))(jax.random.split(KEY, 8000)))
    k2 = np.asarray(cfg.grid.k2())
    expected = 2.0 * k2 / (0.5 * k2 + 0.3)
    np.testing.assert_allclose(found, expected, rtol=5 * np.sqrt(2 / 8000))
    assert found[0] == 0


def test_chemotaxis_without_noise_converges_and_maps_over_couplings():
    shape = (12, 10)
    grid = SpectralGrid(shape)
    with jax.enable_x64(True):
        start = noiseless(shape, 1.0).n

        @jax.jit
        def at(steps, mu2):
            def step(_, x):
                return coulomb.etdrk2_step(x, 0.4, mu2, grid, 1.0 / steps, 0.7, sigma=0.1)

            return jax.lax.fori_loop(0, steps, step, start)

        exact = at(256, 1.5)
        coarse, fine = (float(jnp.abs(at(steps, 1.5) - exact).max()) for steps in (8, 16))
        assert 3.3 < coarse / fine < 4.8
        both = jax.vmap(lambda mu2: at(8, mu2))(jnp.array([1.5, -0.5]))
        np.testing.assert_allclose(both[0], at(8, 1.5), atol=1e-12)


def test_chemotaxis_runs_from_a_flat_density():
    cfg = ChemotaxisConfig((32,), mu2=0.5)
    last, seen = coulomb.chemotaxis_run(KEY, cfg, 6, observe=lambda x: x[:4], every=3)
    assert seen.shape == (2, 4)
    again, _ = coulomb.chemotaxis_run(KEY, cfg, 6, state=jnp.zeros(17, complex))
    np.testing.assert_allclose(again, last, atol=1e-6)
