"""Fréchet distance, precision and recall, win rate."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg import diffusion

# The neighbour that the names of the golden precision and recall end in.
NEIGHBOUR = "_k"
distance = jax.jit(diffusion.frechet_distance, static_argnames="ridge")
shares = jax.jit(diffusion.precision_recall, static_argnames=("k", "block"))


@pytest.mark.golden("ant", "ntg_frechet.npz")
def test_golden(golden, x64):
    real = golden["real"]
    multi = distance(golden["multi"], real)
    np.testing.assert_allclose(multi, golden["fd_multi"], rtol=1e-6, atol=1e-6)
    specialists = jax.vmap(lambda features: distance(features, real))(golden["spec"])
    np.testing.assert_allclose(specialists, golden["fd_spec"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(specialists - multi, golden["ntg"], rtol=1e-6, atol=1e-6)
    names = [name for name in golden if NEIGHBOUR in name]
    assert names
    for name in names:
        which, k = name.split(NEIGHBOUR)
        got = shares(real, golden["multi"], k=int(k))
        np.testing.assert_allclose(getattr(got, which), golden[name], rtol=1e-12, err_msg=name)


@pytest.mark.golden("ant", "ntg_frechet.npz")
def test_golden_in_float32(golden):
    real, multi = (golden[name].astype(np.float32) for name in ("real", "multi"))
    np.testing.assert_allclose(distance(multi, real), golden["fd_multi"], rtol=1e-4)


@pytest.mark.golden("self_npo", "win_rate.npz")
def test_golden_win_rate(golden, x64):
    rate = jax.jit(diffusion.win_rate)
    assert rate(golden["s1"], golden["s2"]) == golden["win1"]
    assert rate(golden["s2"], golden["s1"]) == golden["win2"]
    assert golden["win1"] + golden["win2"] < 1  # ties count for neither


def features(n, dim=4, shift=0.0, seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(size=(n, dim)) @ random.normal(size=(dim, dim)) + shift).astype(np.float32)


def by_root(a, b, ridge=0.0):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    one, two = (np.cov(points, rowvar=False) + ridge * np.eye(a.shape[1]) for points in (a, b))
    root = scipy.linalg.sqrtm(one @ two)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + two - 2 * np.real(root))


@hypothesis.given(seed=st.integers(0, 1000), ridge=st.sampled_from([0.0, 0.1]))
@hypothesis.settings(max_examples=10, deadline=None)
def test_distance_by_the_matrix_root(seed, ridge):
    a, b = features(30, seed=seed), features(20, shift=0.5, seed=seed + 1)
    expected = by_root(a, b, ridge)
    np.testing.assert_allclose(distance(a, b, ridge=ridge), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(distance(b, a, ridge=ridge), expected, rtol=1e-4, atol=1e-4)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0].astype(np.float32)
    np.testing.assert_allclose(
        distance(a @ rotation, b @ rotation, ridge=ridge), expected, rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(distance(a, a, ridge=ridge), 0, atol=1e-4)


def test_distance_of_singular_covariances():
    """Dead features and fewer points than features: in float32 nothing is lost under a root."""
    a, b = features(40, 12), features(40, 12, seed=1)
    a[:, 6:], b[:, 6:] = 0, 0
    np.testing.assert_allclose(distance(a, b), by_root(a[:, :6], b[:, :6]), rtol=1e-5)
    few, many = features(5, 12), features(40, 12, seed=1)
    # The Gaussian of few points lies in a subspace: the trace of the root is that of the product there.
    exact = distance(few, many)
    one, two = np.cov(few.astype(np.float64), rowvar=False), np.cov(many.astype(np.float64), rowvar=False)
    values, vectors = np.linalg.eigh(one)
    half = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    trace = np.sqrt(np.maximum(np.linalg.eigvalsh(half @ two @ half), 0)).sum()
    means = ((few.mean(0, dtype=np.float64) - many.mean(0, dtype=np.float64)) ** 2).sum()
    np.testing.assert_allclose(exact, means + np.trace(one) + np.trace(two) - 2 * trace, rtol=1e-5)


def test_gradient_of_the_distance(x64):
    a, b = features(12).astype(np.float64), features(10, seed=1).astype(np.float64)
    gradient = jax.jit(jax.grad(diffusion.frechet_distance), static_argnames="ridge")
    for ridge in (0.0, 0.1):
        slope = gradient(a, b, ridge=ridge)
        for i, j in ((0, 0), (5, 2)):
            step = np.zeros_like(a)
            step[i, j] = 1e-5
            numeric = (distance(a + step, b, ridge=ridge) - distance(a - step, b, ridge=ridge)) / 2e-5
            np.testing.assert_allclose(slope[i, j], numeric, rtol=1e-5)
    assert np.isfinite(gradient(a[:3], b, ridge=0.1)).all()


def neighbourhoods(real, fake, k):
    """The definition, pair by pair in float64."""
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)

    def pairs(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    def covered(points, others):
        radius = np.sort(pairs(others, others), axis=1)[:, k]
        return (pairs(points, others) <= radius).any(1).mean()

    return covered(fake, real), covered(real, fake)


@pytest.mark.parametrize(("k", "block"), [(1, 1024), (3, 7)])
def test_precision_and_recall_pair_by_pair(k, block):
    real, fake = features(33), features(48, shift=1.0, seed=1)
    got = shares(real, fake, k=k, block=block)
    assert 0 < got.precision < 1
    np.testing.assert_allclose(got, neighbourhoods(real, fake, k), rtol=1e-6)
    together = jax.vmap(lambda fake: shares(real, fake, k=k, block=block))(np.stack([fake, fake[::-1]]))
    np.testing.assert_allclose(together.recall, [got.recall] * 2, rtol=1e-6)


def test_precision_and_recall_far_from_the_origin():
    """Distances of points that share a large offset, with the bits that float32 has left of them."""
    real, fake = features(33) + 300.0, features(48, shift=300.5, seed=1)
    np.testing.assert_allclose(shares(real, fake, k=3), neighbourhoods(real, fake, 3), rtol=1e-6)
    assert shares(real, real, k=3) == (1.0, 1.0)


def test_bfloat16_features():
    a, b = features(40).astype(jnp.bfloat16), features(40, seed=1).astype(jnp.bfloat16)
    wide = [points.astype(np.float32) for points in (a, b)]
    assert distance(a, b).dtype == jnp.float32
    np.testing.assert_allclose(distance(a, b), distance(*wide), rtol=1e-6)
    np.testing.assert_allclose(shares(a, b, k=3), shares(*wide, k=3))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded(kind):
    real, fake = features(32), features(48, shift=0.5, seed=1)
    expected = distance(real, fake), *shares(real, fake, k=3), diffusion.win_rate(real[:, 0], fake[:32, 0])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    placed = jax.device_put((real, fake), NamedSharding(mesh, P("data")))
    scores = jax.device_put((real[:, 0], fake[:32, 0]), NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        got = distance(*placed), *shares(*placed, k=3), jax.jit(diffusion.win_rate)(*scores)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_win_rate():
    a, b = np.array([1.0, 2.0, np.inf, 0.0]), np.array([0.0, 2.0, np.inf, 1.0])
    assert diffusion.win_rate(a, b) == 0.25
    assert np.isnan(diffusion.win_rate(a, np.array([0.0, np.nan, 0.0, 0.0])))
    np.testing.assert_allclose(jax.vmap(diffusion.win_rate)(np.stack([a, b]), np.stack([b, a])), [0.25, 0.25])


def test_mistakes():
    a = jnp.ones((5, 3))
    with pytest.raises(ValueError, match=r"a: expected \[n, dim\] with n of at least 2, got shape \(1, 3\)"):
        diffusion.frechet_distance(a[:1], a)
    with pytest.raises(ValueError, match=r"b: expected \[n, dim\] with n of at least 2, got shape \(3,\)"):
        diffusion.frechet_distance(a, a[0])
    with pytest.raises(ValueError, match="b: expected the width of a, 3, got 2"):
        diffusion.frechet_distance(a, a[:, :2])
    with pytest.raises(ValueError, match="ridge: expected a number between 0 and inf, got -1"):
        diffusion.frechet_distance(a, a, ridge=-1)
    with pytest.raises(TypeError, match="a: expected a floating dtype, got int32"):
        diffusion.frechet_distance(a.astype(int), a)
    with pytest.raises(
        ValueError, match=r"fake: expected \[n, dim\] with n of at least 4, got shape \(3, 3\)"
    ):
        diffusion.precision_recall(a, a[:3])
    with pytest.raises(ValueError, match="fake: expected the width of real, 3, got 2"):
        diffusion.precision_recall(a, a[:, :2])
    with pytest.raises(ValueError, match="k: expected a number of at least 1, got 0"):
        diffusion.precision_recall(a, a, 0)
    with pytest.raises(
        ValueError, match=r"b: expected scores of the same examples as a, shape \(5,\), got \(4,\)"
    ):
        diffusion.win_rate(a[:, 0], a[:4, 0])
    with pytest.raises(ValueError, match="b: expected scores of the same examples"):
        diffusion.win_rate(a[:0, 0], a[:0, 0])
    with pytest.raises(TypeError, match="a: expected a floating dtype, got bool"):
        diffusion.win_rate(a > 0, a)
