"""Gradient reversal and its schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.federated import adaptation_schedule, grl


@pytest.mark.golden("fedka", "schedule*.npz")
def test_official_schedule(golden, x64):
    for gamma, expected in zip(golden["gammas"], golden["lam"], strict=True):
        np.testing.assert_allclose(
            adaptation_schedule(golden["progress"], float(gamma)), expected, rtol=1e-9, atol=1e-11
        )


def test_reversal():
    x = jnp.array([1.0, -2.0])
    np.testing.assert_array_equal(grl(x, 0.3), x)
    np.testing.assert_allclose(jax.grad(lambda x: (grl(x, 0.3) ** 2).sum())(x), -0.3 * 2 * x, rtol=1e-6)
    assert jax.grad(lambda s: grl(x, s).sum())(0.3) == 0
    low = jax.jit(jax.grad(lambda x: grl(x, jnp.float32(0.5)).sum()))(x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(jax.vmap(lambda x, s: jax.grad(grl)(x, s))(x, x), -x)


def test_bad_gamma():
    with pytest.raises(ValueError, match="gamma: expected a positive number, got 0"):
        adaptation_schedule(0.5, 0)
