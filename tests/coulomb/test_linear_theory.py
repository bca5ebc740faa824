"""Closed forms against brute force, in their limits, differentiated, mapped, in both precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, quad_vec
from scipy.linalg import expm, solve_continuous_lyapunov

from jaxneg import coulomb
from jaxneg.coulomb.propagator import ModeMatrix, mode_noise_factor, mode_step_matrices

MODES = [  # k2, kx, Ef, t, screening
    (0.3, 0.2, 1.5, 0.7, 1.0),
    (2.0, 1.0, 3.0, 0.05, 1.0),
    (1e-4, 0.007, 2.0, 5.0, 1.0),
    (1.0, 0.5, 1.0, 1.0, 1.0),  # w0 = 0
    (4.0, 1.5, 0.7, 0.2, 0.3),
]


def matrix(k2, kx, Ef, w):
    return np.array([[k2, 1j * Ef * kx], [1j * Ef * kx, k2 + w]])


def dense(m: ModeMatrix):
    return np.array([[m.nn, -1j * m.nq], [-1j * m.nq, m.qq]], complex)


@pytest.mark.usefixtures("x64")
@settings(max_examples=30, deadline=None)
@given(
    st.floats(0.01, 5),
    st.floats(-1, 1),
    st.floats(0, 20),
    st.floats(0.1, 1),
)
def test_structure_factor_solves_lyapunovs_equation(k, cosine, Ef, w):
    with jax.enable_x64(True):
        kvec = jnp.array([k * cosine, k * np.sqrt(1 - cosine**2)])
        s_nn, s_qq, s_nq = (float(x) for x in coulomb.structure_factor(kvec, Ef, w))
    M = matrix(float(np.sum(np.asarray(kvec) ** 2)), float(kvec[0]), Ef, w)
    expected = solve_continuous_lyapunov(M, 2 * k * k * np.eye(2))
    found = np.array([[s_nn, 1j * s_nq], [-1j * s_nq, s_qq]])
    np.testing.assert_allclose(found, expected, atol=1e-11)


@pytest.fixture(scope="module")
def stepped():
    with jax.enable_x64(True):
        modes = [jnp.asarray(x) for x in zip(*MODES, strict=True)]
        k2, kx, Ef, t, w = modes
        return jax.tree.map(
            np.asarray,
            jax.jit(lambda: (mode_step_matrices(*modes), coulomb.ou_noise_factor(k2, kx, Ef, t, 0.5, w)))(),
        )


@pytest.mark.parametrize("index", range(len(MODES)))
def test_step_matrices_are_matrix_functions(stepped, index):
    k2, kx, Ef, t, w = MODES[index]
    M = matrix(k2, kx, Ef, w)
    (U, p1, p2), L = jax.tree.map(lambda x: x[index], stepped)
    np.testing.assert_allclose(dense(U), expm(-M * t), atol=1e-13)
    exact1 = quad_vec(lambda s: expm(-M * s), 0, t, epsabs=1e-13)[0]
    exact2 = quad_vec(lambda s: s / t * expm(-M * (t - s)), 0, t, epsabs=1e-13)[0]
    np.testing.assert_allclose(dense(p1), exact1, atol=1e-11)
    np.testing.assert_allclose(dense(p2), exact2, atol=1e-11)
    noise = quad_vec(lambda s: expm(-M * s) @ expm(-M * s).conj().T, 0, t, epsabs=1e-13)[0]
    np.testing.assert_allclose(L @ L.conj().T, 0.5 * 2 * k2 * noise, atol=1e-11)


def test_float32_keeps_the_noise_of_long_waves():
    """2 k^2 t is 1e-6 here, and S - U S U^dagger has no digit of it in float32."""
    factor = mode_noise_factor(np.float32(1e-5), np.float32(0.003), np.float32(2.0), np.float32(0.05))
    np.testing.assert_allclose(factor.nn**2, 2e-5 * 0.05, rtol=1e-3)
    assert factor.nn.dtype == np.float32


def test_propagator_does_not_overflow_and_composes():
    far = coulomb.propagator(400.0, 3.0, 5.0, 1e3)
    assert np.isfinite(np.asarray(far)).all()
    with jax.enable_x64(True):
        once, twice = np.asarray(coulomb.propagator(0.5, 0.5, 2.0, jnp.array([0.4, 0.8])))
    np.testing.assert_allclose(once @ once, twice, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_limits():
    still = coulomb.structure_factor(jnp.array([[0.3, 0.4], [0.0, 0.0]]), 0.0)
    np.testing.assert_allclose(still.s_nn, 1)
    np.testing.assert_allclose(still.s_qq, [0.25 / 1.25, 0])
    direction = jnp.array([np.cos(0.7), np.sin(0.7)])
    small = coulomb.structure_factor(1e-5 * direction, 3.0).s_nn
    np.testing.assert_allclose(small, coulomb.long_wavelength_limit(0.7, 3.0), rtol=1e-8)
    late = coulomb.quench_structure_factor(0.5, 0.4, 2.0, 200.0)
    S = coulomb.mode_structure_factor(0.5, 0.4, 2.0)
    np.testing.assert_allclose(np.diag(late), [S.s_nn, S.s_qq], rtol=1e-12)
    force = jax.jit(lambda H, Ef: coulomb.casimir_force(H, Ef, 2))
    for Ef in (0.5, 5.0):
        np.testing.assert_allclose(force(1e3, Ef) * 1e6, coulomb.casimir_amplitude(Ef, 2), rtol=1e-5)
    np.testing.assert_allclose(coulomb.casimir_amplitude(1e6, 3), 1.2020569 / (8 * np.pi), rtol=1e-5)
    # A weak field's amplitude keeps its digits, and there is no force without a field.
    np.testing.assert_allclose(coulomb.casimir_amplitude(1e-6, 2), np.pi / 16 * 1e-12, rtol=1e-9)
    assert abs(float(force(5.0, 0.0))) < 1e-15


@pytest.mark.usefixtures("x64")
def test_casimir_force_where_poles_meet_is_smooth_and_differentiable():
    force = jax.jit(jax.value_and_grad(lambda H, Ef: coulomb.casimir_force(H, Ef, 2), (0, 1)))
    for H, Ef in ((2.0, 0.3), (5.0, 1.0)):
        _, (dH, dE) = force(H, Ef)
        step = 1e-4
        np.testing.assert_allclose(
            dH, (force(H + step, Ef)[0] - force(H - step, Ef)[0]) / (2 * step), rtol=1e-6
        )
        np.testing.assert_allclose(
            dE, (force(H, Ef + step)[0] - force(H, Ef - step)[0]) / (2 * step), rtol=1e-6
        )
    from jaxneg.coulomb.casimir import _pole_sum

    # Across G = 1/2, where the direct form divides zero by zero, and at the edge of its replacement.
    W = np.array([0.0100001, 0.0099999, 1e-9, 0.0, -1e-9, -0.0099999, -0.0100001])
    values = np.asarray(jax.jit(_pole_sum)(jnp.full(7, 0.4), jnp.sqrt(0.25 - W), jnp.full(7, 3.0)))
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)
    np.testing.assert_allclose(values[2:5], values[3], rtol=1e-8)
    np.testing.assert_allclose(values[5], values[6], rtol=1e-6)
    assert np.all(np.diff(values) != 0) or np.ptp(values[2:5]) < 1e-12


def test_float32_and_maps():
    fields = jnp.array([0.5, 1.0, 2.0])
    force = jax.jit(jax.vmap(lambda Ef: coulomb.casimir_force(20.0, Ef, 2)))(fields)
    assert force.dtype == np.float32
    expected = coulomb.casimir_amplitude(fields, 2)
    np.testing.assert_allclose(force * 400, expected, rtol=0.03)
    kvec = jnp.array([0.3, 0.4], jnp.bfloat16)
    found = jax.vmap(lambda Ef: coulomb.structure_factor(kvec, Ef).s_nn)(fields)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, coulomb.structure_factor(kvec, fields).s_nn, rtol=1e-6)
    slope = jax.grad(lambda k: coulomb.structure_factor(k, 2.0).s_qq)(jnp.zeros(2))
    assert np.isfinite(np.asarray(slope)).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("d", [1, 2, 3])
def test_conductivity_is_its_integral(d):
    def angular(k, Ef):
        def over(c):
            return c * c / ((2 * k * k + 1) * (k * k + 1 + (Ef * c) ** 2))

        if d == 1:
            return 2 * over(1.0) / (2 * np.pi)
        if d == 2:
            return quad(lambda a: over(np.cos(a)), 0, 2 * np.pi)[0] * k / (2 * np.pi) ** 2
        return quad(over, -1, 1)[0] * 2 * np.pi * k * k / (2 * np.pi) ** 3

    expected = quad(angular, 0, np.inf, args=(3.0,), epsabs=1e-12)[0]
    np.testing.assert_allclose(coulomb.conductivity_integral(3.0, d), expected, rtol=1e-8)
    weak = coulomb.conductivity_integral(np.array([0.0, 1e-6, 9.99e-4, 1.001e-3]), d)
    np.testing.assert_allclose(weak, weak[0], rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_wall_pressure_in_space_is_its_integral():
    """By Monte Carlo over wavevectors with the density of a Cauchy law, in a fixed sequence."""
    rng = np.random.default_rng(0)
    u, c, a = rng.random((3, 400_000))
    k = u / (1 - u)
    cos, phi = 2 * c - 1, 2 * np.pi * a
    x = np.sqrt(1 - cos**2) * np.cos(phi)
    kvec = k[:, None] * np.stack([x, np.sqrt(1 - cos**2) * np.sin(phi), cos], 1)
    excess = coulomb.structure_factor(kvec, 2.0).s_qq - k**2 / (k**2 + 1)
    values = (1 - cos**2) / k**2 * excess * k**2 * 4 * np.pi / (1 - u) ** 2 / ((2 * np.pi) ** 2 * 2 * np.pi)
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - float(coulomb.wall_pressure(2.0, 3))) < 5 * error


@pytest.mark.usefixtures("x64")
def test_tails():
    """The charges' tail is minus Ef^4 times the fourth derivative of the screened potential's law."""
    Ef, s = 1.3, 1 + 1.3**2
    potential = [
        lambda x, y: -jnp.log(jnp.sqrt(y * y + x * x / s)) / (2 * jnp.pi * jnp.sqrt(s)),
        lambda x, y: 1 / jnp.sqrt(y * y + x * x / s) / (4 * jnp.pi * jnp.sqrt(s)),
    ]
    for d, law in zip((2, 3), potential, strict=True):
        derivative = law
        for _ in range(4):
            derivative = jax.grad(derivative)
        np.testing.assert_allclose(
            coulomb.real_space_tail(7.0, 4.0, Ef, d, "qq"), -(Ef**4) * derivative(7.0, 4.0), rtol=1e-10
        )
    grid = coulomb.SpectralGrid((256, 256), 1.0)
    C = coulomb.grid_correlation(grid, 2.0)
    R = jnp.array([6.0, 9.0, 12.0])
    law = 4 / (2 * np.pi * 5**1.5 * R**2)
    np.testing.assert_allclose(coulomb.second_harmonic(C.s_nn, 1.0, 2.0, R), law, rtol=0.02)
    many = coulomb.second_harmonic(jnp.stack([C.s_nn, C.s_nn + 7]), 1.0, 2.0, R)
    np.testing.assert_allclose(many[1], many[0], rtol=1e-8)
