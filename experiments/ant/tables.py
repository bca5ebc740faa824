"""The tables: what was measured, beside an independent prototype's figures and the paper's."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from experiments.ant.affinity import by_distance
from experiments.ant.claims import FFHQ, GAPS, IMAGENET, SPEED
from experiments.ant.cost import over_vanilla
from experiments.ant.quality import Quality
from experiments.ant.training import MIN_SNR, NASH, P2, PCGRAD, STRATIFIED, UW, VANILLA, Arm
from experiments.claims import mean_interval
from experiments.run_dir import Table

AFFINITY = {20: 0.85, 200: 0.73, 400: 0.54, 600: 0.35, 800: 0.17, 980: 0.02}
"""The prototype's mean affinity by distance in timesteps."""
QUALITY: dict[Arm, float] = {
    VANILLA: 1.299,
    STRATIFIED: 1.337,
    PCGRAD: 1.264,
    NASH: 0.959,
    UW: 0.838,
    MIN_SNR: 1.010,
    P2: 0.792,
    Arm("uw", "SNR"): 1.19,
    Arm("nash", "SNR"): 0.85,
    Arm("pcgrad", "SNR"): 1.21,
    Arm("uw", "gradient"): 0.86,
    Arm("nash", "gradient"): 1.62,
}
"""The prototype's distances after 6000 steps: three seeds, two where the clusters are not by timestep."""
CONVERGENCE: dict[Arm, dict[int, float]] = {
    STRATIFIED: {3000: 3.61, 6000: 1.78, 9000: 0.97},
    UW: {3000: 2.78, 6000: 0.87, 9000: 0.68},
}
"""The prototype's, of one seed."""
PROTOTYPE_GAPS: dict[Arm, tuple[float, ...]] = {
    VANILLA: (0.060, -0.008, -0.028, -0.074, -0.248),
    UW: (0.041, -0.062, -0.071, 0.023, 0.135),
}
PROTOTYPE_LOSS_GAPS: dict[Arm, tuple[float, ...]] = {
    VANILLA: (-1.8, -1.8, -0.4, -0.3, -10.0),
    UW: (-6.5, -8.6, -1.3, 1.2, -0.2),
}
"""Percent."""
MEMORY = {"vanilla": 34.13, "PCGrad": 28.16, "Nash": 38.91, "UW": 34.35}
"""The paper's, GB."""


def affinity_table(affinity: Float[np.ndarray, "seeds points points"]) -> Table:
    """The affinity of tasks by the distance of their timesteps.

    Args:
        affinity: of vanilla training.

    Returns:
        The table.
    """
    apart = by_distance(affinity[0])[0]
    means = np.array([by_distance(own)[1] for own in affinity])
    shown = [place for place, distance in enumerate(apart) if distance in AFFINITY]
    return Table(
        "A. Cosine of the gradients by |Δt| (mean ± 95 %)",
        ["|Δt|", "ours", "a prototype"],
        [[int(apart[place]), with_interval(means[:, place]), AFFINITY[int(apart[place])]] for place in shown],
    )


def quality_table(
    found: Mapping[Arm, Quality],
    last: int,
    results: Mapping[Arm, Mapping[str, np.ndarray]],
    title: str = "B. Fréchet distance (FD) of samples to the digits",
    *,
    published: bool = True,
) -> Table:
    """The quality of every method's samples.

    Args:
        found: of every method.
        last: the checkpoint.
        results: of every method, for nothing but their order.
        title: what the table shows.
        published: whether there is anything to put beside.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = []
    base = next(iter(arm for arm in (VANILLA, STRATIFIED) if arm in found))
    for arm in sorted(results, key=lambda arm: list(_ORDER).index(arm) if arm in _ORDER else len(_ORDER)):
        own = found[arm]
        row: list[str | float | int] = [
            arm.name,
            with_interval(own.fd[:, last]),
            with_interval(own.fd[:, last] / found[base].fd[:, last]),
            with_interval(own.own_fd[:, last]),
            f"{own.precision.mean():.3f}",
            f"{own.recall.mean():.3f}",
        ]
        if published:
            row += [QUALITY.get(arm, ""), FFHQ.get(arm, ""), IMAGENET.get(arm, "")]
        rows.append(row)
    columns = ["method", "FD, classifier", f"over {base.name}", "FD, own space", "precision", "recall"]
    beside = (
        ["a prototype's FD", "paper: FFHQ, LDM, FID", "paper: ImageNet, DiT-L/2, FID"] if published else []
    )
    return Table(f"{title} (mean ± 95 %)", columns + beside, rows)


def convergence_table(found: Mapping[Arm, Quality], every: int) -> Table:
    """Distances over the training.

    Args:
        found: of the methods that were trained longest.
        every: steps between checkpoints.

    Returns:
        The table.
    """
    steps = [(place + 1) * every for place in range(next(iter(found.values())).fd.shape[1])]
    rows: list[list[str | float | int]] = []
    for arm, own in found.items():
        row: list[str | float | int] = [arm.name, *(with_interval(values) for values in own.fd.T)]
        rows.append(row)
        if arm in CONVERGENCE:
            rows.append([f"a prototype's {arm.name}", *(CONVERGENCE[arm].get(step, "") for step in steps)])
    columns = ["method", *(f"{step} steps" for step in steps)]
    return Table("B. FD in the classifier's features over the training (mean ± 95 %)", columns, rows)


def gap_table(gaps: Mapping[Arm, np.ndarray], bounds: Sequence[int]) -> Table:
    """Transfer gaps of Fréchet distances.

    Args:
        gaps: ``[seeds, intervals]`` of each method.
        bounds: of the intervals.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = []
    for arm, values in gaps.items():
        rows.append([arm.name, *(with_interval(own, "+") for own in values.T)])
        rows += _prototype(arm, PROTOTYPE_GAPS, values)
    if len(bounds) - 1 == len(GAPS["ADM"]):
        for name, own in GAPS.items():
            rows.append([f"paper: vanilla {name} on FFHQ, FID", *(f"{gap:+g}" for gap in own)])
    return Table(
        "C. Transfer gaps, FD with a specialist in the interval minus FD without (mean ± 95 %; below 0 the"
        " interval is learnt worse together than alone)",
        ["method", *_intervals(bounds)],
        rows,
    )


def loss_gap_table(gaps: Mapping[Arm, np.ndarray], bounds: Sequence[int]) -> Table:
    """Transfer gaps of losses.

    Args:
        gaps: relative, ``[seeds, intervals]`` of each method.
        bounds: of the intervals.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = []
    for arm, values in gaps.items():
        rows.append([arm.name, *(with_interval(100 * own, "+", 1) for own in values.T)])
        rows += _prototype(arm, PROTOTYPE_LOSS_GAPS, values)
    title = (
        "C. Transfer gaps of the denoising loss: how much higher the specialist's is (percent, mean ± 95 %)"
    )
    return Table(title, ["method", *_intervals(bounds)], rows)


def cluster_table(clusters: Mapping[str, Sequence[int]]) -> Table:
    """The clusters of timesteps.

    Args:
        clusters: boundaries of each clustering.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = [[name, *bounds] for name, bounds in clusters.items()]
    count = len(next(iter(clusters.values()))) - 1
    return Table("Clusters of timesteps", ["by", *(f"b{number}" for number in range(count + 1))], rows)


def cost_table(times: Mapping[str, np.ndarray]) -> Table:
    """What a step of each method costs.

    Args:
        times: seconds of a step, as `experiments.ant.cost.step_times` measures them.

    Returns:
        The table.
    """
    speed = {arm.name: value for arm, value in SPEED.items()}
    rows: list[list[str | float | int]] = [
        [
            name,
            f"{1000 * np.median(seconds):.3f}",
            with_interval(over_vanilla(times, name)),
            f"{speed['vanilla'] / speed[name]:.3f}" if name in speed else "",
            MEMORY.get(name, ""),
        ]
        for name, seconds in times.items()
    ]
    columns = ["method", "ms a step", "over vanilla", "paper: over vanilla (LDM)", "paper: memory, GB"]
    return Table("Cost of a training step (median; ratio: mean of the medians ± 95 %)", columns, rows)


def with_interval(values: np.ndarray, sign: str = "", digits: int = 3) -> str:
    """The mean of one value for each seed, and half its 95 % interval.

    Args:
        values: one for each seed.
        sign: "+" to show it always.
        digits: after the point.

    Returns:
        Text.

    Example:
        >>> with_interval(np.array([1.0, 2.0, 3.0]))
        '2.000 ± 2.484'
    """
    estimate, _, high, _ = mean_interval(values)
    return f"{estimate:{sign}.{digits}f} ± {high - estimate:.{digits}f}"


_ORDER = dict.fromkeys((VANILLA, STRATIFIED, MIN_SNR, P2, PCGRAD, NASH, UW, Arm("uw", weight="p2"), *QUALITY))


def _prototype(
    arm: Arm, table: Mapping[Arm, tuple[float, ...]], values: np.ndarray
) -> list[list[str | float | int]]:
    if arm not in table or values.shape[1] != len(table[arm]):
        return []
    return [[f"a prototype's {arm.name}", *(f"{gap:+g}" for gap in table[arm])]]


def _intervals(bounds: Sequence[int]) -> list[str]:
    return [f"{low} to {high - 1}" for low, high in pairwise(bounds)]
