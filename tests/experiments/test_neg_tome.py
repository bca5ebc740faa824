"""The NegToMe experiment: its sampler, judges, claims and costs, MaxDiffusion's loops, the pod, a run."""

import dataclasses
import importlib.util
import inspect
import itertools
import re
from types import SimpleNamespace

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import neg_tome
from experiments.digits import digit_pixels
from experiments.neg_tome import cost, sampling
from experiments.neg_tome.claims import (
    CLAIMS,
    DIVERSITY,
    DIVERSITY_REFERENCE,
    GUIDANCES,
    GUIDED,
    GUIDED_REFERENCE,
    away,
    first,
    measurements,
    others,
    plain,
)
from experiments.neg_tome.judges import Likeness, Quality, class_medoids, fit_judge, likeness, quality
from experiments.neg_tome.maxdiffusion import flux_loop_body, sdxl_loop_body
from experiments.neg_tome.network import digit_network, guided_velocity, train
from experiments.neg_tome.pod import GROUP, SamplingState, sampling_target
from experiments.neg_tome.sampling import Setting, sample
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from jaxneg.diffusion import (
    NegToMeConfig,
    frechet_distance,
    inception_score,
    mean_pairwise_cosine,
    negtome_batch,
    negtome_joint,
    vendi_score,
)
from jaxneg.nn.dit import DiTConfig, dit
from jaxneg.train import compile_for, make_mesh, shard_step

MODEL = digit_network(8, 1, 2)
STEPS, SIZE_OF_GROUP = 3, 3
LABEL = jnp.array([3, 3, 3, 7, 7, 7])
START = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))


def drawn(model, *inputs):
    """Parameters without the zeros of an initialisation."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32), shapes)


PARAMS = drawn(MODEL)


def by_hand(hook, guidance=3.0, given=None):
    """Euler's method in a plain loop; the hook is called in the window, the first images are given ones."""
    x, times = START, np.linspace(1, 0, STEPS + 1)
    for t, following in itertools.pairwise(times):
        if given is not None:
            x = x.at[::SIZE_OF_GROUP].set(given)
        options = {} if hook is None or 1000 * t < 600 else {"attention_hook": lambda h, _: hook(h)}
        velocity = guided_velocity(MODEL, PARAMS, x, jnp.asarray(t), LABEL, jnp.asarray(guidance), **options)
        x = x + (following - t) * velocity
    return x


def merged(**options):
    return lambda h: negtome_batch(h, group_size=SIZE_OF_GROUP, **{"threshold": 0.2, "alpha": 0.9, **options})


GIVEN = jax.random.normal(jax.random.key(5), (2, 8, 8, 1))


@pytest.mark.slow
def test_samples_are_those_of_a_plain_loop():
    """Every kind of reference, the scale of guidance, given images that stay clean, and a mask."""
    low = {"threshold": 0.2}
    free = [
        (Setting(), None, 3.0),
        (Setting(guidance=1.0), None, 1.0),
        (Setting("first", **low), merged(), 3.0),
        (Setting("leave-one-out", alpha=2.0, **low), merged(reference="leave_one_out", alpha=2.0), 3.0),
        (Setting("official", **low), merged(match="official"), 3.0),
        (Setting("first", t_end=600.0, masked=True, **low), merged(ref_mask=sampling.UPPER_HALF), 3.0),
    ]
    found = jax.jit(
        lambda: sample(
            MODEL,
            PARAMS,
            [setting for setting, _, _ in free],
            START,
            LABEL,
            jax.random.key(1),
            group=SIZE_OF_GROUP,
            steps=STEPS,
        )
    )()
    expected = jax.jit(lambda: [by_hand(hook, guidance) for _, hook, guidance in free])()
    for row, other, (setting, _, _) in zip(found, expected, free, strict=True):
        np.testing.assert_allclose(row, other, rtol=1e-3, atol=1e-3, err_msg=str(setting))
    assert float(jnp.abs(found[2] - found[0])[1:3].max()) > 1e-2
    np.testing.assert_allclose(found[2][::3], found[0][::3], rtol=1e-3, atol=1e-3)
    clean = Setting("first", noised=False, **low)
    given, other = jax.jit(
        lambda: (
            sample(
                MODEL,
                PARAMS,
                [clean],
                START,
                LABEL,
                jax.random.key(1),
                group=SIZE_OF_GROUP,
                steps=STEPS,
                references=GIVEN,
            )[0],
            by_hand(merged(), given=GIVEN),
        )
    )()
    np.testing.assert_allclose(given, other, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_random_matches_noise_and_cads():
    """What is drawn follows the key; the first image of a group is no other's match for itself."""
    settings = [
        Setting(),
        Setting("random match", threshold=-1.0),
        Setting(cads=True),
        Setting("none", noised=True),
        Setting("first", threshold=-1.0),
    ]

    @jax.jit
    def drawn_with(key):
        options = {"group": SIZE_OF_GROUP, "steps": STEPS}
        free = sample(MODEL, PARAMS, settings, START, LABEL, key, **options)
        return free, sample(MODEL, PARAMS, settings[3:], START, LABEL, key, references=GIVEN, **options)

    (free, given), (other, other_given) = (drawn_with(jax.random.key(i)) for i in (1, 2))
    np.testing.assert_array_equal(free[0], other[0])
    np.testing.assert_allclose(free[1][::3], free[0][::3], rtol=1e-3, atol=1e-3)
    for row in (1, 2):
        assert float(jnp.abs(free[row] - free[0]).max()) > 1e-2
        assert float(jnp.abs(free[row] - other[row]).max()) > 1e-2
    # The noise of the references reaches the other images through their matches alone.
    others_of_group = np.arange(6) % 3 != 0
    np.testing.assert_allclose(given[0][others_of_group], free[0][others_of_group], rtol=1e-3, atol=1e-3)
    assert float(jnp.abs(given[1] - other_given[1])[others_of_group].max()) > 1e-2


def test_annealed_labels():
    """Untouched late, nothing but noise of the same mean and size early; the null label stays last."""
    table = PARAMS["conditioning"]["label"]["embedding"]
    key = jax.random.key(0)

    @jax.jit
    def annealed(t, cads):
        told = sampling._with_annealed_labels(PARAMS, LABEL, t, cads, key)
        return told["conditioning"]["label"]["embedding"]

    def rows(t, cads):
        return np.asarray(annealed(t, cads))

    expected = np.concatenate([table[LABEL], table[-1:]])
    np.testing.assert_array_equal(rows(0.95, False), expected)
    np.testing.assert_allclose(rows(0.59, True), expected, rtol=1e-5, atol=1e-6)
    noisy = rows(0.95, True)
    np.testing.assert_array_equal(noisy[-1], table[-1])
    np.testing.assert_allclose(noisy.mean(1), expected.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(noisy.std(1), expected.std(1), rtol=1e-4, atol=1e-5)
    noise = np.asarray(jax.random.normal(key, (6, 8)))
    for ours, drawn_noise in zip(noisy, noise, strict=False):
        assert np.corrcoef(ours, drawn_noise)[0, 1] > 0.999


@pytest.mark.slow
def test_training_learns():
    losses = jax.jit(lambda key: train(digit_network(16, 1, 2), 150, key)[1])(jax.random.key(0))
    assert losses.shape == (150,)
    assert losses[-30:].mean() < 0.8 * losses[:10].mean()


@pytest.fixture(scope="module")
def judge():
    return fit_judge()


@pytest.mark.slow
def test_quality_of_real_digits(judge):
    """Against the library's measures on plain loops, and what must hold of real digits."""
    digits = digit_pixels()
    rows = np.concatenate([np.flatnonzero(digits.y == c)[:4] for c in range(10)])
    images, label = digits.x[rows].reshape(-1, 8, 8, 1), digits.y[rows]
    found = jax.jit(lambda x: quality(judge, x, label, 4))(images)
    assert float(found.accuracy) > 0.97
    np.testing.assert_allclose(found.nearest, 0, atol=2e-3)
    pixels = digits.x[rows].reshape(10, 4, 64) - digits.x.mean(0)
    np.testing.assert_allclose(
        found.similarity, np.mean([mean_pairwise_cosine(group) for group in pixels]), rtol=1e-4
    )
    hidden = digits.x[rows]
    for kernel, bias in judge.layers[:-1]:
        hidden = np.maximum(hidden @ np.asarray(kernel) + np.asarray(bias), 0)
    groups = hidden.reshape(10, 4, -1)
    np.testing.assert_allclose(found.vendi, np.mean([vendi_score(group) for group in groups]), rtol=1e-4)
    distance = frechet_distance(hidden, judge.features, ridge=1e-6)
    np.testing.assert_allclose(found.frechet, distance, rtol=1e-3)
    kernel, bias = judge.layers[-1]
    probabilities = jax.nn.softmax(hidden @ kernel + bias)
    np.testing.assert_allclose(found.inception, inception_score(probabilities), rtol=1e-4)
    same = jax.jit(lambda x: quality(judge, x, label, 4))(np.repeat(images[::4], 4, axis=0))
    np.testing.assert_allclose([same.similarity, same.vendi], 1, rtol=1e-3)


@pytest.mark.slow
def test_likeness_to_medoids(judge):
    medoids = class_medoids()
    digits = digit_pixels()
    for label in (0, 7):
        of_class = digits.x[digits.y == label]
        distances = [np.linalg.norm(x - of_class.mean(0)) for x in of_class]
        np.testing.assert_array_equal(medoids[label].ravel(), of_class[np.argmin(distances)])
    label = np.arange(10)
    measure = jax.jit(lambda x: likeness(judge, x, label, medoids))
    own = measure(medoids)
    np.testing.assert_allclose([own.similarity, own.upper, own.lower], 1, rtol=1e-5)
    assert float(own.accuracy) == 1
    half = np.array(medoids)
    half[:, 4:] = half[:, 4:][::-1]  # the lower halves of other digits
    changed = measure(half)
    np.testing.assert_allclose(changed.upper, 1, rtol=1e-5)
    assert float(changed.lower) < 0.5
    mean = digits.x.mean(0)
    a, b = half.reshape(10, 64) - mean, medoids.reshape(10, 64) - mean
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(changed.similarity, cosines.mean(), rtol=1e-4)


def test_settings_of_the_specification():
    """No setting twice; every number of the independent run belongs to one of ours."""
    assert set(DIVERSITY_REFERENCE) <= set(DIVERSITY)
    assert set(GUIDED_REFERENCE) <= set(GUIDED)
    assert len(DIVERSITY) == 3 * len(GUIDANCES) + 8
    assert len(GUIDED) == 10
    assert others(3.0, 2.0, threshold=0.65) == others()
    assert len(set(DIVERSITY.values())) == len(DIVERSITY)


def test_measurements_by_hand():
    """Two seeds; each claim from the numbers of its settings alone."""
    rng = np.random.default_rng(0)
    diversity = {name: rng.normal(size=(2, len(DIVERSITY))) for name in Quality._fields}
    guided = {name: rng.uniform(0.5, 1, size=(2, len(GUIDED))) for name in Likeness._fields}
    at = {setting: i for i, setting in enumerate(DIVERSITY)}
    of = {setting: i for i, setting in enumerate(GUIDED)}
    found = measurements(diversity, guided, 0.01)
    assert list(found) == [claim.name for claim in CLAIMS]
    similarity, frechet, accuracy = (diversity[name] for name in ("similarity", "frechet", "accuracy"))
    for seed in range(2):
        falls = [similarity[seed, at[plain(g)]] - similarity[seed, at[first(g)]] for g in GUIDANCES]
        assert found["first-image-raises-diversity"][seed] == pytest.approx(min(falls))
        rises = [frechet[seed, at[others(g)]] - frechet[seed, at[plain(g)]] for g in GUIDANCES]
        assert found["other-images-keep-the-distribution"][seed] == pytest.approx(max(rises))
        losses = [
            accuracy[seed, at[plain(g)]] - accuracy[seed, at[how(g)]]
            for g in GUIDANCES
            for how in (first, others)
        ]
        assert found["the-prompt-is-followed"][seed] == pytest.approx(max(losses))
        by_threshold = [similarity[seed, at[others(threshold=tau)]] for tau in (0.8, 0.65, 0.5)]
        least = min(by_threshold[0] - by_threshold[1], by_threshold[1] - by_threshold[2])
        assert found["a-lower-threshold-pushes-more"][seed] == pytest.approx(least)
        base, pushed = (guided["similarity"][seed, of[s]] for s in (plain(), away(2.0, 0.0)))
        assert found["a-reference-is-avoided"][seed] == pytest.approx((base - pushed) / base)
        upper, lower = (
            guided[half][seed, of[plain()]] - guided[half][seed, of[away(2.0, masked=True)]]
            for half in ("upper", "lower")
        )
        assert found["a-mask-chooses-what-is-avoided"][seed] == pytest.approx(upper - lower)
    np.testing.assert_array_equal(found["it-costs-little"], [0.01, 0.01])


@pytest.mark.slow
def test_costs_are_the_formula():
    """Three of four images meet N references of width D: 2 N^2 D beside 24 N D^2 + 4 N^2 D of a block."""
    flux, sdxl, tiny = cost.count(64, 4, 4, 4)
    for found, N, D in ((flux, 2304, 3072), (sdxl, 1024, 1280), (tiny, 16, 64)):
        formula = 3 / 4 * 2 * N**2 * D / (24 * N * D**2 + 4 * N**2 * D)
        assert found.first == pytest.approx(formula, rel=0.05)
        assert found.others == pytest.approx(2 * found.first, rel=1e-6)
    assert flux.share == flux.first * 0.24
    # One quarter of the latents' steps has t >= 0.9 because of the shift; without it three of 25 had.
    assert cost.flux_window(25, 256 - 0.5 / 0.65 * 3840) == 3 / 25
    assert [len(row) for row in cost.cost_table([flux, sdxl, tiny]).rows] == [5] * 4


class TinyOp(linen.Module):
    """The signature of MaxDiffusion's AttentionOp: heads are merged in and out."""

    def apply_attention(self, query, key, value, attention_mask=None):
        return jax.nn.softmax(query @ key.swapaxes(1, 2)) @ value


class TinyFluxAttention(linen.Module):
    def setup(self):
        self.attention_op = TinyOp()
        self.proj_attn = linen.Dense(4)

    def __call__(self, hidden_states, encoder_hidden_states):
        both = jnp.concatenate([encoder_hidden_states, hidden_states], axis=1)
        mixed = self.attention_op.apply_attention(both, both, both)
        text = encoder_hidden_states.shape[1]
        return self.proj_attn(mixed[:, text:]), mixed[:, :text]


class TinyJointBlock(linen.Module):
    @linen.compact
    def __call__(self, carry, _):
        image, text = carry
        image_out, text_out = TinyFluxAttention(name="attn")(image, text)
        return (image + image_out, text + text_out), None


class TinySingleBlock(linen.Module):
    @linen.compact
    def __call__(self, carry, _):
        mixed = TinyOp(name="attention_op").apply_attention(carry, carry, carry)
        return carry + linen.Dense(4, name="linear2")(mixed), None


class TinyFlux(linen.Module):
    """The signature of MaxDiffusion's FluxTransformer2DModel, and its two loops over blocks."""

    @linen.compact
    def __call__(
        self,
        hidden_states,
        encoder_hidden_states,
        pooled_projections,
        timestep,
        img_ids,
        txt_ids,
        guidance,
        return_dict=True,
        train=False,
    ):
        assert timestep.shape == guidance.shape == hidden_states.shape[:1]
        loop = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 2}
        joint = linen.scan(linen.remat(TinyJointBlock), **loop)(name="scanned_double_blocks")
        single = linen.scan(linen.remat(TinySingleBlock), **loop)(name="scanned_single_blocks")
        told = linen.Dense(4)(encoder_hidden_states) + pooled_projections[:, None] + timestep[:, None, None]
        (image, text), _ = joint((hidden_states.astype(jnp.float32), told), None)
        both, _ = single(jnp.concatenate([text, image], axis=1), None)
        return SimpleNamespace(sample=both[:, text.shape[1] :])


def flux_by_hand(params, latents, embeds, vec, t, push):
    """The same network; ``push`` is negative token merging or nothing."""
    image, text = latents, embeds @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    text = text + vec[:, None] + t

    def mixed(h):
        return push(jax.nn.softmax(h @ h.swapaxes(1, 2)) @ h)

    count = embeds.shape[1]
    for i in range(2):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params["scanned_double_blocks"]["attn"]["proj_attn"])
        h = mixed(jnp.concatenate([text, image], axis=1))
        image, text = image + h[:, count:] @ p["kernel"] + p["bias"], text + h[:, :count]
    both = jnp.concatenate([text, image], axis=1)
    for i in range(2):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params["scanned_single_blocks"]["linear2"])
        both = both + mixed(both) @ p["kernel"] + p["bias"]
    return both[:, count:]


def test_the_loop_of_flux():
    """Its arguments are theirs; in the window it merges image tokens of all blocks, once each."""
    theirs = "step args transformer latent_image_ids prompt_embeds txt_ids vec guidance_vec"
    assert list(inspect.signature(flux_loop_body).parameters) == [*theirs.split(), "negtome", "group_size"]
    rng = np.random.default_rng(0)
    shapes = ((4, 6, 4), (4, 3, 5), (4, 4))
    latents, embeds, vec = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    image_ids, text_ids, ones = np.ones((4, 6, 3)), np.zeros((3, 3)), np.ones(4, np.float32)
    model, times = TinyFlux(), (jnp.array([1.0, 0.8]), jnp.array([0.8, 0.0]))
    params = drawn(model, latents, embeds, vec, ones, image_ids, text_ids, ones)["params"]
    config = NegToMeConfig(threshold=0.3)

    def run(step, latents, negtome):
        args = (latents, SimpleNamespace(params=params), *times)
        given = (image_ids, embeds, text_ids, vec, ones)
        return flux_loop_body(step, args, model, *given, negtome=negtome, group_size=2)[0]

    def merge(h):
        return negtome_joint(h, 3, group_size=2, alpha=0.9, threshold=0.3)

    @jax.jit
    def both(latents):
        single = dataclasses.replace(config, blocks="single")
        return (
            [run(0, latents, config), run(1, latents, config), run(0, latents, single)],
            [
                latents - 0.2 * flux_by_hand(params, latents, embeds, vec, 1.0, merge),
                latents - 0.8 * flux_by_hand(params, latents, embeds, vec, 0.8, lambda h: h),
                latents - 0.2 * flux_by_hand(params, latents, embeds, vec, 1.0, lambda h: h),
            ],
        )

    (inside, outside, single), (expected, plain_step, unmerged) = both(latents)
    np.testing.assert_allclose(inside, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outside, plain_step, rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(inside - unmerged).max()) > 1e-2
    assert float(jnp.abs(single - unmerged).max()) > 1e-2
    assert float(jnp.abs(single - inside).max()) > 1e-2
    half = jax.eval_shape(lambda x: run(0, x, config), jax.ShapeDtypeStruct((4, 6, 4), jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


class TinyAttention(linen.Module):
    """As MaxDiffusion's FlaxAttention: projects, and adds no residual."""

    @linen.compact
    def __call__(self, hidden_states, context=None, deterministic=True):
        context = hidden_states if context is None else context
        width = hidden_states.shape[-1]
        key = linen.Dense(width)(context)
        return linen.Dense(width)(jax.nn.softmax(hidden_states @ key.swapaxes(1, 2)) @ key)


class TinyBlock(linen.Module):
    @linen.compact
    def __call__(self, h, context):
        h = h + TinyAttention(name="attn1")(h)
        return h + TinyAttention(name="attn2")(h, context)


class TinyUNet(linen.Module):
    """The signature of MaxDiffusion's FlaxUNet2DConditionModel."""

    @linen.compact
    def __call__(self, sample, timesteps, encoder_hidden_states, added_cond_kwargs=None):
        assert timesteps.shape == sample.shape[:1]
        batch, channels, *sides = sample.shape
        h = sample.reshape(batch, channels, -1).swapaxes(1, 2) + added_cond_kwargs["text_embeds"][:, None]
        for name in ("down_blocks_0", "up_blocks_0"):
            h = TinyBlock(name=name)(h, encoder_hidden_states)
        return SimpleNamespace(sample=h.swapaxes(1, 2).reshape(batch, channels, *sides))


def unet_by_hand(params, x, embeds, added, push):
    h = x.reshape(*x.shape[:2], -1).swapaxes(1, 2) + added[:, None]

    def attention(p, h, context):
        key = context @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
        mixed = jax.nn.softmax(h @ key.swapaxes(1, 2)) @ key
        return mixed @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]

    for name, change in (("down_blocks_0", lambda h: h), ("up_blocks_0", push)):
        h = h + change(attention(params[name]["attn1"], h, h))
        h = h + change(attention(params[name]["attn2"], h, embeds))
    return h.swapaxes(1, 2).reshape(x.shape)


class Euler:
    """The interface of MaxDiffusion's schedulers, with a step that subtracts the noise."""

    def scale_model_input(self, state, sample, timestep):
        return sample * state.input_scale

    def step(self, state, model_output, timestep, sample):
        result = SimpleNamespace()
        result.to_tuple = lambda: (sample - 0.01 * model_output, state)
        return result


def test_the_loop_of_sdxl():
    """The outputs of both attentions of the up-blocks, in each half of guidance by itself."""
    theirs = "step args model pipeline added_cond_kwargs prompt_embeds guidance_scale guidance_rescale config"
    assert list(inspect.signature(sdxl_loop_body).parameters) == [*theirs.split(), "negtome", "group_size"]
    rng = np.random.default_rng(0)
    shapes = ((2, 4, 3, 3), (4, 3, 4), (4, 4))
    latents, embeds, added = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    model, both_halves = TinyUNet(), np.concatenate([latents] * 2)
    told = {"text_embeds": added}
    params = drawn(model, both_halves, np.zeros(4), embeds, told)["params"]
    scheduler_state = SimpleNamespace(timesteps=np.array([900, 500]), input_scale=0.5)
    pipeline = SimpleNamespace(scheduler=Euler())
    config = dataclasses.replace(NegToMeConfig.sdxl(), min_tokens=9, threshold=0.2)

    def run(step, rescale=0.0):
        args = (latents, scheduler_state, SimpleNamespace(params=params))
        given = (jnp.array([5.0]), jnp.array([rescale]), SimpleNamespace(do_classifier_free_guidance=True))
        return sdxl_loop_body(step, args, model, pipeline, told, embeds, *given, negtome=config)[0]

    def expected(push):
        noise = unet_by_hand(params, 0.5 * both_halves, embeds, added, push)
        without, prompted = jnp.split(noise, 2)
        return latents - 0.01 * (without + 5.0 * (prompted - without))

    def merge(h):
        halves = [negtome_batch(half, alpha=0.9, threshold=0.2) for half in jnp.split(h, 2)]
        return jnp.concatenate(halves)

    @jax.jit
    def both():
        unguided = SimpleNamespace(do_classifier_free_guidance=False)
        args = (latents, scheduler_state, SimpleNamespace(params=params))
        alone = sdxl_loop_body(
            0,
            args,
            model,
            pipeline,
            {"text_embeds": added[:2]},
            embeds[:2],
            jnp.ones(1),
            jnp.zeros(1),
            unguided,
            negtome=config,
        )[0]
        one_half = unet_by_hand(
            params, 0.5 * latents, embeds[:2], added[:2], lambda h: negtome_batch(h, alpha=0.9, threshold=0.2)
        )
        return run(0), run(1), expected(merge), expected(lambda h: h), alone, latents - 0.01 * one_half

    inside, outside, merged_step, plain_step, alone, of_one_half = both()
    np.testing.assert_allclose(inside, merged_step, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outside, plain_step, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone, of_one_half, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(inside - outside).max()) > 1e-3
    assert jax.eval_shape(lambda: run(0, 0.7)).shape == latents.shape


TINY = DiTConfig(size=4, width=32, layers=1, heads=4, text=8, scan=True)


@pytest.mark.slow
def test_the_step_for_the_pod_on_a_small_mesh():
    """Sharded as unsharded, and in the window the images of a prompt are pushed away from their first.

    There is a prompt for each chip, whose tokens are then matched there.
    """
    images = 8 * GROUP
    negtome = NegToMeConfig(threshold=0.2)
    options = {"mesh": {"data": 2, "model": 4}, "text_tokens": 4, "steps": 5}
    target = sampling_target(images, TINY, negtome=negtome, **options)
    keys = jax.random.split(jax.random.key(1), 3)
    params = drawn(dit(TINY))
    latents = jax.random.normal(keys[0], (images, 4, 4, 4))
    batch = {"text": jax.random.normal(keys[1], (images, 4, 8)), "text_mask": jnp.ones((images, 4), bool)}
    state = SamplingState(jnp.zeros((), jnp.int32), params, latents, keys[2])
    for ours, theirs in ((state, target.state), (batch, target.batch)):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, theirs)

    def step_by_hand(hook):
        t = jnp.full(images, 1000.0)
        velocity = dit(TINY).apply(params, latents, t, None, batch["text"], attention_hook=hook)
        return latents - velocity / 5

    pushed, alone = jax.jit(
        lambda: (
            step_by_hand(lambda h: negtome_batch(h, group_size=GROUP, alpha=0.9, threshold=0.2)),
            step_by_hand(None),
        )
    )()
    mesh = make_mesh(target.mesh)
    sharded = shard_step(target.step, mesh, target.state, target.batch, rules=target.rules, fsdp=target.fsdp)
    placed, placed_batch = sharded.place_state(state), sharded.place_batch(batch)
    assert placed.latents.sharding.spec[0] == "data"
    placed, metrics = sharded(placed, placed_batch)
    np.testing.assert_allclose(placed.latents, pushed, rtol=1e-3, atol=1e-3)
    assert float(jnp.abs(pushed - alone).max()) > 1e-2
    np.testing.assert_allclose(metrics["root_mean_square"], jnp.sqrt(jnp.mean(pushed**2)), rtol=1e-3)
    for _ in range(4):
        placed, _ = sharded(placed, placed_batch)
    assert int(placed.step) == 5
    assert bool(jnp.isfinite(placed.latents).all())


@pytest.mark.slow
@pytest.mark.tpu_compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_no_cosine_crosses_the_mesh():
    """With a prompt for each chip. Twelve of a row's sixteen images have 256 x 256 cosines."""
    model = DiTConfig(size=32, width=64, layers=1, heads=4, text=8, scan=True, dtype=jnp.bfloat16)
    target = sampling_target(8 * GROUP, model, mesh={"data": 2, "model": 4}, text_tokens=4)
    report = compile_for(target, "v5e:2x4")
    assert 0 < report.collectives["all-reduce"] < 12 * 256**2 * 4


def test_the_target_of_the_presets():
    """Shapes alone: a batch of 256 images of 4096 tokens, with T5's embeddings."""
    target = neg_tome.compile_target(neg_tome.PRESETS["cpu"])
    state, metrics = jax.eval_shape(target.step, target.state, target.batch)
    assert state.latents.shape == (256, 128, 128, 4)
    assert metrics["root_mean_square"].shape == ()
    assert target.batch["text"].shape == (256, 128, 4096)
    assert np.prod(list(target.mesh.values())) == 256


@pytest.mark.slow
def test_smoke_run(tmp_path):
    """A verdict for each claim, figures and tables; a run that is resumed finds the same."""
    config = dataclasses.replace(neg_tome.PRESETS["smoke"], train_steps=5, sampling_steps=2)
    with RunDir.create("neg_tome", config, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    assert all(len(claim["values"]) == config.seeds for claim in report["claims"])
    figures = sorted((tmp_path / "run" / "figures").glob("*.png"))
    assert [figure.stem for figure in figures] == [
        "avoided_digits",
        "diverse_digits",
        "diversity",
        "likeness",
    ]
    assert all(figure.stat().st_size > 10_000 for figure in figures)
    assert [len(table["rows"]) for table in report["tables"]] == [len(DIVERSITY), len(GUIDED), 4]
    (tmp_path / "run" / "report.json").unlink()
    with RunDir.resume(tmp_path / "run", "neg_tome", neg_tome.Config) as run_dir:
        again = run_experiment(run_dir)
    assert again["claims"] == report["claims"]


def test_presets():
    assert set(neg_tome.PRESETS) == {"smoke", "cpu", "paper"}
    cpu, paper = neg_tome.PRESETS["cpu"], neg_tome.PRESETS["paper"]
    assert cpu == neg_tome.Config()
    assert cpu.seeds >= 3
    assert (cpu.train_steps, cpu.sampling_steps, cpu.prompts, cpu.avoiding) == (2500, 25, 6, 24)
    assert (paper.train_steps, paper.width) == (cpu.train_steps, cpu.width)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 1}, "seeds: expected at least 2, got 1"),
        ({"prompts": 0}, "prompts: expected at least 1, got 0"),
        ({"train_steps": 0}, "train_steps: expected at least 1, got 0"),
        ({"avoiding": 3}, "avoiding: expected at least 4, got 3"),
        ({"pod_batch": 128}, "pod_batch: expected a positive multiple of 256, got 128"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        neg_tome.Config(**fields)
