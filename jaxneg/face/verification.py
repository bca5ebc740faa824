"""Face verification: how often two images are rightly said to show one person, or two.

The protocols of LFW (ten folds; insightface's ``verification.py``), of the UNPG authors (best threshold),
and of IJB and MegaFace (true accept rate at a false accept rate). All run on the host in float64: rates of
1e-5 of millions of pairs have more digits than float32.
"""

from typing import Literal

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from jaxneg.face.arguments import one_of


def all_pairs_scores(
    features: ArrayLike, labels: ArrayLike
) -> tuple[Float[np.ndarray, " pairs"], Bool[np.ndarray, " pairs"]]:
    """Cosines of all pairs of a test set, each once.

    Args:
        features: embeddings ``[images, dim]``, of any length.
        labels: who is on the images, ``[images]``.

    Returns:
        Cosines, row by row of the strict upper triangle, and which pairs show one person.

    Raises:
        ValueError: shapes that do not fit, or features that are not finite.

    Example:
        >>> scores, same = all_pairs_scores(np.eye(3), [0, 0, 1])
        >>> scores.tolist(), same.tolist()
        ([0.0, 0.0, 0.0], [True, False, False])
    """
    x, y = np.asarray(features, np.float64), np.asarray(labels)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(
            f"labels: expected one for each row of features [images, dim], got {y.shape} for {x.shape}"
        )
    _finite("features", x)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    rows, columns = np.triu_indices(len(x), 1)
    return (unit @ unit.T)[rows, columns], y[rows] == y[columns]


def tar_at_far(
    scores: ArrayLike,
    same: ArrayLike,
    fars: ArrayLike,
    mode: Literal["conservative", "nearest"] = "conservative",
) -> Float[np.ndarray, " fars"]:
    """The share of same-person pairs that are accepted while this share of the others is.

    "conservative": the largest TAR whose FAR is at most the wanted one: the threshold is the
    ``floor(FAR N) + 1``-th largest score of the N others, and what lies above it is accepted. "nearest": the
    TAR at the corner of the ROC curve whose FAR is nearest, as the UNPG authors and the IJB scripts have it,
    where the FAR may be the larger.

    Args:
        scores: similarities ``[pairs]``.
        same: which pairs show one person.
        fars: wanted false accept rates, 0 to 1.
        mode: "conservative" or "nearest".

    Returns:
        One TAR for each FAR, 0 to 1.

    Raises:
        ValueError: an unknown mode, shapes that do not fit, scores that are not finite, rates out of range,
            no pair of one person, or none of two.

    Source:
        arXiv:2203.11593, the authors' ``recognition/tests``; Klare et al., CVPR 2015 (IJB).

    Example:
        >>> tar_at_far([0.9, 0.5, 0.6, 0.1], [True, True, False, False], [0.0, 0.5]).tolist()
        [0.5, 1.0]
    """
    one_of("mode", mode, ("conservative", "nearest"))
    scores, same = _pairs(scores, same)
    wanted = np.atleast_1d(np.asarray(fars, np.float64))
    if wanted.ndim != 1 or not ((wanted >= 0) & (wanted <= 1)).all():
        raise ValueError(f"fars: expected numbers from 0 to 1, got {fars!r}")
    positive, negative = np.sort(scores[same]), np.sort(scores[~same])[::-1]
    if not len(positive) or not len(negative):
        kind = "one person" if not len(positive) else "two persons"
        raise ValueError(f"same: expected pairs of one person and of two, got none of {kind}")
    if mode == "conservative":
        # A product such as 1e-3 * 3000 may lie a hair below the whole number that it is.
        allowed = np.floor(wanted * len(negative) * (1 + 1e-12)).astype(int)
        thresholds = np.append(negative, -np.inf)[np.minimum(allowed, len(negative))]
        return 1 - np.searchsorted(positive, thresholds, side="right") / len(positive)
    far, tar = (rates[::-1] for rates in _roc_corners(scores, same))  # of equally near ones the largest TAR
    return tar[np.abs(far[:, None] - wanted).argmin(0)]


def tenfold_accuracy(
    similarities: ArrayLike, same: ArrayLike, *, folds: int = 10
) -> tuple[Float[np.ndarray, " folds"], Float[np.ndarray, " folds"]]:
    """Accuracy on each fold at the threshold that is best on the others: the protocol of LFW.

    Two images show one person where ``|a - b|^2 = 2 - 2 cos`` is below the threshold, the first of 0, 0.01,
    ..., 3.99 with the highest accuracy.

    Args:
        similarities: cosines of pairs, in the order of the file: the folds are contiguous.
        same: which pairs show one person.
        folds: their number.

    Returns:
        Accuracies and thresholds; one reports mean and standard deviation of the accuracies.

    Raises:
        ValueError: shapes that do not fit, scores that are not finite, fewer than two folds, more folds than
            pairs.

    Source:
        insightface, ``verification.py``; G. B. Huang et al., UMass technical report 07-49 (LFW).

    Example:
        >>> accuracies, _ = tenfold_accuracy([0.9, 0.1] * 10, [True, False] * 10)
        >>> float(accuracies.mean())
        1.0
    """
    similarities, same = _pairs(similarities, same)
    if folds < 2 or len(same) < folds:
        raise ValueError(f"folds: expected from 2 to the number of pairs, {len(same)}, got {folds}")
    thresholds = np.arange(0, 4, 0.01)
    distances = 2 - 2 * similarities
    parts = [np.asarray(part) for part in np.array_split(np.arange(len(same)), folds)]
    # Right answers of each fold at each threshold: accepted positives, and negatives that are not.
    right = np.stack(
        [
            np.searchsorted(np.sort(distances[part][same[part]]), thresholds, side="left")
            + (~same[part]).sum()
            - np.searchsorted(np.sort(distances[part][~same[part]]), thresholds, side="left")
            for part in parts
        ]
    )
    sizes = np.array([len(part) for part in parts])
    elsewhere = (right.sum(0) - right) / (sizes.sum() - sizes)[:, None]
    best = elsewhere.argmax(1)
    return right[np.arange(folds), best] / sizes, thresholds[best]


def best_threshold_accuracy(scores: ArrayLike, same: ArrayLike) -> tuple[float, float]:
    """The highest accuracy that any threshold reaches on the same pairs: optimistic, nothing is held out.

    ``max_t mean[(score >= t) == same]``, t among the scores

    Args:
        scores: similarities ``[pairs]``.
        same: which pairs show one person.

    Returns:
        Accuracy and threshold; of equally good ones the lowest.

    Raises:
        ValueError: shapes that do not fit, or scores that are not finite.

    Source:
        arXiv:2203.11593, the authors' ``recognition/tests``.

    Example:
        >>> best_threshold_accuracy([0.9, 0.5, 0.1], [True, True, False])
        (1.0, 0.5)
    """
    scores, same = _pairs(scores, same)
    thresholds = np.unique(scores)
    accepted = len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")
    positive = same.sum() - np.searchsorted(np.sort(scores[same]), thresholds, side="left")
    right = positive + (~same).sum() - (accepted - positive)
    best = right.argmax()
    return float(right[best] / len(scores)), float(thresholds[best])


def _roc_corners(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """FAR and TAR at each threshold, from (0, 0) to (1, 1), without the points inside straight lines."""
    order = np.argsort(-scores, kind="stable")
    ordered = same[order]
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    accepted = np.cumsum(ordered)[last]
    false = 1 + last - accepted
    accepted, false = np.append(0, accepted), np.append(0, false)
    corner = np.ones(len(false), bool)
    if len(false) > 2:
        corner[1:-1] = (np.diff(false, 2) != 0) | (np.diff(accepted, 2) != 0)
    return (false / false[-1])[corner], (accepted / accepted[-1])[corner]


def _pairs(scores: ArrayLike, same: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values, flags = np.asarray(scores, np.float64), np.asarray(same)
    if values.ndim != 1 or not len(values) or flags.shape != values.shape:
        raise ValueError(
            f"same: expected one flag for each score, at least one, got {flags.shape} for {values.shape}"
        )
    _finite("scores", values)
    return values, flags.astype(bool)


def _finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        where = tuple(np.argwhere(~np.isfinite(values))[0].tolist())
        raise ValueError(f"{name}: expected finite numbers, got {values[where]} at {where}")
