"""Classifier-free guidance, with the null condition or another network as the negative branch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg import diffusion

GUIDED = jax.jit(diffusion.guided_noise)


@pytest.mark.golden("self_npo", "cfg.npz")
def test_golden(golden, x64):
    cases = [name for name in golden if name.startswith("scale")]
    assert cases
    for name in cases:
        scale, rescale = re.fullmatch(r"scale([\d.]+?)(?:_rescale([\d.]+))?", name).groups()
        for function in (diffusion.guided_noise, GUIDED):
            got = function(golden["eps_pos"], golden["eps_neg"], float(scale), float(rescale or 0))
            np.testing.assert_allclose(got, golden[name], rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.golden("self_npo", "cfg.npz")
def test_golden_in_float32_under_vmap(golden):
    pairs = [golden[name].astype(np.float32)[:, None] for name in ("eps_pos", "eps_neg")]
    for name in golden:
        if not name.startswith("scale"):
            continue
        scale, rescale = re.fullmatch(r"scale([\d.]+?)(?:_rescale([\d.]+))?", name).groups()
        got = jax.vmap(GUIDED, in_axes=(0, 0, None, None))(*pairs, float(scale), float(rescale or 0))
        np.testing.assert_allclose(got[:, 0], golden[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_limits():
    random = np.random.default_rng(0)
    positive, negative = random.normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(GUIDED(positive, negative, 1.0, 0.0), positive, atol=1e-6)
    np.testing.assert_allclose(GUIDED(positive, negative, 0.0, 0.0), negative, atol=1e-6)
    np.testing.assert_allclose(GUIDED(positive, positive, 9.0, 0.5), positive, rtol=1e-5)
    full = GUIDED(positive, negative, 6.0, 1.0)
    np.testing.assert_allclose(np.std(full, axis=(1, 2)), np.std(positive, axis=(1, 2)), rtol=1e-5)
    low = GUIDED(positive.astype(jnp.bfloat16), negative.astype(jnp.bfloat16), 6.0, 0.7)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, GUIDED(positive, negative, 6.0, 0.7), atol=0.1)
    # A prediction of zeros has no scale to restore; neither value nor gradient is NaN.
    zeros = np.zeros((2, 3), np.float32)
    value, slope = jax.jit(jax.value_and_grad(lambda p: diffusion.guided_noise(p, zeros, 2.0, 0.7).sum()))(
        zeros
    )
    assert value == 0
    assert np.isfinite(slope).all()


def network(x, t, cond):
    """Something that depends on all its inputs, example by example."""
    label, style = cond
    return x * (1 + label[:, None]) + 0.1 * t[:, None] * style


def other(x, t, cond):
    return 2 * x - (0 if cond is None else cond[0][:, None])


INPUTS = (
    np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32),
    np.arange(16, dtype=np.int32),
    (
        np.linspace(0, 1, 16, dtype=np.float32),
        np.random.default_rng(2).normal(size=(16, 3)).astype(np.float32),
    ),
)
NULL = (np.float32(-1.0), np.zeros(3, np.float32))
NULL_ROWS = (np.full(16, -1.0, np.float32), np.zeros((16, 3), np.float32))


def test_one_forward_of_both_branches():
    x, t, cond = INPUTS
    rows = []

    def counted(x, t, cond):
        rows.append(x.shape[0])
        return network(x, t, cond)

    guided = diffusion.guide(counted, scale=3.0, null_cond=NULL, rescale=0.3)
    expected = diffusion.guided_noise(network(x, t, cond), network(x, t, NULL_ROWS), 3.0, 0.3)
    np.testing.assert_allclose(guided(x, t, cond), expected, rtol=1e-5, atol=1e-5)
    assert rows == [32]
    np.testing.assert_allclose(jax.jit(guided)(x, t, cond), expected, rtol=1e-5, atol=1e-5)
    slope = jax.grad(lambda scale: diffusion.guide(network, scale=scale, null_cond=NULL)(x, t, cond).sum())(
        3.0
    )
    difference = network(x, t, cond) - network(x, t, NULL_ROWS)
    np.testing.assert_allclose(slope, difference.sum(), rtol=1e-4)


def test_another_network_as_the_negative():
    x, t, cond = INPUTS
    guided = diffusion.guide(network, scale=3.0, null_cond=NULL, negative=other)
    expected = diffusion.guided_noise(network(x, t, cond), other(x, t, NULL_ROWS), 3.0)
    np.testing.assert_allclose(guided(x, t, cond), expected, rtol=1e-6)
    unconditional = diffusion.guide(network, scale=3.0, null_cond=None, negative=other)
    expected = diffusion.guided_noise(network(x, t, cond), other(x, t, None), 3.0)
    np.testing.assert_allclose(unconditional(x, t, cond), expected, rtol=1e-6)


def test_no_guidance_costs_nothing():
    assert diffusion.guide(network, scale=1.0, null_cond=NULL) is network
    assert diffusion.guide(network, scale=1, null_cond=NULL, negative=other) is network


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("null", [NULL, NULL_ROWS], ids=["one", "rows"])
def test_sharded_without_communication(kind, null):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    over_batch = NamedSharding(mesh, P("data"))
    placed = jax.device_put(INPUTS, over_batch)
    null_placed = jax.device_put(null, over_batch) if null is NULL_ROWS else null
    guided = diffusion.guide(network, scale=3.0, null_cond=null_placed, rescale=0.3)
    with jax.set_mesh(mesh):
        compiled = jax.jit(guided, out_shardings=over_batch).lower(*placed).compile()
        got = compiled(*placed)
    text = compiled.as_text()
    assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", text)
    expected = diffusion.guide(network, scale=3.0, null_cond=null, rescale=0.3)(*INPUTS)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_guides_every_sampler():
    """The guided exact model of two classes pushes the samples away from the class that is not wanted."""
    schedule = diffusion.cosine_schedule(200)
    means = np.array([[-1.0], [1.0]])
    exact = diffusion.gaussian_mixture_denoiser(means, np.ones(2), np.full(2, 1.0), schedule.alphas_cumprod)
    grid = diffusion.sampling_timesteps(200, 20)
    noise = np.random.default_rng(0).normal(size=(256, 1)).astype(np.float32)
    cond = np.tile(np.array([0.0, 1.0], np.float32), (256, 1))
    key = jax.random.key(0)

    def samples(scale):
        denoise = diffusion.guide(exact.noise, scale=scale, null_cond=np.ones(2, np.float32))
        arguments = (denoise, noise, grid, schedule.alphas_cumprod)
        return jax.jit(
            lambda: [
                diffusion.ddim_sample(*arguments, cond=cond),
                diffusion.dpm_solver_sample(*arguments, cond=cond),
                diffusion.ddpm_sample(key, *arguments, cond=cond),
            ]
        )()

    for plain, guided in zip(samples(1.0), samples(4.0), strict=True):
        np.testing.assert_allclose(plain.mean(), 1.0, atol=0.2)
        assert guided.mean() > plain.mean() + 0.3


def test_mistakes():
    x, t, cond = INPUTS
    with pytest.raises(ValueError, match=r"eps_neg: expected the shape of eps_pos, \(16, 3\), got \(16, 2\)"):
        diffusion.guided_noise(x, x[:, :2], 2.0)
    with pytest.raises(ValueError, match=r"rescale: expected a number between 0 and 1, got 1\.5"):
        diffusion.guided_noise(x, x, 2.0, 1.5)
    with pytest.raises(TypeError, match="eps_pos: expected a floating dtype, got int32"):
        diffusion.guided_noise(t, t, 2.0)

    def narrow(x, t, cond):
        return x[:, :2]

    with pytest.raises(
        ValueError, match=r"the negative model must predict arrays of the positive model's shape"
    ):
        diffusion.guide(network, scale=2.0, null_cond=NULL, negative=narrow)(x, t, cond)
    with pytest.raises(ValueError, match=r"null_cond.*: expected to broadcast to"):
        diffusion.guide(network, scale=2.0, null_cond=(np.zeros(5), NULL[1]))(x, t, cond)
    with pytest.raises(ValueError, match="null_cond: expected the structure of cond"):
        diffusion.guide(network, scale=2.0, null_cond=None)(x, t, cond)
    with pytest.raises(
        ValueError, match=r"denoise: expected an output for each of 32 rows, got shape \(3,\)"
    ):
        diffusion.guide(lambda x, t, c: x[0], scale=2.0, null_cond=NULL)(x, t, cond)
