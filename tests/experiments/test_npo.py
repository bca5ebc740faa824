"""The NPO experiment: official trajectories, Theorem 2's instances, a smoke run, its config and target."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import npo
from experiments.npo.claims import OFFICIAL, ORDER
from experiments.npo.divergence import INSTANCES, Instance, Setting, diverge, draw_instance, slopes
from experiments.npo.gaussian_logistic import METHODS, Method, distance, fit, objective, problem, unlearn
from experiments.npo.pod import npo_step_target
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from jaxneg.nn.transformer import TransformerConfig, transformer
from jaxneg.train import TrainState, make_mesh, shard_step
from jaxneg.unlearning import (
    IGNORE,
    GaussianLogistic,
    UnlearnConfig,
    precompute_reference,
    synthetic_gaussian_logistic,
)

# What only the README says: gradient steps of the reference, and between evaluations; the dimension's d.
FIT_STEPS, EVERY = 20_000, 25


@pytest.fixture
def official(golden, request):
    """The data and evaluation arrays that belong to a trajectory, found by the trajectory's file name."""
    trajectory = request.node.callspec.params["golden"]
    arrays = {"alpha": float(re.search(r"alpha([\d.]+)", trajectory.stem)[1])}
    for kind in ("data", "eval"):
        with np.load(trajectory.with_name(trajectory.name.replace("_traj_", f"_{kind}_"))) as found:
            arrays |= dict(found)
    return arrays


def _problem(official):
    names = ("W", "X_f", "y_f", "y_idk", "X_r", "y_r", "Xe_f", "Xe_r")
    return problem(GaussianLogistic(*(jnp.asarray(official[name]) for name in names)))


def _unlearned(golden, official):
    """Curves and weights of every method; the official weights are the logit of class 0, minus ours."""
    names = [name.removeprefix("hp_") for name in golden if name.startswith("hp_")]
    methods = {name: Method(name.replace("_", "+"), *map(float, golden[f"hp_{name}"])) for name in names}
    steps = EVERY * len(golden[f"traj_{names[0]}_forget"])
    data = _problem(official)
    start, aim = (-jnp.asarray(golden[name], data.forget.dtype) for name in ("a_ft", "a_retr"))
    return jax.jit(lambda a, b: unlearn(data, a, b, methods, steps, EVERY))(start, aim)


def _compare(golden, curves, weights, rtol):
    for name, curve in curves.items():
        for side, kind in enumerate(("forget", "retain")):
            expected = golden[f"traj_{name}_{kind}"]
            np.testing.assert_allclose(curve[:-1, side], expected, rtol=rtol, err_msg=f"{name} {kind}")
        np.testing.assert_allclose(curve[-1], golden[f"end_{name}"], rtol=rtol, err_msg=name)
        expected = -golden[f"final_a_{name}"]
        np.testing.assert_allclose(
            weights[name], expected, rtol=rtol, atol=rtol * np.abs(expected).max(), err_msg=name
        )


@pytest.mark.golden("npo", "synthetic_traj_*.npz")
@pytest.mark.slow
def test_trajectories_in_float64(golden, x64, official):
    """1e-8, as for float64."""
    _compare(golden, *_unlearned(golden, official), rtol=1e-8)


@pytest.mark.golden("npo", "synthetic_traj_*.npz")
def test_trajectories_in_float32(golden, official):
    """1e-3, as for float32."""
    _compare(golden, *_unlearned(golden, official), rtol=1e-3)


@pytest.mark.golden("npo", "synthetic_traj_*.npz")
def test_reference_and_retrained_model(golden, x64, official):
    data = _problem(official)
    reference, retrained = jax.jit(lambda data: fit(data, FIT_STEPS))(data)
    np.testing.assert_allclose(reference, -golden["a_ft"], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(retrained, -golden["a_retr"], rtol=1e-8, atol=1e-10)


@pytest.mark.golden("npo", "synthetic_traj_*.npz")
def test_official_data_follow_our_rules(golden, official):
    """Means of inputs, features and labels are those that `synthetic_gaussian_logistic` draws from."""
    alpha, dimension = official["alpha"], official["W"].shape[1]
    ours = synthetic_gaussian_logistic(jax.random.key(0), alpha, n_forget=20_000, n_retain=20_000)

    def within_five_errors(x, y):
        error = np.sqrt(np.var(x, axis=0) / len(x) + np.var(y, axis=0) / len(y))
        assert (np.abs(np.mean(x, axis=0) - np.mean(y, axis=0)) < 5 * error).all()

    for name, points in (("f", ours.x_forget), ("r", ours.x_retain)):
        within_five_errors(official[f"X_{name}"], np.asarray(points))
        within_five_errors(official[f"Xe_{name}"], np.asarray(points))
    for name, labels in (("f", ours.y_forget), ("r", ours.y_retain)):
        within_five_errors(official[f"y_{name}"], np.asarray(labels))
        within_five_errors(official[f"ye_{name}"], np.asarray(labels))
    within_five_errors(official["y_idk"], np.asarray(ours.y_idk))
    np.testing.assert_allclose(official["W"].std(), dimension**-0.5, rtol=5 / np.sqrt(2 * official["W"].size))


@pytest.mark.golden("npo", "theorem2_*.npz")
def test_divergence(golden, x64):
    """1e-9, as for Theorem 2; and the slopes that the theorem gives."""
    setting = Setting(
        *golden["X"].shape, float(golden["eta"]), float(golden["beta"]), bool(golden["orthogonal"])
    )
    instance = Instance(
        jnp.asarray(golden["X"]), jnp.asarray(golden["y"], int), jnp.asarray(golden["theta0"])
    )
    run = jax.jit(lambda instance: diverge(instance, setting, len(golden["dist_ga"])))
    distances, weights = run(instance)
    for name, suffix in (("GA", "ga"), ("NPO", "npo")):
        np.testing.assert_allclose(distances[name], golden[f"dist_{suffix}"], rtol=1e-9)
        expected = golden[f"theta_{suffix}"]
        np.testing.assert_allclose(weights[name], expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    linear, logarithmic = slopes(golden["dist_ga"], golden["dist_npo"], setting)
    assert 0.98 <= linear <= 1.03
    assert 0.95 <= logarithmic <= 1.10


@pytest.mark.parametrize("name", INSTANCES)
def test_instances_meet_the_assumptions(name):
    setting = INSTANCES[name]
    instance = draw_instance(jax.random.key(0), setting)
    products = np.asarray(instance.x @ instance.x.T)
    assert products.shape == (setting.n_forget, setting.n_forget)
    assert np.linalg.matrix_rank(products) == setting.n_forget
    off_diagonal = np.abs(products - np.diag(np.diag(products))).max()
    assert off_diagonal < (1e-5 if setting.orthogonal else 0.3)
    assert np.diag(products).min() > 0.5
    assert np.diag(products).max() < 1.8


@pytest.mark.slow
def test_a_method_of_its_own_and_one_among_others():
    """A method's curve starts at the reference and does not depend on the methods that run beside it."""
    data = problem(
        synthetic_gaussian_logistic(jax.random.key(0), n_forget=20, n_retain=30, n_eval=10, width=8)
    )
    reference, retrained = jax.jit(lambda data: fit(data, 50))(data)
    methods = METHODS[1.0]
    curves, weights = jax.jit(lambda: unlearn(data, reference, retrained, methods, 20, 10))()
    alone, _ = jax.jit(lambda: unlearn(data, reference, retrained, {"x": methods["NPO+KL"]}, 20, 10))()
    np.testing.assert_allclose(alone["x"], curves["NPO+KL"], rtol=1e-5)
    for name, curve in curves.items():
        np.testing.assert_allclose(curve[0], distance(data, reference, retrained), rtol=1e-5)
        np.testing.assert_allclose(curve[-1], distance(data, weights[name], retrained), rtol=1e-5)


def test_wrong_methods():
    sizes = {"n_forget": 2, "n_retain": 3, "n_eval": 1, "width": 4}
    data = jax.jit(lambda key: problem(synthetic_gaussian_logistic(key, **sizes)))(jax.random.key(0))
    theta = jnp.zeros(4)
    with pytest.raises(ValueError, match="loss: expected GA, NPO, DPO, KTO or IDK, got 'SGD'"):
        objective(Method("SGD", 0.1), theta, data, theta)
    with pytest.raises(ValueError, match=r"loss: expected the retain term RT or KL, got 'GA\+XX'"):
        objective(Method("GA+XX", 0.1), theta, data, theta)
    with pytest.raises(ValueError, match="every: expected a divisor of the 10 steps, got 3"):
        unlearn(data, theta, theta, METHODS[0.0], 10, 3)


@pytest.mark.slow
def test_smoke_run(tmp_path):
    """A verdict for each claim, figures and tables; a run that is resumed finds the same."""
    config = dataclasses.replace(npo.PRESETS["smoke"], fit_steps=200, steps=50, sweep_steps=50)
    with RunDir.create("npo", config, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in npo.CLAIMS]
    assert all(len(claim["values"]) == config.seeds for claim in report["claims"])
    assert {claim["verdict"] for claim in report["claims"]} <= {"holds", "does not hold", "undecided"}
    figures = sorted((tmp_path / "run" / "figures").glob("*.png"))
    assert [figure.stem for figure in figures] == ["beta_sweep", "distances", "divergence", "frontier"]
    assert all(figure.stat().st_size > 10_000 for figure in figures)
    assert [len(table["rows"]) for table in report["tables"]] == [len(METHODS[1.0]), len(METHODS[0.0]), 4]
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 3
    (tmp_path / "run" / "report.json").unlink()
    with RunDir.resume(tmp_path / "run", "npo", npo.Config) as run_dir:
        again = run_experiment(run_dir)
    assert again["claims"] == report["claims"]


def test_the_reference_numbers_belong_to_methods():
    for alpha, numbers in OFFICIAL.items():
        assert numbers.keys() <= METHODS[alpha].keys()
    assert set(ORDER) == set(METHODS[0.0])


def test_presets():
    assert set(npo.PRESETS) == {"smoke", "cpu", "paper"}
    full, paper = npo.PRESETS["cpu"], npo.PRESETS["paper"]
    assert dataclasses.replace(full, seeds=paper.seeds) == paper


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"every": 0}, "every: expected at least 1, got 0"),
        ({"steps": 30}, "steps: expected a multiple of every = 25, got 30"),
        ({"betas": ()}, "betas: expected at least one, all positive"),
        ({"betas": (0.1, -1.0)}, "betas: expected at least one, all positive"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=message):
        npo.Config(**fields)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.slow
def test_the_step_for_the_pod_on_a_small_mesh(explicit):
    """Two steps of a tiny model, sharded and not; at the first, NPO weighs every example with 1."""
    model = TransformerConfig(vocab=32, width=16, heads=4, hidden=32, scan=True, remat=True)
    target = npo_step_target(4, 8, model)
    init, apply = transformer(model)
    params = init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 4, 8), 0, model.vocab)
    batch = {
        part: {"tokens": tokens[row], "labels": tokens[row].at[:, :3].set(IGNORE)}
        for row, part in enumerate(("forget", "retain"))
    }
    batch = precompute_reference(apply, params, batch, UnlearnConfig("npo+rt"))
    assert jax.tree.structure(batch) == jax.tree.structure(target.batch)
    opt_state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), target.state.opt_state)
    state = TrainState(jnp.zeros((), jnp.int32), params, opt_state, jax.random.key(2))
    assert jax.tree.structure(state) == jax.tree.structure(target.state)

    sharded = shard_step(
        target.step,
        make_mesh({"data": 2, "model": 4}, explicit=explicit),
        target.state,
        target.batch,
        rules=target.rules,
        fsdp=target.fsdp,
    )
    step, placed, placed_batch = jax.jit(target.step), sharded.place_state(state), sharded.place_batch(batch)
    for number in range(2):
        state, expected = step(state, batch)
        placed, found = sharded(placed, placed_batch)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
        if number == 0:
            np.testing.assert_allclose(expected["npo_weight"], 1, rtol=1e-5)
