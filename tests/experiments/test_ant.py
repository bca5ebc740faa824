"""The ANT experiment: clusters and affinities by hand, training, samples, claims, tables, a smoke run."""

import dataclasses
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ant
from experiments.ant import CLAIMS, PRESETS, Config, quality
from experiments.ant.affinity import affinities, boundaries, by_bin, by_distance, grid, rank_correlation
from experiments.ant.claims import CLUSTERINGS, Found, measurements
from experiments.ant.cost import step_times
from experiments.ant.figures import draw_gaps, draw_quality
from experiments.ant.latents import latent_table, train_latents
from experiments.ant.quality import Judge, Quality
from experiments.ant.tables import (
    affinity_table,
    cluster_table,
    convergence_table,
    cost_table,
    gap_table,
    loss_gap_table,
    quality_table,
)
from experiments.ant.training import (
    MIN_SNR,
    NASH,
    P2,
    PCGRAD,
    SCHEDULE,
    STRATIFIED,
    UW,
    VANILLA,
    Arm,
    Program,
    Sizes,
    advance,
    begin,
    example_weight,
    first_params,
    flat,
    train,
    unflat,
)
from experiments.imagenet_dit import FOLDER
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from jaxneg.diffusion import ema_params
from jaxneg.nn.dit import DiTConfig
from jaxneg.train import make_mesh, shard_step

# Affinities and clusters


@pytest.fixture
def affinity():
    """One that falls from 1 to 0 in a straight line, and a little noise."""
    t = grid(10)
    noise = np.random.default_rng(0).uniform(-0.01, 0.01, (10, 10))
    return 1 - np.abs(t[:, None] - t) / 1000 + noise + noise.T


def test_affinity_by_distance(affinity):
    np.testing.assert_array_equal(grid(10), np.arange(0, 1000, 100))
    apart, means = by_distance(affinity)
    np.testing.assert_array_equal(apart, np.arange(0, 1000, 100))
    np.testing.assert_allclose(means[3], np.mean([affinity[i, i + 3] for i in range(7)]))
    pairs = [affinity[i, j] for i in range(10) for j in range(10) if 200 < 100 * abs(i - j) <= 400]
    assert by_bin(affinity)[1] == pytest.approx(np.mean(pairs))
    assert len(by_bin(affinity)) == 5
    assert rank_correlation(1 - affinity) == pytest.approx(-rank_correlation(affinity))
    assert -1 <= rank_correlation(affinity) < -0.95


def test_boundaries(affinity):
    assert boundaries("timestep", 5, affinity) == (0, 200, 400, 600, 800, 1000)
    assert boundaries("SNR", 5, affinity) == (0, 133, 372, 653, 881, 1000)
    blocks = np.repeat([0, 1, 2], (2, 5, 3))
    assert boundaries("gradient", 3, (blocks[:, None] == blocks).astype(float)) == (0, 200, 700, 1000)


# Methods and training


def test_names_of_arms():
    assert [arm.name for arm in (VANILLA, STRATIFIED, MIN_SNR, P2)] == [
        "vanilla",
        "stratified",
        "Min-SNR",
        "P2",
    ]
    assert Arm("uw", weight="p2").name == "UW + P2"
    assert Arm("nash", "SNR").stage == "nash-snr"
    full, few = (
        ant._arms(dataclasses.replace(Config(), all_methods=every), CLUSTERINGS) for every in (True, False)
    )
    assert len({arm.stage for arm in full}) == len(full) == 14
    assert len(few) == 10
    assert set(few) <= set(full)


def test_weights_of_timesteps():
    snr = SCHEDULE.snr
    assert (example_weight("") == 1).all()
    np.testing.assert_allclose(example_weight("min-snr"), np.minimum(snr, 5) / snr, rtol=1e-5)
    np.testing.assert_allclose(example_weight("p2"), 1 / (1 + snr), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vanilla", "uw", "pcgrad", "nash"])
def test_training_looks_at_its_timesteps_alone(method):
    """Where the loss weighs nothing there nothing is learnt; elsewhere its weight does not matter."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(30, 3)), jnp.float32)
    clusters = 1 if method == "vanilla" else 2
    program = Program(method, clusters, 8, 4, 3)
    bounds = jnp.array([100, 300]) if clusters == 1 else jnp.array([100, 150, 300])
    inside = (jnp.arange(1000) >= 100) & (jnp.arange(1000) < 300)
    states = begin(program, jnp.arange(2))
    none, own, everything = (
        advance(program, 6, states, x, bounds, weight.astype(jnp.float32))
        for weight in (~inside, inside, jnp.ones(1000))
    )
    part = (lambda state: state.params["network"]) if method == "uw" else (lambda state: state.params)
    jax.tree.map(np.testing.assert_array_equal, part(none), part(states))
    jax.tree.map(np.testing.assert_array_equal, own.params, everything.params)
    assert not np.allclose(jax.vmap(flat)(part(own)), jax.vmap(flat)(part(states)), atol=1e-4)
    first = jax.vmap(lambda key: first_params(key, 3, 4))(
        jax.vmap(lambda seed: jax.random.split(jax.random.key(seed))[0])(jnp.arange(2))
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), part(states), first)


@pytest.mark.slow
def test_checkpoints():
    """Trained in one go or looked at between is the same; the average lags behind."""
    x = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    often, once = (train(UW, x, (0, 500, 1000), Sizes(4, 6, every, 8), 2) for every in (3, 6))
    assert often.params.shape[:2] == (2, 2)
    np.testing.assert_allclose(often.params[:, -1], once.params[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(often.ema[:, -1], once.ema[:, 0], rtol=1e-5, atol=1e-6)
    program = Program("uw", 2, 8, 4, 3)
    start = begin(program, jnp.arange(2))
    first = jax.vmap(flat)(start.params["network"])
    assert (np.abs(often.ema[:, -1] - first) <= 0.011 * np.abs(often.params - first[:, None]).max()).all()
    jax.tree.map(np.testing.assert_array_equal, ema_params(start.opt_state), start.params)
    params = unflat(first[0], 3, 4)
    jax.tree.map(
        lambda leaf, whole: np.testing.assert_array_equal(leaf, whole[0]), params, start.params["network"]
    )


# Samples


@pytest.fixture(scope="module")
def judge():
    """Of an untrained classifier: what it sees does not matter here."""
    from experiments import digits

    latents = digits.digit_latents()
    return Judge(digits.train_classifier(jax.random.key(0), steps=0), latents, latents.x, 4.0)


@pytest.mark.slow
def test_real_digits_are_perfect(judge):
    """Their distance to themselves is none, in any order; each draw counts the same."""
    order = np.random.default_rng(0).permutation(len(judge.x))
    samples = jnp.asarray(np.concatenate([judge.x, judge.x[order]]))[None]
    both = np.array(quality.distances(samples, judge, 2))
    np.testing.assert_allclose(both, 0, atol=1e-3)
    shifted = samples.at[0, len(judge.x) :].add(0.5)
    expected = (0 + 16 * 0.25) / 2
    assert quality.distances(shifted, judge, 2)[1][0] == pytest.approx(expected, rel=1e-3)
    assert quality.halves_apart(judge, 2).min() > 0


def test_first_noise():
    noise = quality.first_noise(3, 2, 100, 4)
    assert noise.shape == (3, 200, 4)
    assert float(noise.std()) == pytest.approx(1, rel=0.05)
    np.testing.assert_array_equal(noise[:2], quality.first_noise(2, 2, 100, 4))


@pytest.mark.slow
def test_precision_and_recall(judge):
    """Samples of one class are all real, and few of the real are theirs."""
    ones = judge.x[judge.latents.y == 1]
    precision, recall = quality.precision_and_recall(jnp.asarray(ones)[None], judge, 1)
    assert precision[0] == 1
    assert recall[0] < 0.5


@pytest.mark.slow
def test_a_specialist_that_knows_no_better(judge):
    """The same network as specialist changes neither samples nor losses; another one does."""
    features, hidden = 16, 4
    networks = jnp.stack([flat(first_params(jax.random.key(seed), features, hidden)) for seed in range(2)])
    noise = quality.first_noise(2, 1, 6, features)
    plain = quality.draw(networks, noise, hidden, 4.0)
    same = quality.draw_with_specialists(networks, networks, (200, 400), noise, hidden, 4.0)
    np.testing.assert_allclose(same, plain, rtol=1e-4, atol=1e-4)
    other = quality.draw_with_specialists(networks, networks[::-1], (200, 400), noise, hidden, 4.0)
    assert not np.allclose(other, plain, atol=1e-2)
    bounds = jnp.array([0, 200, 1000])
    losses = quality.interval_losses(networks, jnp.asarray(judge.x[:40]), bounds, hidden)
    again = quality.interval_losses(networks[::-1], jnp.asarray(judge.x[:40]), bounds, hidden)
    assert losses.shape == (2, 2)
    np.testing.assert_allclose(losses, again[::-1], rtol=1e-6)
    found = affinities(networks, jnp.asarray(judge.x[:40]), 4, hidden)
    np.testing.assert_allclose(np.diagonal(found, axis1=1, axis2=2), 1, rtol=1e-4)


# Claims and tables


def numbers(seeds=3, intervals=5):
    """Numbers from which each measurement can be told apart."""
    rng = np.random.default_rng(0)
    arms = ant._arms(Config(), CLUSTERINGS)
    found = {
        arm: Quality(
            rng.uniform(1, 2, (seeds, 6 if arm in ant.LONG_ARMS else 4)),
            rng.uniform(1, 2, (seeds, 6 if arm in ant.LONG_ARMS else 4)),
            *rng.uniform(size=(2, seeds)),
        )
        for arm in arms
    }
    gaps = {arm: rng.normal(size=(seeds, intervals)) for arm in ant.GAP_ARMS}
    return Found(rng.uniform(size=(seeds, 50, 50)), found, gaps, rng.uniform(0.9, 1.1, 5))


def test_claims_are_measured():
    found = numbers()
    measured = measurements(found, 3)
    assert set(measured) == {claim.name for claim in CLAIMS}
    fd = {arm: own.fd[:, 3] for arm, own in found.quality.items()}
    expected = {
        "uw-beats-vanilla-clearly": fd[UW] / fd[VANILLA],
        "uw-beats-min-snr": fd[UW] / fd[MIN_SNR],
        "min-snr-beats-vanilla": fd[MIN_SNR] / fd[VANILLA],
        "nash-beats-vanilla": fd[NASH] / fd[VANILLA],
        "pcgrad-beats-vanilla": fd[PCGRAD] / fd[VANILLA],
        "snr-clusters-beat-vanilla": np.minimum(fd[Arm("uw", "SNR")], fd[Arm("nash", "SNR")]) / fd[VANILLA],
        "high-noise-suffers": found.gaps[VANILLA][:, 4],
        "low-noise-does-not-suffer": found.gaps[VANILLA][:, 4] - found.gaps[VANILLA][:, 0],
        "uw-ends-negative-transfer": found.gaps[UW][:, 4] - found.gaps[VANILLA][:, 4],
        "uw-converges-faster": fd[UW]
        / np.minimum(found.quality[VANILLA].fd[:, 5], found.quality[STRATIFIED].fd[:, 5]),
        "uw-costs-nothing": found.cost,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(measured[name], values, err_msg=name)
    for seed in range(3):
        bins = by_bin(found.affinity[seed])
        rise = max(after - before for before, after in pairwise(bins))
        assert measured["affinity-falls-with-distance"][seed] == pytest.approx(rise)
        assert measured["affinity-ranks-by-distance"][seed] == rank_correlation(found.affinity[seed])


def test_tables_have_the_papers_figures_beside_ours():
    found = numbers()
    bounds = (0, 200, 400, 600, 800, 1000)
    table = quality_table(found.quality, 3, found.quality)
    rows = {row[0]: row for row in table.rows}
    assert list(rows)[:7] == ["vanilla", "stratified", "Min-SNR", "P2", "PCGrad", "Nash", "UW"]
    assert rows["UW"][-3:] == [0.838, 9.386, 6.17]
    assert rows["vanilla"][2] == "1.000 ± 0.000"
    assert rows["UW, SNR"][-2] == 9.734
    plain = quality_table({VANILLA: found.quality[VANILLA]}, 3, {VANILLA: {}}, "title", published=False)
    assert len(plain.columns) == 6
    curves = convergence_table({arm: found.quality[arm] for arm in ant.LONG_ARMS}, 1500)
    assert curves.rows[2][2:7:2] == [3.61, 1.78, 0.97]
    gaps = gap_table(found.gaps, bounds)
    assert gaps.rows[1] == ["a prototype's vanilla", "+0.06", "-0.008", "-0.028", "-0.074", "-0.248"]
    assert gaps.rows[-1][0] == "paper: vanilla LDM on FFHQ, FID"
    few = {arm: own[:, :2] for arm, own in found.gaps.items()}
    assert [row[0] for row in gap_table(few, (0, 500, 1000)).rows] == ["vanilla", "PCGrad", "Nash", "UW"]
    assert loss_gap_table(found.gaps, bounds).columns[1:3] == ["0 to 199", "200 to 399"]
    assert len(affinity_table(found.affinity).rows) == 6
    assert cluster_table({"timestep": bounds}).rows == [["timestep", *bounds]]
    times = {"vanilla": np.array([[1.0, 2.0, 3.0]] * 2), "UW": np.array([[1.1, 2.2, 30.0]] * 2)}
    assert cost_table(times).rows[1] == ["UW", "2200.000", "1.100 ± 0.000", "1.002", 34.35]
    latents = latent_table({"uw": {"losses": np.array([0.5, 0.25])}}, (0, 500, 1000))
    assert latents.rows == [["uw", "0.5000", "0.2500"]]


def test_figures_show_every_method():
    found = numbers()
    names = [text.get_text() for text in draw_quality(found.quality, 3).axes[0].get_yticklabels()]
    assert sorted(names) == sorted(arm.name for arm in found.quality)
    ours, papers = draw_gaps(found.gaps, (0, 200, 400, 600, 800, 1000)).axes
    assert len(ours.patches) == 4 * 5
    assert len(papers.patches) == 2 * 5


# The experiment


@pytest.mark.slow
def test_smoke_run(tmp_path, monkeypatch):
    """A verdict for each claim, figures and tables; a run that is resumed finds the same."""
    config = PRESETS["smoke"]
    with RunDir.create("ant", config, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    assert {len(claim["values"]) for claim in report["claims"]} == {2}
    assert {claim["verdict"] for claim in report["claims"]} <= {"holds", "does not hold", "undecided"}
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == {"affinity", "clusters", "quality", "convergence", "gaps", "samples"}
    assert all(figure["caption"] for figure in report["figures"])
    assert len(report["tables"]) == 7
    assert any("all_methods" in note for note in report["notes"])
    (tmp_path / "run" / "report.json").unlink()
    for name in ("train", "affinities", "step_times"):  # the stages are read, not computed again
        monkeypatch.setattr(ant, name, None)
    monkeypatch.setattr(quality, "draw", None)
    with RunDir.resume(tmp_path / "run", "ant", Config) as run_dir:
        again = run_experiment(run_dir)
    assert again["claims"] == report["claims"]
    assert again["tables"] == report["tables"]


@pytest.mark.slow
def test_pixels(tmp_path):
    config = dataclasses.replace(PRESETS["smoke"], pixel_steps=4)
    with RunDir.create("ant", config, path=tmp_path / "run") as run_dir:
        (table,) = ant._pixels(config, run_dir, (0, 500, 1000))
    assert [row[0] for row in table.rows] == ["stratified", "UW"]
    assert "Pixels" in table.title


@pytest.mark.slow
def test_step_times():
    found = step_times(8, 2, 10, 2)
    assert set(found) == {"vanilla", "stratified", "UW", "Nash", "PCGrad"}
    assert all(seconds.shape == (2, 5) and (seconds > 0).all() for seconds in found.values())


@pytest.mark.slow
def test_latents_are_trained_on_and_sampled(tmp_path):
    """A tiny DiT on files of latents, on all devices; once it is done it is read, not trained again."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "latents.npy", rng.normal(size=(100, 4, 4, 2)).astype(np.float32))
    np.save(tmp_path / "data" / "labels.npy", rng.integers(0, 3, 100))
    tiny = DiTConfig(size=4, channels=2, width=16, layers=1, heads=2, classes=3)
    config = PRESETS["smoke"]
    with RunDir.create("ant", config, path=tmp_path / "run") as run_dir:
        for folder in (tmp_path / "data", tmp_path / "absent"):
            found = train_latents(
                folder, tiny, "uw", clusters=2, batch=16, steps=3, samples=20, run_dir=run_dir
            )
    assert found["losses"].shape == (2,)
    assert np.isfinite(found["losses"]).all()
    with np.load(tmp_path / "run" / "latents" / "uw.npz") as drawn:
        assert drawn["latents"].shape == (20, 4, 4, 2)
        assert np.isfinite(drawn["latents"]).all()
        np.testing.assert_array_equal(drawn["labels"], np.arange(20) % 3)


def test_latents_that_are_not_there(tmp_path):
    config = dataclasses.replace(PRESETS["paper"], data_dir=tmp_path)
    with RunDir.create("ant", config, path=tmp_path / "run") as run_dir:
        tables, notes = ant._latents(config, run_dir)
        assert ant._latents(Config(), run_dir) == ([], [])
    assert tables == []
    assert FOLDER in notes[0]
    assert "--data-dir says where to look" in notes[0]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "size"), [("uw", "B"), ("nash", "S")])
def test_the_step_for_the_pod(method, size):
    """It traces with its shardings, on a mesh of 8."""
    config = dataclasses.replace(PRESETS["paper"], compile_method=method, dit=size, latent_batch=40)
    target = ant.compile_target(config)
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(target.state.params))
    assert count == pytest.approx({"B": 130e6, "S": 33e6}[size], rel=0.03)
    mesh = make_mesh(target.mesh)
    sharded = shard_step(target.step, mesh, target.state, target.batch, rules=target.rules)
    sharded.trace(target.state, target.batch)
    specs = jax.tree.map(lambda sharding: sharding.spec, sharded.state_shardings)
    network = specs.params["network"] if method == "uw" else specs.params
    assert "data" in str(network["blocks"]["feed_forward"]["up"]["kernel"])
    if method == "uw":
        assert target.state.params["log_scale"].dtype == jnp.float32


def test_presets_and_claims():
    assert set(PRESETS) == {"smoke", "cpu", "paper"}
    assert PRESETS["cpu"] == Config()
    assert PRESETS["paper"].latent_batch % 256 == 0
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 1}, "seeds: expected at least 2, got 1"),
        ({"clusters": 1}, "clusters: expected at least 2, got 1"),
        ({"batch": 124}, "batch: expected a multiple of clusters = 5, got 124"),
        ({"cost_batch": 251}, "cost_batch: expected a multiple of clusters = 5, got 251"),
        ({"latent_batch": 256}, "latent_batch: expected a multiple of clusters = 5, got 256"),
        ({"steps": 1000}, "steps: expected a multiple of every = 1500, got 1000"),
        ({"longer": 7000}, "longer: expected a multiple of every = 1500, got 7000"),
        ({"longer": 3000}, "longer: expected at least steps = 6000, got 3000"),
        (
            {"affinity_points": 30},
            "affinity_points: expected a divisor of 1000, no fewer than the clusters, got 30",
        ),
        ({"pixel_steps": -1}, "pixel_steps: expected at least 0, got -1"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Config(), **fields)
