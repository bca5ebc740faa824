"""The Perp-Neg experiments: reference numbers, one program, the toy object, MaxDiffusion's loops, a run."""

import dataclasses
import inspect
import re
from functools import cache, partial
from types import SimpleNamespace

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import perp_neg
from experiments.perp_neg import janus, overlap
from experiments.perp_neg.claims import JANUS_REFERENCE, REFERENCE, accuracies, best
from experiments.perp_neg.maxdiffusion import flux_denoiser, flux_loop_body, sdxl_denoiser, sdxl_loop_body
from experiments.perp_neg.overlap import RULES, Scores, Setting, all_settings, sample, score
from experiments.perp_neg.pod import SCALE, WEIGHTS, SamplingState, sampling_target
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from jaxneg.diffusion import (
    ddim_sample,
    gaussian_mixture_denoiser,
    guide_perp_neg,
    perp_neg_guidance,
    sampling_timesteps,
    scaled_linear_schedule,
)
from jaxneg.nn.dit import DiTConfig, dit
from jaxneg.train import make_mesh, shard_step
from jaxneg.train.compile import matmul_flops

# Of the independent run; the published floor of 1e-6 leaves its distances at weight 6.
REFERENCE_FLOOR = 1e-12


def starts(seeds, samples):
    noise = [np.random.default_rng(seed).standard_normal((samples, overlap.DIM)) for seed in range(seeds)]
    return np.stack(noise).astype(np.float32)


@pytest.mark.slow
def test_overlap_repeats_the_independent_run():
    """From the same noise, every number of its table, as it was rounded."""
    found = sample(list(REFERENCE), starts(5, 500), scale=3.0, steps=50, eps=REFERENCE_FLOOR)
    ours = score(np.asarray(found))
    for index, (setting, (concept, joint, distance)) in enumerate(REFERENCE.items()):
        np.testing.assert_allclose(ours.concept[index].mean(), concept, atol=0.006, err_msg=str(setting))
        np.testing.assert_allclose(ours.joint[index].mean(), joint, atol=0.006, err_msg=str(setting))
        if not np.isnan(distance):
            np.testing.assert_allclose(ours.distance[index].mean(), distance, rtol=0.01, err_msg=str(setting))


@pytest.mark.slow
def test_janus_agrees_with_the_independent_run():
    """Other noise, so within what five seeds leave open."""
    keys = jax.random.split(jax.random.key(1), 5)
    objects = janus.train(keys, 3.0, -2.0, steps=600, batch=64, learning_rate=0.02, eps=1e-6)
    for name, (right, kept) in accuracies(janus.look(np.asarray(objects))).items():
        np.testing.assert_allclose(
            [right.mean(), kept.mean()], JANUS_REFERENCE[name], atol=0.06, err_msg=name
        )


def scans(jaxpr):
    """Lengths of a program's loops, inner ones too."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            found.append(eqn.params["length"])
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += scans(inner)
    return found


def test_all_settings_are_one_program():
    """One loop over the steps, whatever the number of rules, weights and seeds."""
    settings = all_settings((1.0, 2.0))
    given = {"scale": 3.0, "steps": 7, "eps": 1e-6}
    jaxpr = jax.make_jaxpr(lambda x: sample(settings, x, **given))(jnp.zeros((3, 2, overlap.DIM)))
    assert scans(jaxpr.jaxpr) == [7]
    assert jaxpr.out_avals[0].shape == (6, 3, 2, overlap.DIM)
    train = partial(janus.train, steps=9, batch=4, learning_rate=0.02, eps=1e-6)
    jaxpr = jax.make_jaxpr(lambda keys: train(keys, 3.0, -2.0))(jax.random.split(jax.random.key(0), 3))
    assert scans(jaxpr.jaxpr) == [9]
    assert jaxpr.out_avals[0].shape == (4, 3, 7, janus.DIM)


def test_a_setting_is_the_guided_sampler():
    """The row of Perp-Neg at weight 2 is DDIM with the library's guided denoiser."""
    settings = all_settings((1.0, 2.0))
    x_T = starts(2, 5)
    found = sample(settings, x_T, scale=3.0, steps=10, eps=1e-6)
    noise = gaussian_mixture_denoiser(
        overlap.component_means(), overlap.UNCONDITIONAL, np.array(1.0), overlap.ALPHAS_CUMPROD
    ).noise
    guided = guide_perp_neg(
        noise,
        scale=3.0,
        null_cond=overlap.UNCONDITIONAL,
        neg_cond=overlap.NEGATIVE[None],
        weights=[-2.0],
    )
    cond = jnp.tile(jnp.asarray(overlap.MAIN, jnp.float32), (10, 1))
    grid = np.arange(1000, 0, -100)
    alone = jax.jit(lambda x: ddim_sample(guided, x, grid, overlap.ALPHAS_CUMPROD, cond=cond))(
        x_T.reshape(10, -1)
    )
    row = settings.index(Setting("Perp-Neg", 2.0))
    np.testing.assert_allclose(found[row].reshape(10, -1), alone, rtol=1e-3, atol=1e-3)


def test_geometry_of_the_overlap():
    """Means at 3 along their concept and 1 along their attribute; the clean end of the schedule is clean."""
    means, q = overlap.component_means(), overlap.axes()
    np.testing.assert_allclose(q @ q.T, np.eye(16), atol=1e-12)
    along = means @ q.T
    expected = np.zeros((8, 16))
    for component in range(8):
        expected[component, component // 2] = 3
        expected[component, 4 + component % 2] = 1
    np.testing.assert_allclose(along, expected, atol=1e-12)
    assert overlap.ALPHAS_CUMPROD[0] == 1
    np.testing.assert_allclose(overlap.ALPHAS_CUMPROD[[1, 2]], [1 - 1e-4, 0.99978009], rtol=1e-6)
    assert len(overlap.ALPHAS_CUMPROD) == 1001


def test_scores_by_hand():
    means = overlap.component_means()
    off = 4.0 * overlap.axes()[15]
    right, unwanted, other = means[1], means[0] + off, means[3]
    found = score(np.stack([[[right, right, unwanted, other]]]).astype(np.float32))
    for values, expected in zip(found, (0.75, 0.75, 0.5, 0.0), strict=True):
        np.testing.assert_allclose(values, [[expected]], atol=1e-3)
    far = score(np.stack([[[unwanted, unwanted, right]]]).astype(np.float32))
    np.testing.assert_allclose(far.distance, [[1.0]], rtol=1e-5)


def test_the_true_object_is_seen_as_such():
    """A series through the means of the right views has the right view in front and behind."""
    means = janus.component_means()
    q = means[:3]
    assert np.linalg.matrix_rank(means - means[0]) == 3
    phi = jnp.asarray(janus.AZIMUTHS)
    true = janus.true_faces()
    np.testing.assert_array_equal(np.bincount(true), [8, 18, 10])
    series, *_ = np.linalg.lstsq(np.asarray(janus.basis(phi)), q[true], rcond=None)
    seen = janus.look(series[None, None])
    assert np.all(seen.concept == 0)
    assert float(np.mean(seen.face[0, 0] == true)) > 0.9
    half = janus.look(np.concatenate([means[None, 3:4], np.zeros((1, 6, janus.DIM))], axis=1)[None])
    assert np.all(half.concept == 1)
    assert np.all(half.face == janus.FRONT)
    views = janus.Views(*(np.broadcast_to(array, (4, 1, 36)) for array in (seen.concept, true)))
    for right, kept in accuracies(views).values():
        assert right == kept == 1


def test_best_weight_is_the_best_in_the_mean():
    settings = all_settings((1.0, 2.0))
    joint = np.array([[0.9, 0.9], [0.8, 0.8], [0.1, 0.7], [0.3, 0.6], [0.6, 0.1], [0.2, 0.3]])
    scores = Scores(joint, joint, joint, joint)
    assert settings[best(settings, scores, "CEBM")] == Setting("CEBM", 2.0)
    assert settings[best(settings, scores, "Perp-Neg")] == Setting("Perp-Neg", 1.0)


def test_notes_follow_the_numbers():
    settings = all_settings((1.0, 2.0))
    low, high = np.full((6, 2), 0.1), np.full((6, 2), 0.1)
    high[2:4] = 0.7
    low[4:], low[1] = 0.6, 0.7
    notes = perp_neg._notes(settings, Scores(high, high, high, high))
    assert "at weight 1: 0.70 against 0.10, 2: 0.70 against 0.10" in notes[0]
    assert "At none of the weights" in notes[2]
    notes = perp_neg._notes(settings, Scores(low, low, low, low))
    assert "At no equal weight" in notes[0]
    low[1] = 0.5
    assert "from weight 1 on" in perp_neg._notes(settings, Scores(low, low, low, low))[2]


@pytest.mark.slow
def test_smoke_run(tmp_path):
    """A verdict for each claim, figures and tables; a run that is resumed finds the same."""
    config = dataclasses.replace(perp_neg.PRESETS["smoke"], samples=20, janus_steps=10)
    with RunDir.create("perp_neg", config, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in perp_neg.CLAIMS]
    assert all(len(claim["values"]) == config.seeds for claim in report["claims"])
    figures = sorted((tmp_path / "run" / "figures").glob("*.png"))
    assert [figure.stem for figure in figures] == [
        "samples",
        "success_against_weight",
        "view_circle",
        "view_weights",
    ]
    assert all(figure.stat().st_size > 10_000 for figure in figures)
    assert [len(table["rows"]) for table in report["tables"]] == [10, 4]
    (tmp_path / "run" / "report.json").unlink()
    with RunDir.resume(tmp_path / "run", "perp_neg", perp_neg.Config) as run_dir:
        again = run_experiment(run_dir)
    assert again["claims"] == report["claims"]


def test_presets_and_references():
    assert set(perp_neg.PRESETS) == {"smoke", "cpu", "paper"}
    cpu, paper = perp_neg.PRESETS["cpu"], perp_neg.PRESETS["paper"]
    assert dataclasses.replace(cpu, seeds=paper.seeds, pod_batch=paper.pod_batch) == paper
    assert set(REFERENCE) <= set(all_settings(cpu.weights))
    assert {setting.rule for setting in REFERENCE} == set(RULES)
    assert set(JANUS_REFERENCE) == set(janus.METHODS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"janus_batch": 0}, "janus_batch: expected at least 1, got 0"),
        ({"weights": (1.0, 3.0)}, "weights: expected positive numbers up to 6, with 1 and 2 among them"),
        ({"weights": (0.0, 1.0, 2.0)}, "weights: expected positive numbers"),
        ({"weights": (1.0, 2.0, 7.0)}, "weights: expected positive numbers up to 6"),
        ({"pod_batch": 100}, "pod_batch: expected a positive multiple of 64, got 100"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        perp_neg.Config(**fields)


class TinyUNet(linen.Module):
    """The signature of MaxDiffusion's FlaxUNet2DConditionModel."""

    @linen.compact
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
        told = jnp.concatenate(
            [
                encoder_hidden_states.mean(1),
                added_cond_kwargs["text_embeds"],
                added_cond_kwargs["time_ids"],
                timesteps[:, None] / 1000,
            ],
            axis=1,
        )
        shift = linen.Dense(sample.shape[1])(told)[:, :, None, None]
        return SimpleNamespace(sample=jnp.tanh(sample + shift))


class TinyFlux(linen.Module):
    """The signature of MaxDiffusion's FluxTransformer2DModel."""

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
        ids = jnp.concatenate((txt_ids, img_ids[0] if img_ids.ndim == 3 else img_ids), axis=0)
        told = [encoder_hidden_states.mean(1), pooled_projections, timestep[:, None], guidance[:, None]]
        shift = linen.Dense(hidden_states.shape[-1])(jnp.concatenate(told, axis=1))[:, None]
        return SimpleNamespace(sample=jnp.tanh(hidden_states + shift + ids.sum() / 100))


class Euler:
    """The interface of MaxDiffusion's schedulers, with a step that subtracts the noise."""

    def scale_model_input(self, state, sample, timestep):
        return sample * state.input_scale

    def step(self, state, model_output, timestep, sample):
        result = SimpleNamespace()
        result.to_tuple = lambda: (sample - 0.01 * timestep / 100 * model_output, state)
        return result


BATCH, FURTHER, SDXL_SCALE = 2, 2, 5.0


@cache
def sdxl():
    """A tiny SDXL: model, its state, latents, and the arrays of the empty, the main and two more prompts."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    rows = (2 + FURTHER) * BATCH
    latents, embeds = draw(BATCH, 4, 2, 2), draw(rows, 3, 5)
    added = {"text_embeds": draw(rows, 4), "time_ids": draw(rows, 6)}
    model = TinyUNet()
    first = {name: array[:BATCH] for name, array in added.items()}
    init = jax.jit(model.init)
    params = init(jax.random.key(0), latents, np.zeros(BATCH), embeds[:BATCH], first)["params"]
    pipeline = SimpleNamespace(scheduler=Euler())
    state = SimpleNamespace(timesteps=np.array([900, 500, 100]), input_scale=0.5)
    return model, SimpleNamespace(params=params), pipeline, state, latents, embeds, added


def sdxl_step(weights, rescale=0.0, step=1):
    model, state, pipeline, scheduler_state, latents, embeds, added = sdxl()

    @jax.jit
    def run(latents, scale, rescale):
        args = (latents, scheduler_state, state)
        return sdxl_loop_body(
            step, args, model, pipeline, added, embeds, scale, rescale, None, weights=weights
        )[0]

    return run(latents, np.array([SDXL_SCALE], np.float32), np.array([rescale], np.float32))


def test_the_loop_of_sdxl():
    """Its arguments are theirs; one step is Perp-Neg on the predictions of all prompts."""
    theirs = "step args model pipeline added_cond_kwargs prompt_embeds guidance_scale guidance_rescale config"
    assert list(inspect.signature(sdxl_loop_body).parameters) == [*theirs.split(), "weights"]
    model, state, _, _, latents, embeds, added = sdxl()
    rows = np.tile(0.5 * latents, (2 + FURTHER, 1, 1, 1))
    predict = jax.jit(lambda x, t: model.apply({"params": state.params}, x, t, embeds, added).sample)
    noise = np.asarray(predict(rows, np.full(len(rows), 500)))
    u, p, *n = noise.reshape(2 + FURTHER, BATCH, 4, 2, 2)
    guided = jax.jit(perp_neg_guidance)(u, p, np.stack(n), np.array([-1.5, -0.5]), SDXL_SCALE)
    np.testing.assert_allclose(sdxl_step([-1.5, -0.5]), latents - 0.05 * guided, rtol=1e-5, atol=1e-5)
    # Without further prompts it is their own body: classifier-free guidance, and its rescaling.
    cfg = u + SDXL_SCALE * (p - u)
    np.testing.assert_allclose(sdxl_step([0.0, 0.0]), latents - 0.05 * cfg, rtol=1e-5, atol=1e-5)
    axes = (1, 2, 3)
    ratio = np.std(p, axes, keepdims=True) / np.std(cfg, axes, keepdims=True)
    rescaled = cfg * (0.7 * ratio + 0.3)
    np.testing.assert_allclose(sdxl_step([0.0, 0.0], 0.7), latents - 0.05 * rescaled, rtol=1e-5, atol=1e-5)


def test_the_loop_runs_in_theirs():
    """``jax.lax.fori_loop`` over the steps, as ``run_inference`` runs the body."""
    model, state, pipeline, scheduler_state, latents, embeds, added = sdxl()

    @jax.jit
    def run(latents, params):
        def body(step, latents):
            args = (latents, scheduler_state, SimpleNamespace(params=params))
            scale, rescale = jnp.array([SDXL_SCALE]), jnp.zeros(1)
            return sdxl_loop_body(
                step, args, model, pipeline, added, embeds, scale, rescale, None, weights=[-1.5, -0.5]
            )[0]

        return jax.lax.fori_loop(0, 3, body, latents)

    assert run(latents, state.params).shape == latents.shape
    assert bool(jnp.isfinite(run(latents, state.params)).all())


def test_prompts_of_weight_zero_cost_nothing():
    """Matrix products of a step, by the number of prompts that have a part in it."""
    sdxl()
    flops = [
        matmul_flops(jax.make_jaxpr(lambda step, w=w: sdxl_step(w, step=step))(1))
        for w in ([-1.0, -1.0], [-1.0, 0.0], [0.0, 0.0])
    ]
    assert flops[0] * 3 == flops[1] * 4 == flops[2] * 6


def test_the_loop_of_flux():
    theirs = "step args transformer latent_image_ids prompt_embeds txt_ids vec guidance_vec"
    assert list(inspect.signature(flux_loop_body).parameters) == [*theirs.split(), "weights", "scale"]
    rng = np.random.default_rng(0)
    rows = (2 + FURTHER) * BATCH
    latents, embeds, vec = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((BATCH, 6, 4), (rows, 3, 5), (rows, 7))
    )
    image_ids, text_ids = np.ones((BATCH, 6, 3), np.float32), np.zeros((3, 3), np.float32)
    guidance, times = np.ones(BATCH, np.float32), (jnp.array([1.0, 0.6]), jnp.array([0.6, 0.0]))
    model = TinyFlux()
    params = jax.jit(model.init)(
        jax.random.key(0), latents, embeds[:BATCH], vec[:BATCH], guidance, image_ids, text_ids, guidance
    )["params"]

    def step(weights, dtype=jnp.float32):
        @jax.jit
        def run(latents):
            args = (latents, SimpleNamespace(params=params), *times)
            return flux_loop_body(
                0, args, model, image_ids, embeds, text_ids, vec, guidance, weights=weights, scale=3.5
            )[0]

        found = run(jnp.asarray(latents, dtype))
        assert found.dtype == dtype
        return found

    many, ones = np.tile(latents, (2 + FURTHER, 1, 1)), np.ones(rows, np.float32)
    predict = jax.jit(
        lambda x: model.apply({"params": params}, x, embeds, vec, ones, image_ids, text_ids, ones).sample
    )
    u, p, *n = np.asarray(predict(many)).reshape(2 + FURTHER, BATCH, 6, 4)
    for weights in ([-1.5, -0.5], [0.0, 0.0]):
        guided = jax.jit(perp_neg_guidance)(u, p, np.stack(n), np.array(weights), 3.5)
        np.testing.assert_allclose(step(weights), latents - 0.4 * guided, rtol=1e-4, atol=1e-4)
    assert step([-1.5, -0.5], jnp.bfloat16).shape == latents.shape


def test_denoisers_take_any_sampler():
    """SDXL and Flux as ``denoise(x, t, cond)``: the shapes come back."""
    model, state, _, _, latents, embeds, added = sdxl()
    cond = {"prompt_embeds": embeds[:BATCH], **{name: array[:BATCH] for name, array in added.items()}}
    grid = sampling_timesteps(10, 2)
    abar = np.linspace(0.9, 0.1, 10)
    assert (
        ddim_sample(sdxl_denoiser(model, state.params), latents, grid, abar, cond=cond).shape == latents.shape
    )
    told = inspect.signature(flux_denoiser).parameters
    assert list(told) == ["transformer", "params", "img_ids", "txt_ids", "guidance_vec"]


TINY = DiTConfig(size=4, width=32, layers=1, heads=4, classes=3, scan=True)


@pytest.mark.slow
def test_the_step_for_the_pod_on_a_small_mesh():
    """Two steps of a tiny network, sharded, are the whole sampler of two steps."""
    target = sampling_target(8, TINY, steps=2)
    init, apply = dit(TINY)
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        init(jax.random.key(0)),
    )
    latents = jax.random.normal(jax.random.key(1), (8, 4, 4, 4))
    prompt, negatives = jnp.arange(8) % 3, jnp.stack([jnp.arange(1, 9) % 3, jnp.arange(2, 10) % 3], 1)
    state = SamplingState(jnp.zeros((), jnp.int32), params, latents, jax.random.key(2))
    batch = {"prompt": prompt, "negatives": negatives}
    for ours, theirs in ((state, target.state), (batch, target.batch)):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, theirs)
    guided = guide_perp_neg(
        lambda x, t, label: apply(params, x, t, label),
        scale=SCALE,
        null_cond=TINY.classes,
        neg_cond=negatives.T,
        weights=WEIGHTS,
    )
    abar = scaled_linear_schedule(1000).alphas_cumprod
    expected = jax.jit(lambda x: ddim_sample(guided, x, sampling_timesteps(1000, 2), abar, cond=prompt))(
        latents
    )
    mesh = make_mesh({"data": 2, "model": 4})
    sharded = shard_step(target.step, mesh, target.state, target.batch, rules=target.rules, fsdp=target.fsdp)
    placed, placed_batch = sharded.place_state(state), sharded.place_batch(batch)
    assert placed.latents.sharding.spec[0] == "data"
    for _ in range(2):
        placed, metrics = sharded(placed, placed_batch)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(placed.latents, expected, rtol=1e-3, atol=1e-3 * scale)
    np.testing.assert_allclose(metrics["root_mean_square"], jnp.sqrt(jnp.mean(expected**2)), rtol=1e-3)
    assert int(placed.step) == 2
