"""InfoNCE and its companions beside NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.retrieval import gradient_norm_proxy, infonce_loss, mean_margin


def test_infonce_and_companions():
    rng = np.random.default_rng(0)
    positive, negative = rng.uniform(-1, 1, 6), rng.uniform(-1, 1, (6, 4))
    mask = rng.random((6, 4)) < 0.6
    mask[0], mask[1] = False, True
    margin = (negative - positive[:, None]) / 0.1
    counts = np.maximum(mask.sum(1), 1)
    cases = [
        (lambda *a: infonce_loss(*a, temperature=0.1), np.log1p((np.exp(margin) * mask).sum(1))),
        (mean_margin, ((positive[:, None] - negative) * mask).sum(1) / counts),
        (lambda *a: gradient_norm_proxy(*a, temperature=0.1), (mask / (1 + np.exp(-margin))).sum(1) / counts),
    ]
    for function, expected in cases:
        np.testing.assert_allclose(function(positive, negative, mask), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            jax.jit(function)(positive, negative, mask), expected, rtol=1e-5, atol=1e-6
        )
        low = function(jnp.asarray(positive, jnp.bfloat16), jnp.asarray(negative, jnp.bfloat16), mask)
        assert low.dtype == jnp.float32
        gradient = jax.grad(lambda n, f=function: f(jnp.asarray(positive), n, mask).sum())(
            jnp.asarray(negative)
        )
        assert bool(jnp.all(jnp.isfinite(gradient)))
        assert bool(jnp.all(gradient[~mask] == 0))
    # Far above the positive: no overflow.
    assert float(infonce_loss(jnp.array(-1.0), jnp.array([1.0]), temperature=0.001)) == pytest.approx(2000)
    for function in (infonce_loss, gradient_norm_proxy):
        with pytest.raises(ValueError, match="temperature: expected a positive number, got 0"):
            function(positive, negative, temperature=0)
    with pytest.raises(ValueError, match=r"sim_pos: expected .*\(6,\), got \(3,\)"):
        mean_margin(positive[:3], negative)
