"""The SNOOPI experiment: judge, teachers and texts by hand, claims, a smoke run, MaxDiffusion, its pod."""

import dataclasses
import re
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from scipy.linalg import sqrtm

from experiments import snoopi
from experiments.digits import digit_pixels
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from experiments.snoopi import CLAIMS, PRESETS, Config, claims, distillation, negatives, pod, tables, teachers
from experiments.snoopi.distillation import (
    MEAN,
    NASA_T,
    RANDOM,
    RANDOM_LORA,
    RANDOM_TEACHER,
    STRONG,
    SWIFT,
    TTUR,
    Backbone,
)
from experiments.snoopi.judge import RIDGE, judge
from experiments.snoopi.maxdiffusion import nasa_interceptor, unet_apply, with_negative
from experiments.snoopi.networks import ALPHAS_CUMPROD, exact_noise, residual_mlp
from experiments.snoopi.text_dit import (
    ANY,
    EVEN,
    LARGE,
    NULL,
    ODD,
    PAD,
    SHARES,
    SMALL,
    WORDS,
    nag,
    nasa,
    steered,
    text_dit,
    text_of,
    told,
)
from jaxneg.diffusion import PGSBConfig, init_pgsb, one_step_predict
from jaxneg.nn.dit import DiTConfig
from jaxneg.train import make_mesh, shard_step

# The judge


@pytest.mark.slow
def test_the_judge_knows_digits():
    x, y = digit_pixels()
    assert float(jnp.mean(judge().label(x) == y)) > 0.99
    np.testing.assert_array_less(judge().nearest(x[:50]), 2e-3)
    moved = x[:20] + np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    expected = np.linalg.norm(moved[:, None] - x, axis=-1).min(axis=1)
    np.testing.assert_allclose(judge().nearest(moved), expected, rtol=1e-4)


@pytest.mark.slow
def test_frechet_distance_of_the_judge():
    """The features of the last hidden layer, n - 1, a ridge on both covariances."""
    x = digit_pixels().x
    assert judge().features(x).shape == (len(x), 32)
    other = -x[:300]
    a, b = (np.asarray(judge().features(each), np.float64) for each in (other, x))
    covariances = [np.cov(each.T) + RIDGE * np.eye(32) for each in (a, b)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
    np.testing.assert_allclose(judge().frechet(other), expected, rtol=1e-3)
    assert float(judge().frechet(x)) < 1e-3


# Teachers and texts


@pytest.mark.slow
def test_the_exact_teacher_by_hand():
    """The posterior mean of the noise, by the weights of 8 Gaussians of the class, or of all 80."""
    from sklearn.mixture import GaussianMixture

    pixels = digit_pixels()
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(3, 64)), np.array([100, 500, 900])
    label = np.array([3, 7, 10])
    expected = []
    for point, time, digit in zip(x, t, label, strict=True):
        alpha, sigma = ALPHAS_CUMPROD[time] ** 0.5, (1 - ALPHAS_CUMPROD[time]) ** 0.5
        density, noise = [], []
        for each in range(10) if digit == 10 else [digit]:
            own = pixels.x[pixels.y == each].astype(np.float64)
            fitted = GaussianMixture(8, covariance_type="spherical", reg_covar=1e-2, random_state=0).fit(own)
            for mean, variance, weight in zip(
                fitted.means_, fitted.covariances_, fitted.weights_, strict=True
            ):
                spread = alpha**2 * variance + sigma**2
                gap = point - alpha * mean
                density.append(np.log(weight) - gap @ gap / 2 / spread - 32 * np.log(spread))
                noise.append(sigma * gap / spread)
        share = np.exp(np.array(density) - max(density))
        expected.append(share @ np.array(noise) / share.sum())
    found = jax.jit(exact_noise())(x.astype(np.float32), t, label)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


def test_texts_are_true():
    digit = jnp.arange(20_000) % 10
    first, second = np.asarray(text_of(jax.random.key(0), digit)).T
    digit = np.asarray(digit)
    kinds = [first == digit, np.isin(first, (EVEN, ODD)) & (second == PAD), np.isin(first, (SMALL, LARGE))]
    kinds += [second != PAD, first == ANY, first == NULL]
    np.testing.assert_allclose([kind.mean() for kind in kinds], SHARES, atol=0.012)
    assert np.all(np.sum(kinds, axis=0) == 1)
    for word, true in ((EVEN, digit % 2 == 0), (ODD, digit % 2 == 1), (SMALL, digit < 5), (LARGE, digit > 4)):
        assert np.all(true[(first == word) | (second == word)])
    assert WORDS == 17


@pytest.mark.slow
def test_another_digit():
    text = text_of(jax.random.key(0), jnp.arange(5000) % 10)
    other = np.asarray(distillation.another_digit(jax.random.key(1), text))
    assert np.all(other[:, 0] != text[:, 0])
    assert set(other[:, 0]) == set(range(10))
    assert np.all(other[:, 1] == PAD)


@cache
def tiny_dit():
    """A network whose gates are open, two noisy images, texts and negative texts of one word more."""
    network = text_dit(16)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        jax.jit(network.init)(jax.random.key(0)),
    )
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    text, negative = jnp.array([[EVEN, PAD], [3, PAD]]), jnp.array([[4, PAD, PAD], [ODD, SMALL, PAD]])
    return network, params, x, jnp.array([900, 300]), text, negative


def attend(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def test_nasa_and_nag_by_hand():
    """NAG's norms are those of a token's heads together."""
    rng = np.random.default_rng(0)
    shapes = [(2, n, 2, 4) for n in (5, 2, 2, 3, 3)]
    q, *pairs = inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]

    def attended(k, v):
        weights = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / 2)
        return np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)

    pos, neg = attended(*pairs[:2]), attended(*pairs[2:])
    away = pos + 4 * (pos - neg)
    longer = np.abs(away).sum((2, 3), keepdims=True) / np.abs(pos).sum((2, 3), keepdims=True)
    assert longer.min() < 8 < longer.max()
    expected = 0.25 * np.minimum(longer, 8) / longer * away + 0.75 * pos
    ours = jax.jit(lambda *x: (nasa(0.3)(*x), nag(4.0, 8.0, 0.25)(*x)))(*inputs)
    np.testing.assert_allclose(ours[0], pos - 0.3 * neg, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_layer_sees_both_texts_apart(side):
    """With the attention to one of them alone, the network is that of this text."""
    _, params, x, t, *texts = tiny_dit()

    @jax.jit
    def run(params):
        ours = steered(params, x, t, *texts, lambda q, *pairs: attend(q, *pairs[2 * side :][:2]))
        return ours, told(params, x, t, params["words"][texts[side]])

    ours, expected = run(params)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_negative_text_matters_in_the_network():
    _, params, x, t, text, negative = tiny_dit()
    of = jax.jit(partial(steered, params, x, t, text, negative), static_argnums=0)
    plain = told(params, x, t, params["words"][text])
    np.testing.assert_allclose(of(nasa(0.0)), plain, rtol=1e-4, atol=1e-5)
    for combine in (nasa(0.3), nag(4.0, 2.5, 0.25)):
        assert np.abs(of(combine) - plain).max() > 1e-3


@pytest.mark.slow
def test_adapters_leave_words_and_time_alone():
    network, params, x, t, text, negative = tiny_dit()
    cfg = PGSBConfig(shape=(8, 8, 1), lora_match=network.lora_match, lora_rank=2)
    adapted = set(init_pgsb(jax.random.key(0), params, cfg).params["lora"])
    assert len(adapted) == 2 * 7 + 2
    assert not [path for path in adapted if re.search("words|conditioning|modulation", path)]
    # The network as PG-SB calls it: with NASA only where there is a negative text.
    plain, negated = network.apply(params, x, t, text), network.apply(params, x, t, text, negative, 0.3)
    np.testing.assert_allclose(plain, told(params, x, t, params["words"][text]), rtol=1e-5)
    np.testing.assert_allclose(negated, steered(params, x, t, text, negative, nasa(0.3)), rtol=1e-5)


# Distillation


def test_names_are_files():
    every = Config(all_arms=True)
    found = [arm for name in ("mlp", "dit") for arm in snoopi.arms(every, name)]
    assert len({arm.stage for arm in found}) == len(set(found)) == 9
    assert all(arm.stage.isascii() and " " not in arm.stage for arm in found)
    assert RANDOM.program == SWIFT.program != TTUR.program
    assert MEAN.low == MEAN.high == 2.25
    assert set(snoopi.arms(Config(), "mlp")) == {RANDOM, SWIFT, STRONG, MEAN}
    assert NASA_T not in snoopi.arms(every, "mlp")


@pytest.mark.slow
def test_a_student_of_an_exact_teacher_learns_and_its_scale_matters():
    """The adapters' network is not the frozen one; two arms of one program differ by the scale alone."""
    network = residual_mlp(32, 1)
    params, loss = jax.jit(partial(teachers.train, network, 300, 64))(jax.random.key(0))
    assert float(loss[-50:].mean()) < 0.75 * float(loss[:20].mean())
    backbone = Backbone("gmm", network, 160, 32, 8, exact=exact_noise())
    run = jax.jit(partial(distillation.distil, backbone, RANDOM, 200))
    courses = [run(params, jnp.array(scales), jax.random.key(1)) for scales in ((0.5, 4.0), (7.5, 7.5))]
    for course in courses:
        assert course.frechet.shape == course.accuracy.shape == (distillation.EVALUATIONS,)
        assert float(course.frechet[-1]) < float(course.frechet[0])
        z = jax.random.normal(jax.random.split(jax.random.key(1), 3)[2], (200, 64))
        x = distillation.one_step(network, course.student, z, jnp.arange(200) % 10)
        np.testing.assert_allclose(x[:100], course.samples, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(judge().frechet(x), course.frechet[-1], rtol=1e-2)
    assert np.abs(courses[0].samples - courses[1].samples).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("arm", [NASA_T, TTUR, RANDOM_TEACHER, RANDOM_LORA], ids=lambda arm: arm.stage)
def test_every_arm_fits_its_networks(arm):
    network = text_dit(8) if arm.nasa_t else residual_mlp(8, 1)
    params = jax.eval_shape(network.init, jax.random.key(0))
    backbone = Backbone("any", network, 16, 4, 2)
    run = partial(distillation.distil, backbone, arm, 100)
    course = jax.eval_shape(run, params, jnp.zeros(2), jax.random.key(0))
    assert course.frechet.shape == (8,)
    assert jax.tree.structure(course.student) == jax.tree.structure(params)


@pytest.mark.slow
def test_one_step_starts_at_the_last_timestep():
    network = residual_mlp(8, 1)
    params = network.init(jax.random.key(0))
    z, cond = jax.random.normal(jax.random.key(1), (3, 64)), jnp.arange(3)
    x = distillation.one_step(network, params, z, cond)
    eps = network.apply(params, z, jnp.full(3, 999), cond)
    np.testing.assert_allclose(x, (z - 0.9953**0.5 * eps) / 0.0047**0.5, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(x, one_step_predict(eps, z, 0.0047), rtol=1e-5)


# Claims


def test_presets_and_claims():
    assert set(PRESETS) == {"smoke", "cpu", "full", "paper"}
    assert PRESETS["cpu"] == Config()
    assert PRESETS["cpu"].seeds >= 3
    assert dataclasses.replace(PRESETS["paper"], seeds=3) == PRESETS["full"]
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names)
    for prototype in tables.NEGATIVE_PROTOTYPE.values():
        assert prototype.keys() <= set(negatives.SETTINGS)
    everything = Config(all_arms=True)
    assert {arm for _, arm in tables.PROTOTYPE} <= set(snoopi.arms(everything, "mlp"))
    assert len(tables.TEACHER_PROTOTYPE) == len(teachers.GUIDANCES)


def flat(value):
    """A course of two seeds: twice its value on the second, and noise that the first half alone shows."""
    return {"frechet": np.array([[100.0] * 4 + [value - 1, value + 1] * 2, [7.0] * 4 + [2 * value] * 4])}


@pytest.fixture
def courses():
    values = {RANDOM: 6.0, SWIFT: 12.0, STRONG: 30.0, MEAN: 5.0}
    return {(name, arm): flat(value) for name in claims.TITLES for arm, value in values.items()}


@pytest.fixture
def found():
    """Every setting the same, but for NASA at 0.2 and without a negative."""
    settings = len(negatives.SETTINGS)
    fields = {name: np.full((2, settings), 1.0) for name in ("excluded", "in_group", "distance")}
    for setting, excluded, distance in (
        (negatives.NONE, 0.8, 2.0),
        (negatives.NASA[0.1], 0.9, 2.0),
        (negatives.NASA[0.2], 0.95, 2.2),
        (negatives.NASA[0.35], 0.94, 2.0),
        (negatives.CFG[1.5], 0.9, 3.0),
    ):
        fields["excluded"][:, negatives.SETTINGS.index(setting)] = excluded
        fields["distance"][:, negatives.SETTINGS.index(setting)] = distance
    return fields


def test_measurements(courses, found):
    measured = claims.measurements(courses, {"one-step": found, "four-steps": found})
    assert set(measured) == {claim.name for claim in CLAIMS}
    expected = {
        "mlp-random-scale-is-nearer": [0.5, 0.5],
        "dit-random-scale-is-steadier": [0.0, 0.0],
        "gmm-stronger-scale-is-worse": [2.5, 2.5],
        "mlp-random-scale-beats-its-mean": [1.2, 1.2],
        "one-step-exclusion-rises": [-0.01, -0.01],
        "four-steps-unwanted-images-fall": [0.75, 0.75],
        "one-step-nasa-keeps-quality": [1.1, 1.1],
        "one-step-guided-output-costs-quality-at-one-and-a-half": [1.5, 1.5],
        "one-step-too-much-nasa-breaks-images": [0.5, 0.5],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(measured[name], values, atol=1e-12, err_msg=name)


def test_the_last_four_count():
    mean, spread = distillation.last(flat(6.0)["frechet"])
    np.testing.assert_allclose(mean, [6.0, 12.0])
    np.testing.assert_allclose(spread, [np.std([5, 7, 5, 7], ddof=1), 0.0])


def test_nothing_unwanted_cannot_fall(found):
    found["excluded"][:] = 1.0
    np.testing.assert_array_equal(claims.fewer(found, negatives.NASA[0.2]), [0.0, 0.0])


def test_notes_follow_the_numbers(courses, found):
    notes = tables.notes(courses, {"one-step": found})
    assert "residual MLP 1.20, exact mixture 1.20, DiT with texts 1.20" in notes[0]
    assert (
        "leaves 100.0% of these digits without the unwanted one; without a negative text it is 80.0%"
        in notes[1]
    )
    assert not any("LoRA steps" in note for note in notes)
    notes = tables.notes(courses | {("mlp", TTUR): flat(2.5)}, {"one-step": found})
    assert "with one step 0.50 (residual MLP)" in notes[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 1}, "seeds: expected at least 2, got 1"),
        ({"images": 3}, "images: expected at least 4, got 3"),
        ({"samples": 99}, "samples: expected at least 100, got 99"),
        ({"mlp_rank": 0}, "mlp_rank: expected at least 1, got 0"),
        ({"dit_width": 30}, "dit_width: expected a positive multiple of 4, got 30"),
        ({"mlp_steps": 0}, "mlp_steps: expected a positive multiple of 8, got 0"),
        ({"pod_batch": 100}, "pod_batch: expected a positive multiple of 64, got 100"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Config(**fields)


@pytest.mark.slow
def test_smoke_run(tmp_path):
    """A verdict for each claim, figures and tables; a run that is resumed finds the same."""
    config = PRESETS["smoke"]
    with RunDir.create("snoopi", config, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    assert all(len(claim["values"]) == config.seeds for claim in report["claims"])
    figures = sorted((tmp_path / "run" / "figures").glob("*.png"))
    assert [figure.stem for figure in figures] == ["digits", "nasa_sweep", "negatives", "stability"]
    assert all(figure.stat().st_size > 10_000 for figure in figures)
    assert [len(table["rows"]) for table in report["tables"]] == [4, 4, 2, 10, 10, 4]
    (tmp_path / "run" / "report.json").unlink()
    with RunDir.resume(tmp_path / "run", "snoopi", Config) as run_dir:
        again = run_experiment(run_dir)
    assert again["claims"] == report["claims"]


# MaxDiffusion


class AttentionOp(linen.Module):
    """The method of MaxDiffusion's AttentionOp that its attention calls."""

    heads: int

    def apply_attention(self, query, key, value, attention_mask=None):
        q, k, v = (x.reshape(*x.shape[:2], self.heads, -1) for x in (query, key, value))
        return jax.nn.dot_product_attention(q, k, v).reshape(query.shape)


class FlaxAttention(linen.Module):
    """Names and signature of MaxDiffusion's FlaxAttention."""

    query_dim: int
    heads: int = 2

    def setup(self):
        dense = partial(linen.Dense, self.query_dim, use_bias=False)
        self.query, self.key, self.value = (dense(name=name) for name in ("to_q", "to_k", "to_v"))
        self.proj_attn = linen.Dense(self.query_dim, name="to_out_0")
        self.attention_op = AttentionOp(self.heads)

    def __call__(self, hidden_states, context=None, deterministic=True, cross_attention_kwargs=None):
        context = hidden_states if context is None else context
        q, k, v = self.query(hidden_states), self.key(context), self.value(context)
        return self.proj_attn(self.attention_op.apply_attention(q, k, v))


class TinyUNet(linen.Module):
    """The signature of MaxDiffusion's FlaxUNet2DConditionModel; a block of both kinds of attention."""

    def setup(self):
        self.attn1, self.attn2 = FlaxAttention(4), FlaxAttention(4)

    def __call__(
        self,
        sample,
        timesteps,
        encoder_hidden_states,
        added_cond_kwargs=None,
        down_block_additional_residuals=None,
        mid_block_additional_residual=None,
        return_dict=True,
        train=False,
        cross_attention_kwargs=None,
    ):
        assert timesteps.shape == sample.shape[:1]
        h = sample.reshape(*sample.shape[:2], -1).swapaxes(1, 2) + timesteps[:, None, None] / 1000
        if added_cond_kwargs is not None:
            h = h + added_cond_kwargs["text_embeds"].mean(-1)[:, None, None]
        h = h + self.attn1(h)
        h = h + self.attn2(h, encoder_hidden_states)
        return SimpleNamespace(sample=h.swapaxes(1, 2).reshape(sample.shape))


@cache
def unet():
    rng = np.random.default_rng(0)
    x, positive, negative = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 3, 3), (2, 5, 6), (2, 3, 6))
    )
    model = TinyUNet()
    params = jax.jit(model.init)(jax.random.key(0), x, np.zeros(2), positive)["params"]
    return model, params, x, np.array([900, 100]), positive, negative


def test_nasa_in_the_attention_of_maxdiffusion():
    """Cross-attention has the negative prompt subtracted, self-attention stays as it is."""
    model, params, x, t, positive, negative = unet()

    @jax.jit
    def run(alpha):
        both = with_negative(positive, negative)
        with linen.intercept_methods(nasa_interceptor(alpha, positive.shape[1])):
            return model.apply({"params": params}, x, t, both).sample

    @jax.jit
    def by_hand(alpha):
        h = x.reshape(2, 4, 9).swapaxes(1, 2) + t[:, None, None] / 1000
        h = h + FlaxAttention(4).apply({"params": params["attn1"]}, h)
        own = params["attn2"]
        q, out = h @ own["to_q"]["kernel"], own["to_out_0"]
        sides = []
        for prompt in (positive, negative):
            k, v = prompt @ own["to_k"]["kernel"], prompt @ own["to_v"]["kernel"]
            sides.append(AttentionOp(2).apply({}, q, k, v, method="apply_attention"))
        h = h + (sides[0] - alpha * sides[1]) @ out["kernel"] + out["bias"]
        return h.swapaxes(1, 2).reshape(x.shape)

    np.testing.assert_allclose(run(0.4), by_hand(0.4), rtol=1e-4, atol=1e-5)
    plain = unet_apply(model)(params, x, t, {"prompt_embeds": positive})
    np.testing.assert_allclose(run(0.0), plain, rtol=1e-4, atol=1e-5)
    assert np.abs(run(0.4) - plain).max() > 1e-2


@pytest.mark.slow
def test_the_unet_as_networks_of_pgsb():
    """Conditions with and without SDXL's own; NASA where there is a negative one; adapters by their names."""
    model, params, x, t, positive, negative = unet()
    apply = jax.jit(unet_apply(model))
    cond, neg = {"prompt_embeds": positive}, {"prompt_embeds": negative}
    both = with_negative(positive, negative)
    with linen.intercept_methods(nasa_interceptor(0.4, 5)):
        expected = model.apply({"params": params}, x, t, both).sample
    np.testing.assert_allclose(apply(params, x, t, cond, neg, 0.4), expected, rtol=1e-4, atol=1e-5)
    pooled = {"text_embeds": np.ones((2, 7), np.float32), "time_ids": np.ones((2, 6), np.float32)}
    assert np.abs(apply(params, x, t, cond | pooled) - apply(params, x, t, cond)).max() > 1e-2
    state = init_pgsb(jax.random.key(0), params, PGSBConfig.sdv15())
    assert set(state.params["lora"]) == {
        f"attn{i}/{name}/kernel" for i in (1, 2) for name in ("to_q", "to_v")
    }


def test_a_unet_without_negative_tokens():
    model, params, x, t, positive, _ = unet()
    with (
        linen.intercept_methods(nasa_interceptor(0.4, 5)),
        pytest.raises(ValueError, match=r"tokens: expected fewer than the 5 of prompt_embeds.*got 5"),
    ):
        model.apply({"params": params}, x, t, positive)


# The pod's step


TINY = DiTConfig(size=4, channels=2, width=16, layers=2, heads=4, text=8, scan=True)


@pytest.mark.slow
def test_the_step_for_the_pod_on_a_small_mesh():
    """Student and adapters move, large kernels are split over both axes, adapters are whole."""
    target = pod.distillation_target(8, TINY, tokens=3, rank=4)
    keys = jax.random.split(jax.random.key(0), 2)
    params = jax.tree.map(
        lambda leaf: 0.1 * np.random.default_rng(leaf.size).standard_normal(leaf.shape, np.float32),
        target.state.params["teacher"],
    )
    cfg = PGSBConfig(shape=(4, 4, 2), lora_match=pod.LORA_MATCH, lora_rank=4, lora_stacked=1)
    state = init_pgsb(keys[0], params, cfg)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, target.state)
    assert len(state.params["lora"]) == 3
    text = jax.random.normal(keys[1], (8, 3, 8))
    batch = {"cond": {"text": text, "mask": jnp.arange(3) < jnp.arange(1, 9)[:, None]}}
    assert jax.tree.map(jnp.shape, batch) == jax.tree.map(jnp.shape, target.batch)
    mesh = make_mesh({"data": 4, "model": 2})
    sharded = shard_step(
        target.step, mesh, target.state, target.batch, rules=target.rules, fsdp=target.fsdp, min_size=1
    )
    placed: Any = sharded.place_state(state)  # pyright: ignore[reportArgumentType]
    kernel = placed.params["student"]["blocks"]["attention"]["qkv"]["kernel"]
    assert tuple(kernel.sharding.spec) == (None, "data", "model")
    adapters = placed.params["lora"]["blocks/attention/qkv/kernel"]
    assert adapters["a"].sharding.is_fully_replicated
    for _ in range(2):  # the first step's adapters are new: the student hears nothing
        placed, metrics = sharded(placed, sharded.place_batch(batch))
    assert float(metrics["update_norm"]) > 0
    assert np.isfinite([float(value) for value in metrics.values()]).all()
    jax.tree.map(np.testing.assert_array_equal, placed.params["teacher"], params)
    for path, factors in placed.params["lora"].items():
        assert float(jnp.abs(factors["b"]).max()) > 0, path
