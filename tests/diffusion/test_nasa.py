"""NASA and NAG: goldens, masks, lengths, brute force, dtypes, meshes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.diffusion import nasa
from jaxneg.diffusion.nasa import nag_combine, nasa_combine, nasa_cross_attention, paired_attention


def projected(golden):
    """Queries, and keys and values of both prompts, with their heads apart."""
    heads = int(golden["heads"])

    def split(x):
        return x.reshape(*x.shape[:2], heads, -1)

    q = split(golden["z"] @ golden["Wq"])
    sides = [(split(c @ golden["Wk"]), split(c @ golden["Wv"])) for c in (golden["c_pos"], golden["c_neg"])]
    return q, *sides[0], *sides[1]


@pytest.mark.golden("snoopi", "nasa_attention.npz")
def test_golden_attention(golden, x64):
    inputs = projected(golden)
    masks = {name: golden[name] for name in ("mask_pos", "mask_neg")}
    checked = {"z", "c_pos", "c_neg", "Wq", "Wk", "Wv", "Wo", "bo", "heads", "mask_pos", "mask_neg", "alphas",
               "nag_scale", "nag_tau", "nag_alpha"}  # fmt: skip

    def same(name, value):
        np.testing.assert_allclose(value, golden[name], rtol=1e-10, atol=1e-12, err_msg=name)
        checked.add(name)

    shape = golden["z"].shape
    z_pos, z_neg = (z.reshape(shape) for z in jax.jit(paired_attention)(*inputs, **masks))
    same("z_pos", z_pos)
    same("z_neg", z_neg)
    fused = jax.jit(nasa_cross_attention)
    for i, alpha in enumerate(golden["alphas"]):
        combined = nasa_combine(z_pos, z_neg, alpha)
        same(f"nasa_{i}", combined)
        same(f"out_{i}", combined @ golden["Wo"] + golden["bo"])
        same(f"nasa_{i}", fused(*inputs, alpha, **masks).reshape(shape))
    same("nag", nag_combine(z_pos, z_neg, golden["nag_scale"], golden["nag_tau"], golden["nag_alpha"]))
    assert checked == set(golden)


def random_inputs(seed=0, batch=2, tokens=7, pos=5, neg=3, heads=2, size=4):
    rng = np.random.default_rng(seed)
    lengths = (tokens, pos, pos, neg, neg)
    return [jnp.asarray(rng.normal(size=(batch, n, heads, size)), jnp.float32) for n in lengths]


def by_hand(q, k, v, mask):
    """Head after head and example after example, in float64; zeros where no token is left."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for b in range(len(q)):
        for h in range(q.shape[2]):
            if not mask[b].any():
                continue
            scores = q[b, :, h] @ k[b, mask[b], h].T / q.shape[3] ** 0.5
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out[b, :, h] = weights / weights.sum(1, keepdims=True) @ v[b, mask[b], h]
    return out


def test_masks_lengths_and_blocks(monkeypatch):
    # Blocks of three tokens: seven are two and a rest.
    monkeypatch.setattr(nasa, "_ROWS", 3)
    inputs = random_inputs()
    q, k_pos, v_pos, k_neg, v_neg = inputs
    masks = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]], bool), np.array([[0, 1, 1], [0, 0, 0]], bool)
    named = {"mask_pos": masks[0], "mask_neg": masks[1]}
    pos, neg = by_hand(q, k_pos, v_pos, masks[0]), by_hand(q, k_neg, v_neg, masks[1])
    assert not neg[1].any()
    alpha = jnp.array([0.5, 2.0])
    ours = jax.jit(lambda *x: nasa_cross_attention(*x, alpha, **named))(*inputs)
    np.testing.assert_allclose(
        ours, pos - np.array([0.5, 2.0])[:, None, None, None] * neg, rtol=1e-4, atol=1e-5
    )
    for z, expected in zip(paired_attention(*inputs, **named), (pos, neg), strict=True):
        np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_limits_of_alpha():
    inputs = random_inputs(1)
    plain = jax.nn.dot_product_attention(*inputs[:3])
    np.testing.assert_allclose(nasa_cross_attention(*inputs, 0.0), plain, rtol=1e-5, atol=1e-6)
    # The same prompt twice takes alpha of itself away; it is not (1 + alpha) z_pos - alpha z_neg.
    twice = nasa_cross_attention(*inputs[:3], *inputs[1:3], 0.25)
    np.testing.assert_allclose(twice, 0.75 * plain, rtol=1e-5, atol=1e-6)
    swept = jax.vmap(lambda a: nasa_cross_attention(*inputs, a))(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(swept[1], nasa_cross_attention(*inputs, 0.5), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_gradients_are_those_of_the_plain_formula():
    inputs = random_inputs(2)

    def plain(*inputs):
        attention = jax.nn.dot_product_attention
        q, k_pos, v_pos, k_neg, v_neg = inputs
        return jnp.sum((attention(q, k_pos, v_pos) - 0.5 * attention(q, k_neg, v_neg)) ** 2)

    ours = jax.grad(lambda *x: jnp.sum(nasa_cross_attention(*x, 0.5) ** 2), argnums=range(5))(*inputs)
    for a, b in zip(ours, jax.grad(plain, argnums=range(5))(*inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_in_and_out():
    inputs = random_inputs(3)
    narrow = [x.astype(jnp.bfloat16) for x in inputs]
    ours = nasa_cross_attention(*narrow, 0.5)
    assert ours.dtype == jnp.bfloat16
    expected = nasa_cross_attention(*(x.astype(jnp.float32) for x in narrow), 0.5)
    np.testing.assert_allclose(ours.astype(jnp.float32), expected, rtol=0.02, atol=0.02)
    assert nasa_combine(narrow[0], narrow[0], 0.5).dtype == jnp.float32


@pytest.mark.parametrize("explicit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sharded_is_unsharded(explicit):
    kind = AxisType.Explicit if explicit else AxisType.Auto
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"), axis_types=(kind,) * 2)
    inputs = random_inputs(4, batch=4)
    attention = jax.jit(nasa_cross_attention)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, P("data", None, "model"))) for x in inputs]
        ours = attention(*placed, 0.5)
    np.testing.assert_allclose(ours, attention(*inputs, 0.5), rtol=1e-5, atol=1e-6)
    if explicit:
        assert tuple(ours.sharding.spec)[:3] == ("data", None, "model")


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0, 20), alpha=st.floats(0, 1))
def test_nag_is_bounded(seed, scale, alpha):
    z_pos, z_neg = np.random.default_rng(seed).normal(size=(2, 1, 5, 4)).astype(np.float32)
    combined = nag_combine(z_pos, z_neg, scale, 2.0, alpha)
    length, allowed = (np.abs(z).sum(-1) for z in (combined, z_pos))
    assert np.all(length <= (1 + alpha) * allowed * (1 + 1e-5))
    np.testing.assert_allclose(nag_combine(z_pos, z_neg, 0.0, 2.0, alpha), z_pos, rtol=1e-5, atol=1e-6)


def test_nag_of_nothing():
    zero, one = jnp.zeros((1, 2, 3)), jnp.ones((1, 2, 3))
    np.testing.assert_array_equal(nag_combine(zero, zero, 4.0), zero)
    # Nothing may become longer than tau times nothing.
    np.testing.assert_array_equal(nag_combine(zero, one, 4.0, 2.0, 1.0), zero)


def test_nag_of_each_example():
    """Numbers of numpy's, one for each example."""
    z_pos, z_neg = np.random.default_rng(0).normal(size=(2, 2, 5, 4)).astype(np.float32)
    choices = np.array([[4.0, 1.0], [1.5, 2.0], [0.5, 0.25]])
    combined = nag_combine(z_pos, z_neg, *choices)
    for row, (scale, tau, alpha) in enumerate(choices.T):
        alone = nag_combine(z_pos[[row]], z_neg[[row]], scale, tau, alpha)
        np.testing.assert_allclose(combined[row : row + 1], alone, rtol=1e-6, atol=1e-6)


X = jnp.ones((2, 3, 2, 4))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: nasa_combine(X, X[:1], 0.5), r"z_neg: expected the shape of z_pos, \(2, 3, 2, 4\), got \(1, 3"),
    (lambda: nasa_combine(X, X, jnp.ones(3)), r"alpha: expected a number, or one for each example"),
    (lambda: nag_combine(X, X, 1.0, tau=0.0), r"tau: expected a positive finite number, got 0.0"),
    (lambda: nag_combine(X, X, 1.0, np.zeros(2)), r"tau: expected a positive finite number, got \[0. 0.\]"),
    (lambda: nasa_cross_attention(X[0], X, X, X, X, 0.5), r"q: expected \[batch, tokens, heads, size\]"),
    (lambda: nasa_cross_attention(X, X[..., :2], X, X, X, 0.5), r"k_pos: expected 2 examples with 2 heads"),
    (lambda: nasa_cross_attention(X, X, X, X[:1], X, 0.5), r"k_neg: expected 2 examples with 2 heads of s"),
    (lambda: nasa_cross_attention(X, X, X, X, X[:, :2], 0.5), r"v_neg: expected the tokens and heads of k"),
    (lambda: paired_attention(X, X, X, X, X, mask_neg=jnp.ones((2, 4), bool)), r"mask_neg: expected shape"),
])  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_types_are_checked():
    with pytest.raises(TypeError, match=r"v_pos: expected a floating dtype, got int32"):
        nasa_cross_attention(X, X, X.astype(int), X, X, 0.5)
    with pytest.raises(TypeError, match=r"mask_pos: expected booleans, got dtype float32"):
        paired_attention(X, X, X, X, X, mask_pos=jnp.ones((2, 3)))
