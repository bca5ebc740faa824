"""The divergence from the reference: both directions, masks, memory, dtypes, meshes, mistakes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.unlearning import kl_retain_loss

DIRECTIONS = ("forward", "reverse")


def _case(seed=0, batch=4, tokens=5, vocab=16, scale=2.0):
    random = np.random.default_rng(seed)
    logits, ref_logits = scale * random.standard_normal((2, batch, tokens, vocab)).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(ref_logits), jnp.asarray(random.random((batch, tokens)) < 0.6)


def _naive(logits, ref_logits, mask=None, *, direction):
    p, q = (
        jax.nn.log_softmax(x.astype(jnp.promote_types(x.dtype, jnp.float32))) for x in (ref_logits, logits)
    )
    p, q = (p, q) if direction == "forward" else (q, p)
    divergence = jnp.sum(jnp.exp(p) * (p - q), -1)
    mask = jnp.ones(divergence.shape) if mask is None else mask
    return jnp.sum(divergence * mask, -1) * len(mask) / jnp.sum(mask)


def _total(logits, ref_logits, mask, direction, function=kl_retain_loss):
    rows = function(logits, ref_logits, mask, direction=direction)
    return jnp.sum(rows * jnp.arange(1, rows.size + 1))


@partial(jax.jit, static_argnames="direction")
def _both(logits, ref_logits, mask, direction):
    """Rows and a gradient: ours, and through log_softmax."""
    return [
        (
            function(logits, ref_logits, mask, direction=direction),
            jax.grad(_total)(logits, ref_logits, mask, direction, function),
        )
        for function in (kl_retain_loss, _naive)
    ]


@pytest.mark.parametrize("direction", DIRECTIONS)
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 5), masked=st.booleans())
def test_equals_log_softmax(x64, direction, seed, scale, masked):
    """In float64: in float32 what cancels leaves both sides with rounding alone."""
    logits, ref_logits, mask = _case(seed, scale=scale)
    logits, ref_logits = logits.astype(float), ref_logits.astype(float)
    mask = mask.at[0, 0].set(True) if masked else None
    found, expected = _both(logits, ref_logits, mask, direction)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_transformations_and_dtypes(direction):
    logits, ref_logits, mask = _case()

    def rows(x, y, m):
        return kl_retain_loss(x, y, m, direction=direction)

    expected = rows(logits, ref_logits, mask)
    np.testing.assert_allclose(jax.jit(rows)(logits, ref_logits, mask), expected, rtol=1e-5)
    stacked = jax.vmap(rows)(*(jnp.stack([x, x]) for x in (logits, ref_logits, mask)))
    np.testing.assert_allclose(stacked[1], expected, rtol=1e-5)
    narrow = rows(logits.astype(jnp.bfloat16), ref_logits.astype(jnp.bfloat16), mask)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, expected, rtol=5e-2)
    along = jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)
    second, exact = (
        jax.jit(lambda x, g: jax.jvp(g, (x,), (along,))[1], static_argnums=1)(
            logits, lambda x, f=f: jax.grad(_total)(x, ref_logits, mask, direction, f)
        )
        for f in (kl_retain_loss, _naive)
    )
    np.testing.assert_allclose(second, exact, rtol=1e-3, atol=1e-5)
    assert not jax.grad(_total, 1)(logits, ref_logits, mask, direction).any()
    with jax.enable_x64(True):
        assert rows(*(np.float64(x) for x in (logits, ref_logits)), mask).dtype == jnp.float64


def test_the_default_is_the_mean_over_all_positions():
    logits, ref_logits, mask = _case()
    everywhere = kl_retain_loss(logits, ref_logits, jnp.ones_like(mask))
    np.testing.assert_allclose(kl_retain_loss(logits, ref_logits), everywhere, rtol=1e-6)
    positions = _naive(logits.reshape(-1, 1, 16), ref_logits.reshape(-1, 1, 16), direction="forward")
    np.testing.assert_allclose(kl_retain_loss(logits, ref_logits).mean(), positions.mean(), rtol=1e-5)
    masked = kl_retain_loss(logits, ref_logits, mask).mean()
    np.testing.assert_allclose(masked, positions.reshape(mask.shape)[mask].mean(), rtol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_impossible_tokens_and_equal_models(direction):
    """A vocabulary entry that both models exclude contributes nothing."""
    logits, ref_logits, _ = _case()
    fewer = kl_retain_loss(logits[..., 1:], ref_logits[..., 1:], direction=direction)
    logits, ref_logits = (x.at[..., 0].set(-jnp.inf) for x in (logits, ref_logits))
    np.testing.assert_allclose(kl_retain_loss(logits, ref_logits, direction=direction), fewer, rtol=1e-5)
    gradient = jax.grad(_total)(logits, ref_logits, None, direction)
    assert bool(jnp.isfinite(gradient).all())
    np.testing.assert_allclose(kl_retain_loss(logits, logits, direction=direction), 0, atol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_backward_pass_keeps_no_softmax(direction):
    logits, ref_logits, mask = _case(tokens=16, vocab=4096)
    gradient = jax.jit(jax.value_and_grad(lambda x, y: _total(x, y, mask, direction)))
    temporary = gradient.lower(logits, ref_logits).compile().memory_analysis().temp_size_in_bytes
    assert temporary < logits.nbytes / 4


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_equals_unsharded(kind):
    logits, ref_logits, mask = _case(batch=8, vocab=32)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    for direction in DIRECTIONS:
        with jax.set_mesh(mesh):
            placed = jax.device_put((logits, ref_logits), NamedSharding(mesh, P("data", None, "model")))
            placed_mask = jax.device_put(mask, NamedSharding(mesh, P("data")))
            found = jax.jit(jax.value_and_grad(_total), static_argnums=3)(*placed, placed_mask, direction)
        expected = jax.value_and_grad(_total)(logits, ref_logits, mask, direction)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-7)


def test_a_mask_that_masks_everything_is_not_a_number():
    logits, ref_logits, mask = _case()
    assert bool(jnp.isnan(kl_retain_loss(logits, ref_logits, jnp.zeros_like(mask))).all())
    one_row = kl_retain_loss(logits, ref_logits, jnp.zeros_like(mask).at[1].set(True))
    assert (one_row > 0).tolist() == [False, True, False, False]


def test_static_mistakes():
    logits, ref_logits, mask = _case()
    with pytest.raises(ValueError, match="ref_logits: expected the policy's vocabulary of 16, got 15"):
        kl_retain_loss(logits, ref_logits[..., :15])
    with pytest.raises(
        ValueError, match=r"ref_logits: expected the shape of logits, \(4, 5, 16\), got \(3, 5, 16\)"
    ):
        kl_retain_loss(logits, ref_logits[:3])
    with pytest.raises(
        ValueError, match=r"mask: expected the shape \[batch, tokens\], \(4, 5\), got \(4, 4\)"
    ):
        kl_retain_loss(logits, ref_logits, mask[:, 1:])
    with pytest.raises(ValueError, match="direction: expected 'forward' or 'reverse', got 'both'"):
        kl_retain_loss(logits, ref_logits, direction="both")
    with pytest.raises(TypeError, match="logits: expected a floating dtype, got int32"):
        kl_retain_loss(logits.astype(int), ref_logits)
    with pytest.raises(
        ValueError, match=r"logits: expected the shape \[batch, tokens, vocab\], got \(4, 16\)"
    ):
        kl_retain_loss(logits[:, 0], ref_logits[:, 0])
    with pytest.raises(ValueError, match="logits: expected at least one example, got an empty batch"):
        kl_retain_loss(logits[:0], ref_logits[:0])
