"""The UNPG experiment: data, splits, the encoder, mechanisms, the pod's step, a run."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import unpg
from experiments.run_dir import RunDir
from experiments.runner import run_experiment
from experiments.unpg import identities, mechanisms
from experiments.unpg.claims import CHARACTER_SETTINGS, PEOPLE_SETTINGS, REFERENCE
from experiments.unpg.network import patches
from experiments.unpg.pod import training_target
from experiments.unpg.training import measured
from jaxneg.train import compile_for


def test_the_small_data_are_always_there(monkeypatch, tmp_path):
    monkeypatch.setattr(identities, "ORL", tmp_path / "orl.npz")
    monkeypatch.setattr(identities, "OMNIGLOT", tmp_path / "omniglot.npz")
    people, characters = identities.load_people(), identities.load_characters()
    assert people.name == characters.name == identities.SMALL_NAME
    assert people.x.shape == (400, 28, 28)
    assert np.bincount(people.y).tolist() == [10] * 40
    assert np.bincount(characters.group).tolist() == [50] * 8
    np.testing.assert_allclose(people.x.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(people.x.std((1, 2)), 1, atol=1e-4)
    notes = unpg._notes(people, characters)
    assert "JAXNEG_DATA" in notes[-1]


def test_splits_are_open(monkeypatch, tmp_path):
    monkeypatch.setattr(identities, "OMNIGLOT", tmp_path / "omniglot.npz")
    characters = identities.load_characters()
    half = identities.half_split(characters, 3)
    assert len(half.train_x) == len(half.test_x) == 200
    known = {image.tobytes() for image in half.train_x}
    assert not any(image.tobytes() in known for image in half.test_x)
    held = identities.alphabet_split(characters, 1)
    assert held.test_x.shape == (100, 28, 28)
    assert held.train_x.shape == (600, 28, 28)
    assert held.train_y.max() == 59
    np.testing.assert_array_equal(held.train_x[300], np.rot90(held.train_x[0]))


def test_label_noise():
    labels = np.repeat(np.arange(20), 10)
    noisy = identities.redrawn(labels, 0.15, 0)
    assert 20 <= (noisy != labels).sum() <= 30
    np.testing.assert_array_equal(identities.redrawn(labels, 0.0, 0), labels)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 28, 23), np.uint8)}, "array 'subject' is missing, it holds images"),
        (
            {"images": np.zeros((4, 9, 9), np.uint8), "subject": np.arange(4)},
            "'images' has shape (4, 9, 9) and dtype uint8: expected uint8 [n, 28, 23]",
        ),
        (
            {"images": np.zeros((4, 28, 23), np.uint8), "subject": np.arange(3)},
            "'subject' has shape (3,) and dtype int64: expected a whole number for each of 4 images",
        ),
        (
            {"images": np.zeros((4, 28, 23), np.uint8), "subject": np.zeros(4, int)},
            "'subject' has fewer than 4 identities",
        ),
    ],
)
def test_wrong_data(tmp_path, arrays, message):
    path = tmp_path / "people.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        identities.load_people(path)


def test_absent_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"set JAXNEG_DATA to the folder that holds unpg/x\.npz"):
        identities.load_characters(tmp_path / "x.npz")


def test_patches_make_a_convolution():
    rng = np.random.default_rng(0)
    for side in (28, 7):
        x = jnp.asarray(rng.normal(size=(2, side, side, 3)), jnp.float32)
        kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.float32)
        expected = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_allclose(patches(x) @ kernel.reshape(27, 4), expected, rtol=1e-3, atol=1e-4)


def test_scores_of_a_space_that_tells_all_apart():
    labels = np.repeat(np.arange(10), 3)
    found = measured(np.eye(10)[labels] + 1e-3, labels, 1.0, 0)
    assert found["tar"].tolist() == [100, 100, 100]
    assert found["tenfold"] == found["rank_one"] == 100
    assert found["overlap"] == 0


def test_mechanisms():
    for seed in range(2):
        assert max(mechanisms._errors(seed)) < 1e-5


@pytest.mark.slow
def test_sharded_mechanism():
    """Eight devices are here already."""
    assert mechanisms.sharded_errors(2).max() < 1e-5


def test_presets_and_references():
    assert set(unpg.PRESETS) == {"smoke", "cpu", "paper"}
    assert set(REFERENCE) == set(PEOPLE_SETTINGS)
    assert set(CHARACTER_SETTINGS) <= set(PEOPLE_SETTINGS)
    assert unpg.PRESETS["cpu"].seeds >= 10
    assert len({setting.stage for setting in PEOPLE_SETTINGS}) == len(PEOPLE_SETTINGS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"batch": 1}, "batch: expected at least 2 images, got 1"),
        ({"learning_rate": 0.0}, "learning_rate: expected between 0 and 1, got 0.0"),
        ({"pod_depth": 20}, "pod_depth: expected 18, 34, 50 or 100, got 20"),
        ({"pod_batch": 100}, "pod_batch: expected a positive multiple of 256, got 100"),
        ({"pod_people": 10}, "pod_people: expected at least 256, got 10"),
        ({"pod_sample_rate": 0.0}, "pod_sample_rate: expected above 0 and at most 1, got 0.0"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        unpg.Config(**fields)


@pytest.mark.slow
def test_smoke_run(tmp_path, monkeypatch):
    """A verdict for each claim, figures and tables, on the data that are always there."""
    monkeypatch.setattr(identities, "ORL", tmp_path / "orl.npz")
    monkeypatch.setattr(identities, "OMNIGLOT", tmp_path / "omniglot.npz")
    monkeypatch.setattr(
        unpg,
        "relative_errors",
        lambda seeds: {name: np.zeros(seeds) for name in ("without_pairs", "scalar", "sharded")},
    )
    config = dataclasses.replace(unpg.PRESETS["smoke"], epochs=2)
    with RunDir.create("unpg", config, preset="smoke", path=tmp_path / "run") as run_dir:
        report = run_experiment(run_dir)
    assert [claim["name"] for claim in report["claims"]] == [claim.name for claim in unpg.CLAIMS]
    figures = sorted((tmp_path / "run" / "figures").glob("*.png"))
    assert [figure.stem for figure in figures] == ["characters", "filter", "people"]
    assert all(figure.stat().st_size > 10_000 for figure in figures)
    assert [len(table["rows"]) for table in report["tables"]] == [8, 5]


@pytest.mark.slow
@pytest.mark.tpu_compile
def test_the_step_compiles_for_a_small_pod():
    pytest.importorskip("libtpu")
    target = training_target(18, 1001, 64, 0.1, 100, size=32, chips=16)
    report = compile_for(target, "v5e:4x4")
    assert report.fits
    assert report.collectives["all-gather"] > 0
