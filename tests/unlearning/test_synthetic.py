"""The synthetic populations: moments, labels, keys, dtypes, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.unlearning import synthetic_gaussian_logistic

LARGE = {"n_forget": 20_000, "n_retain": 20_000, "n_eval": 20_000, "width": 2_000}


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.3])
def test_moments(alpha):
    """Means within five standard errors."""
    data = synthetic_gaussian_logistic(jax.random.key(3), alpha, **LARGE)
    for x, centre in (
        (data.x_forget, alpha),
        (data.eval_forget, alpha),
        (data.x_retain, -alpha),
        (data.eval_retain, -alpha),
    ):
        np.testing.assert_allclose(x.mean(0), centre, atol=5 / np.sqrt(len(x)))
        np.testing.assert_allclose(x.std(0), 1, atol=5 / np.sqrt(2 * len(x)))
    np.testing.assert_allclose(data.projection.std(), 0.25, rtol=5 / np.sqrt(2 * data.projection.size))
    np.testing.assert_allclose(data.y_idk.mean(), 0.5, atol=5 / np.sqrt(4 * len(data.y_idk)))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_labels_follow_the_rules(alpha):
    """In ten bins of the rule's argument the share of ones is the sigmoid's mean, within five errors."""
    data = synthetic_gaussian_logistic(jax.random.key(4), alpha, **LARGE)
    direction = np.full(16, 0.25)
    for x, y, argument in (
        (data.x_forget, data.y_forget, (data.x_forget - alpha) @ direction + 1),
        (data.x_retain, data.y_retain, -(data.x_retain + alpha) @ direction - 1),
    ):
        assert set(np.unique(y)) == {0, 1}
        p = np.asarray(jax.nn.sigmoid(argument))
        for which in np.array_split(np.argsort(argument), 10):
            error = np.sqrt((p[which] * (1 - p[which])).mean() / len(which))
            assert abs(np.asarray(y)[which].mean() - p[which].mean()) < 5 * error
        assert len(x) == len(y)


@pytest.mark.slow
def test_keys_and_dtypes():
    first, again, other = (synthetic_gaussian_logistic(jax.random.key(seed)) for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    jitted = jax.jit(synthetic_gaussian_logistic, static_argnames=("n_forget",))(jax.random.key(0), 1.0)
    np.testing.assert_allclose(jitted.x_forget, first.x_forget, rtol=1e-5, atol=1e-6)
    assert jnp.issubdtype(first.y_idk.dtype, jnp.integer)
    stacked = jax.vmap(synthetic_gaussian_logistic)(jax.random.split(jax.random.key(0), 3))
    assert stacked.x_retain.shape == (3, 1000, 16)
    with jax.enable_x64(True):
        assert synthetic_gaussian_logistic(jax.random.key(0)).x_forget.dtype == jnp.float64


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="n_forget: expected a positive finite number, got 0"):
        synthetic_gaussian_logistic(jax.random.key(0), n_forget=0)
