"""A benchmark as the real ones are built."""

from typing import Any

import numpy as np

from experiments.bench import paired_ratio


def run(repeats: int = 3) -> dict[str, Any]:
    """Times two sums."""
    timing = paired_ratio(lambda: sum(range(10)), lambda: sum(range(100)), repeats, sample_seconds=1e-4)
    return {
        "repeats": repeats,
        "note": "sums",
        "sums": {"short": timing, "again": timing},
        "sizes": np.arange(2),
    }
