"""Verification metrics against definitions in plain Python, and what they refuse."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneg.face import (
    all_pairs_scores,
    best_threshold_accuracy,
    ijb_template_features,
    tar_at_far,
    tenfold_accuracy,
    wdfs_stats,
)


def pairs(seed, count=60, levels=None):
    rng = np.random.default_rng(seed)
    same = rng.random(count) < 0.4
    same[:2] = True, False
    scores = np.clip(0.4 * same + rng.normal(0, 0.3, count), -1, 1)
    return (np.round(scores, 1) if levels else scores), same


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.floats(0, 1))
def test_conservative_rate(seed, ties, far):
    scores, same = pairs(seed, levels=ties)
    best = max(
        np.mean(scores[same] > t)
        for t in [-np.inf, *scores]
        if np.sum(scores[~same] > t) <= np.floor(far * np.sum(~same) * (1 + 1e-12))
    )
    np.testing.assert_allclose(tar_at_far(scores, same, far), [best])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.floats(0, 1))
def test_nearest_rate(seed, ties, far):
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, same = pairs(seed, levels=ties)
    fpr, tpr, _ = sklearn.roc_curve(same, scores)
    _, index = min(zip(np.abs(np.flipud(fpr) - far), range(len(fpr)), strict=True))
    np.testing.assert_allclose(tar_at_far(scores, same, [far], "nearest"), [np.flipud(tpr)[index]])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_ten_folds(seed):
    scores, same = pairs(seed)
    accuracies, thresholds = tenfold_accuracy(scores, same, folds=10)
    folds = np.arange(60) // 6
    for fold in range(10):
        grid = np.arange(0, 4, 0.01)
        right = np.array([((2 - 2 * scores < t) == same)[folds != fold].mean() for t in grid])
        assert thresholds[fold] == grid[right.argmax()]
        at = 2 - 2 * scores < thresholds[fold]
        np.testing.assert_allclose(accuracies[fold], (at == same)[folds == fold].mean())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_best_threshold(seed, ties):
    scores, same = pairs(seed, levels=ties)
    accuracy, threshold = best_threshold_accuracy(scores, same)
    assert accuracy == max(np.mean((scores >= t) == same) for t in scores)
    assert np.mean((scores >= threshold) == same) == accuracy


def test_rates_of_a_space_that_is_well_discriminative():
    scores, same = all_pairs_scores(np.repeat(np.eye(3), 2, 0) + 0.01, [0, 0, 1, 1, 2, 2])
    assert len(scores) == 15
    for mode in ("conservative", "nearest"):
        assert tar_at_far(scores, same, [0.0, 0.1], mode).tolist() == [1, 1]
    stats = wdfs_stats(scores[same], scores[~same])
    assert stats.gap > 0.9
    assert stats.overlap == 0
    assert wdfs_stats(scores, scores).overlap == pytest.approx(1)


def test_templates_by_hand():
    """A video of two frames counts as one image."""
    features = np.array([[1.0, 0], [0, 1], [0, 3], [2, 2]])
    found, template = ijb_template_features(features, [5, 5, 5, 2], [1, 8, 8, 8])
    assert found.tolist() == [2, 5]
    np.testing.assert_allclose(template, [[2**-0.5, 2**-0.5], np.array([1, 2]) / 5**0.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: tar_at_far([0.1], [True], [0.1]),
            "same: expected pairs of one person and of two, got none of two",
        ),
        (lambda: tar_at_far([0.1], [False], [0.1]), "got none of one person"),
        (
            lambda: tar_at_far([0.1, np.nan], [True, False], [0.1]),
            "scores: expected finite numbers, got nan at (1,)",
        ),
        (lambda: tar_at_far([0.1, 0.2], [True, False], [1.1]), "fars: expected numbers from 0 to 1"),
        (lambda: tar_at_far([0.1, 0.2], [True, False], [0.1], "exact"), "mode: expected one of conservative"),
        (lambda: tar_at_far([0.1], [True, False], [0.1]), "same: expected one flag for each score"),
        (
            lambda: tenfold_accuracy([0.1] * 5, [True] * 5),
            "folds: expected from 2 to the number of pairs, 5, got 10",
        ),
        (lambda: all_pairs_scores(np.eye(2), [0]), "labels: expected one for each row of features"),
        (
            lambda: all_pairs_scores([[np.inf, 1.0]], [0]),
            "features: expected finite numbers, got inf at (0, 0)",
        ),
        (lambda: wdfs_stats([], [0.1]), "sp: expected at least one cosine"),
        (lambda: wdfs_stats([0.1], [1.2]), "sn: expected at least one cosine, all from -1 to 1"),
        (lambda: wdfs_stats([0.1], [0.2], bins=0), "bins: expected at least 1, got 0"),
        (
            lambda: ijb_template_features(np.eye(2), [0], [0, 1]),
            "templates: expected one number for each row",
        ),
        (lambda: ijb_template_features([[np.nan]], [0], [0]), "features: expected finite numbers, row 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
