"""Losses and metrics of the image tasks against brute force in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.vision import dense

# Compilation makes these the dearest tests: they are left to the slow suite.
pytestmark = pytest.mark.slow

BATCH, HEIGHT, WIDTH, CLASSES = 3, 7, 9, 5


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    shape = (BATCH, HEIGHT, WIDTH)
    normal = rng.normal(size=(*shape, 3))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    # Of each image another share is labelled, so that means over images and over pixels differ.
    known = rng.random(shape) < np.array([0.9, 0.5, 0.1])[:, None, None]
    return {
        "logits": rng.normal(size=(*shape, CLASSES)).astype(np.float32),
        "labels": np.where(known, rng.integers(0, CLASSES, shape), -1).astype(np.int32),
        "depth": rng.normal(size=(*shape, 1)).astype(np.float32),
        "depth_target": np.where(known, rng.uniform(0.5, 9, shape), 0).astype(np.float32),
        "normal": (3 * rng.normal(size=(*shape, 3))).astype(np.float32),
        "normal_target": np.where(known[..., None], normal, 0).astype(np.float32),
        "known": known,
    }


def reduced(masked) -> float:
    return float(dense.masked_mean(*masked))


def test_cross_entropy(case):
    total, count = 0.0, 0
    for logits, label in zip(case["logits"].reshape(-1, CLASSES), case["labels"].ravel(), strict=True):
        if label >= 0:
            logits = logits.astype(np.float64)
            total += np.log(np.exp(logits).sum()) - logits[label]
            count += 1
    assert reduced(dense.cross_entropy(case["logits"], case["labels"])) == pytest.approx(
        total / count, rel=1e-5
    )


def test_depth_error(case):
    errors = [
        abs(float(p) - float(t))
        for p, t in zip(case["depth"].ravel(), case["depth_target"].ravel(), strict=True)
        if t != 0
    ]
    found = reduced(dense.depth_error(case["depth"], case["depth_target"]))
    assert found == pytest.approx(np.mean(errors), rel=1e-5)


def brute_angles(case) -> np.ndarray:
    result = []
    for p, t in zip(case["normal"].reshape(-1, 3), case["normal_target"].reshape(-1, 3), strict=True):
        if t.any():
            p, t = p.astype(np.float64), t.astype(np.float64)
            result.append(np.degrees(np.arccos(np.clip(p @ t / np.linalg.norm(p), -1, 1))))
    return np.array(result)


def test_normal_error(case):
    expected = np.mean(1 - np.cos(np.radians(brute_angles(case))))
    assert reduced(dense.normal_error(case["normal"], case["normal_target"])) == pytest.approx(
        expected, rel=1e-5
    )


def test_losses_ignore_what_is_not_known(case):
    spoilt = np.where(case["known"][..., None], case["depth"], 1e6)
    first = reduced(dense.depth_error(case["depth"], case["depth_target"]))
    assert reduced(dense.depth_error(spoilt, case["depth_target"])) == first
    gradient = jax.grad(lambda d: dense.masked_mean(*dense.depth_error(d, case["depth_target"])))(
        case["depth"]
    )
    assert (np.asarray(gradient[..., 0] != 0) == case["known"]).all()


def test_nothing_known_and_no_direction():
    zeros = jnp.zeros((2, 3, 3))
    loss, gradient = jax.value_and_grad(lambda n: dense.masked_mean(*dense.normal_error(n, zeros)))(zeros)
    assert float(loss) == 0
    assert np.isfinite(gradient).all()
    up = zeros.at[..., 2].set(1)
    loss, gradient = jax.value_and_grad(lambda n: dense.masked_mean(*dense.normal_error(n, up)))(zeros)
    assert float(loss) == 1
    assert np.isfinite(gradient).all()
    assert reduced(dense.cross_entropy(jnp.zeros((2, 3, 4)), jnp.full((2, 3), -1))) == 0


def test_losses_of_bfloat16_are_computed_in_float32(case):
    for loss, outputs, target in (
        (dense.cross_entropy, "logits", "labels"),
        (dense.depth_error, "depth", "depth_target"),
        (dense.normal_error, "normal", "normal_target"),
    ):
        rounded = jnp.asarray(case[outputs], jnp.bfloat16)
        found, exact = (loss(x, case[target])[0] for x in (rounded, rounded.astype(jnp.float32)))
        assert found.dtype == jnp.float32
        assert (found == exact).all()


def batches(case, *names):
    """The examples in batches of 2 and 1, the latter padded by an example without labels."""
    for rows in (slice(0, 2), slice(2, 3)):
        parts = []
        for name in names:
            part = case[name][rows]
            missing = 2 - len(part)
            padding = np.full((missing, *part.shape[1:]), -1 if name == "labels" else 0, part.dtype)
            parts.append(np.concatenate([part, padding]))
        yield parts


def scores(task, case, outputs, target):
    tally = jax.jit(task.tally)
    return task.scores([np.asarray(tally(*parts)) for parts in batches(case, outputs, target)])


def test_segmentation_metrics(case):
    labels, taken = case["labels"].ravel(), case["logits"].reshape(-1, CLASSES).argmax(-1)
    kept = labels >= 0
    labels, taken = labels[kept], taken[kept]
    unions = [
        ((labels == c) & (taken == c)).sum() / ((labels == c) | (taken == c)).sum() for c in range(CLASSES)
    ]
    found = scores(dense.segmentation(CLASSES), case, "logits", "labels")
    np.testing.assert_allclose(found, [100 * np.mean(unions), 100 * np.mean(labels == taken)], rtol=1e-12)


def test_a_class_that_does_not_occur_is_left_out():
    counts = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    miou, accuracy = dense.segmentation_scores([counts])
    assert miou == pytest.approx(100 * (3 / 4 + 4 / 5) / 2)
    assert accuracy == pytest.approx(100 * 7 / 8)


def test_depth_metrics(case):
    p, t = case["depth"].ravel().astype(np.float64), case["depth_target"].ravel().astype(np.float64)
    p, t = p[t != 0], t[t != 0]
    expected = [np.mean(np.abs(p - t)), np.mean(np.abs(p - t) / t)]
    np.testing.assert_allclose(scores(dense.DEPTH, case, "depth", "depth_target"), expected, rtol=1e-5)


def test_normal_metrics(case):
    angles = brute_angles(case)
    expected = [
        angles.mean(),
        np.median(angles),
        *(100 * np.mean(angles < limit) for limit in (11.25, 22.5, 30)),
    ]
    found = scores(dense.NORMAL, case, "normal", "normal_target")
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert len(found) == len(dense.NORMAL.metrics) == len(dense.NORMAL.higher_is_better)


def test_accuracy():
    logits = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    labels = np.array([0, 1, 3, 3, -1], np.int32)
    task = dense.classification("domain", 4)
    assert task.scores([np.asarray(task.tally(logits, labels))]) == [75.0]


def test_upsampling_puts_corners_onto_corners():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    found = np.asarray(dense.upsample(jnp.asarray(x), (13, 11)))
    assert found.shape == (2, 13, 11, 3)
    for i in range(13):
        for j in range(11):
            y, z = i * 3 / 12, j * 5 / 10
            r, c = min(int(y), 2), min(int(z), 4)
            a, b = y - r, z - c
            expected = (1 - a) * ((1 - b) * x[:, r, c] + b * x[:, r, c + 1])
            expected = expected + a * ((1 - b) * x[:, r + 1, c] + b * x[:, r + 1, c + 1])
            np.testing.assert_allclose(found[:, i, j], expected, atol=1e-5)
    assert (np.asarray(dense.upsample(jnp.ones((1, 1, 1, 2)), (3, 3))) == 1).all()
    assert dense.upsample(jnp.ones((1, 2, 2, 1), jnp.bfloat16), (3, 3)).dtype == jnp.float32
