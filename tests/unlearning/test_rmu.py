"""RMU: distances of hidden states, rows of different length, the direction, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.unlearning import rmu_control_vector, rmu_loss


def _case(seed=0, batch=4, tokens=5, width=6):
    random = np.random.default_rng(seed)
    h, reference = random.standard_normal((2, batch, tokens, width)).astype(np.float32)
    mask = np.arange(tokens) < random.integers(1, tokens + 1, (batch, 1))
    return jnp.asarray(h), jnp.asarray(reference), jnp.asarray(mask)


def _brute_force(h, target, mask):
    target = np.broadcast_to(target, h.shape)
    sums = np.array([
        sum(np.mean((h[b, t] - target[b, t]) ** 2) for t in range(h.shape[1]) if mask[b, t])
        for b in range(len(h))
    ])  # fmt: skip
    return sums, mask.sum(1)


@pytest.mark.parametrize("target", ["direction", "states"])
def test_rows_are_what_the_formula_says(target):
    h, reference, mask = _case()
    target = rmu_control_vector(jax.random.key(0), 6) if target == "direction" else reference
    sums, lengths = _brute_force(*map(np.asarray, (h, target, mask)))
    np.testing.assert_allclose(rmu_loss(h, target, mask), sums / lengths, rtol=1e-5)
    pairs = rmu_loss(h, target, mask, own_length=False)
    np.testing.assert_allclose(pairs.mean(), (sums[:, None] / lengths).mean(), rtol=1e-5)
    both = jax.jit(rmu_loss)(h, target, mask)
    np.testing.assert_allclose(both, sums / lengths, rtol=1e-5)
    each = jax.vmap(lambda h, mask: rmu_loss(h[None], jnp.zeros(6), mask[None])[0])(h, mask)
    np.testing.assert_allclose(each, rmu_loss(h, jnp.zeros(6), mask), rtol=1e-5)


def test_gradients_and_dtypes():
    h, reference, mask = _case()
    gradient = jax.grad(lambda h: rmu_loss(h, reference, mask).sum())(h)
    expected = 2 * (h - reference) * mask[..., None] / 6 / mask.sum(-1)[:, None, None]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
    assert not jax.grad(lambda r: rmu_loss(h, r, mask).sum())(reference).any()
    narrow = rmu_loss(h.astype(jnp.bfloat16), reference, mask)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, rmu_loss(h, reference, mask), rtol=3e-2)
    with jax.enable_x64(True):
        assert rmu_loss(jnp.asarray(np.float64(h)), reference, mask).dtype == jnp.float64


def test_a_row_without_tokens_counts_nothing():
    h, reference, mask = _case()
    mask = mask.at[1].set(False)
    value, gradient = jax.value_and_grad(lambda h: rmu_loss(h, reference, mask).sum())(h)
    assert rmu_loss(h, reference, mask)[1] == 0
    assert bool(jnp.isfinite(value))
    assert not gradient[1].any()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_equals_unsharded(kind):
    h, reference, mask = _case()
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))

    def both(h, reference, mask):
        return [rmu_loss(h, reference, mask, own_length=own) for own in (True, False)]

    with jax.set_mesh(mesh):
        placed = jax.device_put((h, reference), NamedSharding(mesh, P("data", None, "model")))
        found = jax.jit(both)(*placed, jax.device_put(mask, NamedSharding(mesh, P("data"))))
    np.testing.assert_allclose(found, both(h, reference, mask), rtol=1e-5)


def test_the_direction():
    vectors = jnp.stack([rmu_control_vector(jax.random.key(seed), 500, 20.0) for seed in (0, 0, 1)])
    np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=-1), 20, rtol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert not np.allclose(vectors[0], vectors[2])
    assert bool((vectors >= 0).all())
    # The mean of U(0, 1)^500 over its norm, within five standard errors.
    np.testing.assert_allclose(vectors.mean(-1) / 20, 0.75**0.5 / 500**0.5, rtol=5 * 0.5 / 500**0.5)


def test_static_mistakes():
    h, reference, mask = _case()
    with pytest.raises(ValueError, match=r"target: expected a shape that broadcasts to h's, .* got \(5,\)"):
        rmu_loss(h, jnp.zeros(5), mask)
    with pytest.raises(ValueError, match=r"target: expected .* got \(3, 5, 6\)"):
        rmu_loss(h, reference[:3], mask)
    with pytest.raises(ValueError, match=r"mask: expected the shape .* \(4, 5\), got \(4, 4\)"):
        rmu_loss(h, reference, mask[:, 1:])
    with pytest.raises(ValueError, match=r"h: expected the shape .* got \(0, 5, 6\)"):
        rmu_loss(h[:0], reference[:0], mask[:0])
    with pytest.raises(TypeError, match="target: expected a floating dtype, got int32"):
        rmu_loss(h, jnp.zeros(6, jnp.int32), mask)
    with pytest.raises(ValueError, match="steering: expected a positive finite number, got 0"):
        rmu_control_vector(jax.random.key(0), 6, 0)
    with pytest.raises(ValueError, match="width: expected a positive finite number, got 0"):
        rmu_control_vector(jax.random.key(0), 0)
