"""The FedKA experiment: data, networks, training, what claims measure, benchmarks, the pod's round, a run."""

import dataclasses
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import fedka
from experiments.fedka import benchmarks, digit_five, sources
from experiments.fedka.claims import CLAIMS, RATIO, measurements
from experiments.fedka.network import MOMENTUM, convolutional, fedka_network, perceptron
from experiments.fedka.pod import RULES, published, round_target
from experiments.fedka.results import Part, accuracy_table, paper_table, part_of, rows_of, voting_table
from experiments.fedka.reviews import load_processed_acl, read_reviews
from experiments.fedka.sources import Domain, Domains
from experiments.fedka.training import (
    ALIGNED,
    F_DAN,
    F_DANN,
    FED_AVG,
    FED_KA,
    METHODS,
    NEEDED,
    SETS,
    federated_domains,
    kept,
    train,
)
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from jaxneg.federated import FedKAConfig, init_fedka
from jaxneg.nn import feature_mlp, log_probability_head
from jaxneg.train import compile_for, make_mesh, shardings

RNG = np.random.default_rng(0)
SIZES = FedKAConfig(rounds=5, steps=2, batch=4, accum=2, vote_steps=2, eval_batch=8)


def small_domains(inputs=6, classes=3, count=3):
    rng = np.random.default_rng(1)
    parts = []
    for place in range(count):
        x = rng.normal(place, 1, (12 + place, inputs)).astype("f4")
        y = (np.arange(len(x)) % classes).astype(np.int32)
        parts.append(Domain(f"d{place}", x, y, x[:5], y[:5]))
    return Domains("Small", tuple(parts), classes)


# Data


def test_made_domains_are_always_there():
    images, rows = sources.made_images(), sources.made_rows()
    assert (images.made, rows.made) == (True, True)
    assert [part.name for part in images.parts] == list(sources.MADE)
    assert {len(part.y) for part in images.parts} == {359}
    assert {len(part.y) + len(part.test_y) for part in rows.parts} == {449}
    assert all(part.x.shape[1:] == (16, 16, 3) and part.x.dtype == np.uint8 for part in images.parts)
    assert all(set(part.y) == set(range(10)) for part in images.parts + rows.parts)
    assert all(part.x.shape[1] == part.test_x.shape[1] == 64 for part in rows.parts)
    assert rows.parts[0].x.max() <= 1


def digit_arrays():
    x = {
        f"x_{name}": RNG.integers(0, 256, (12, 16, 16, 3)).astype(np.uint8) for name in sources.DIGIT_DOMAINS
    }
    return x | {f"y_{name}": (np.arange(12) % 10).astype(np.uint8) for name in sources.DIGIT_DOMAINS}


def review_arrays():
    """Two rows a split: 3 times column 0, once column 4; twice column 2, the last that is taken."""
    arrays = {}
    for domain in sources.REVIEW_DOMAINS:
        for split in ("train", "test"):
            own = {"data": [3, 1, 2], "indices": [0, 4, 2], "indptr": [0, 2, 3], "y": [1, 0]}
            arrays |= {f"{domain}_{split}_{kind}": np.array(values) for kind, values in own.items()}
    return arrays


def write(folder, name, arrays):
    np.savez(folder / name, **{key: x for key, x in arrays.items() if x is not None})
    return folder / name


def test_files(tmp_path):
    arrays = digit_arrays()
    digits = sources.load_digits(write(tmp_path, "digits.npz", arrays))
    np.testing.assert_array_equal(digits.parts[3].x, arrays["x_op"])
    reviews = sources.load_reviews(write(tmp_path, "reviews.npz", review_arrays()), columns=3)
    assert [part.name for part in reviews.parts] == list(sources.REVIEW_DOMAINS)
    for x in (reviews.parts[1].x, reviews.parts[1].test_x):
        np.testing.assert_allclose(x, np.log([[4, 1, 1], [1, 1, 3]]), rtol=1e-6)
    assert reviews.parts[2].test_y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("digits", {"x_up": None}, r"array 'x_up' is missing, it holds .*: copy the file again"),
        ("digits", {"x_mm": np.zeros((3, 8, 8, 3), np.uint8)}, r"array 'x_mm' has shape \(3, 8, 8, 3\)"),
        ("digits", {"x_mm": np.zeros((0, 16, 16, 3), np.uint8)}, r"array 'x_mm' has shape \(0, 16"),
        (
            "digits",
            {"y_sy": np.zeros(11, int)},
            r"array 'y_sy' has shape \(11,\) .*: expected a whole number",
        ),
        (
            "digits",
            {"y_sy": np.arange(12)},
            r"array 'y_sy', record 10 holds 10: classes go from 0 to 9; correct",
        ),
        (
            "reviews",
            {"dvd_test_data": np.ones(9)},
            r"'dvd_test_indptr' does not divide 9 counts and 3 columns",
        ),
        ("reviews", {"dvd_test_indptr": np.array([0, 4, 3])}, r"'dvd_test_indptr' does not divide"),
        ("reviews", {"kitchen_train_y": np.array([0, 2])}, r"'kitchen_train_y', record 1 holds 2: classes"),
    ],
)
def test_wrong_files(tmp_path, which, change, message):
    arrays, load = {
        "digits": (digit_arrays(), sources.load_digits),
        "reviews": (review_arrays(), sources.load_reviews),
    }[which]
    path = write(tmp_path, "data.npz", arrays | change)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_absent_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"set JAXNEG_DATA to the folder that holds fedka/x\.npz"):
        sources.load_reviews(tmp_path / "x.npz")
    with pytest.raises(FileNotFoundError, match=r"mnist_data\.mat: Digit-Five's folder holds mnist_data"):
        digit_five.load_digit_five(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"positive\.review: processed_acl holds a folder for each of"
    ):
        load_processed_acl(tmp_path)


def mat_arrays(count=3):
    """Each file's arrays as Digit-Five has them, by its name."""
    y = np.arange(count) % 10
    hot = np.eye(10)[y]
    grey = RNG.integers(0, 256, (count, 28, 28, 1)).astype(np.uint8)
    cells = np.empty((2, 2), object)
    for row in range(2):
        cells[row, 0] = np.moveaxis(grey, -1, 1) / 255
        cells[row, 1] = y[:, None]
    large = np.full((32, 32, 3, count), 7, np.uint8)
    return {
        "mnist_data.mat": {"train_28": grey, "label_train": hot},
        "mnistm_with_label.mat": {"train": grey.repeat(3, -1), "label_train": hot},
        "usps_28x28.mat": {"dataset": cells},
        "svhn_train_32x32.mat": {"X": large, "y": np.where(y == 0, 10, y)[:, None]},
        "syn_number.mat": {"train_data": np.moveaxis(large, -1, 0), "train_label": y[:, None]},
    }


def write_mats(folder, files):
    from scipy.io import savemat

    for name, arrays in files.items():
        savemat(folder / name, arrays)
    return folder


def test_digit_five(tmp_path):
    files = mat_arrays()
    found = digit_five.load_digit_five(write_mats(tmp_path, files))
    grey = files["mnist_data.mat"]["train_28"].repeat(3, -1)
    assert [part.name for part in found.parts] == ["mt", "mm", "up", "sv", "sy"]
    for part in found.parts:
        assert part.y.tolist() == [0, 1, 2]
        assert (part.x.shape, part.x.dtype) == ((3, 28, 28, 3), np.dtype(np.uint8))
    for place in range(3):
        np.testing.assert_array_equal(found.parts[place].x, grey)
    assert (found.parts[3].x == 7).all()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mnist_data.mat", {"train_28": None}, "array 'train_28' is missing, it holds label_train: get"),
        ("mnist_data.mat", {"label_train": np.eye(3)}, r"'label_train' has shape \(3, 3\): expected \[n, 10"),
        ("mnistm_with_label.mat", {"label_train": np.ones((3, 10))}, "'label_train', record 0 is not one"),
        ("usps_28x28.mat", {"dataset": np.zeros((2, 2))}, "expected cells with images and labels"),
        ("svhn_train_32x32.mat", {"y": np.array([[0], [1], [2]])}, "'y', record 0 holds 0: SVHN's labels go"),
        ("syn_number.mat", {"train_label": np.array([[1], [2]])}, "labels has shape .*: expected a whole"),
        ("syn_number.mat", {"train_data": np.full((3, 28, 28, 3), np.nan)}, "numbers that are not from 0 to"),
    ],
)
def test_a_wrong_digit_five(tmp_path, name, change, message):
    files = mat_arrays()
    files[name] = {key: x for key, x in (files[name] | change).items() if x is not None}
    with pytest.raises(ValueError, match=message) as error:
        digit_five.load_digit_five(write_mats(tmp_path, files))
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("length", [4, 200, 400])
def test_a_damaged_digit_five(tmp_path, length):
    path = write_mats(tmp_path, mat_arrays()) / "usps_28x28.mat"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(
        ValueError, match=r"usps_28x28\.mat is no MATLAB file that can be read .*: get it again"
    ):
        digit_five.load_digit_five(tmp_path)


def test_reviews_as_published(tmp_path):
    for domain in sources.REVIEW_DOMAINS:
        (tmp_path / domain).mkdir()
        lines = {
            "positive": "good:2 a_good:1",
            "negative": "bad:1 a:b:1 good:1",
            "unlabeled": "good:1 rare:3",
        }
        for name, line in lines.items():
            label = "negative" if name == "negative" else "positive"
            (tmp_path / domain / f"{name}.review").write_text(f"{line} #label#:{label}\n")
    found = load_processed_acl(tmp_path, columns=2)  # good, of 12 reviews, and of those in 4 the first: a:b
    np.testing.assert_allclose(found.parts[0].x, np.log([[3, 1], [2, 2]]), rtol=1e-6)
    assert found.parts[0].y.tolist() == [1, 0]
    np.testing.assert_allclose(found.parts[3].test_x, np.log([[2, 1]]), rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("good:1\n", "line 1: expected '#label#:positive' or '#label#:negative' at the end, got 'good:1'"),
        (
            "a:1 #label#:positive\nb:1 #label#:maybe\n",
            "line 2: expected '#label#:positive' .* '#label#:maybe'",
        ),
        ("a:1 b #label#:positive\n", "line 1: expected 'word:count', got 'b': correct or remove the line"),
        ("a:0 #label#:positive\n", "line 1: expected 'word:count', got 'a:0'"),
        ("\n", "holds no review: get the file again"),
    ],
)
def test_wrong_reviews(tmp_path, text, message):
    path = tmp_path / "positive.review"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_reviews(path)
    assert str(path) in str(error.value)


def test_each_domain_is_the_target_once():
    domains = small_domains()
    data = federated_domains(domains, 1)
    assert data.sizes.tolist() == [12, 14]
    np.testing.assert_array_equal(data.target_x, domains.parts[1].x)
    np.testing.assert_array_equal(data.source_x[1], domains.parts[2].x)
    np.testing.assert_array_equal(data.eval_y, domains.parts[1].y)


def test_bad_domains_are_named():
    """A client without data; a class in the target that no client has."""
    domains = small_domains()
    empty = domains.parts[2]._replace(x=domains.parts[2].x[:0], y=domains.parts[2].y[:0])
    with pytest.raises(ValueError, match="d2: expected at least one example, got none"):
        federated_domains(domains._replace(parts=(*domains.parts[:2], empty)), 0)
    unseen = domains.parts[0]._replace(y=np.full(12, 3, np.int32))
    with pytest.raises(
        ValueError, match="class 3 is in the target domain, but no client has an example of it"
    ):
        federated_domains(domains._replace(parts=(unseen, *domains.parts[1:]), classes=4), 0)


# Networks


def test_running_statistics_move():
    """A tenth of the batch's; evaluation with them; without them nothing is kept, and asking says so."""
    features, classes, domains = (
        feature_mlp(3, (4,)),
        log_probability_head(4, 5, 2),
        log_probability_head(4, 5, 2),
    )
    example = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    network = fedka_network(features, classes, domains, example, running=True)
    params, stats = network.init(jax.random.key(0))
    x = jnp.asarray(RNG.normal(3, 2, (8, 3)), jnp.float32)
    norm = stats["features"]["norms"]["0"]
    assert (norm["mean"].tolist(), norm["variance"].tolist()) == ([0] * 4, [1] * 4)
    _, moved = network.features(params["features"], stats["features"], x, "train", None)
    own = features.statistics(params["features"], x)["norms"]["0"]
    moved = moved["norms"]["0"]
    np.testing.assert_allclose(moved["mean"], MOMENTUM * own["mean"], rtol=1e-5)
    np.testing.assert_allclose(moved["variance"], 1 - MOMENTUM + MOMENTUM * own["variance"], rtol=1e-5)
    h, same = network.features(params["features"], stats["features"], x, "running", None)
    np.testing.assert_allclose(h, features.evaluate(params["features"], stats["features"], x), rtol=1e-6)
    assert same is stats["features"]
    h, same = network.features(params["features"], stats["features"], x, "batch", jax.random.key(0))
    np.testing.assert_allclose(h, features.apply(params["features"], x), rtol=1e-6)
    assert same is stats["features"]
    bare = fedka_network(features, classes, domains, example)
    assert bare.init(jax.random.key(0))[1] == {"features": {}, "classifier": {}, "discriminator": {}}
    with pytest.raises(ValueError, match="eval_bn: 'running' needs a network with running statistics"):
        bare.features(params["features"], {}, x, "running", None)


def test_networks_are_the_published_ones():
    network = convolutional(28)
    assert network is convolutional(28)
    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 28, 28, 3), jnp.uint8)
    h, _ = jax.eval_shape(lambda p, x: network.features(p, {}, x, "batch", None), params["features"], images)
    assert h.shape == (2, 800)
    for part, outputs in (("classifier", 10), ("discriminator", 2)):
        logp, _ = jax.eval_shape(
            lambda p, h, part=part: getattr(network, part)(p, {}, h, "batch", None), params[part], h
        )
        assert logp.shape == (2, outputs)
    with pytest.raises(
        ValueError, match=r"size: images of 8 pixels leave nothing behind kernels of \(5, 5\)"
    ):
        convolutional(8)


# Training

NETWORK = perceptron(6, 3, width=8, hidden=4)


def checked(found):
    for name in ("accuracy", "average", "effect", "votes", "class_loss", "domain_loss", "matching_loss"):
        assert found[name].shape == (2, 5)
    assert found["clients"].shape == (2, 5, 2)
    assert found["test"].shape == found["average_test"].shape == (2,)
    np.testing.assert_allclose(found["effect"], found["average"] - found["clients"].mean(2), atol=1e-4)
    assert not np.array_equal(found["class_loss"][0], found["class_loss"][1]), "seeds differ"
    assert found["domain_loss"].all()


def test_what_is_found():
    found = train(small_domains(), 0, dataclasses.replace(F_DANN, vote=False), SIZES, NETWORK, 2)
    checked(found)
    assert not found["matching_loss"].any()
    np.testing.assert_array_equal(found["accuracy"], found["average"])


@pytest.mark.slow
def test_what_all_of_fedka_finds():
    quick = dataclasses.replace(SIZES, learning_rate=0.05)  # so that tuning moves some prediction
    found = train(small_domains(), 0, FED_KA, quick, NETWORK, 2)
    checked(found)
    assert found["matching_loss"][:, 1:].all()
    assert not np.array_equal(found["accuracy"], found["average"])


@pytest.mark.slow
def test_voting_leaves_the_average_of_fed_avg_alone():
    """So that one run serves for FedAvg with and without voting."""
    method = FED_AVG
    voting, without = (
        train(small_domains(), 0, each, SIZES, NETWORK, 2)
        for each in (method, dataclasses.replace(method, vote=False))
    )
    np.testing.assert_allclose(without["accuracy"], voting["average"], atol=1e-4)
    np.testing.assert_allclose(without["class_loss"], voting["class_loss"], rtol=1e-4)
    np.testing.assert_allclose(without["test"], voting["average_test"], atol=1e-4)
    assert not voting["domain_loss"].any()


def test_methods():
    assert set(NEEDED) < set(SETS["ablation"]) < set(METHODS)
    assert len({method.stage for method in METHODS}) == len(METHODS)
    assert all(re.fullmatch(r"[a-z0-9-]+", method.stage) for method in METHODS)
    assert [method for method in METHODS if method.averaged] == [FED_AVG, METHODS[1], F_DANN]
    cfg = FED_KA.config(published())
    assert (cfg.disentangle, cfg.match, cfg.vote, cfg.rounds) == (True, True, True, 200)
    assert not ALIGNED.config(SIZES).vote


def test_a_client_that_is_not_finite_stops_the_run():
    history = {"left_out": np.array([[[False, False]], [[False, True]]])}
    with pytest.raises(FloatingPointError, match="FedKA on up: round 0: client 1 is not finite"):
        kept(history, "FedKA on up")


# Results


def made_part(title="Five digit domains", targets=("a", "b", "c"), seeds=3, methods=METHODS, test=False):
    rng = np.random.default_rng(2)
    found = {}
    for method in methods:
        series = {
            name: rng.uniform(20, 90, (len(targets), seeds, 7))
            for name in ("accuracy", "average", "effect", "votes")
        }
        if test:
            series |= {name: rng.uniform(20, 90, (len(targets), seeds)) for name in ("test", "average_test")}
        found[method] = series
    return Part(title, targets, found)


def test_what_the_claims_measure():
    digits, reviews = made_part(), made_part("Amazon reviews")
    found = measurements(digits, reviews)
    assert set(found) == {claim.name for claim in CLAIMS}
    assert {np.shape(values) for values in found.values()} == {(3,)}

    def last(method, name, part=digits):
        return part.found[method][name][:, :, 2:].mean(2)

    gain = (last(ALIGNED, "accuracy") - last(FED_AVG, "average")).mean(0)
    np.testing.assert_allclose(found["digits-alignment-gains-a-point"], gain)
    gain = (last(FED_KA, "accuracy", reviews) - last(FED_AVG, "average", reviews)).mean(0)
    np.testing.assert_allclose(found["reviews-fedka-gains"], gain)
    effects = last(ALIGNED, "effect").mean(0) - RATIO * last(FED_AVG, "effect").mean(0)
    np.testing.assert_allclose(found["digits-group-effect-grows"], effects)
    tuning = last(FED_KA, "accuracy") - last(FED_KA, "average")
    np.testing.assert_allclose(found["digits-votes-hurt-where-clients-are-wrong"], tuning[2])
    np.testing.assert_allclose(found["digits-votes-improve-the-global-model"], tuning.mean(0))
    least = last(FED_AVG, "effect").mean(1).argmin()
    np.testing.assert_allclose(found["averaging-transfers-negatively"], last(FED_AVG, "effect")[least])


def test_tables():
    part = made_part(test=True)
    table = accuracy_table(part, {"FedAvg": (1.0, 2.0, 3.0)})
    names = [row[0] for row in table.rows]
    assert names == [name for method in METHODS for name in rows_of(method)]
    assert {"FedAvg", "FedAvg + voting", "FedKA", "FedKA without voting", "f-DAN + voting"} <= set(names)
    assert table.columns[-1] == "test rows"
    assert table.rows[0][1].endswith("(1.0)")
    assert table.rows[0][5] == ""
    first = part.found[FED_AVG]["average"]
    assert table.rows[0][4] == f"{first[:, :, 2:].mean():.2f}"
    assert table.rows[0][6] == f"{first.max(2).mean():.1f}"
    assert float(table.rows[1][8]) == pytest.approx(part.found[FED_AVG]["test"].mean(), abs=0.01)
    votes = voting_table(part)
    assert [row[0] for row in votes.rows] == [
        f"{m.name} + voting" if m.averaged else m.name for m in METHODS if m.vote
    ]
    beside = paper_table([part, made_part("Digits in made domains")])
    assert [row[1] for row in beside.rows] == ["+8.8", ""]


def test_targets_lie_side_by_side():
    domains = small_domains()
    found = {(F_DAN, place): {"accuracy": np.full((2, 5), place)} for place in range(3)}
    part = part_of(domains, [F_DAN], found)
    assert part.targets == ("d0", "d1", "d2")
    np.testing.assert_array_equal(part.late(F_DAN, "accuracy"), [[0, 0], [1, 1], [2, 2]])


# The benchmarks, the pod, the run


@pytest.mark.slow
def test_a_benchmark_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """Stopped after the last but one round: the same numbers. On two devices nearly those of one."""
    monkeypatch.setattr(benchmarks, "CHECKPOINT_EVERY", 1)

    def once(folder, devices=1):
        method = dataclasses.replace(F_DANN, vote=False)
        arguments = (small_domains(), 0, method, SIZES, NETWORK, 0, tmp_path / folder)
        return benchmarks.train_benchmark(*arguments, jax.devices()[:devices])

    whole = once("one")
    shutil.rmtree(tmp_path / "one" / "checkpoints" / "5")
    again = once("one")
    for name, values in whole.items():
        assert values.shape[0] == 5
        np.testing.assert_array_equal(again[name], values)
    spread = once("two", 2)
    np.testing.assert_allclose(spread["class_loss"], whole["class_loss"], rtol=1e-3)


def test_benchmarks_are_put_side_by_side(tmp_path, monkeypatch):
    """Each method, target and seed once, in a folder of its own; the second time from the stages."""
    (tmp_path / "processed_acl").mkdir()
    asked = []

    def fake(domains, target, method, sizes, network, seed, folder):
        asked.append(folder.name)
        assert (sizes.rounds, sizes.batch, sizes.learning_rate) == (7, 16, 3e-4)
        return {"accuracy": np.full(7, 10.0 * target + seed)}

    monkeypatch.setitem(benchmarks.LOADERS, "amazon", lambda folder: small_domains())
    monkeypatch.setattr(benchmarks, "train_benchmark", fake)
    with RunDir.create("fedka", fedka.PRESETS["smoke"], path=tmp_path / "run") as run_dir:
        for _ in range(2):
            parts, notes = benchmarks.run_benchmarks(("amazon",), NEEDED, tmp_path, 7, 2, run_dir)
    assert notes == []
    assert len(asked) == len(set(asked)) == 3 * 3 * 2
    assert "amazon-fedka-without-voting-d1-1" in asked
    np.testing.assert_array_equal(parts[0].late(FED_KA, "accuracy"), [[0, 1], [10, 11], [20, 21]])


def test_rules_put_clients_on_the_mesh():
    mesh = make_mesh({"client": 2}, devices=jax.devices()[:2])
    state = init_fedka(NETWORK, 2, SIZES, jax.random.key(0))
    spread = shardings(state, mesh, RULES)
    assert {sharding.spec for sharding in jax.tree.leaves(spread.clients)} == {jax.P("client")}
    assert {sharding.spec for sharding in jax.tree.leaves((spread.cloud, spread.step))} == {jax.P()}
    data = shardings(federated_domains(small_domains(), 0), mesh, RULES)
    assert data.source_x.spec == data.sizes.spec == data.participating.spec == jax.P("client")
    assert data.target_x.spec == data.eval_x.spec == jax.P()


@pytest.mark.slow
@pytest.mark.tpu_compile
def test_the_round_compiles_for_a_small_pod():
    pytest.importorskip("libtpu")
    sizes = dataclasses.replace(published(), steps=2, batch=4, accum=2, vote_steps=2, eval_batch=16)
    report = compile_for(round_target(16, 8, sizes, chips=16, target=16, evaluated=16), "v5e:4x4")
    assert report.fits
    assert report.collectives["all-reduce"] > 0


def test_presets():
    assert set(fedka.PRESETS) == {"smoke", "cpu", "paper"}
    assert fedka.PRESETS["cpu"].digit_seeds >= 3
    assert fedka.PRESETS["paper"].benchmarks == benchmarks.BENCHMARKS
    assert fedka.PRESETS["paper"].pod_clients == 256


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"digit_seeds": 1}, "digit_seeds: expected at least 2, got 1"),
        ({"object_seeds": 1}, "object_seeds: expected 0 or at least 2, got 1"),
        ({"review_rounds": 4}, "review_rounds: expected at least 5, got 4"),
        ({"benchmark_seeds": 1}, "benchmark_seeds: expected at least 2, got 1"),
        ({"benchmarks": ("mnist",)}, "benchmarks: expected some of digit-five, amazon, got 'mnist'"),
        ({"accum": 5}, "accum: expected a divisor of steps = 16, got 5"),
        ({"data": "none"}, "data: expected 'real' or 'made', got 'none'"),
        ({"methods": "none"}, "methods: expected one of needed, ablation, all, got 'none'"),
        ({"eval_bn": "none"}, "eval_bn: expected one of batch, running, got 'none'"),
        ({"pod_clients": 100}, "pod_clients: expected a positive multiple of 256, got 100"),
        ({"pod_examples": 0}, "pod_examples: expected at least 1, got 0"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fedka.Config(**fields)


def test_a_missing_benchmark_is_noted(tmp_path):
    with RunDir.create("fedka", fedka.PRESETS["smoke"], path=tmp_path / "run") as run_dir:
        parts, notes = benchmarks.run_benchmarks(("digit-five",), NEEDED, tmp_path, 5, 2, run_dir)
    assert parts == []
    assert f"There is no folder {tmp_path / 'Digit-Five'}: digit-five was left out" in notes[0]


def test_what_stands_in_for_absent_files(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DIGITS", tmp_path / "digits.npz")
    monkeypatch.setattr(sources, "REVIEWS", tmp_path / "reviews.npz")
    digits, reviews, notes = fedka._domains("real")
    assert digits.parts[0].x.ndim == 4
    assert reviews.parts[0].x.ndim == 2
    assert sum("say nothing about" in note for note in notes) == 2
    digits, reviews, notes = fedka._domains("made")
    assert digits.made
    assert reviews.made
    assert "say nothing about" in notes[0]


def test_a_run_of_made_up_results(tmp_path, monkeypatch):
    """Verdicts, figures and tables of all methods; a second run reads the stages of the first."""

    def fake(domains, target, method, sizes, network, seeds):
        rng = np.random.default_rng([target, len(method.name)])
        names = ("accuracy", "average", "effect", "votes")
        found = {name: rng.uniform(20, 90, (seeds, sizes.rounds)) for name in names}
        return found | {name: rng.uniform(20, 90, seeds) for name in ("test", "average_test")}

    monkeypatch.setattr(fedka, "train", fake)
    config = dataclasses.replace(fedka.PRESETS["smoke"], methods="all")
    path = tmp_path / "run"
    with RunDir.create("fedka", config, preset="smoke", path=path) as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    figures = sorted((path / "figures").glob("*.png"))
    assert [figure.stem for figure in figures] == ["gains", "group_effect", "rounds", "votes"]
    assert all(figure.stat().st_size > 10_000 for figure in figures)
    assert [len(table["rows"]) for table in report["tables"]] == [2, 11, 11, 6, 6]
    assert "say nothing about" in report["notes"][0]
    (path / "report.json").unlink()
    monkeypatch.setattr(fedka, "train", None)  # every stage is there
    with RunDir.resume(path, "fedka", fedka.Config) as run_dir:
        assert run_experiment(run_dir)["claims"] == report["claims"]


@pytest.mark.slow
def test_smoke_run(tmp_path):
    """On the digits that are always there."""
    with RunDir.create("fedka", fedka.PRESETS["smoke"], preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert all(claim["verdict"] in ("holds", "does not hold", "undecided") for claim in report["claims"])
    assert "made domains" in report["tables"][1]["title"]
