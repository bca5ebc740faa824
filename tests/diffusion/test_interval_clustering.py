"""Interval clustering: goldens, every small case by brute force, properties, transformations, bad input."""

import itertools
import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxneg.diffusion import interval_clustering, interval_cost, timestep_intervals
from jaxneg.diffusion.schedules import cosine_schedule

# By a golden's name: kind, power, and whether its optimum is unique (the README's "l1t, l2t: ties").
COSTS = {
    "l1": ("snr", 1, True),
    "l2": ("snr", 2, True),
    "l1t": ("timestep", 1, False),
    "l2t": ("timestep", 2, False),
    "grad": ("gradient", None, True),
}


def cost_by_definition(kind, values, power=None):
    n = len(values)
    cost = np.full((n, n), np.inf)
    for left in range(n):
        for right in range(left, n):
            middle = (left + right + 1) // 2
            terms = [
                -values[middle, t] if kind == "gradient" else abs(values[t] - values[middle]) ** power
                for t in range(left, right + 1)
            ]
            cost[left, right] = sum(terms)
    return cost


def partitions(n, k):
    return [(0, *inner, n) for inner in itertools.combinations(range(1, n), k - 1)]


def cost_of(boundaries, cost):
    return sum(cost[left, right - 1] for left, right in itertools.pairwise(boundaries))


def allowed(n, k, low, high):
    return [p for p in partitions(n, k) if all(low <= b - a <= high for a, b in itertools.pairwise(p))]


def compare(golden, prefix, values_of, k, tolerance):
    """Against ``<prefix><name>_cost`` and ``_bounds`` in float64 and in float32; how many were compared."""
    for name, (kind, power, unique) in COSTS.items():
        suffix = "" if f"{prefix}{name}_cost" in golden else f"_k{k}"
        if f"{prefix}{name}{suffix}_cost" not in golden:
            continue
        expected_cost = golden.pop(f"{prefix}{name}{suffix}_cost")
        expected = golden.pop(f"{prefix}{name}{suffix}_bounds")
        values = values_of[kind]
        with jax.enable_x64(True):
            boundaries, cost = interval_clustering(interval_cost(kind, values, power), k)
            assert cost.dtype == jnp.float64
            np.testing.assert_allclose(cost, expected_cost, rtol=tolerance, atol=tolerance)
        single, single_cost = interval_clustering(interval_cost(kind, values, power), k)
        assert single_cost.dtype == jnp.float32
        np.testing.assert_allclose(single_cost, expected_cost, rtol=1e-4)
        for found in (boundaries, single):
            assert found[0] == 0
            assert found[-1] == len(values)
            if unique:
                np.testing.assert_array_equal(found, expected)


@pytest.mark.golden("ant", "interval_clustering.npz")
def test_golden(golden):
    cases = {name.split("_")[0] for name in golden}
    for case in sorted(cases):
        n, k = int(golden.pop(f"{case}_n")), int(golden.pop(f"{case}_k"))
        values = {
            "snr": golden.pop(f"{case}_logsnr"),
            "timestep": np.arange(n),
            "gradient": golden.pop(f"{case}_tas"),
        }
        compare(golden, f"{case}_", values, k, 1e-9)
        # The authors' answers have their defects; their costs cannot be below the optimum.
        for name in ("snr", "tas"):
            assert golden.pop(f"{case}_official_{name}").shape == (k, 2)
    assert not golden, "an array of this file has no test"


@pytest.mark.golden("ant", "interval_clustering_schedule.npz")
def test_golden_schedules(golden):
    names = {name.removesuffix("_alphas_cumprod") for name in golden if name.endswith("_alphas_cumprod")}
    assert names
    for name in sorted(names):
        alphas_cumprod, log_snr = golden.pop(f"{name}_alphas_cumprod"), golden.pop(f"{name}_logsnr")
        np.testing.assert_allclose(np.log(alphas_cumprod / (1 - alphas_cumprod)), log_snr, rtol=1e-10)
        found = [re.fullmatch(rf"{name}_\w+_k(\d+)_cost", key) for key in golden]
        for k in sorted({int(match[1]) for match in found if match}):
            compare(golden, f"{name}_", {"snr": log_snr, "timestep": np.arange(len(log_snr))}, k, 1e-8)
    assert not golden, "an array of this file has no test"


@pytest.mark.golden("ant", "uniform_clusters.npz")
def test_golden_uniform_clusters(golden):
    for name, expected in golden.items():
        T, k = map(int, re.fullmatch(r"T(\d+)_k(\d+)", name).groups())
        boundaries = timestep_intervals(T, k)
        np.testing.assert_array_equal(np.stack([boundaries[:-1], boundaries[1:]], 1), expected)


@pytest.mark.slow
def test_the_paper_s_size():
    """The boundaries that the specification gives for T = 1000, cosine, log-SNR."""
    log_snr = cosine_schedule(1000).log_snr
    boundaries, _ = interval_clustering(interval_cost("snr", log_snr), 5)
    assert boundaries.tolist() == [0, 133, 372, 653, 881, 1000]
    with jax.enable_x64(True):
        double, _ = interval_clustering(interval_cost("snr", log_snr), 5)
    np.testing.assert_array_equal(boundaries, double)


@pytest.mark.parametrize("n", [1, 5, pytest.param(8, marks=pytest.mark.slow)])
def test_costs_by_definition(n):
    rng = np.random.default_rng(n)
    values, affinity = rng.normal(size=n), rng.normal(size=(n, n))
    for kind, power in (("snr", 1), ("snr", 2), ("snr", 1.5), ("timestep", 2)):
        expected = cost_by_definition(kind, values, power)
        np.testing.assert_allclose(interval_cost(kind, values, power), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        interval_cost("gradient", affinity), cost_by_definition("gradient", affinity), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(interval_cost("timestep", n), interval_cost("timestep", np.arange(n), 2))
    np.testing.assert_array_equal(interval_cost("snr", values), interval_cost("snr", values, 1))


def brute_force(n, k, sizes=((1, None),)):
    """Random costs, costs with many ties, and costs that forbid intervals, all at once."""
    rng = np.random.default_rng(100 * n + k)
    costs = np.concatenate([
        rng.normal(size=(12, n, n)),
        rng.integers(0, 3, size=(12, n, n)),
        np.zeros((1, n, n)),
        np.where(rng.random((6, n, n)) < 0.2, np.inf, rng.integers(0, 9, size=(6, n, n))),
    ]).astype(np.float32)  # fmt: skip
    for low, high in sizes:
        choices = allowed(n, k, low, high or n)
        solve = jax.vmap(lambda cost, low=low, high=high: interval_clustering(cost, k, low, high))
        boundaries, totals = solve(jnp.asarray(costs))
        for cost, found, total in zip(costs, np.asarray(boundaries), np.asarray(totals), strict=True):
            best = min(cost_of(choice, cost) for choice in choices)
            assert total == pytest.approx(best, rel=1e-5, abs=1e-5)
            if np.isfinite(best):
                assert tuple(found.tolist()) in choices
                assert cost_of(found, cost) == pytest.approx(best, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 4, pytest.param(5, marks=pytest.mark.slow)])
def test_every_small_partition(n):
    for k in range(1, n + 1):
        brute_force(n, k)


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 7])
def test_every_small_partition_with_sizes(n):
    for k in range(1, n + 1):
        sizes = [
            (low, high)
            for low in range(1, n // k + 1)
            for high in (None, *range(max(low, -(-n // k)), n))
            if high is None or low == 1 or high == -(-n // k)
        ]
        brute_force(n, k, sizes)


@pytest.mark.slow
def test_sizes():
    brute_force(6, 3, [(1, 2), (2, None), (1, 3)])


def test_the_first_of_equal_partitions():
    boundaries, total = interval_clustering(jnp.zeros((6, 6)), 3)
    assert boundaries.tolist() == [0, 1, 2, 6]
    assert total == 0


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_more_intervals_never_cost_more(seed):
    values = np.sort(np.random.default_rng(seed).normal(size=12))
    cost = interval_cost("snr", values, 2)
    totals = [float(interval_clustering(cost, k)[1]) for k in (1, 2, 3, 12)]
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(totals))
    assert totals[-1] == 0
    # Shifted and scaled log-SNR has the same intervals.
    moved, _ = interval_clustering(interval_cost("snr", 4 * values + 1, 2), 3)
    np.testing.assert_array_equal(moved, interval_clustering(cost, 3)[0])


@pytest.mark.slow
def test_equal_intervals_for_timesteps():
    _, best = interval_clustering(interval_cost("timestep", 30), 5)
    cost = np.asarray(interval_cost("timestep", 30))
    assert cost_of(timestep_intervals(30, 5), cost) == best
    assert np.diff(timestep_intervals(1000, 19)).sum() == 1000  # floats would end at 999


@pytest.mark.slow
def test_jit_grad_and_low_precision():
    values = jnp.asarray(np.sort(np.random.default_rng(0).normal(size=12)), jnp.float32)

    def solve(values):
        return interval_clustering(interval_cost("snr", values), 3)

    for plain, jitted in zip(solve(values), jax.jit(solve)(values), strict=True):
        np.testing.assert_allclose(plain, jitted, rtol=1e-6)
    # The optimum's derivative is the derivative of its own intervals' cost.
    boundaries = np.asarray(solve(values)[0])
    gradient = jax.grad(lambda values: solve(values)[1])(values)
    expected = np.zeros(12)
    for left, right in itertools.pairwise(boundaries):
        middle = (left + right) // 2
        expected[left:right] += np.sign(np.asarray(values)[left:right] - float(values[middle]))
        expected[middle] -= np.sign(np.asarray(values)[left:right] - float(values[middle])).sum()
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert interval_cost("snr", values.astype(jnp.bfloat16)).dtype == jnp.float32
    assert interval_clustering(jnp.zeros((4, 4), jnp.bfloat16), 2)[1].dtype == jnp.float32


def test_bad_input():
    cost = interval_cost("timestep", 6)
    cases = [
        ("kind: expected 'timestep', 'snr' or 'gradient', got 'fid'", lambda: interval_cost("fid", 6)),
        (r"values: expected one for each noise level, .* got shape \(0,\)", lambda: interval_cost("snr", [])),
        (r"values: .* got shape \(2, 3\)", lambda: interval_cost("snr", np.ones((2, 3)))),
        (
            r"values: expected affinities \[n, n\], got shape \(2, 3\)",
            lambda: interval_cost("gradient", np.ones((2, 3))),
        ),
        ("power: expected a positive number, got 0", lambda: interval_cost("snr", np.ones(3), 0)),
        ("power: expected None for 'gradient'", lambda: interval_cost("gradient", np.eye(3), 2)),
        (
            r"cost: expected a square matrix \[n, n\], got shape \(2, 3\)",
            lambda: interval_clustering(np.ones((2, 3)), 1),
        ),
        ("k: expected from 1 to 6 intervals of 6 noise levels, got 7", lambda: interval_clustering(cost, 7)),
        ("k: expected from 1 to 6 intervals of 6 noise levels, got 0", lambda: interval_clustering(cost, 0)),
        ("min_size: expected from 1 to 2 for 3 .* got 3", lambda: interval_clustering(cost, 3, 3)),
        ("min_size: expected from 1 to 2 for 3 .* got 0", lambda: interval_clustering(cost, 3, 0)),
        ("max_size: expected at least 2 for 3 .* got 1", lambda: interval_clustering(cost, 3, 1, 1)),
        ("cost: no partition .* the best is nan", lambda: interval_clustering(cost.at[0, 2].set(jnp.nan), 3)),
        (
            "cost: no partition into 2 intervals has a finite cost, the best is inf",
            lambda: interval_clustering(cost.at[0].set(jnp.inf), 2),
        ),
        ("k: expected from 1 to 10 intervals of 10 timesteps, got 11", lambda: timestep_intervals(10, 11)),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
    # Under jit too, where the sizes are known, and the costs are not.
    with pytest.raises(ValueError, match="k: expected from 1 to 6"):
        jax.jit(lambda cost: interval_clustering(cost, 7))(cost)
