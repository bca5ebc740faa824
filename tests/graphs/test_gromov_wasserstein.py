"""Gromov-Wasserstein: brute force, the assignment, gradients by the envelope, marginals, types, bad input."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linear_sum_assignment

from jaxneg.graphs import assignment, entropic_gw, gw_distance, gw_objective, round_to_marginals

N = 6


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    c1, c2 = rng.uniform(size=(2, N, N)).astype("f4")
    return (c1 + c1.T) / 2, (c2 + c2.T) / 2


def brute_force(c1, c2, t, loss):
    i, j, k, l = np.ix_(*(range(s) for s in (len(c1), len(c2), len(c1), len(c2))))
    return np.sum(loss(c1[i, k], c2[j, l]) * t[i, j] * t[k, l])


def square_loss(a, b):
    return (a - b) ** 2


def kl_loss(a, b):
    return a * np.log((a + 1e-15) / (b + 1e-15)) - a + b


@pytest.mark.parametrize(("loss", "formula"), [("square", square_loss), ("kl", kl_loss)])
def test_objective_is_the_quadruple_sum(loss, formula, x64):
    rng = np.random.default_rng(0)
    c1, c2, t = rng.uniform(size=(4, 4)), rng.uniform(size=(3, 3)), rng.uniform(size=(4, 3))
    np.testing.assert_allclose(
        gw_objective(c1, c2, t, loss=loss), brute_force(c1, c2, t, formula), rtol=1e-10
    )
    t = np.outer([0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.3])
    given = gw_objective(c1, c2, t, t.sum(1), t.sum(0), loss)
    np.testing.assert_allclose(given, brute_force(c1, c2, t, formula), rtol=1e-10)


@pytest.mark.parametrize("n", [1, 9])
def test_assignment_is_the_cheapest(n):
    rng = np.random.default_rng(n)
    a, b = np.sort(rng.uniform(size=(2, n)))
    costs = np.stack(
        [
            rng.normal(size=(n, n)),
            np.outer(-a, b),
            np.outer(a, b),
            rng.integers(0, 3, (n, n)),  # many ties
            np.zeros((n, n)),
        ]
    ).astype("f4")
    columns, prices = jax.jit(jax.vmap(assignment))(costs)
    again = jax.vmap(assignment)(costs, prices[::-1])[0]  # prices of another problem
    for cost, *found in zip(costs, np.asarray(columns), np.asarray(again), strict=True):
        best = cost[linear_sum_assignment(cost)].sum()
        for column in found:
            assert sorted(column) == list(range(n))
            np.testing.assert_allclose(cost[np.arange(n), column].sum(), best, rtol=1e-5, atol=1e-5)
    rows, of_optax = jax.jit(jax.vmap(optax.assignment.hungarian_algorithm))(costs)
    for cost, row, column, ours in zip(costs, rows, of_optax, columns, strict=True):
        np.testing.assert_allclose(cost[row, column].sum(), cost[np.arange(n), ours].sum(), atol=1e-5)
    reduced = costs - np.asarray(prices)[:, None]
    own = np.take_along_axis(reduced, np.asarray(columns)[..., None], 2)
    assert np.all(own <= reduced.min(2, keepdims=True) + 1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_assignment_ends_where_a_cost_or_price_is_not_finite(value):
    cost = np.random.default_rng(0).normal(size=(5, 5)).astype("f4")
    spoilt, price = cost.copy(), np.zeros(5, "f4")
    spoilt[2, 3] = price[1] = value
    for arguments in ((spoilt,), (cost, price)):
        column, prices = assignment(*arguments)
        assert sorted(column.tolist()) == list(range(5))
        assert np.all(np.isnan(prices))


def test_matrices_that_overflow_have_no_value():
    c1, c2 = 1e20 * np.random.default_rng(0).uniform(-1, 1, (2, 9, 9)).astype("f4")
    assert not np.isfinite(gw_distance(c1, c2).value)


def test_every_permutation_of_a_small_problem(pair):
    c1, c2 = pair
    orders = map(list, itertools.permutations(range(N)))
    least = min(np.mean((c1 - c2[np.ix_(order, order)]) ** 2) for order in orders)
    found = gw_distance(c1, c2, starts=32, key=jax.random.key(1))
    assert float(found.value) <= least + 1e-6  # couplings that are no permutations may be better
    np.testing.assert_allclose(
        brute_force(c1, c2, np.asarray(found.plan), square_loss), found.value, rtol=1e-4
    )
    assert found.per_start.shape == (32,)
    assert found.value == found.per_start.min()


def test_isomorphic_matrices_are_at_distance_zero(pair):
    c1 = pair[0]
    order = np.random.default_rng(1).permutation(N)
    found = gw_distance(c1, c1[order][:, order])
    assert 0 <= found.value < 1e-7
    np.testing.assert_allclose(found.plan, np.eye(N)[order].T / N, atol=1e-6)
    assert gw_distance(c1, c1[order][:, order], solver="proximal").value < 1e-4


def test_directed_matrices(pair):
    rng = np.random.default_rng(2)
    c1 = rng.uniform(size=(N, N)).astype("f4")
    order = rng.permutation(N)
    found = gw_distance(c1, c1[order][:, order], starts=8)
    assert found.value < 1e-7


def test_the_gradient_is_the_envelopes(pair, x64):
    c1, c2 = (jnp.asarray(c, jnp.float64) for c in pair)

    def value(c1, c2):
        return gw_distance(c1, c2).value

    grads = jax.grad(value, (0, 1))(c1, c2)
    t = gw_distance(c1, c2).plan
    np.testing.assert_allclose(grads[0], 2 * (c1 / N**2 - t @ c2 @ t.T), atol=1e-9)
    np.testing.assert_allclose(grads[1], 2 * (c2 / N**2 - t.T @ c1 @ t), atol=1e-9)
    step = 1e-5 * np.random.default_rng(0).normal(size=(N, N))
    slope = (value(c1 + step, c2) - value(c1 - step, c2)) / 2
    np.testing.assert_allclose(slope, np.sum(grads[0] * step), rtol=1e-3)


def test_other_sizes_and_marginals(pair):
    c1, c2 = pair
    p = np.array([0.3, 0.3, 0.2, 0.2], "f4")
    found = gw_distance(c1[:4, :4], c2, starts=3, p=p)
    np.testing.assert_allclose(found.plan.sum(1), p, atol=1e-6)
    np.testing.assert_allclose(found.plan.sum(0), np.full(N, 1 / N), atol=1e-6)
    np.testing.assert_allclose(
        brute_force(c1[:4, :4], c2, np.asarray(found.plan), square_loss), found.value, rtol=1e-4
    )
    product = brute_force(c1[:4, :4], c2, np.outer(p, np.full(N, 1 / N)), square_loss)
    assert found.value < product
    # A node without weight does not matter.
    fewer = gw_distance(c1[:4, :4], c2, starts=3, p=np.array([0.5, 0.3, 0.2, 0], "f4"))
    assert np.isfinite(fewer.value)
    assert fewer.plan[3].sum() == 0


def test_kl_loss(pair):
    c1, c2 = (c + 0.1 for c in pair)
    found = gw_distance(c1, c2, loss="kl")
    np.testing.assert_allclose(brute_force(c1, c2, np.asarray(found.plan), kl_loss), found.value, rtol=1e-4)
    assert found.value <= gw_objective(c1, c2, np.full((N, N), 1 / N**2), loss="kl") + 1e-6


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(st.integers(0, 2**31), st.integers(0, 2))
def test_rounded_plans_have_the_marginals(seed, zeros):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(5))
    t = rng.uniform(size=(4, 5)) * (rng.uniform(size=(4, 5)) < 0.6)
    t[:zeros] = 0
    rounded = np.asarray(round_to_marginals(jnp.asarray(t / max(t.sum(), 1)), jnp.asarray(p), jnp.asarray(q)))
    assert np.all(rounded >= 0)
    np.testing.assert_allclose(rounded.sum(1), p, atol=2e-6)
    np.testing.assert_allclose(rounded.sum(0), q, atol=2e-6)


def test_jit_vmap_and_bfloat16(pair):
    c1, c2 = (jnp.asarray(c) for c in pair)
    batch = jnp.stack([c1, c2, (c1 + c2) / 2])
    whole = jax.jit(jax.vmap(gw_distance, (0, None)))(batch, c2)
    np.testing.assert_allclose(whole.value, [gw_distance(c, c2).value for c in batch], atol=1e-6)
    low = gw_distance(c1.astype(jnp.bfloat16), c2.astype(jnp.bfloat16))
    assert low.value.dtype == jnp.float32
    np.testing.assert_allclose(low.value, gw_distance(c1, c2).value, atol=5e-3)


def test_what_is_not_finite_does_not_hang(pair):
    c1, c2 = pair
    broken = c1.copy()
    broken[1, 2] = np.nan
    assert np.isnan(gw_distance(broken, c2).value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: gw_distance(c[:3], c), r"c1: expected \[n, n\], .* got shape \(3, 6\)"),
        (lambda c: gw_distance(c, c, starts=0), "starts: expected at least 1, got 0"),
        (lambda c: gw_distance(c, c, iters=0), "iters: expected at least 1"),
        (
            lambda c: gw_distance(c, c, solver="emd"),
            "solver: expected one of frank_wolfe, proximal, got 'emd'",
        ),
        (lambda c: gw_distance(c, c, loss="l1"), "loss: expected one of square, kl"),
        (lambda c: gw_distance(c, c, p=np.ones(3)), r"p: expected shape \(6,\), got \(3,\)"),
        (lambda c: gw_distance(c, c, q=np.ones(6)), "q: expected numbers of sum 1, .* got a sum of 6"),
        (lambda c: gw_distance(c, c, beta=0.0), "beta: expected a positive number"),
        (lambda c: gw_objective(c, c, np.ones((2, 6))), r"t: expected shape \(6, 6\), got \(2, 6\)"),
        (lambda c: entropic_gw(c, c, 0.0), "epsilon: expected a positive number"),
        (lambda c: entropic_gw(c, c, 1.0, inner=0), "inner: expected at least 1"),
        (lambda c: round_to_marginals(c, np.ones(6), np.ones(5)), r"q: expected shape \(6,\), got \(5,\)"),
    ],
)
def test_bad_input(pair, call, message):
    with pytest.raises(ValueError, match=message):
        call(pair[0])
