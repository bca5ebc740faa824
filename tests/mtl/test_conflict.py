"""Conflict statistics: by brute force from the gradients, degenerate Jacobians, invariances, bad input."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.mtl import ConflictStatistics, conflict_statistics, gram

statistics = jax.jit(conflict_statistics)


def by_hand(J):
    """From the rows of a float64 Jacobian, pair by pair."""
    norms = np.linalg.norm(J, axis=1)
    cosines = [J[i] @ J[j] / (norms[i] * norms[j]) for i, j in combinations(range(len(J)), 2)]
    return np.mean(cosines), np.mean(np.less(cosines, 0)), norms.max() / norms.min()


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_brute_force_permutation_and_scale(seed):
    rng = np.random.default_rng(seed)
    J = rng.normal(size=(4, 6)) * rng.lognormal(sigma=2, size=(4, 1))
    found = statistics(jnp.asarray(J @ J.T, jnp.float32))
    np.testing.assert_allclose(found, by_hand(J), rtol=1e-3, atol=1e-5)
    shuffled = J[rng.permutation(4)]
    np.testing.assert_allclose(
        statistics(jnp.asarray(shuffled @ shuffled.T, jnp.float32)), found, rtol=1e-4, atol=1e-6
    )
    scaled = J * rng.lognormal(size=(4, 1))
    of_scaled = statistics(jnp.asarray(scaled @ scaled.T, jnp.float32))
    np.testing.assert_allclose(of_scaled[:2], found[:2], rtol=1e-4, atol=1e-5)


def test_known_gradients():
    opposite = conflict_statistics(jnp.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert [float(number) for number in opposite] == [-1, 1, 1]
    identical = conflict_statistics(jnp.full((3, 3), 2.0))
    np.testing.assert_allclose(identical, (1, 0, 1), rtol=1e-6)
    orthogonal = conflict_statistics(jnp.diag(jnp.array([1.0, 4.0, 100.0])))
    np.testing.assert_allclose(orthogonal, (0, 0, 10), rtol=1e-6)


def test_degenerate_gradients():
    """A zero gradient conflicts with none; nothing is NaN."""
    one_zero = conflict_statistics(jnp.diag(jnp.array([1.0, 0.0])))
    assert [float(number) for number in one_zero] == [0, 0, np.inf]
    assert [float(number) for number in conflict_statistics(jnp.zeros((3, 3)))] == [0, 0, 1]
    for scale in (0.0, 3.0):
        assert [float(number) for number in conflict_statistics(jnp.full((1, 1), scale))] == [1, 0, 1]
    tiny = conflict_statistics(jnp.array([[1e-36, -1e-36], [-1e-36, 4e-36]]))
    np.testing.assert_allclose(tiny, (-0.5, 1, 2), rtol=1e-4)


def test_vmap_precision_and_eager():
    J = np.random.default_rng(0).normal(size=(5, 3, 8))
    G = jnp.asarray(J @ J.swapaxes(1, 2), jnp.float32)
    together = jax.vmap(conflict_statistics)(G)
    assert isinstance(together, ConflictStatistics)
    for row, of_one in enumerate(G):
        of_row = [number[row] for number in together]
        np.testing.assert_allclose(of_row, statistics(of_one), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(conflict_statistics(of_one), statistics(of_one), rtol=1e-5, atol=1e-6)
    halved = conflict_statistics(G[0].astype(jnp.bfloat16))
    assert {number.dtype for number in halved} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(halved, statistics(G[0]), rtol=0.05, atol=0.01)


def test_float64(x64):
    J = np.random.default_rng(1).normal(size=(3, 5))
    found = conflict_statistics(jnp.asarray(J @ J.T))
    assert found.mean_cosine.dtype == jnp.float64
    np.testing.assert_allclose(found, by_hand(J), rtol=1e-12)


@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_gradients(explicit):
    """From a Jacobian whose parameters lie on all devices, inside one jitted function."""
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((8,), ("model",), axis_types=(kind,))
    J = np.random.default_rng(2).normal(size=(3, 16)).astype(np.float32)
    placed = jax.device_put(J, NamedSharding(mesh, P(None, "model")))
    with jax.set_mesh(mesh):
        found = jax.jit(lambda jac: conflict_statistics(gram(jac)))(placed)
    np.testing.assert_allclose(found, by_hand(J.astype(np.float64)), rtol=1e-4, atol=1e-5)


def test_mistakes():
    with pytest.raises(ValueError, match=r"G: expected a square matrix \[T, T\], got shape \(2, 3\)"):
        conflict_statistics(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"G: expected at least one task, got shape \(0, 0\)"):
        conflict_statistics(jnp.ones((0, 0)))
    with pytest.raises(TypeError, match="G: expected floating point, got int32"):
        conflict_statistics(jnp.ones((2, 2), int))
