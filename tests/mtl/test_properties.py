"""What holds for every Gram matrix: optimality, symmetry among tasks, scaling, transformations, precision."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls

from jaxneg.mtl import (
    aligned_mtl,
    cagrad,
    config,
    dualproj,
    fairgrad,
    gradvac,
    imtl_g,
    mgda,
    nash,
    pcd,
    pcgrad,
    upgrad,
)
from jaxneg.mtl.solvers import project_to_simplex

TASKS = 3
CAGRAD_C = 0.4
METHODS = {
    "mgda": mgda,
    "mgda l2": partial(mgda, normalizer="l2"),
    "cagrad": partial(cagrad, c=CAGRAD_C),
    "cagrad fast": partial(cagrad, solver="fast"),
    "imtl_g": imtl_g,
    "nash": nash,
    "fairgrad 2": partial(fairgrad, alpha=2.0),
    "aligned_mtl": aligned_mtl,
    "upgrad": upgrad,
    "dualproj": dualproj,
    "config": config,
}
PCGRAD = partial(pcgrad, orders=jnp.array([[1, 2, 0], [2, 0, 1], [0, 1, 2]]))
ALL = METHODS | {
    "pcgrad": PCGRAD,
    "pcd": partial(pcd, tau=0.1),
    "gradvac": lambda G: gradvac(G, jnp.full_like(G, 0.3), PCGRAD.keywords["orders"])[0],
}
# How the weights change with the scale of one gradient, w_i -> w_i s^k: directions that do not see lengths.
INVARIANT = {"mgda l2": -1, "nash": -1}

# The fixture x64 may stay entered from one example to the next.
FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SEEDS = st.integers(0, 2**31)


@cache
def jitted(name):
    """One program a method and precision, for three tasks."""
    return jax.jit(ALL[name], compiler_options={"xla_backend_optimization_level": 0})


def jacobian(seed, tasks=TASKS, parameters=8):
    """Gradients that disagree, their lengths within a factor of ten, far from a Pareto-stationary point."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=parameters)
    rows = rng.normal(size=(tasks, parameters)) + rng.uniform(0, 1) * shared
    return rows * 10 ** rng.uniform(-0.5, 0.5, (tasks, 1))


def weights_of(name, J, dtype=None):
    return np.asarray(jitted(name)(jnp.asarray(J @ J.T, dtype)), np.float64)


# --- brute force -------------------------------------------------------------------------------------------


def simplex_grid(points):
    steps = np.linspace(0, 1, points)
    first, second = np.meshgrid(steps, steps, indexing="ij")
    inside = first + second <= 1 + 1e-12
    return np.stack([first[inside], second[inside], 1 - first[inside] - second[inside]], axis=1)


@FEW
@given(SEEDS)
def test_mgda_is_the_shortest_combination(x64, seed):
    J = jacobian(seed)
    weights = weights_of("mgda", J)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    grid = simplex_grid(101)
    shortest = np.min(np.sum((grid @ J) ** 2, axis=1))
    found = np.sum((weights @ J) ** 2)
    assert found <= shortest * (1 + 1e-9)
    # The grid is a hundredth wide: it cannot be much worse.
    assert found >= shortest - 0.02 * np.sum(J**2)
    # Every task's gradient has at least that much in the direction: it is a common descent direction.
    assert np.min(J @ (weights @ J)) >= found * (1 - 1e-6)


@FEW
@given(SEEDS)
def test_cagrad_is_the_minimum_of_its_dual(x64, seed):
    J = jacobian(seed)
    G = J @ J.T
    radius = CAGRAD_C * np.sqrt(G.mean() + 1e-8) + 1e-8

    def objective(share):
        return share @ G.mean(1) + radius * np.sqrt(share @ G @ share + 1e-8)

    best = minimize(
        objective,
        np.full(TASKS, 1 / TASKS),
        method="SLSQP",
        bounds=[(0, 1)] * TASKS,
        constraints={"type": "eq", "fun": lambda share: 1 - share.sum()},
        options={"ftol": 1e-12},
    )
    weights = weights_of("cagrad", J) * (1 + CAGRAD_C**2)
    share = weights - 1 / TASKS
    assert share.min() >= -1e-9
    assert objective(share / share.sum()) <= best.fun + 1e-8 * abs(best.fun)
    expected = (1 / TASKS + best.x * radius / (np.sqrt(best.x @ G @ best.x) + 1e-8)) @ J
    np.testing.assert_allclose(weights @ J, expected, atol=1e-3 * np.linalg.norm(expected))
    # The direction stays in its ball around the average gradient.
    average = J.mean(0)
    assert np.linalg.norm(weights @ J - average) <= CAGRAD_C * np.linalg.norm(average) * (1 + 1e-5)


@FEW
@given(SEEDS)
def test_upgrad_and_dualproj_by_nonnegative_least_squares(x64, seed):
    J = jacobian(seed)
    G = J @ J.T
    root = np.linalg.cholesky(G / np.trace(G) + 1e-4 * np.eye(TASKS)).T

    def projected(start):
        return start + nnls(root, -root @ start)[0]

    rows = np.eye(TASKS) / TASKS
    np.testing.assert_allclose(weights_of("upgrad", J), sum(map(projected, rows)), rtol=1e-7)
    np.testing.assert_allclose(weights_of("dualproj", J), projected(rows.sum(0)), rtol=1e-7)


@FEW
@given(SEEDS, st.sampled_from([("nash", 1.0), ("fairgrad 2", 2.0)]))
def test_fair_equation(x64, seed, case):
    name, alpha = case
    J = jacobian(seed)
    weights = weights_of(name, J)
    assert weights.min() > 0
    np.testing.assert_allclose(weights ** (1 / alpha) * (J @ J.T @ weights), 1, atol=1e-9)


@FEW
@given(SEEDS)
def test_imtl_g_projects_equally(x64, seed):
    J = jacobian(seed)
    weights = weights_of("imtl_g", J)
    projections = J @ (weights @ J) / np.linalg.norm(J, axis=1)
    np.testing.assert_allclose(projections, projections[0], rtol=1e-7)
    assert weights.sum() == pytest.approx(1)


@FEW
@given(SEEDS)
def test_aligned_gradients_are_orthogonal_and_equally_long(x64, seed):
    """Task by task: the preference of one task alone gives that task's aligned gradient."""
    J = jacobian(seed)
    G = jnp.asarray(J @ J.T)
    aligned = np.stack([np.asarray(aligned_by_preference(G, unit)) for unit in jnp.eye(TASKS)]) @ J
    least = np.linalg.eigvalsh(G)[0]
    np.testing.assert_allclose(aligned @ aligned.T, least * np.eye(TASKS), atol=1e-8 * least)


aligned_by_preference = jax.jit(aligned_mtl)


@FEW
@given(SEEDS)
def test_pcgrad_by_projection_of_vectors(x64, seed):
    J = jacobian(seed)
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(TASKS), (TASKS, 1)), axis=1)
    direction = np.zeros(J.shape[1])
    for i, order in enumerate(orders):
        vector = J[i].copy()
        for j in order:
            if j != i and vector @ J[j] < 0:
                vector -= vector @ J[j] / (J[j] @ J[j]) * J[j]
        direction += vector
    weights = np.asarray(pcgrad_by_orders(jnp.asarray(J @ J.T), jnp.asarray(orders)))
    np.testing.assert_allclose(weights @ J, direction, atol=1e-10 * np.linalg.norm(J))


pcgrad_by_orders = jax.jit(pcgrad)


@FEW
@given(SEEDS)
def test_gradvac_by_turning_vectors(x64, seed):
    """After its turn, a vector has the aimed cosine with the other gradient."""
    J, rng, beta = jacobian(seed), np.random.default_rng(seed), 0.3
    orders = rng.permuted(np.tile(np.arange(TASKS), (TASKS, 1)), axis=1)
    rho = rng.uniform(-0.5, 0.9, (TASKS, TASKS))
    aims, direction = rho.copy(), np.zeros(J.shape[1])
    for i, order in enumerate(orders):
        vector = J[i].copy()
        for j in order[order != i]:
            cosine = vector @ J[j] / (np.linalg.norm(vector) * np.linalg.norm(J[j]))
            aim, aims[i, j] = rho[i, j], (1 - beta) * rho[i, j] + beta * cosine
            if cosine < aim:
                across = vector - vector @ J[j] / (J[j] @ J[j]) * J[j]
                along = np.linalg.norm(across) * aim / np.sqrt(1 - aim**2) / np.linalg.norm(J[j])
                vector = across + along * J[j]
        direction += vector
    weights, found = gradvac_by_orders(jnp.asarray(J @ J.T), jnp.asarray(rho), jnp.asarray(orders), beta=beta)
    np.testing.assert_allclose(np.asarray(weights) @ J, direction, atol=1e-6 * np.linalg.norm(J))
    np.testing.assert_allclose(found, aims, atol=1e-6)


gradvac_by_orders = jax.jit(gradvac, static_argnames="beta")


@FEW
@given(SEEDS)
def test_config_makes_the_same_angle_with_every_gradient(x64, seed):
    J = jacobian(seed)
    direction = weights_of("config", J) @ J
    unit = J / np.linalg.norm(J, axis=1, keepdims=True)
    cosines = unit @ direction / np.linalg.norm(direction)
    np.testing.assert_allclose(cosines, cosines[0], atol=1e-8)
    assert cosines[0] > 0
    np.testing.assert_allclose(np.linalg.norm(direction), np.sum(J @ direction) / np.linalg.norm(direction))


@pytest.mark.parametrize("size", [1.0, 1e4, 3e7, 1e30])
def test_projection_to_the_simplex_is_the_nearest_point(size):
    """SDMGrad's steps are huge where its estimate of the scale is not positive."""
    found = np.asarray(project_to_simplex(jnp.array([1.0, -0.3, 0.2]) * size))
    assert found.sum() == pytest.approx(1, abs=1e-6)
    expected = [0.9, 0.0, 0.1] if size == 1 else [1.0, 0.0, 0.0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_pcd_is_the_nearest_direction_in_which_all_progress(x64):
    """Against a sequential quadratic program in parameter space."""
    tau = 0.3
    weigh = jax.jit(partial(pcd, tau=tau, eps=0.0))
    for seed in range(6):
        J = jacobian(seed, 3, 5)
        if seed == 5:
            # Two secondary tasks that contradict each other: the constraints go.
            J[2] = -J[1]
        unit = J / np.linalg.norm(J, axis=1, keepdims=True)
        if seed == 5:
            nearest = unit[0]
        else:
            constraints = {"type": "ineq", "fun": lambda d, unit=unit: unit[1:] @ d - tau}
            nearest = minimize(
                lambda d, unit=unit: 0.5 * np.sum((d - unit[0]) ** 2),
                unit.sum(0),
                constraints=constraints,
                options={"ftol": 1e-14, "maxiter": 500},
            ).x
        expected = nearest / np.linalg.norm(nearest) * np.linalg.norm(J[0])
        weights = np.asarray(weigh(jnp.asarray(J @ J.T)))
        np.testing.assert_allclose(weights @ J, expected, atol=1e-5 * np.linalg.norm(J[0]))
        assert np.all(weights >= 0)


@pytest.mark.parametrize("name", ["mgda", "cagrad", "nash", "fairgrad 2", "upgrad", "dualproj"])
def test_residuals_are_reported(x64, name):
    G = jnp.asarray(jacobian(7) @ jacobian(7).T)
    weights, info = jax.jit(partial(METHODS[name], return_info=True))(G)
    np.testing.assert_allclose(weights, weights_of(name, jacobian(7)), rtol=1e-6)
    assert 0 <= info.residual < 1e-8
    assert info.iterations > 0


# --- symmetry and scale ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@FEW
@given(SEEDS, st.permutations(range(TASKS)))
def test_the_order_of_tasks_does_not_matter(x64, name, seed, order):
    J = jacobian(seed)
    weights, permuted = weights_of(name, J), weights_of(name, J[order])
    np.testing.assert_allclose(permuted, weights[order], atol=1e-7 * np.abs(weights).max())


@pytest.mark.parametrize("name", INVARIANT)
@FEW
@given(SEEDS, st.lists(st.floats(0.1, 10), min_size=TASKS, max_size=TASKS))
def test_the_lengths_of_gradients_do_not_matter(x64, name, seed, scales):
    J, scales = jacobian(seed), np.array(scales)
    direction = weights_of(name, J) @ J
    scaled = weights_of(name, scales[:, None] * J) @ (scales[:, None] * J)
    np.testing.assert_allclose(scaled, direction, atol=1e-6 * np.linalg.norm(direction))


@pytest.mark.parametrize("name", ["mgda", "imtl_g", "aligned_mtl", "upgrad", "dualproj", "pcgrad", "config"])
@FEW
@given(SEEDS, st.floats(0.05, 20))
def test_weights_do_not_see_a_common_scale(x64, name, seed, scale):
    J = jacobian(seed)
    weights = weights_of(name, J)
    np.testing.assert_allclose(weights_of(name, scale * J), weights, atol=1e-8 * np.abs(weights).max())


# --- transformations and precision -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_jit_vmap_and_eager_agree(name):
    batch = jnp.asarray(np.stack([jacobian(n) @ jacobian(n).T for n in range(4)]), jnp.float32)
    together = np.asarray(jax.jit(jax.vmap(ALL[name]))(batch))
    for n, G in enumerate(batch):
        alone = np.asarray(jitted(name)(G))
        np.testing.assert_allclose(together[n], alone, rtol=2e-3, atol=1e-4 * np.abs(alone).max())
    eager = np.asarray(ALL[name](batch[0]))
    alone = np.asarray(jitted(name)(batch[0]))
    np.testing.assert_allclose(eager, alone, rtol=2e-3, atol=1e-4 * np.abs(alone).max())


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_jacobian_is_close(name):
    J = jacobian(3).astype(np.float32)
    rounded = np.asarray(jnp.asarray(J, jnp.bfloat16).astype(jnp.float32))
    weights = weights_of(name, J, jnp.float32) @ J
    low = weights_of(name, rounded, jnp.float32) @ J
    assert np.linalg.norm(low - weights) <= 0.05 * np.linalg.norm(weights)
    # A Gram matrix in bfloat16 is solved in float32.
    assert jax.eval_shape(ALL[name], jnp.eye(TASKS, dtype=jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", ["reverse", pytest.param("forward", marks=pytest.mark.slow)])
def test_derivatives_are_those_of_finite_differences(x64, name, mode):
    rng = np.random.default_rng(0)
    J, change, cotangent = jacobian(3), rng.normal(size=(TASKS, 8)), rng.normal(size=TASKS)

    def of_jacobian(J):
        return jnp.asarray(cotangent) @ ALL[name](J @ J.T)

    if mode == "reverse":
        slope = np.sum(np.asarray(jax.jit(jax.grad(of_jacobian))(jnp.asarray(J))) * change)
    else:
        slope = jax.jit(lambda J, change: jax.jvp(of_jacobian, (J,), (change,))[1])(
            jnp.asarray(J), jnp.asarray(change)
        )
    step = 1e-5
    ahead, behind = (cotangent @ weights_of(name, J + sign * step * change) for sign in (1, -1))
    assert float(slope) == pytest.approx((ahead - behind) / (2 * step), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_single_precision_stays_where_double_is_enabled(x64, name):
    assert jax.eval_shape(ALL[name], jnp.eye(TASKS, dtype=jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", ["zero", "zero row", "identical", "opposite", "orthonormal"])
def test_derivatives_stay_finite(name, case):
    if name.startswith("aligned_mtl") and case in ("zero", "orthonormal"):
        pytest.skip("where eigenvalues coincide, the scale of Aligned-MTL has a kink: there is no derivative")
    J = jacobian(1)
    J = {
        "zero": 0 * J,
        "zero row": J * np.array([[1], [1], [0]]),
        "identical": np.repeat(J[:1], TASKS, axis=0),
        "opposite": np.stack([J[0], -J[0], J[1]]),
        "orthonormal": np.eye(TASKS, J.shape[1]),
    }[case]
    gradient = finite_gradient(name)(jnp.asarray(J, jnp.float32))
    assert np.all(np.isfinite(gradient))


@cache
def finite_gradient(name):
    return jax.jit(jax.grad(lambda J: jnp.sum(jnp.arange(TASKS) * ALL[name](J @ J.T))))
