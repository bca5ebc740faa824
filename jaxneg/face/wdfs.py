"""How well a feature space tells pairs of one class from pairs of two: the WDFS of the UNPG paper.

A well-discriminative feature space has ``inf S^p > sup S^n``: every pair of one class is more similar than
every pair of two (arXiv:2203.11593, Section 3). No test set is like that; the statistics say how far it is.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float

BINS = 50
"""Of the histograms, on -1 to 1."""


class WDFS(NamedTuple):
    """Statistics of the similarities of pairs."""

    inf_sp: float
    """The least similarity of a pair of one class."""
    sup_sn: float
    """The greatest similarity of a pair of two."""
    gap: float
    """``inf_sp - sup_sn``, above 0 in a well-discriminative feature space."""
    overlap: float
    """Area that both histograms share, 0 to 1."""
    mean_sp: float
    std_sp: float
    mean_sn: float
    std_sn: float
    histogram_sp: Float[np.ndarray, " bins"]
    """Shares of the pairs."""
    histogram_sn: Float[np.ndarray, " bins"]
    edges: Float[np.ndarray, " edges"]


def wdfs_stats(sp: ArrayLike, sn: ArrayLike, *, bins: int = BINS) -> WDFS:
    """Statistics of both similarity distributions.

    Args:
        sp: cosines of pairs of one class.
        sn: cosines of pairs of two.
        bins: of the histograms on -1 to 1.

    Returns:
        The statistics.

    Raises:
        ValueError: no pair of a kind, or cosines that are not finite or beyond 1.

    Source:
        arXiv:2203.11593, Section 3.

    Example:
        >>> stats = wdfs_stats([0.9, 0.8], [0.1, -0.2])
        >>> round(stats.gap, 4), stats.overlap
        (0.7, 0.0)
    """
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    kinds = []
    for name, given in (("sp", sp), ("sn", sn)):
        values = np.asarray(given, np.float64).ravel()
        # Rounding may take a cosine a little beyond 1.
        if not len(values) or not (np.abs(values) <= 1 + 1e-5).all():
            raise ValueError(f"{name}: expected at least one cosine, all from -1 to 1, got {given!r}")
        kinds.append(np.clip(values, -1, 1))
    p, n = kinds
    edges = np.linspace(-1, 1, bins + 1)
    shares = [np.histogram(values, edges)[0] / len(values) for values in kinds]
    return WDFS(
        inf_sp=float(p.min()),
        sup_sn=float(n.max()),
        gap=float(p.min() - n.max()),
        overlap=float(np.minimum(*shares).sum()),
        mean_sp=float(p.mean()),
        std_sp=float(p.std()),
        mean_sn=float(n.mean()),
        std_sn=float(n.std()),
        histogram_sp=shares[0],
        histogram_sn=shares[1],
        edges=edges,
    )
