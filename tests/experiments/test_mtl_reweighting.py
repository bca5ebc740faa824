"""The multi-task experiment: goldens of the toy, GradNorm's toy, residuals, table files, a smoke run."""

import dataclasses
import importlib.util
import json
import re
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import mtl_reweighting
from experiments.mtl_reweighting import (
    CLAIMS,
    PRESETS,
    Config,
    conflict,
    gradnorm_toy,
    solver_accuracy,
    tables,
    toy,
)
from experiments.mtl_reweighting.delta import increases, ranks
from experiments.mtl_reweighting.methods import FAMILY, OF_THREE_BATCHES, WATCHED, weighted_step
from experiments.mtl_reweighting.network import init_network, is_trunk, predict, single_task_networks
from experiments.mtl_reweighting.pod import nash_step_target
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from jaxneg.mtl import (
    METHODS_OF_LOSSES,
    combine,
    conflict_statistics,
    cross_gram,
    gram,
    multitask,
    sdmgrad,
    task_grads,
)
from jaxneg.train import TrainState, compile_for, init_state, make_mesh, shard_step

# What only the README says: the scale of the boundary points and of the trajectories, the tolerances, and the
# starting point from which symmetry leaves the direction to rounding.
BOUNDARY_SCALE = 1.0
TRAJECTORY_SCALE = 0.1
TRAJECTORY_TOLERANCE = {"mgda": 1e-3}
OUTCOME_TOLERANCE = np.array([0.05, 0.02])
SADDLE = np.zeros(2)

NAMES = {
    "ls": "Sum",
    "mgda": "MGDA",
    "pcgrad": "PCGrad",
    "cagrad": "CAGrad c=0.4",
    "imtl": "IMTL-G",
    "nash": "Nash-MTL",
    "famo": "FAMO",
}


def our_name(golden_name: str) -> str:
    """``cagrad08`` is CAGrad with c = 0.8."""
    if golden_name in NAMES:
        return NAMES[golden_name]
    radius = int(golden_name.removeprefix("cagrad")) / 10
    return f"CAGrad c={radius}"


@pytest.fixture(autouse=True)
def other_radius(monkeypatch):
    monkeypatch.setitem(FAMILY, "CAGrad c=0.8", ("cagrad", {"c": 0.8}))


# The toy of two losses


@pytest.mark.golden("mtl_reweighting", "toy.npz")
@pytest.mark.slow
def test_toy_losses_and_jacobians(golden, x64):
    cases = {key.removesuffix("__x"): key for key in golden if key.endswith("__x") and "outcome" not in key}
    assert cases
    for case, key in cases.items():
        scale = BOUNDARY_SCALE if case == "boundary" else float(case.removeprefix("fn_scale"))
        points = jnp.asarray(golden[key])
        values = jax.vmap(toy.task_losses, (0, None))(points, scale)
        jacobians = jax.vmap(jax.jacrev(toy.task_losses), (0, None))(points, scale)
        np.testing.assert_allclose(values, golden[f"{case}__L"], rtol=1e-8, atol=1e-8, err_msg=case)
        np.testing.assert_allclose(jacobians, golden[f"{case}__J"], rtol=1e-8, atol=1e-8, err_msg=case)


@pytest.mark.golden("mtl_reweighting", "toy.npz")
@pytest.mark.slow
def test_toy_trajectories(golden, x64):
    inits = golden["traj_inits"]
    names = sorted({key.split("_")[1] for key in golden if key.startswith("traj_") and key != "traj_inits"})
    assert names
    for name in names:
        expected = np.stack([golden[f"traj_{name}_{k}"] for k in range(len(inits))])
        steps = expected.shape[1] - 1
        paths = toy.descent(our_name(name), TRAJECTORY_SCALE, steps)(jnp.asarray(inits))
        np.testing.assert_allclose(paths, expected, atol=TRAJECTORY_TOLERANCE.get(name, 1e-8), err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.golden("mtl_reweighting", "toy.npz")
def test_toy_outcomes(golden):
    """The end points after the papers' 50,000 to 100,000 steps.

    Paths through the narrow valleys at x2 > 0 are chaotic: moving a starting point by 1e-12 moves some ends
    by whole units, so that no other program, however exact, repeats them. An end that is further from ours
    than the tolerance must be within the tolerance and twice the spread of the ends of 8 such copies; a path
    that is not chaotic has no spread. Where all copies agree on reaching the Pareto set, so must the golden
    end.
    """
    jobs = [key.removesuffix("__x") for key in golden if key.startswith("outcome_") and key.endswith("__x")]
    assert jobs

    def ends(job, starts):
        setting, name = job.removeprefix("outcome_").split("__")
        scale, steps = golden[f"outcome_{setting}__scale"], golden[f"outcome_{setting}__steps"]
        with jax.enable_x64(True):
            run = toy.descent(our_name(name), float(scale), int(steps), every=int(steps) // 10)
            return np.asarray(run(jnp.asarray(starts)))[:, -1]

    def check(job):
        setting, name = job.removeprefix("outcome_").split("__")
        inits, expected = golden[f"outcome_{setting}__inits"], golden[f"{job}__x"]
        ours = ends(job, inits)
        chaotic = 0
        far = (np.abs(ours - expected) > OUTCOME_TOLERANCE).any(axis=1)
        if name != "ls":
            far &= (inits != SADDLE).any(axis=1)
        for row in np.flatnonzero(far):
            noise = 1e-12 * np.random.default_rng(0).normal(size=(8, 2))
            copies = np.concatenate([ours[row : row + 1], ends(job, inits[row] + noise)])
            allowed = OUTCOME_TOLERANCE + 2 * np.ptp(copies, axis=0)
            assert (np.abs(ours[row] - expected[row]) <= allowed).all(), (
                job,
                inits[row],
                copies,
                expected[row],
            )
            if len(set(toy.reached(copies))) == 1:
                assert toy.reached(expected[row]) == toy.reached(ours[row]), (job, inits[row])
            chaotic += 1
        with jax.enable_x64(True):
            values = jax.vmap(toy.task_losses, (0, None))(
                jnp.asarray(expected), golden[f"outcome_{setting}__scale"]
            )
        np.testing.assert_allclose(values, golden[f"{job}__L"], rtol=1e-8, atol=1e-8, err_msg=job)
        return chaotic, int((~far).sum())

    with ThreadPoolExecutor(2) as pool:
        counts = np.array(list(pool.map(check, jobs)))
    assert counts[:, 1].sum() > 3 * counts[:, 0].sum()


def test_toy_optimum_and_starts():
    line = np.stack([np.linspace(-7, 7, 281), np.full(281, toy.PARETO_X2)], axis=-1)
    excess = toy.excess(line)
    assert excess.min() == pytest.approx(0, abs=1e-3)
    assert line[excess.argmin(), 0] == pytest.approx(0, abs=0.01)
    assert toy.reached(line).all()
    assert not toy.reached(np.array([[9.0, 9.0], [0.0, 0.0], [7.5, toy.PARETO_X2]])).any()
    starts = toy.starts(toy.SETTINGS["B"], 3, 0.1)
    assert starts.shape == (4, 5, 2)
    np.testing.assert_array_equal(starts[0], toy.SETTINGS["B"].inits)
    assert 0.05 < (starts[1:] - starts[0]).std() < 0.2
    np.testing.assert_array_equal(starts[:2], toy.starts(toy.SETTINGS["B"], 1, 0.1))


@given(st.floats(-10, 10), st.floats(-10, 10))
@settings(max_examples=20, deadline=None)
def test_toy_is_symmetric(x1, x2):
    """With scale 1 and x2 < 0 the two losses are mirror images."""
    first = toy.task_losses(jnp.array([x1, -abs(x2)]))
    second = toy.task_losses(jnp.array([-x1, -abs(x2)]))
    np.testing.assert_allclose(first, second[::-1], rtol=1e-4, atol=1e-4)


# GradNorm's toy


def test_gradnorm_problem():
    problem = gradnorm_toy.draw_problem(jax.random.key(0), (1.0, 10.0, 100.0))
    maps = np.asarray(problem.maps).reshape(gradnorm_toy.FEATURES, 3, gradnorm_toy.OUTPUTS)
    own = maps - maps.mean(axis=1, keepdims=True)
    assert maps.std() == pytest.approx(np.hypot(10, 3.5), rel=0.02)
    assert own.std() == pytest.approx(3.5 * np.sqrt(2 / 3), rel=0.02)
    batch = gradnorm_toy.draw_examples(problem, 3, 64)
    expected = np.tanh(np.asarray(batch["x"], np.float64) @ np.asarray(problem.maps, np.float64))
    np.testing.assert_allclose(batch["y"].reshape(64, -1), expected, atol=1e-3)
    again, other = (gradnorm_toy.draw_examples(problem, number, 64) for number in (3, 4))
    np.testing.assert_array_equal(batch["x"], again["x"])
    assert not np.allclose(batch["x"], other["x"])


def test_gradnorm_losses_are_scaled():
    params = init_network(jax.random.key(0), 5, 8, 2, tasks=2, outputs=3)
    batch = {"x": jnp.ones((4, 5)), "y": jnp.ones((4, 2, 3))}
    outputs = np.asarray(predict(params, batch["x"])).reshape(4, 2, 3)
    expected = [np.mean((outputs[:, t] - sigma) ** 2) for t, sigma in enumerate((1.0, 100.0))]
    np.testing.assert_allclose(
        gradnorm_toy.task_losses(params, batch, jnp.array([1.0, 100.0])), expected, rtol=1e-5
    )


@pytest.mark.slow
def test_gradnorm_training():
    """The sum is plain Adam on the sum, and all methods begin with the same networks."""
    sigmas, seeds = (1.0, 100.0), 2
    problems = jax.vmap(lambda key: gradnorm_toy.draw_problem(key, sigmas))(
        jax.random.split(jax.random.key(0), seeds)
    )
    batches = jax.vmap(lambda p: jax.vmap(lambda n: gradnorm_toy.draw_examples(p, n, 16))(jnp.arange(3)))(
        problems
    )
    together = gradnorm_toy.begin_multitask("Sum", sigmas, seeds)
    oracle = gradnorm_toy.begin_multitask(gradnorm_toy.ORACLE, sigmas, seeds)
    jax.tree.map(np.testing.assert_array_equal, together.state.params, oracle.state.params)
    params = jax.tree.map(lambda leaf: leaf[1], together.state.params)
    transform = optax.adam(1e-3)
    opt_state = transform.init(params)

    @jax.jit
    def plain(params, opt_state, batch):
        def total(params):
            return gradnorm_toy.task_losses(params, batch, jnp.array(sigmas)).sum()

        updates, opt_state = transform.update(jax.grad(total)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    for number in range(3):
        params, opt_state = plain(params, opt_state, jax.tree.map(lambda leaf: leaf[1, number], batches))  # noqa: B023
    state, _ = together.advance(together.state, batches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-3, atol=1e-5), state.params, params)
    single = gradnorm_toy.begin_single_task(2, seeds)
    kernel = single.state.params["heads"]["0"]["kernel"]
    assert kernel.shape == (seeds, 2, gradnorm_toy.WIDTH, gradnorm_toy.OUTPUTS)
    before = np.asarray(kernel)
    after = np.asarray(single.advance(single.state, batches)[0].params["heads"]["0"]["kernel"])
    assert (np.abs(after - before) > 1e-6).mean() > 0.9


def test_single_task_networks_predict_as_the_heads_do():
    params = init_network(jax.random.key(0), 5, 8, 3, tasks=3, outputs=2)
    x = jax.random.normal(jax.random.key(1), (4, 5))
    alone = jax.vmap(predict, (0, None))(single_task_networks(params, 3), x)
    np.testing.assert_allclose(alone.swapaxes(0, 1).reshape(4, 6), predict(params, x), rtol=1e-5, atol=1e-6)


def test_increases():
    errors = np.array([[[2.0, 1.0], [3.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]]])
    single = np.array([[1.0, 1.0], [2.0, 1.0]])
    np.testing.assert_allclose(increases(errors, single), [[50, 125], [0, -25]], rtol=1e-5)


def test_ranks():
    errors = np.array([[[1.0, 2.0], [1.0, 1.0]], [[3.0, 1.0], [2.0, 1.0]]])
    np.testing.assert_allclose(ranks(errors), [(1 + 2 + 1 + 1.5) / 4, (2 + 1 + 2 + 1.5) / 4])
    errors[0, 1] = np.nan
    np.testing.assert_allclose(ranks(errors), [(1 + 2 + 2 + 2) / 4, (2 + 1 + 1 + 1) / 4])


# The methods


def quadratics(params, batch):
    """Three losses that share ``trunk/w``; each has a head of its own."""
    return (params["heads"]["0"] + batch @ params["trunk"]["0"]["w"]).mean(axis=0) ** 2


def quadratic_params():
    w = jax.random.normal(jax.random.key(0), (2, 3))
    return {"trunk": {"0": {"w": w}}, "heads": {"0": jnp.arange(1.0, 4.0)}}


def taken(method, batch, **options):
    """One step, and its metrics."""
    step, transform = weighted_step(quadratics, method, 3, is_trunk, **options)
    return jax.jit(step)(init_state(quadratic_params(), transform, jax.random.key(2)), batch)


BATCH = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)


def test_every_method_is_in_the_family():
    with pytest.raises(ValueError, match="method: expected one of") as error:
        multitask("no such method")
    known = re.search("expected one of (.*), or a function", str(error.value)).group(1).split(", ")
    assert {name for name, _ in FAMILY.values()} == set(known)
    assert set(WATCHED) <= set(FAMILY)
    assert {*METHODS_OF_LOSSES, *OF_THREE_BATCHES} <= set(known)


@pytest.mark.slow
def test_one_pullback_is_the_jacobian_weighed():
    """A watched step takes the Jacobian; another method of the losses one pullback: the same update."""
    (pulled, _), (watched, metrics) = (taken("Sum of log losses", BATCH, watched=w) for w in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), pulled.params, watched.params)
    _, jac = task_grads(quadratics, quadratic_params(), BATCH)
    expected = conflict_statistics(gram(jac["trunk"]))
    np.testing.assert_allclose([metrics[name] for name in expected._fields], expected, rtol=1e-5)


def test_three_batches_of_one():
    """SDMGrad's weights come of the examples 1, 4, 7 and 2, 5, and weigh the gradients of 0, 3, 6."""
    state, metrics = taken("SDMGrad", BATCH, before_adam=optax.scale(0.5))
    (losses, jac), (_, first), (_, second) = (
        task_grads(quadratics, quadratic_params(), BATCH[k::3]) for k in range(3)
    )
    weights, _ = sdmgrad(cross_gram(first["trunk"], second["trunk"]), jnp.full(3, 1 / 3))
    np.testing.assert_allclose(metrics["losses"], losses, rtol=1e-6)
    np.testing.assert_allclose(state.opt_state[0].weights, weights, rtol=1e-5)
    moment = state.opt_state[2][0].mu
    expected = 0.1 * 0.5 * np.asarray(combine(weights, jac["trunk"])["0"]["w"])
    np.testing.assert_allclose(moment["trunk"]["0"]["w"], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_conflict_figure_and_table():
    rng = np.random.default_rng(0)
    values = np.stack(
        [rng.uniform(-1, 1, (2, 20)), rng.integers(0, 2, (2, 20)), np.exp(rng.normal(size=(2, 20)))]
    )
    found = conflict.averaged(values, 4)
    assert found.shape == (3, 2, 4)
    np.testing.assert_allclose(found[:2, 1, 3], values[:2, 1, 15:].mean(axis=-1))
    np.testing.assert_allclose(np.log(found[2, 0, 0]), np.log(values[2, 0, :5]).mean())
    (row,) = conflict.conflict_table("a problem", {"Sum": values}).rows
    assert row[0] == "Sum"
    assert row[1].startswith(f"{values[0].mean():.2f} (")
    assert row[2].startswith(f"{100 * values[1].mean():.1f} (")
    figure = conflict.draw({"Sum": values}, 3)
    assert [axis.get_title() for axis in figure.axes][1] == "share of the 3 pairs with a negative cosine"


def test_tables_of_every_method():
    errors = np.array([[[1.5, 2.0], [1.0, 1.0]], [[1.0, 1.0], [2.0, 2.0]]])
    single = np.ones((2, 2))
    table = gradnorm_toy.result_table((1.0, 100.0), ("Sum", "MGDA"), errors, single)
    assert [row[0] for row in table.rows] == ["Single-task networks", "Sum", "MGDA"]
    assert [row[-2:] for row in table.rows[1:]] == [["1.5", 58], ["1.5", 32]]
    assert table.rows[1][1].startswith("37.5 (")
    data = tables.Table("enb", np.ones((4, 1)), np.ones((4, 2)), ("u", "v"), False, None)
    result = tables.TableResult(data, ("Sum", "Nash-MTL"), errors, single, errors[0, 0], {})
    rows = tables.result_table([result]).rows
    assert [row[0] for row in rows] == ["Single-task networks", "Sum", "Nash-MTL", "Nash-MTL by fit, seed 0"]
    assert [row[-1] for row in rows] == ["", "enb -4", "", ""]
    assert rows[-1][1].startswith("75.0 (")


# The solvers


@pytest.mark.golden("mtl_reweighting", "jacobians.npz")
def test_solvers_are_exact_on_hard_jacobians(golden, x64):
    """Below 1e-10, where the peers leave 0.27 to 8e3."""
    for case in solver_accuracy.CASES:
        J = golden[f"{case}__J"]
        for solve, alpha in solver_accuracy.SOLVERS.values():
            w = np.asarray(solve(jnp.asarray(J @ J.T)))
            assert solver_accuracy.residual(J, w, alpha) < 1e-10, case


def test_hard_jacobians_and_residual():
    norms = np.linalg.norm(solver_accuracy.hard_jacobian("scaled", 0), axis=1)
    assert norms[0] < 1 < norms[1] < 10 < norms[2]
    assert np.ptp(solver_accuracy.hard_jacobian("identical", 0), axis=0).max() == 0
    assert 1e-6 < np.linalg.norm(solver_accuracy.hard_jacobian("tiny", 0), axis=1).max() < 1e-5
    assert solver_accuracy.residual(np.diag([1.0, 2.0]), np.array([1.0, 0.5]), 1.0) == 0
    assert solver_accuracy.residual(np.diag([1.0, 2.0]), np.array([1.0, 1.0]), 1.0) == 3
    assert solver_accuracy.residual(np.eye(1), np.array([4.0]), 2.0) == 7
    with pytest.raises(ValueError, match="case: expected one of scaled, identical, tiny, got 'easy'"):
        solver_accuracy.hard_jacobian("easy", 0)


# The tables


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    Y = X @ rng.normal(size=(4, 3)) * [1.0, 10.0, 0.1] + 5
    return {"X": X, "Y": Y, "x_names": np.array(list("abcd")), "y_names": np.array(["u", "v", "w"])}


def write(folder, name="made", **arrays):
    np.savez(folder / f"{name}.npz", **arrays)
    return name


def test_a_table_and_its_split(tmp_path, rows):
    table = tables.load_table(write(tmp_path, **rows), tmp_path)
    assert (table.X.shape, table.Y.shape, table.y_names) == ((60, 4), (60, 3), ("u", "v", "w"))
    split = tables.split_table(table, 0)
    assert (split.x.shape, split.x_test.shape) == ((42, 4), (18, 4))
    np.testing.assert_allclose(split.x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(split.x.std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(split.y.std(0), split.spread, rtol=1e-4)
    np.testing.assert_allclose(np.mean(split.spread**2), 1, rtol=1e-4)
    assert split.spread[1] > 5 * split.spread[0] > 25 * split.spread[2]
    assert not np.allclose(split.x, tables.split_table(table, 1).x)


def test_far_test_features_are_clipped(tmp_path, rows):
    rows["X"][:, 0] = 0
    rows["X"][7, 0] = 1e6
    table = tables.load_table(write(tmp_path, **rows), tmp_path)
    tested = [split for seed in range(20) if (split := tables.split_table(table, seed)).x_test.max() == 8]
    assert tested


def test_labels_keep_their_test_rows(tmp_path):
    rng = np.random.default_rng(0)
    parts = {"X_train": rng.normal(size=(30, 4)), "X_test": rng.normal(size=(10, 4))}
    parts |= {
        "Y_train": rng.integers(0, 2, (30, 2)).astype(np.int8),
        "Y_test": rng.integers(0, 2, (10, 2)).astype(np.int8),
    }
    table = tables.load_table(write(tmp_path, **parts), tmp_path)
    assert table.labels
    split = tables.split_table(table, 3)
    assert split.x_test.shape == (10, 4)
    np.testing.assert_array_equal(split.y_test, parts["Y_test"])
    params = init_network(jax.random.key(0), 4, 8, 2, tasks=2)
    batch = {"x": split.x, "y": split.y}
    outputs = np.asarray(predict(params, split.x), np.float64)
    cross = np.logaddexp(0, outputs) - outputs * np.asarray(split.y)
    np.testing.assert_allclose(tables.losses(params, batch, labels=True), cross.mean(0), rtol=1e-5)
    wrong = np.mean((np.asarray(predict(params, split.x_test)) > 0) != parts["Y_test"], axis=0)
    measured = tables.errors(params, split.x_test, split.y_test, split.spread, labels=True)
    np.testing.assert_allclose(measured, wrong, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"Y": None},
            r"array 'Y' is missing, it holds X, x_names, y_names: a table needs X and Y, or X_train",
        ),
        ({"Y": np.ones((59, 3))}, r"'X' has 60 rows and 'Y' 59: each row of one belongs to one of the other"),
        ({"Y": np.ones(60)}, r"array 'Y' has shape \(60,\) and dtype float64: expected numbers of shape"),
        ({"X": np.zeros((0, 4))}, r"array 'X' has shape \(0, 4\)"),
        ({"X": np.full((60, 4), "1")}, r"array 'X' has shape \(60, 4\) and dtype <U1: expected numbers"),
        (
            {"X": np.full((60, 4), None)},
            r"holds an array of Python objects .*: write numbers and text without",
        ),
        ({"y_names": np.array(["u"])}, r"'y_names' names 1 columns, but 'Y' has 3: name each once"),
        (
            {"Y": np.ones((60, 3))},
            r"column 0 of 'Y' \(u\) is constant: there is nothing to predict, remove it",
        ),
    ],
)
def test_wrong_tables(tmp_path, rows, change, message):
    arrays = {key: value for key, value in (rows | change).items() if value is not None}
    with pytest.raises(ValueError, match=message) as error:
        tables.load_table(write(tmp_path, **arrays), tmp_path)
    assert str(tmp_path / "made.npz") in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite(tmp_path, rows, value):
    rows["X"][17, 2] = value
    message = rf"array 'X', row 17, column 2 \(c\) holds {value}: remove the row or fill the value in"
    with pytest.raises(ValueError, match=message):
        tables.load_table(write(tmp_path, **rows), tmp_path)


def test_wrong_labels(tmp_path):
    parts = {"X_train": np.ones((5, 2)), "Y_train": np.eye(5)[:, :2], "X_test": np.ones((2, 2))}
    with pytest.raises(ValueError, match="array 'Y_test' is missing"):
        tables.load_table(write(tmp_path, **parts), tmp_path)
    with pytest.raises(ValueError, match="'Y_train' has 2 columns and 'Y_test' 1: both parts need the same"):
        tables.load_table(write(tmp_path, **parts, Y_test=np.ones((2, 1))), tmp_path)
    with pytest.raises(ValueError, match="array 'Y_test', row 0, column 1 holds 2: labels are 0 or 1"):
        tables.load_table(write(tmp_path, **parts, Y_test=np.array([[0, 2], [0, 1]])), tmp_path)


def test_wrong_files(tmp_path, rows):
    with pytest.raises(FileNotFoundError, match=r"absent.npz: set JAXNEG_DATA to the folder .* 'wine'"):
        tables.load_table("absent", tmp_path)
    (tmp_path / "text.npz").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"text.npz is not an npz file: write it with numpy.savez"):
        tables.load_table("text", tmp_path)
    write(tmp_path, **rows)
    damaged = bytearray((tmp_path / "made.npz").read_bytes())
    damaged[200:300] = bytes(100)
    (tmp_path / "made.npz").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"made.npz is damaged \(.*\): copy it again"):
        tables.load_table("made", tmp_path)


def test_wine_needs_no_file(tmp_path):
    table = tables.load_table("wine", tmp_path)
    assert (table.X.shape, table.Y.shape) == ((178, 10), (178, 3))
    assert table.y_names == ("flavanoids", "color_intensity", "proline")
    for column in table.Y.T:
        assert not (np.abs(table.X - column[:, None]).max(axis=0) == 0).any()


@pytest.mark.slow
def test_training_on_a_table(tmp_path, rows):
    """The compiled scan over seeds and the engine's loop train the same network; both learn."""
    table = tables.load_table(write(tmp_path, **rows), tmp_path)
    splits = [tables.split_table(table, seed) for seed in range(2)]
    recipe = tables.Recipe(width=16, depth=2, batch=16, steps=120)
    together = tables.train_together(splits, tables.THROUGH_FIT, recipe, labels=False)["errors"]
    short = recipe._replace(steps=60)
    folder = tmp_path / "fit"
    tables.train_through_fit(splits, short, False, folder, {"table": "made"})
    result = tables.train_through_fit(splits, recipe, False, folder, {"table": "made"})
    np.testing.assert_allclose(result.history[-1]["eval/error"], together[0], rtol=2e-3)
    assert int(result.state.step) == 120
    assert result.checkpoint is not None
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()][-1] == 120
    apart = tables.train_apart(splits, recipe, labels=False)["errors"]
    assert together.shape == apart.shape == (2, 3)
    untrained = tables.train_apart(splits, recipe._replace(steps=1), labels=False)["errors"]
    assert (apart.mean(0) < 0.9 * untrained.mean(0)).all()
    assert (together[:, 1] < 0.9 * untrained[:, 1]).all()


# The experiment


@pytest.mark.slow
def test_smoke_run(tmp_path, monkeypatch):
    """A verdict for each claim, figures and tables; a run that is resumed finds the same."""
    config = PRESETS["smoke"]
    with RunDir.create("mtl_reweighting", config, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    for claim in report["claims"]:
        expected = config.jacobians if claim["name"].startswith("solver") else config.seeds
        assert len(claim["values"]) == expected, claim["name"]
        if claim["name"].startswith("solver"):
            assert claim["verdict"] == "holds", claim
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == {
        "toy-A-cagrad",
        "toy-B-nash-mtl",
        "toy-C-famo",
        "gradnorm",
        "conflict-gradnorm",
        "solver-accuracy",
        "tables",
        "conflict-wine",
    }
    assert len(report["tables"]) == 8
    assert any("all_methods" in note for note in report["notes"])
    assert any("of the last shared layer" in note for note in report["notes"])
    (tmp_path / "run" / "report.json").unlink()
    monkeypatch.setattr(gradnorm_toy, "train", None)  # the stage is read, not computed again
    with RunDir.resume(tmp_path / "run", "mtl_reweighting", Config) as run_dir:
        again = run_experiment(run_dir)
    assert again["claims"] == report["claims"]
    assert again["tables"] == report["tables"]


def test_absent_tables(tmp_path, rows):
    names, notes = tables.find_tables(("enb", "jura"), tmp_path)
    assert names == ("wine",)
    assert "enb, jura (set JAXNEG_DATA). In their place stands wine" in notes[0]
    write(tmp_path, "enb", **rows)
    names, notes = tables.find_tables(("enb", "jura", "wine"), tmp_path)
    assert names == ("enb", "wine")
    assert notes == [f"Tables without a file in {tmp_path.name}: jura (set JAXNEG_DATA)."]
    assert tables.find_tables(("enb",), tmp_path) == (("enb",), [])
    with pytest.raises(FileNotFoundError, match=r"there is no table 'jurra' in .*: expected one of enb"):
        tables.find_tables(("enb", "jurra"), tmp_path)


def test_presets_and_claims():
    assert set(PRESETS) == {"smoke", "cpu", "paper"}
    assert PRESETS["cpu"] == Config()
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names)
    assert set(gradnorm_toy.PROTOTYPE) <= set(gradnorm_toy.METHODS)
    for key in toy.SETTINGS:
        assert set(toy.FEWEST[key]) <= set(toy.CLAIMED[key]) <= set(toy.METHODS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 1}, "seeds: expected at least 2, got 1"),
        ({"toy_steps": 1500}, "toy_steps: expected a multiple of 1000, got 1500"),
        ({"toy_steps": 0}, "toy_steps: expected at least 1000, got 0"),
        ({"gradnorm_steps": 125}, "gradnorm_steps: expected a multiple of 50, got 125"),
        ({"gradnorm_tasks": 1}, "gradnorm_tasks: expected 0 or at least 2, got 1"),
        ({"toy_jitter": 0.0}, "toy_jitter: expected a positive standard deviation, got 0.0"),
        ({"tables": ()}, "tables: expected at least one table, or wine"),
        ({"table_batch": 0}, "table_batch: expected at least 1, got 0"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Config(), **fields)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.slow
def test_the_step_for_the_pod_on_a_small_mesh(explicit):
    """Three steps of a small network, sharded and not."""
    mesh = make_mesh({"data": 2, "model": 4}, explicit=explicit)
    target = nash_step_target(32, 3, tasks=3, batch=16, mesh=mesh.shape, features=8, outputs=4)
    params = init_network(jax.random.key(0), 8, 32, 3, 3, 4)
    batch = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.ndim), leaf.shape, leaf.dtype), target.batch
    )
    _, transform = weighted_step(lambda p, b: jnp.zeros(3), "Nash-MTL", 3, is_trunk)
    state: TrainState = init_state(params, transform, jax.random.key(2))
    assert jax.tree.structure(state) == jax.tree.structure(target.state)
    sharded = shard_step(
        target.step, mesh, target.state, target.batch, rules=target.rules, fsdp=target.fsdp, min_size=64
    )
    placed, batch_placed, plain = sharded.place_state(state), sharded.place_batch(batch), jax.jit(target.step)
    for _ in range(3):
        placed, metrics = sharded(placed, batch_placed)
        state, expected = plain(state, batch)
    kernel = placed.params["trunk"]["1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (8, 16)
    np.testing.assert_allclose(metrics["losses"], expected["losses"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), placed.params, state.params
    )


@pytest.mark.slow
@pytest.mark.tpu_compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_step_fits_a_pod():
    report = compile_for(mtl_reweighting.compile_target(Config()), "v5e:16x16")
    assert report.fits
