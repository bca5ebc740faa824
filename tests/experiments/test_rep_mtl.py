"""The Rep-MTL experiment: data, networks, training by hand, what claims measure, a smoke run, its config."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import rep_mtl
from experiments.rep_mtl import CLAIMS, PRESETS, Config, office_caltech, overlapping_digits, training, vision
from experiments.rep_mtl.claims import CSA, FULL, SAFE, TSR, WITH_CSA, WITHOUT_CSA, late, measurements
from experiments.rep_mtl.comparison import EW, STL, accuracy_table, delta_p, gains, reference
from experiments.rep_mtl.figures import kind
from experiments.rep_mtl.spectra import exponents, outside
from experiments.rep_mtl.training import Method, Network, train
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from jaxneg.mtl import csa_terms, make_rep_mtl_loss, pl_alpha_tree, uw

# Compilation makes these the dearest tests: they are left to the slow suite.
pytestmark = pytest.mark.slow

# Part A's data

ROWS = {"amazon": 30, "caltech": 41, "dslr": 10, "webcam": 20}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    found = {f"x_{name}": rng.integers(0, 9, (rows, 12)).astype(np.uint8) for name, rows in ROWS.items()}
    return found | {f"y_{name}": np.arange(rows, dtype=np.uint8) % 10 for name, rows in ROWS.items()}


def write(folder, **arrays):
    np.savez(folder / "office.npz", **arrays)
    return folder / "office.npz"


def test_the_file_and_its_features(tmp_path, arrays):
    office = office_caltech.load_office(write(tmp_path, **arrays))
    assert office.names == office_caltech.DOMAINS
    assert office.title == "Office-Caltech10"
    assert office.x.shape == (101, 12)
    np.testing.assert_array_equal(office.domain, np.repeat(np.arange(4), list(ROWS.values())))
    row = arrays["x_caltech"][5].astype(float)
    np.testing.assert_allclose(office.x[30 + 5], np.sqrt(row / row.sum()), rtol=1e-6)
    np.testing.assert_array_equal(office.y[30:71], arrays["y_caltech"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_dslr": None}, r"array 'x_dslr' is missing, it holds x_amazon, .*: the file needs x_ and y_ of"),
        ({"y_webcam": None}, r"array 'y_webcam' is missing.*copy it again"),
        (
            {"y_dslr": np.zeros(9, int)},
            r"'x_dslr' has shape \(10, 12\) .* 'y_dslr' \(9,\) .*: expected numbers",
        ),
        ({"x_dslr": np.zeros(10)}, r"'x_dslr' has shape \(10,\) .*: expected numbers \[rows, bins\]"),
        ({"y_dslr": np.zeros(10)}, r"'y_dslr' \(10,\) and float64: .* whole numbers \[rows\]"),
        ({"x_dslr": np.ones((10, 7))}, r"the domains have \[7, 12\] bins: all need the same, copy it again"),
        ({"y_dslr": np.arange(10) + 1}, r"array 'y_dslr', row 9 holds 10: labels go from 0 to 9"),
        (
            {"x_dslr": np.eye(10, 12) - np.eye(10, 12, 3)},
            r"array 'x_dslr', row 0 is no histogram .*: remove it",
        ),
        ({"x_dslr": np.tri(10, 12, -1)}, r"array 'x_dslr', row 0 is no histogram"),
        ({"x_dslr": np.full((10, 12), np.nan)}, r"array 'x_dslr', row 0 is no histogram"),
        ({"x_dslr": np.ones((4, 12)), "y_dslr": np.zeros(4, int)}, "dslr has 4 rows: expected at least 5"),
        ({"x_dslr": np.full((10, 12), None)}, "holds an array of Python objects .*: write numbers and text"),
    ],
)
def test_a_wrong_file(tmp_path, arrays, change, message):
    changed = {key: value for key, value in (arrays | change).items() if value is not None}
    with pytest.raises(ValueError, match=message) as error:
        office_caltech.load_office(write(tmp_path, **changed))
    assert str(tmp_path / "office.npz") in str(error.value)


def test_a_damaged_or_absent_file(tmp_path, arrays):
    with pytest.raises(
        FileNotFoundError, match=r"there is no file .*absent.npz: set JAXNEG_DATA to the folder"
    ):
        office_caltech.load_office(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("1,2\n")
    with pytest.raises(ValueError, match=r"text.npz is not an npz file: write it with numpy.savez"):
        office_caltech.load_office(tmp_path / "text.npz")
    path = write(tmp_path, **arrays)
    damaged = bytearray(path.read_bytes())
    damaged[200:300] = bytes(100)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"office.npz is damaged \(.*\): copy it again"):
        office_caltech.load_office(path)


def test_splits_and_draws(tmp_path, arrays):
    """Training and test rows of a domain are its own and apart; batches hold training rows alone."""
    office = office_caltech.load_office(write(tmp_path, **arrays))
    splits = [office_caltech.split_office(office, seed) for seed in range(3)]
    for seed, split in enumerate(splits):
        for domain, (known, unknown) in enumerate(zip(split.train, split.test, strict=True)):
            rows = list(ROWS.values())[domain]
            assert (len(known), len(unknown)) == (int(0.6 * rows), int(0.2 * rows))
            assert len({*known, *unknown}) == len(known) + len(unknown)
            assert (office.domain[[*known, *unknown]] == domain).all()
        drawn = office_caltech.draw_rows(office, split, seed, steps=30)
        assert drawn.shape == (30, 4, office_caltech.BATCH)
        for task in range(4):
            assert set(drawn[:, task].ravel()) == set(split.train[task])
    assert set(splits[0].train[0]) != set(splits[1].train[0])


def test_pairs_share_their_label():
    office = office_caltech.made_domains()
    split = office_caltech.split_office(office, 0)
    drawn = office_caltech.draw_rows(office, split, 0, steps=5, paired=True)
    classes = office.y[drawn]
    np.testing.assert_array_equal(classes, np.broadcast_to(classes[:, :1], classes.shape))
    assert set(classes.ravel()) == set(range(10))
    for task in range(4):
        assert set(drawn[:, task].ravel()) <= set(split.train[task])
    unpaired = office.y[office_caltech.draw_rows(office, split, 0, steps=5)]
    assert (unpaired[:, 0] == unpaired[:, 1]).mean() < 0.2


def test_made_domains():
    """Every digit is in one of them, as a histogram."""
    from sklearn.datasets import load_digits

    office = office_caltech.made_domains()
    sizes = np.bincount(office.domain)
    assert tuple(sizes) == office_caltech.MADE_SIZES
    np.testing.assert_array_equal(np.bincount(office.y), np.bincount(load_digits().target))
    np.testing.assert_allclose((office.x**2).sum(1), 1, rtol=1e-5)
    plain, transposed, inverted, _ = (office.x[office.domain == d].mean(0).reshape(8, 8) for d in range(4))
    np.testing.assert_allclose(plain, transposed.T, atol=0.03)
    assert np.corrcoef(plain.ravel(), inverted.ravel())[0, 1] < -0.9


def test_without_the_file_made_domains_stand_in(tmp_path, monkeypatch):
    monkeypatch.setattr(office_caltech, "DATA", tmp_path / "absent.npz")
    seen = []
    monkeypatch.setattr(
        office_caltech,
        "train_office",
        lambda office, *_: seen.append(office.names) or {"accuracy": np.ones(1)},
    )
    config = PRESETS["smoke"]
    with RunDir.create("rep_mtl", config, path=tmp_path / "run") as run_dir:
        domains, notes = rep_mtl._domains()
        results = rep_mtl._office(config, run_dir, domains)
    assert domains.title == "digits in made domains"
    assert set(seen) == {office_caltech.MADE}
    assert list(results) == [STL, EW, TSR, CSA, FULL]
    assert "set JAXNEG_DATA" in notes[0]
    assert "say nothing about Office-Caltech10" in notes[0]


# Part B's data


def test_digits_are_laid_over_each_other():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 3, 8, 8))
    noise = rng.normal(size=(3, 12, 12))
    found = overlapping_digits.compose(first, second, noise).reshape(3, 12, 12)
    for pair in range(3):
        for row in range(12):
            for column in range(12):
                ink = 0.0
                if row < 8 and column < 8:
                    ink = max(ink, first[pair, row, column])
                if row >= 4 and column >= 4:
                    ink = max(ink, second[pair, row - 4, column - 4])
                expected = min(max(ink + noise[pair, row, column], 0), 1.5)
                assert found[pair, row, column] == pytest.approx(expected)


def test_digits_are_parted_before_they_are_paired():
    from sklearn.datasets import load_digits

    digits = load_digits()
    known, unknown = overlapping_digits.draw_pairs(0)
    assert known.x.shape == (600, 144)
    assert unknown.x.shape == (1500, 144)
    assert not set(known.parts.ravel()) & set(unknown.parts.ravel())
    for pairs in (known, unknown):
        np.testing.assert_array_equal(pairs.y, digits.target[pairs.parts])
        assert pairs.x.min() == 0
        assert pairs.x.max() == 1.5
    corner = known.x.reshape(-1, 12, 12)[:, :4, :4]  # of the first digit alone
    noise = corner - digits.images[known.parts[0]][:, :4, :4] / 16
    assert np.std(noise[(corner > 0) & (corner < 1.5)]) == pytest.approx(0.3, rel=0.15)
    again, other = overlapping_digits.draw_pairs(0)[0], overlapping_digits.draw_pairs(1)[0]
    np.testing.assert_array_equal(known.x, again.x)
    assert not np.array_equal(known.x, other.x)


# The networks


@pytest.mark.slow
def test_networks_by_hand():
    x = np.random.default_rng(0).normal(size=(5, 144)).astype(np.float32)
    params = overlapping_digits.first_params(0)
    encoder, heads = jax.tree.map(np.asarray, (params["encoder"], params["heads"]))
    hidden = np.maximum(x @ encoder["first"], 0).reshape(5, 9, 12)
    Z = np.maximum(np.einsum("bpc,cd->bpd", hidden, encoder["second"][0]), 0)
    expected = np.stack([Z.reshape(5, 108) @ heads["kernel"][t] for t in range(2)])
    found = overlapping_digits.encode(params["encoder"], {"x": x})
    np.testing.assert_allclose(found, Z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        overlapping_digits.logits(params["heads"], found), expected, rtol=1e-4, atol=1e-4
    )
    assert hidden.std() == pytest.approx(np.sqrt(2) * np.sqrt(0.5 - 0.5 / np.pi), rel=0.1)
    assert heads["kernel"].std() == pytest.approx(108**-0.5, rel=0.05)


@pytest.mark.parametrize("part", [office_caltech, overlapping_digits])
def test_single_task_networks_begin_as_the_shared_one(part):
    if part is office_caltech:
        shared, alone = (part.first_params(0, 7, 4, alone) for alone in (False, True))
        batch = {"x": jax.random.normal(jax.random.key(1), (4, 3, 7))}
        assert float(shared["heads"]["kernel"].std()) == pytest.approx(1 / 8, rel=0.1)
    else:
        shared, alone = (part.first_params(0, alone) for alone in (False, True))
        batch = {"x": jax.random.normal(jax.random.key(1), (3, 144))}
    together, apart = (part.logits(p["heads"], part.encode(p["encoder"], batch)) for p in (shared, alone))
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-5)
    own = jax.tree.leaves(alone["encoder"])
    assert {leaf.shape[0] for leaf in own} == {len(apart)}


# Training


def _encode(encoder, batch):
    return jnp.tanh(batch["x"] @ encoder)


def _logits(heads, Z):
    return Z @ heads["kernel"] + heads["bias"][:, None]


def _adam(steps):
    return ADAM


ADAM = optax.adam(1e-2)
SMALL = Network(
    _encode, _logits, lambda common, data, rows: jax.tree.map(lambda a: a[rows], data), _adam, True
)
SEEDS, STEPS, TASKS = 2, 20, 3


@pytest.fixture
def problem():
    """First parameters, data and draws of a small network, with a leading seed axis."""
    rng = np.random.default_rng(0)
    params = {
        "encoder": rng.normal(size=(SEEDS, 5, 6)) / 2,
        "heads": {"kernel": rng.normal(size=(SEEDS, TASKS, 6, 4)) / 2, "bias": np.zeros((SEEDS, TASKS, 4))},
    }
    data = {"x": rng.normal(size=(SEEDS, 30, 5)), "y": rng.integers(0, 4, (SEEDS, 30))}
    params, data = jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float32 if a.dtype.kind == "f" else jnp.int32), (params, data)
    )
    return params, None, data, jnp.asarray(rng.integers(0, 30, (SEEDS, STEPS, TASKS, 8)))


def by_hand(problem, seed, loss_fn, extra):
    """The same training without the engine, and the batch of the last step."""
    params, _, data, draws = jax.tree.map(lambda a: a[seed], problem)
    params, state = params | extra, ADAM.init(params | extra)

    @jax.jit
    def update(params, state, batch):
        updates, state = ADAM.update(jax.grad(loss_fn)(params, batch), state)
        return optax.apply_updates(params, updates), state

    for rows in draws:
        batch = jax.tree.map(lambda a: a[rows], data)  # noqa: B023
        params, state = update(params, state, batch)
    return params, batch


def _cross_entropies(params, batch):
    logits = _logits(params["heads"], _encode(params["encoder"], batch))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]), axis=1)


PLAIN = {
    "sum": lambda p, b: _cross_entropies(p, b).sum(),
    "log": lambda p, b: jnp.log(_cross_entropies(p, b) + 1e-8).sum(),
    "uncertainty": lambda p, b: uw(_cross_entropies(p, b), p["log_variances"]),
}


@pytest.mark.parametrize("losses", PLAIN)
@pytest.mark.slow
def test_training_by_hand(problem, losses):
    """With and without regularisers, whose weights are arguments of one program."""
    extra = {"log_variances": jnp.zeros(TASKS)} if losses == "uncertainty" else {}
    regularised = make_rep_mtl_loss(
        _encode,
        lambda heads, Z, batch: _cross_entropies_of(heads, Z, batch),
        own_inputs=True,
        log_transform=losses == "log",
        lam_tsr=0.9,
        lam_csa=0.3,
        weighting=jnp.zeros_like,
    )
    for method, loss_fn in (
        (Method(losses=losses), PLAIN[losses]),
        (Method(0.9, 0.3, losses=losses), lambda p, b: PLAIN[losses](p, b) + regularised(p, b, None)[0]),
    ):
        found, seen = train(SMALL, method, *problem)
        expected, batch = by_hand(problem, 1, loss_fn, extra)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-3, atol=1e-4), found, expected)
        aux = regularised(expected, batch, None)[1]
        np.testing.assert_allclose(seen.entropy[1, -1], aux["tsr"], rtol=1e-3)
        assert seen.entropy.shape == (SEEDS, STEPS // training.EVERY)


def _cross_entropies_of(heads, Z, batch):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(_logits(heads, Z), batch["y"]), axis=1)


@pytest.mark.slow
def test_similarities_leave_out_an_example_with_itself(problem):
    params, _, data, draws = jax.tree.map(lambda a: a[0], problem)
    batch = jax.tree.map(lambda a: a[draws[0]], data)
    seen = training._saliencies(SMALL, Method(), params, batch)
    Z = _encode(params["encoder"], batch)
    # A task's loss depends on its own rows of Z alone.
    S = jax.grad(lambda Z: _cross_entropies_of(params["heads"], Z, batch).sum())(Z)
    positive, negative = (np.asarray(terms) for terms in csa_terms(1e3 * S))
    np.testing.assert_allclose(seen.positive, positive.mean(), rtol=1e-4)
    np.testing.assert_allclose(seen.negative, negative[~np.eye(8, dtype=bool)].mean(), rtol=1e-4)


def test_steps_are_looked_at_every_tenth(problem):
    params, common, data, draws = problem
    with pytest.raises(ValueError, match="draws: expected a multiple of 10 steps, got 15"):
        train(SMALL, Method(), params, common, data, draws[:, :15])


@pytest.mark.slow
def test_single_task_networks_learn():
    """Chance is 10 %; nothing is seen of their saliencies."""
    office = office_caltech.made_domains()
    splits = [office_caltech.split_office(office, seed) for seed in range(2)]
    found = office_caltech.train_office(office, splits, STL, 60)
    assert found["accuracy"].shape == (2, 4)
    assert (found["accuracy"].mean(1) > 40).all()
    assert "encoder" not in found
    assert not found["entropy"].any()


def test_accuracy_by_hand():
    office = office_caltech.made_domains()
    splits = [office_caltech.split_office(office, seed) for seed in range(2)]
    params = [office_caltech.first_params(seed, 64, 4) for seed in range(2)]
    scale = office_caltech._Scale(jnp.zeros((2, 64)), jnp.ones((2, 64)))
    common = {"x": jnp.asarray(office.x), "y": jnp.asarray(office.y)}
    found = office_caltech._accuracy(office_caltech._stack(params), common, scale, splits)
    for seed, split in enumerate(splits):
        encoder, heads = jax.tree.map(np.asarray, (params[seed]["encoder"], params[seed]["heads"]))
        for task, rows in enumerate(split.test):
            guesses = np.maximum(office.x[rows] @ encoder["kernel"], 0) @ heads["kernel"][task]
            expected = 100 * (guesses.argmax(1) == office.y[rows]).mean()
            assert found[seed, task] == pytest.approx(expected, abs=100 / len(rows))


# What is compared


def test_names_of_methods():
    named = {
        STL: "STL",
        EW: "EW",
        TSR: "TSR 0.9",
        Method(0.9, 0.3): "TSR 0.9 + CSA 0.3",
        Method(0.0, 0.9, tau=1.0, reg_grad_to="all"): "CSA 0.9, τ 1, heads too",
        Method(losses="log", paired=True): "EW, log losses, paired by label",
    }
    assert {method: method.name for method in named} == named
    assert [kind(method) for method in named] == ["EW", "EW", "TSR", "TSR + CSA", "CSA", "EW"]
    for preset in PRESETS.values():
        for methods in (rep_mtl._office_methods(preset), rep_mtl._digit_methods(preset)):
            assert len({method.stage for method in methods}) == len(methods)
            assert all(reference(method) in methods for method in methods if not method.alone)
    assert rep_mtl.PROTOTYPE.keys() <= set(rep_mtl._office_methods(Config()))
    assert rep_mtl.DIGIT_PROTOTYPE.keys() <= set(rep_mtl._digit_methods(Config()))


def results(methods, seeds=4, tasks=2):
    """Numbers from which each measurement can be told apart."""
    rng = np.random.default_rng(0)
    return {
        method: {
            "accuracy": rng.uniform(40, 80, (seeds, tasks)),
            **{name: rng.random((seeds, 30)) for name in ("entropy", "positive", "negative")},
            "heads": rng.uniform(1, 8, (seeds, tasks)),
            "encoder": rng.uniform(1, 8, seeds),
        }
        for method in methods
    }


def test_gains_and_delta_p():
    log = dataclasses.replace(EW, losses="log")
    found = results((STL, EW, TSR, log))
    found[EW]["accuracy"][0], found[TSR]["accuracy"][0] = [50, 60], [51, 63]
    found[STL]["accuracy"][0] = [50, 80]
    assert gains(found, TSR)[0] == pytest.approx(2)
    assert delta_p(found, EW)[0] == pytest.approx(-12.5, rel=1e-5)
    assert reference(dataclasses.replace(FULL, losses="log", tau=1.0, reg_grad_to="all")) == log
    table = accuracy_table("title", found, ("a", "b"), {TSR: 1.32}, "gain")
    assert [row[0] for row in table.rows] == ["STL", "EW", "TSR 0.9", "EW, log losses"]
    assert [row[4] == "" for row in table.rows] == [True, True, False, True]
    assert table.rows[2][6] == "+1.32"
    assert table.columns[6] == "a prototype's gain"


def test_claims_are_measured():
    safe = [Method(lam, lam) for lam in SAFE]
    office = results((STL, EW, TSR, CSA, FULL))
    digits = results((STL, EW, WITHOUT_CSA, WITH_CSA, *safe), seeds=3)
    found = measurements(office, digits, safe)
    assert list(found) == [claim.name for claim in CLAIMS]
    accuracy = {method: office[method]["accuracy"].mean(1) for method in office}
    np.testing.assert_allclose(found["office-rep-mtl-gains"], accuracy[FULL] - accuracy[EW])
    np.testing.assert_allclose(
        found["office-alignment-gains-more-than-entropy"], accuracy[CSA] - accuracy[TSR]
    )
    np.testing.assert_allclose(found["office-alignment-adds-to-entropy"], accuracy[FULL] - accuracy[TSR])
    np.testing.assert_allclose(
        found["digits-safe-range-of-weights"],
        np.mean([digits[m]["accuracy"].mean(1) - digits[EW]["accuracy"].mean(1) for m in safe], axis=0),
    )
    np.testing.assert_allclose(
        found["entropy-term-lowers-the-entropy"],
        office[TSR]["entropy"][:, 20:].mean(1) - office[EW]["entropy"][:, 20:].mean(1),
    )
    for name in ("positive", "negative"):
        expected = digits[WITH_CSA][name][:, 20:].mean(1) - digits[WITHOUT_CSA][name][:, 20:].mean(1)
        (value,) = (values for claim, values in found.items() if claim.endswith(f"the-{name}-similarity"))
        np.testing.assert_allclose(value, expected)
    np.testing.assert_allclose(
        found["spectrum-rep-mtl-heads-are-nearer"],
        outside(office[EW]["heads"]) - outside(office[FULL]["heads"]),
    )
    np.testing.assert_array_equal(late(np.arange(4.0)[None]), [1.5])


def test_outside():
    np.testing.assert_allclose(outside(np.array([[1.0, 3.0, 5.0], [2.0, 4.0, np.nan]])), [2 / 3, 0])


@pytest.mark.slow
def test_exponents():
    """Those of the tree of one network; matrices of fewer than 8 eigenvalues have none."""
    W = jax.random.normal(jax.random.key(0), (2, 3, 30, 10))
    tree = pl_alpha_tree({"heads": {str(t): W[1, t] for t in range(3)}})
    expected = [tree[f"heads/{t}"]["alpha"] for t in range(3)]
    np.testing.assert_allclose(exponents(W)[1], expected, rtol=1e-4)
    assert np.isnan(exponents(W[..., :7])).all()


# The experiment


@pytest.mark.slow
def test_smoke_run(tmp_path, monkeypatch):
    """A verdict for each claim, figures and tables; a run that is resumed finds the same."""
    config = PRESETS["smoke"]
    with RunDir.create("rep_mtl", config, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    assert {len(claim["values"]) for claim in report["claims"]} == {2}
    assert {claim["verdict"] for claim in report["claims"]} <= {"holds", "does not hold", "undecided"}
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == {"gains", "saliencies", "exponents"}
    assert [len(table["rows"]) for table in report["tables"]] == [5, 5, 8, 6]
    assert any("all_methods" in note for note in report["notes"])
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 2
    (tmp_path / "run" / "report.json").unlink()
    for part in (office_caltech, overlapping_digits):  # the stages are read, not computed again
        monkeypatch.setattr(part, "train", None)
    with RunDir.resume(tmp_path / "run", "rep_mtl", Config) as run_dir:
        again = run_experiment(run_dir)
    assert again["claims"] == report["claims"]
    assert again["tables"] == report["tables"]


@pytest.mark.slow
def test_image_benchmarks(tmp_path, monkeypatch):
    """Those without a folder are named; the others are trained once a method and seed, and kept."""
    from experiments.vision import training as vision_training

    calls = []

    def train_benchmark(name, method, recipe, folder, *, resume):
        calls.append((name, method, recipe.seed, recipe.data, recipe.weights, folder.name, resume))
        assert recipe.lists == str(data / "data_txt")
        return dict.fromkeys(vision_training.higher_is_better(name), 50.0 + recipe.seed)

    monkeypatch.setattr(vision_training, "train_benchmark", train_benchmark)
    data = tmp_path / "data"
    (data / "office-31").mkdir(parents=True)
    (data / "data_txt").mkdir()
    config = dataclasses.replace(
        PRESETS["smoke"], vision=("nyuv2", "office-31"), vision_seeds=2, data_dir=data
    )
    for _ in range(2):
        run_dir = (
            RunDir.resume(tmp_path / "run", "rep_mtl", Config)
            if calls
            else RunDir.create("rep_mtl", config, path=tmp_path / "run")
        )
        with run_dir:
            tables, notes = rep_mtl._vision(run_dir.config, run_dir)
    assert len(calls) == len(set(calls)) == 2 * len(vision.METHODS)
    assert calls[-1] == ("office-31", "rep-mtl", 1, str(data / "office-31"), "", "rep-mtl-1", True)
    ours = [row for row in tables[0].rows if row[1] == "ours"]
    assert sorted(str(row[0]) for row in ours) == sorted(vision.METHODS)
    assert {row[2] for row in ours} == {50.5}
    assert "nyuv2: nyuv2 was left out (--data-dir says where to look)" in notes[0]
    assert "resnet18.safetensors: office-31 began at random weights" in notes[1]
    with RunDir.create("rep_mtl", config, path=tmp_path / "none") as run_dir:
        assert rep_mtl._vision(PRESETS["smoke"], run_dir) == ([], [])


def test_presets_and_claims():
    assert set(PRESETS) == {"smoke", "cpu", "paper"}
    assert PRESETS["cpu"] == Config()
    assert [preset.vision for preset in PRESETS.values()] == [(), (), vision.BENCHMARKS]
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 1}, "seeds: expected at least 2, got 1"),
        ({"digit_seeds": 0}, "digit_seeds: expected at least 2, got 0"),
        ({"vision_seeds": 0}, "vision_seeds: expected at least 1, got 0"),
        ({"steps": 305}, "steps: expected a positive multiple of 10, got 305"),
        ({"digit_steps": 0}, "digit_steps: expected a positive multiple of 10, got 0"),
        ({"sweep": (0.1, 0.0)}, "sweep: expected positive weights"),
        ({"digit_sweep": (-0.1,)}, "digit_sweep: expected positive weights"),
        (
            {"vision": ("nyuv3",)},
            "vision: expected some of nyuv2, cityscapes, office-31, office-home, got 'nyuv3'",
        ),
        ({"vision_methods": ("rep",)}, "vision_methods: method: expected one of .*, got 'rep'"),
        ({"compile_benchmark": "coco"}, "compile_benchmark: expected some of nyuv2, .*, got 'coco'"),
        ({"compile_method": "adam"}, "compile_method: method: expected one of .*, got 'adam'"),
        ({"compile_batch": 0}, "compile_batch: expected at least 1, got 0"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


@pytest.mark.slow
def test_the_step_for_the_pod():
    target = rep_mtl.compile_target(Config())
    assert target.mesh == {"data": -1}
    assert target.batch["image"].shape == (4, 256, 224, 224, 3)
    assert set(target.state.params) == {"encoder", "heads"}
