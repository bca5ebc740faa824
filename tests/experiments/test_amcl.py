"""The AMCL experiment: its data, its steps on every base method, one device and eight, a run."""

import importlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import amcl
from experiments.amcl import controlled, sources
from experiments.amcl.claims import CLAIMS, FEW, MANY, measurements
from experiments.amcl.comparison import arms, batches, fixed_arms
from experiments.amcl.pod import pod_step, pod_target
from experiments.amcl.training import StepConfig, init_amcl_state, make_amcl_train_step
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from jaxneg.train import compile_for, make_mesh, shard_step

TINY = StepConfig(heads=2, hidden=4, outputs=3, width=4, size=8, queue=16, steps=4, batch=8, letters="acde")
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
BASES = ("simclr", "moco", "simsiam", "barlow_twins")


def cifar_files(folder, classes):
    """A few records in the binary format, and what they hold."""
    rng = np.random.default_rng(0)
    train, test = sources.CIFAR_FILES[classes]
    held = {}
    for name in (*train, *test):
        planes, labels = rng.integers(0, 256, (3, 3072)).astype(np.uint8), rng.integers(0, classes, 3)
        heads = [labels[:, None]] if classes == 10 else [labels[:, None] * 0 + 7, labels[:, None]]
        np.concatenate([*heads, planes], 1).astype(np.uint8).tofile(folder / name)
        held[name] = planes, labels
    return held


@pytest.mark.parametrize("classes", [10, 100])
def test_cifars_binary_files(tmp_path, classes):
    held = cifar_files(tmp_path, classes)
    data = sources.load_images(f"cifar{classes}:{tmp_path}", 32, tmp_path)
    first = sources.CIFAR_FILES[classes][0][0]
    planes, labels = held[first]
    np.testing.assert_array_equal(data.train.y[:3], labels)
    assert data.train.x.shape == (3 * (len(held) - 1), 32, 32, 3)
    for channel in range(3):  # a plane after the other, row by row
        plane = planes[1, 1024 * channel : 1024 * (channel + 1)].reshape(32, 32)
        np.testing.assert_array_equal(data.train.x[1, :, :, channel], plane)
    assert data.test.x.shape == (3, 32, 32, 3)


def test_damaged_cifar_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_batch_1.bin: unpack CIFAR-10's binary version"):
        sources.cifar_binary(tmp_path)
    cifar_files(tmp_path, 10)
    file = tmp_path / "data_batch_2.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"data_batch_2.bin: expected records of 3073 bytes, got 9218 bytes"):
        sources.cifar_binary(tmp_path)
    file.write_bytes(whole[:3073] + b"\x0b" + whole[3074:])
    with pytest.raises(ValueError, match=r"data_batch_2.bin: record 1 has the class 11: expected 0 to 9"):
        sources.cifar_binary(tmp_path)
    with pytest.raises(ValueError, match="classes: expected 10 or 100, got 20"):
        sources.cifar_binary(tmp_path, 20)


def test_folders_of_images(tmp_path):
    for part in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (12, 9), (100 * label, 50, 25)).save(tmp_path / part / name / "1.png")
    data = sources.load_images(f"folder:{tmp_path}", 4, tmp_path)
    np.testing.assert_array_equal(data.train.x[1], np.full((4, 4, 3), (100, 50, 25)))
    assert data.test.y.tolist() == [0, 1]
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "fox")
    with pytest.raises(ValueError, match="class 'dog' is in one of train and val only"):
        sources.image_folder(tmp_path, 4)


def test_tfds_is_asked_for_only_when_it_is_named(monkeypatch):
    monkeypatch.setitem(importlib.sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"'cifar10' of TFDS needs tensorflow-datasets .* pip install"):
        sources.load_images("tfds:cifar10", 32, sources.Path())


def test_default_sources(tmp_path):
    assert sources.load_images("auto", 16, tmp_path).name == "digits, 16 pixels"
    with pytest.raises(ValueError, match="source: expected auto, digits, cifar10:PATH"):
        sources.load_images("cifar10", 16, tmp_path)
    (tmp_path / "amcl").mkdir()
    file = tmp_path / sources.REDUCED
    arrays = {"train_x": IMAGES, "train_y": np.arange(8) % 2, "test_x": IMAGES[:2], "test_y": np.arange(2)}
    np.savez(file, **arrays)
    data = sources.load_images("auto", 16, tmp_path)
    assert (data.classes, data.train.x.shape) == (2, (8, 8, 8, 3))
    part = sources.subset(data, 4, 0)
    assert np.bincount(part.train.y).tolist() == [2, 2]
    np.savez(file, train_x=IMAGES)
    with pytest.raises(ValueError, match="expected train_y with images"):
        sources.reduced_cifar(file)


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_step_of_every_base_method(base, adaptive):
    """On eight devices as on one; parameters move, MoCo's keys are those of the whole batch."""
    config = replace(TINY, base=base, adaptive=adaptive)
    state = init_amcl_state(config, jax.random.key(0))
    step, batch = make_amcl_train_step(config), {"images": jnp.asarray(IMAGES)}
    after, metrics = jax.jit(step)(state, batch)
    assert np.isfinite(metrics["loss"])
    for name in after.params:
        pairs = zip(jax.tree.leaves(state.params[name]), jax.tree.leaves(after.params[name]), strict=True)
        assert any(np.abs(a - b).max() > 0 for a, b in pairs), name
    sharded = shard_step(step, make_mesh({"data": -1}), state, batch, fsdp=None)
    again, on_devices = sharded(sharded.place_state(state), batch)
    np.testing.assert_allclose(on_devices["loss"], metrics["loss"], rtol=1e-3)
    np.testing.assert_allclose(on_devices["grad_norm"], metrics["grad_norm"], rtol=2e-2)
    if base == "moco":
        assert int(after.queue.ptr) == int(again.queue.ptr) == 8
        np.testing.assert_allclose(again.queue.queue, after.queue.queue, atol=1e-4)
        online, target = after.params["heads"], after.target["heads"]
        assert jax.tree.structure(online) == jax.tree.structure(target)


def test_a_queue_that_the_devices_do_not_divide():
    config = replace(TINY, base="moco", queue=12)
    state = jax.eval_shape(lambda key: init_amcl_state(config, key), jax.random.key(0))
    batch = {"images": jax.ShapeDtypeStruct(IMAGES.shape, np.uint8)}
    sharded = shard_step(make_amcl_train_step(config), make_mesh({"data": -1}), state, batch, fsdp=None)
    with pytest.raises(
        ValueError, match="queue: expected a multiple of the 8 devices of the axis 'data', got 12"
    ):
        sharded.trace(state, batch)


def test_arms_share_what_is_compared():
    found = arms(replace(TINY, letters="a"), (0.1, 0.5), (0.01, 0.1))
    assert len({arm.name for arm in found}) == len(found) == 6
    fixed, wide = fixed_arms(TINY, 0.2)
    assert (fixed.step.heads, wide.step.heads, wide.step.hidden) == (2, 1, 8)
    assert not fixed.step.adaptive
    views = [next(batches(arm.step, IMAGES, 3)) for arm in (fixed, wide)]
    np.testing.assert_array_equal(views[0]["first"], views[1]["first"])
    assert views[0]["temperature"] == np.float32(0.2)


def test_each_nuisance_alone_changes_a_view():
    world = controlled.make_world(jax.random.key(0))
    x = world.test_x[:50]
    view = jax.jit(controlled.view)
    np.testing.assert_array_equal(view(jax.random.key(1), x, jnp.zeros(4, int), world.pairs), x)
    for kind in range(4):
        changed = view(jax.random.key(1), x, jnp.arange(4) == kind, world.pairs)
        share = np.mean(np.abs(changed - x).max(1) > 0)
        assert 0.5 < share < 1, controlled.KINDS[kind]
        if controlled.KINDS[kind] == "rotation":  # which keeps lengths
            lengths = (jnp.linalg.norm(each, axis=1) for each in (changed, x))
            np.testing.assert_allclose(*lengths, rtol=1e-4)
        if controlled.KINDS[kind] == "occlusion":
            hidden = np.sum(np.asarray(changed) == 0, 1)
            assert set(hidden.tolist()) == {0, controlled.DIM // 2}


def test_measurements_have_the_right_sign():
    """Made-up results: what is better must come out as such."""

    def arm(linear, overlap=0.5, spearman=0.0):
        return {
            "linear": np.full(2, linear),
            "overlap": np.full(2, overlap),
            "spearman": np.full(2, spearman),
        }

    names = [a.name for a in arms(TINY, (0.1, 0.5), (0.1,))] + [a.name for a in fixed_arms(TINY, 0.1)]
    few = dict(zip(names, (arm(0.3), arm(0.2), arm(0.3), arm(0.31), arm(0.3), arm(0.3)), strict=True))
    many = dict(
        zip(names, (arm(0.3), arm(0.4), arm(0.41), arm(0.45, 0.3, -0.6), arm(0.43), arm(0.42)), strict=True)
    )
    linear = np.array([[[0.9], [0.8], [0.7]], [[0.9], [0.8], [0.72]], [[0.88], [0.8], [0.75]]])
    found = measurements({FEW: few, MANY: many}, {"linear": linear}, (0.1, 0.5), 2)
    expected = (0.05, 0.04, 0.01, 0.01, -0.2, -0.6, 0.07, 0.02)
    assert set(found) == {claim.name for claim in CLAIMS}
    for claim, value in zip(CLAIMS, expected, strict=True):
        np.testing.assert_allclose(found[claim.name], value, atol=1e-9, err_msg=claim.name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 1}, "heads: expected at least 2, since one head is compared with several"),
        ({"batch": 1}, "batch: expected 2 to 4000"),
        ({"tau_mins": (0.01,)}, "tau_mins: expected .* with 0.1 among them"),
        ({"temperatures": (0.0,)}, "temperatures: expected positive numbers"),
        ({"optimizer": "lars"}, "optimizer: expected adam or sgd, got 'lars'"),
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
    ],
)
def test_wrong_configs(change, message):
    with pytest.raises(ValueError, match=message):
        amcl.Config(**change)


def test_wrong_steps():
    with pytest.raises(ValueError, match=r"tau_min: expected above 0 and below tau_max = 0.1, got 0.5"):
        StepConfig(tau_min=0.5, tau_max=0.1)
    with pytest.raises(ValueError, match="batch: expected at least 2 images, each other's negatives, got 1"):
        StepConfig(batch=1)


def made_up(arm, data, seed, log_every):
    """What `train_and_judge` gives, drawn at random and a little better with several heads."""
    rng = np.random.default_rng(seed + len(arm.name))
    better = 0.02 * (arm.step.heads > 1)
    result = {
        name: 0.4 + better + 0.01 * rng.standard_normal() for name in ("linear", "knn", "auc", "overlap")
    }
    result["below_half"] = rng.random()
    steps = np.arange(log_every, arm.step.steps + 1, log_every)
    names = ["loss"]
    for kind, centre in (("pos", 0.7), ("neg", 0.1)):
        values = np.clip(centre + 0.2 * rng.standard_normal(500), -1, 1)
        result[f"{kind}_sim"] = np.histogram(values, np.linspace(-1, 1, 41))[0] / 500
        if arm.step.adaptive:
            result[f"{kind}_tau"] = np.histogram(1.2 - values, np.linspace(0, 2, 41))[0] / 500
            result |= {f"{kind}_tau_mean": 1.2 - centre, f"{kind}_tau_least": 0.1, "spearman": -0.5}
            names += ["tau_pos_mean", "tau_neg_mean", "tau_pos_at_lower_bound"]
    curves = {f"curve_{name}": np.exp(-steps / 50) * rng.random() for name in names}
    return {name: np.asarray(value) for name, value in (result | curves | {"curve_step": steps}).items()}


def test_report_of_made_up_results(tmp_path, monkeypatch):
    """Every claim, table, note and figure, without training."""
    monkeypatch.setattr(amcl, "train_and_judge", made_up)
    draws = np.random.default_rng(0).uniform(0.8, 0.9, (2, 3, 3, 2))
    monkeypatch.setattr(amcl, "compare", lambda *_: {"linear": draws[0], "knn": draws[1]})
    config = replace(amcl.PRESETS["cpu"], source="digits", images=1280, seeds=2)
    with RunDir.create("amcl", config, preset="cpu", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    assert [len(table["rows"]) for table in report["tables"]] == [9, 10, 9]
    assert "official defaults" in report["notes"][-1]
    figures = sorted((tmp_path / "run" / "figures").glob("*.png"))
    assert [path.stem for path in figures] == [
        "accuracies",
        "controlled_views",
        "similarities",
        "temperatures",
    ]
    assert all(path.stat().st_size > 10_000 for path in figures)


@pytest.mark.slow
def test_smoke(tmp_path):
    """A verdict for each claim, figures and tables; a run that is resumed finds the same."""
    config = replace(amcl.PRESETS["smoke"], seeds=2, epochs=1)
    with RunDir.create("amcl", config, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
        again = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in CLAIMS]
    assert [claim["values"] for claim in again["claims"]] == [claim["values"] for claim in report["claims"]]
    figures = sorted(path.stem for path in (tmp_path / "run" / "figures").glob("*.png"))
    assert figures == ["accuracies", "controlled_views", "similarities", "temperatures"]
    assert "digits" in " ".join(report["notes"])


@pytest.mark.tpu_compile
@pytest.mark.slow
def test_a_step_compiles_for_a_pod():
    """The step of the paper's scale in small: views are gathered for the comparison."""
    pytest.importorskip("libtpu")
    small = replace(
        pod_step(64), encoder="mixer", size=16, width=32, hidden=32, outputs=16, letters="abcde", batch=64
    )
    report = compile_for(pod_target(small), "v5e:2x2")
    assert report.fits
    assert report.collectives["all-gather"] > 0


def test_the_pods_step_is_the_papers():
    config = amcl.PRESETS["paper"]
    step = pod_step(config.pod_batch)
    assert (step.encoder, step.batch, step.size, step.heads) == ("resnet50", 4096, 224, 3)
    assert step.dtype == "bfloat16"
