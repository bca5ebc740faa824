"""The benchmark of guidance: what it refuses, the blocks that it times, and one round beside the peers."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import guidance
from jaxneg.diffusion import NegToMeConfig, nasa_cross_attention, negtome_batch
from jaxneg.nn.dit import DiTConfig, dit

TINY = guidance.Stack(DiTConfig(6, 2, 2, width=8, layers=2, heads=2), images=3)


def small_comparisons():
    """Every kind of comparison at sizes of a test."""
    return {
        "perp_neg": guidance.perp_neg_comparison((3, 2, 4, 4), 2),
        **{
            kind: guidance.negtome_comparison(3, 12, 8, kind)
            for kind in ("first", "official", "leave_one_out")
        },
        "nasa": guidance.nasa_comparison(2, 10, 2, 4),
    }


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"measures against PyTorch .* pip install 'jaxneg\[bench\]'"):
        guidance.run()


def test_what_is_compared():
    assert {name.split()[0] for name in guidance.COMPARISONS} == {"perp_neg", "negtome", "nasa"}
    h = guidance.similar_images(4, 64, 32)[0]
    pushed = np.any(np.asarray(negtome_batch(h, alpha=0.9, threshold=guidance.THRESHOLD)) != h, axis=-1)
    assert 0.2 < pushed[1:].mean() < 0.8
    comparison = guidance.negtome_comparison(4, 64, 32, "leave_one_out")
    assert comparison.flops == 6 * 2 * 64**2 * 32


def test_the_network_has_the_hook():
    """In the window it is the network with the merge in every block, outside the network alone."""
    params, x = guidance.stack_params(TINY), guidance.stack_latents(TINY)

    @jax.jit
    def all_of_them(t):
        config = NegToMeConfig(threshold=0.2)
        by_hand = dit(TINY.config).apply(
            params,
            x,
            jnp.broadcast_to(t, 3),
            attention_hook=lambda h, _: negtome_batch(h, alpha=0.9, threshold=0.2),
        )
        return [guidance.run_stack(TINY, params, x, t, each) for each in (None, config)], by_hand

    (plain, pushed), by_hand = all_of_them(950.0)
    assert plain.shape == x.shape
    np.testing.assert_allclose(pushed, by_hand, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(pushed[0], plain[0], rtol=1e-4, atol=1e-4)  # the reference of the others
    assert np.abs(pushed - plain)[1:].max() > 1e-2
    outside, _ = all_of_them(500.0)
    np.testing.assert_allclose(*outside, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_step_is_timed():
    row = guidance.sampling_step(TINY, 2)
    N, D = TINY.tokens, TINY.config.width
    assert N == 9
    assert row["flops_share"] == pytest.approx(2 / 3 * 2 * N**2 * D / (24 * N * D**2 + 4 * N**2 * D))
    assert row["with_seconds"] > 0
    assert row["share_low"] <= row["share"] <= row["share_high"]


@pytest.mark.slow
def test_a_negative_text_is_timed():
    """It is NASA: with the text itself as the negative one, its attention is scaled by 1 - alpha."""
    told = guidance.Stack(DiTConfig(6, 2, 2, width=8, layers=1, heads=2, text=8), images=3)
    params, x = guidance.stack_params(told), guidance.stack_latents(told)
    text = jax.random.normal(jax.random.key(0), (3, 4, 8))

    def scaled(q, k, v, mask):
        return (1 - guidance.NASA_ALPHA) * nasa_cross_attention(q, k, v, k, v, 0.0)

    by_hand = dit(told.config).apply(params, x, jnp.full(3, 500.0), None, text, cross_attention=scaled)
    steered = guidance.steer(told, params, x, text, text)
    np.testing.assert_allclose(steered, by_hand, rtol=1e-4, atol=1e-4)
    assert np.abs(steered - guidance.steer(told, params, x, text, None)).max() > 1e-3
    row = guidance.nasa_step(told, 4, 2)
    assert row["share_low"] <= row["share"] <= row["share_high"]
    N, D = 9, 8
    added = 4 * 4 * D * D + 4 * N * 4 * D
    assert row["flops_share"] == pytest.approx(added / (28 * N * D**2 + 4 * N**2 * D + added))


@pytest.mark.slow
def test_the_digits_are_timed():
    row = guidance.digit_sampler(2, steps=2)
    assert 0 < row["without_seconds"] < 60
    assert row["share_low"] <= row["share"] <= row["share_high"]


@pytest.mark.slow
def test_one_round_beside_the_peers(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(guidance, "COMPARISONS", small_comparisons())
    monkeypatch.setattr(guidance, "machine_peaks", lambda: {
        "matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10
    })  # fmt: skip
    measured = guidance._times(tuple(guidance.COMPARISONS), 3)
    assert set(measured) == set(guidance.COMPARISONS)
    for row in measured.values():
        assert row["apart"] < 1e-4
        assert row["pairs"] == 3
        assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"]
    for name in guidance.COMPARISONS:
        grown = guidance._our_memory(name), guidance._peer_memory(name)
        if None in grown:
            pytest.skip("this system keeps no account of the peak")
        assert all(0 <= each < 50e6 for each in grown)
