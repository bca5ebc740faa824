"""The Self-NPO experiment: measures by hand, networks and arms, claims, costs, a smoke run, its pod."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from experiments import self_npo
from experiments.imagenet_dit import FOLDER
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from experiments.self_npo import CLAIMS, PRESETS, Config, arms, claims, cost, digits, mixture, pod, tables
from experiments.self_npo.arms import CFG, Arm, Measured, Part
from experiments.self_npo.claims import DPO_ARMS, GUIDANCES, INVERSE, SIMULATED
from experiments.self_npo.fine_tuning import (
    Preference,
    SelfNPO,
    fine_tuning_step,
    optimizer,
    prefer,
    ranked_pairs,
)
from experiments.self_npo.network import ALPHAS_CUMPROD, SAMPLED_TIMES, denoiser, sample
from jaxneg.diffusion import ddim_sample, gaussian_mixture_denoiser, init_self_npo
from jaxneg.nn.dit import DiTConfig, dit
from jaxneg.train import make_mesh, shard_step

TINY = DiTConfig(size=4, channels=2, width=16, layers=2, heads=2, classes=3, scan=True)
TASK = mixture.mixture_task(8)


@pytest.fixture(scope="module")
def params():
    return jax.jit(TASK.model.init)(jax.random.key(0))


# Part A's data and measures


@pytest.fixture(scope="module")
def true_points():
    """Points, classes, and what they are worth with a threshold that 1 % of other points fall below."""
    threshold = mixture.outlier_threshold(jax.random.key(0))
    x, label = jax.jit(lambda key: mixture.draw(key, mixture.TRUE_POINTS))(jax.random.key(1))
    return x, label, jax.jit(mixture.quality)(x, label, threshold)


def test_true_points(true_points):
    x, label = map(np.asarray, true_points[:2])
    for number in range(mixture.CLASSES):
        of_class = x[label == number]
        expected = mixture.MEANS[number]
        assert abs(len(of_class) / len(x) - 1 / mixture.CLASSES) < 0.01
        np.testing.assert_allclose(of_class.mean(axis=0), expected.mean(axis=0), atol=0.02)
        spread = expected.var(axis=0) + mixture.STD**2
        np.testing.assert_allclose(of_class.var(axis=0), spread, rtol=0.06)
    turned = mixture.MEANS[0] @ np.array([[0.0, 1.0], [-1.0, 0.0]])  # by a quarter
    np.testing.assert_allclose(mixture.MEANS[1], turned, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(mixture.MEANS[2], axis=1), 1.6 * np.linspace(0.25, 1, 6))


def test_reward_by_hand(true_points):
    x, label, quality = true_points
    points, classes = np.asarray(x[:50], np.float64), np.asarray(label[:50])
    expected = []
    for point, number in zip(points, classes, strict=True):
        squares = ((point - mixture.MEANS[number]) ** 2).sum(axis=1)
        density = np.exp(-squares / 2 / mixture.STD**2) / (2 * np.pi * mixture.STD**2)
        expected.append(np.log(density.mean()))
    np.testing.assert_allclose(quality.reward[:50], expected, rtol=1e-4, atol=1e-4)


def test_quality_of_true_points(true_points):
    """The mean reward is that of the prototype; 1 % are outliers; all Gaussians are met alike."""
    _, _, quality = true_points
    assert abs(float(quality.reward.mean()) - 1.04) < 0.02
    assert abs(float(quality.outliers) - mixture.OUTLIER) < 0.002
    assert float(quality.variation) < 0.02


def test_quality_of_points_that_are_known():
    label = jnp.repeat(jnp.arange(mixture.CLASSES), mixture.COMPONENTS)
    centres = jnp.asarray(mixture.MEANS.reshape(-1, 2), jnp.float32)
    cases = jnp.stack([centres, centres[:: mixture.COMPONENTS][label], centres + 100])
    quality = jax.jit(jax.vmap(lambda x: mixture.quality(x, label, -3.0)))(cases)
    np.testing.assert_allclose(quality.variation[:2], [0, 5 / 6], atol=1e-6)
    np.testing.assert_array_equal(quality.outliers, [0, 0, 1])
    np.testing.assert_array_equal(quality.reward[2], mixture.WORST_REWARD)


# Part B's


def test_nearest_by_hand():
    rng = np.random.default_rng(0)
    x, real = (rng.normal(size=(n, 3)).astype(np.float32) for n in (7, 20))
    label, real_label = np.arange(7) % 3, np.arange(20) % 2
    found = digits.nearest(jnp.asarray(x), jnp.asarray(label), jnp.asarray(real), jnp.asarray(real_label))
    for point, number, distance in zip(x, label, found, strict=True):
        candidates = real[real_label == number]
        expected = np.linalg.norm(candidates - point, axis=1).min() if len(candidates) else math.inf
        np.testing.assert_allclose(distance, expected, rtol=1e-5)


# Networks


@pytest.mark.slow
def test_the_sampler_is_ddim_of_the_guided_noise(params):
    """The network that embeds the time once samples as the network does, and guidance has two networks."""
    label = jnp.arange(6) % TASK.classes
    start = jax.random.normal(jax.random.key(1), (6, 2))
    other = jax.tree.map(lambda leaf: 1.1 * leaf, params)
    apply = TASK.model.apply

    def guided(x, t, cond):
        return 3.0 * apply(params, x, t, cond) - 2.0 * apply(other, x, t, jnp.full_like(cond, TASK.classes))

    expected = ddim_sample(guided, start, SAMPLED_TIMES, ALPHAS_CUMPROD, cond=label)
    found = jax.jit(partial(sample, TASK))(params, other, start, label, 2.0)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)
    t = jnp.full(6, 300)
    np.testing.assert_allclose(
        denoiser(TASK, params)(start, t, label), apply(params, start, t, label), rtol=1e-5
    )
    assert SAMPLED_TIMES.tolist() == list(range(999, 0, -40))


@pytest.mark.slow
@pytest.mark.parametrize("how", [INVERSE.negative, SIMULATED.negative], ids=["truncated", "simulated"])
def test_a_teacher_without_error_has_nothing_to_teach(how):
    """With w = 0 and the exact network of a narrow Gaussian, targets are what the student says already."""
    how = dataclasses.replace(how, guidance=0.0)
    mean = jnp.array([[0.5, -0.3]])
    task = TASK._replace(draw=lambda key: (mean + 0.01 * jax.random.normal(key, (64, 2)), jnp.zeros(64, int)))
    stds, weights = jnp.full(1, 0.01), jnp.ones(1)

    class Exact:
        classes = task.classes
        draw = task.draw

        class model:
            @staticmethod
            def apply(params, x, t, label):
                return gaussian_mixture_denoiser(params["mean"], weights, stds, ALPHAS_CUMPROD).noise(x, t)

    tx = optimizer(1e-4)
    state = init_self_npo({"mean": mean}, tx, jax.random.key(0))
    step = fine_tuning_step(Exact, how, tx)  # pyright: ignore[reportArgumentType]
    x, label = task.draw(jax.random.key(1))
    state, metrics = jax.jit(step)(state, {"x": x, "cond": label})
    assert float(metrics["loss"]) < 0.02
    away = init_self_npo({"mean": mean + 0.5}, tx, jax.random.key(0))._replace(teacher={"mean": mean})
    _, metrics = jax.jit(step)(away, {"x": x, "cond": label})
    assert float(metrics["loss"]) > 0.3


@pytest.mark.slow
def test_diffusion_npo_ranks_the_pairs_the_other_way(params):
    """Pairs are ranked by the reward; Diffusion-NPO learns against the ranks, DPO for them."""
    pairs = jax.jit(lambda p, key: ranked_pairs(TASK, mixture.log_density, 200, p, key))(
        params, jax.random.key(0)
    )
    better, worse = (mixture.log_density(x, pairs.label) for x in (pairs.better, pairs.worse))
    assert bool((better >= worse).all())
    learn = jax.jit(lambda pairs: prefer(TASK, 60, jnp.float32(50.0), params, pairs, jax.random.key(1))[1])
    swapped = pairs._replace(better=pairs.worse, worse=pairs.better)
    npo, dpo = (float(learn(each)[-20:].mean()) for each in (pairs, swapped))
    assert npo < 0.45
    assert dpo < 0.45  # of the swapped pairs, the implicit accuracy on the pairs as they are is 1 - dpo


def test_names_are_files():
    everything = [*self_npo.plane_arms(Config()), *self_npo.well_trained_arms(Config())]
    stages = [arm.stage for arm in dict.fromkeys(everything)]
    assert len(set(stages)) == len(stages)
    assert all(stage.isascii() and "/" not in stage and " " not in stage for stage in stages)
    assert Arm(SelfNPO(-2.0, "noise", 0.5)).name == "Self-NPO, w = -2, noise, ∅ 0.5"
    assert Arm(Preference(True, 2.0)).name == "Diffusion-NPO, β = 2"
    assert DPO_ARMS["Self-NPO", 0.5].stage == "Self-NPO_w_-5_data_DPO_beta_10_a_0.5"


def test_one_item_of_each_program_comes_first():
    assert arms._each_program_first([3, 13, 4, 23, 14], lambda number: number % 10) == [3, 4, 13, 23, 14]


# Claims


@pytest.fixture
def results():
    """Two seeds, two samples: with CFG reward -w and variation w / 10, with the arm higher by a half."""
    weights = np.array(GUIDANCES)
    base = np.tile(-weights[None, :, None], (2, 1, 2))
    variation = np.tile(weights / 10, (2, 1))
    plain = {"reward": base, "variation": variation, "distance": 1 - base}
    better = {
        "reward": base + np.array([0.75, 0.25]),
        "variation": variation,
        "distance": (1 - base) * np.array([0.5, 2.0]),
    }
    return {CFG: plain, INVERSE: better}


def test_gains_ratios_and_wins(results):
    np.testing.assert_allclose(claims.value(results, INVERSE, "reward", 2.0), [-1.5, -1.5])
    np.testing.assert_allclose(claims.gain(results, INVERSE, 1.0), [0.5, 0.5])
    np.testing.assert_allclose(claims.ratio(results, INVERSE, "distance", 1.0), [1.25, 1.25])
    np.testing.assert_allclose(claims.wins(results, INVERSE, 1.0), [1.0, 1.0])
    near = {arm: {"distance": found["distance"]} for arm, found in results.items()}
    np.testing.assert_allclose(claims.wins(near, INVERSE, 1.0), [0.5, 0.5])
    np.testing.assert_allclose(claims.wins(results, CFG, 1.0), [0.0, 0.0])  # ties count for neither


def test_reward_at_equal_variation(results):
    moved = results[INVERSE] | {"variation": results[CFG]["variation"] + 0.05}
    # At w_g = 1 the arm is as diverse as CFG is at 1.5, where its reward is -1.5.
    np.testing.assert_allclose(
        claims.at_equal_variation(results | {INVERSE: moved}, INVERSE, 1.0), [1.0, 1.0]
    )


def test_presets_and_claims():
    assert set(PRESETS) == {"smoke", "cpu", "paper"}
    assert PRESETS["cpu"] == Config()
    assert PRESETS["cpu"].seeds >= 5
    assert PRESETS["cpu"].digit_seeds >= 3
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names)
    for prototype in (tables.PLANE_PROTOTYPE, tables.DIGIT_PROTOTYPE, tables.DIGIT_RATIOS):
        assert prototype.keys() <= set(self_npo.plane_arms(Config()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 1}, "seeds: expected at least 2, got 1"),
        ({"digit_seeds": 1}, "digit_seeds: expected at least 2, got 1"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"pairs": 0}, "pairs: expected at least 1, got 0"),
        ({"plane_steps": 100}, "plane_steps: expected a positive multiple of 3, got 100"),
        ({"samples": 100}, "samples: expected a positive multiple of 40, got 100"),
        ({"latent_steps": -1}, "latent_steps: expected at least 0, got -1"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


# Costs


@pytest.fixture
def part():
    measured = Measured(TASK, 40, GUIDANCES, mixture.log_density, mixture.log_density)
    return Part("plane", measured, 3, 3, 30, 40)


@pytest.mark.slow
def test_costs(part):
    """Network evaluations: 2 (K + 1) + 3 and 2 S + 3, but for gradients of the inputs, which nobody takes."""
    costs = cost.count(part, part)
    assert 14 <= costs.self_npo <= 15
    assert 52 <= costs.simulation <= 53
    assert costs.simulation - costs.self_npo == pytest.approx(2 * (25 - 6), rel=1e-6)
    assert costs.operations["Self-NPO"] == pytest.approx(costs.self_npo, rel=0.15)
    # Of a pair two images pass the network and the reference; backward passes count twice: 8 evaluations.
    assert 3 * costs.self_npo / (30 * 8) <= costs.of_diffusion_npo <= 3 * costs.self_npo / (30 * 6)
    table = cost.cost_table(costs)
    assert [row[0] for row in table.rows] == ["Self-NPO", "full simulation", "ratio"]
    assert table.rows[2][1] == "3.53"


# The experiment


@pytest.mark.slow
def test_smoke_run(tmp_path, monkeypatch):
    """A verdict for each claim, figures and tables; a run that is resumed finds the same."""
    config = PRESETS["smoke"]
    with RunDir.create("self_npo", config, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    assert {len(claim["values"]) for claim in report["claims"]} == {2}
    assert {claim["verdict"] for claim in report["claims"]} <= {"holds", "does not hold", "undecided"}
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == {"pareto", "gains", "plane", "digit_quality", "digits"}
    assert [len(table["rows"]) for table in report["tables"]] == [6, 5, 3, 2, 1, 5, 4, 3, 7]
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") >= 50
    (tmp_path / "run" / "report.json").unlink()
    monkeypatch.setattr(arms, "programs", lambda: None)  # the stages are read, not computed again
    with RunDir.resume(tmp_path / "run", "self_npo", Config) as run_dir:
        again = run_experiment(run_dir)
    assert again["claims"] == report["claims"]
    assert again["tables"] == report["tables"]


# The pod


def test_the_step_for_the_pod():
    target = self_npo.compile_target(Config())
    assert target.batch["x0"].shape == (5120, 32, 32, 4)
    size = sum(leaf.size for leaf in jax.tree.leaves(target.state.params))
    assert 6e8 < size < 7e8
    state, metrics = jax.eval_shape(target.step, target.state, target.batch)
    assert metrics["loss"].shape == ()
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, target.state)


@pytest.fixture
def data_dir(tmp_path):
    """A tiny DiT whose output is not zero, and latents."""
    folder = tmp_path / "data"
    (folder / FOLDER).mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.save(folder / FOLDER / "latents.npy", rng.normal(size=(24, 4, 4, 2)).astype(np.float32))
    np.save(folder / FOLDER / "labels.npy", np.arange(24) % 3)
    leaves: Any = flatten_dict(jax.eval_shape(dit(TINY).init, jax.random.key(0)), sep="/")
    arrays = {name: 0.1 * rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in leaves.items()}
    save_file(arrays, folder / pod.WEIGHTS)
    return folder


@pytest.mark.slow
def test_latents_of_the_user(tmp_path, data_dir):
    """Fine-tuning, sharded over the devices, moves the student; samples with it differ from those without."""
    with RunDir.create("self_npo", Config(), path=tmp_path / "run") as run_dir:
        found = pod.fine_tune_latents(data_dir, TINY, 8, 20, 10, run_dir)
    assert np.isfinite(found["loss"]).all()
    base, negative, teacher = (
        load_file(path)
        for path in (
            data_dir / pod.WEIGHTS,
            run_dir.path / "latents" / "negative.safetensors",
            run_dir.path / "latents" / "teacher.safetensors",
        )
    )
    assert base.keys() == negative.keys() == teacher.keys()
    name = "final/out/kernel"
    moved, followed = (np.abs(arrays[name] - base[name]).max() for arrays in (negative, teacher))
    assert moved > 10 * followed > 0
    drawn = {}
    for arm in ("cfg", "self_npo"):
        with np.load(run_dir.path / "latents" / f"{arm}.npz") as arrays:
            drawn[arm] = arrays["latents"]
            np.testing.assert_array_equal(arrays["labels"], np.arange(10) % 3)
    assert drawn["cfg"].shape == (10, 4, 4, 2)
    assert np.isfinite(drawn["self_npo"]).all()
    assert not np.array_equal(drawn["cfg"], drawn["self_npo"])


def test_latents_that_are_missing(tmp_path, data_dir):
    assert pod.missing(data_dir) == []
    with RunDir.create("self_npo", Config(), path=tmp_path / "run") as run_dir:
        lacking = dataclasses.replace(Config(), latent_steps=10, data_dir=tmp_path / "none")
        (note,) = self_npo._on_latents(lacking, run_dir)
        assert "imagenet_latents, no" in note
        assert self_npo._on_latents(Config(), run_dir) == []


def test_weights_of_another_network(tmp_path, data_dir):
    with pytest.raises(
        ValueError, match=r"blocks/.*: expected shape \[3, .*\], got shape \[2, .*DiT of this size"
    ):
        pod._load(data_dir / pod.WEIGHTS, dataclasses.replace(TINY, layers=3))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad.safetensors is no safetensors file .*: save it again"):
        pod._load(tmp_path / "bad.safetensors", TINY)


@pytest.mark.slow
def test_the_step_on_a_small_mesh(data_dir):
    """Two steps of a tiny DiT, sharded and not."""
    target = pod.pod_target(TINY, 16)
    state: Any = init_self_npo(pod._load(data_dir / pod.WEIGHTS, TINY), pod._optimizer(), jax.random.key(0))
    assert jax.tree.structure(state) == jax.tree.structure(target.state)
    x0 = jax.random.normal(jax.random.key(1), target.batch["x0"].shape)
    batch = {"x0": x0, "cond": jnp.arange(16, dtype=jnp.int32) % 3}
    mesh = make_mesh({"data": 4, "model": 2})
    sharded = shard_step(target.step, mesh, target.state, target.batch, rules=target.rules)
    step, placed, placed_batch = jax.jit(target.step), sharded.place_state(state), sharded.place_batch(batch)
    for _ in range(2):
        state, expected = step(state, batch)
        placed, found = sharded(placed, placed_batch)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-2, err_msg=name)
