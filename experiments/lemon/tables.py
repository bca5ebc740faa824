"""The tables of a run, among them the paper's results beside ours."""

import numpy as np

from experiments.claims import mean_interval
from experiments.lemon.results import GraphResult
from experiments.lemon.training import Arm
from experiments.run_dir import Table

PAPER_WN18RR: dict[str, tuple[str, str]] = {
    "uniform": (".2022", "49.63"),
    "SANS": (".2254", "51.15"),
    "RW-SANS": (".2317", "53.41"),
    "KBGAN": (".1808", "43.24"),
    "NSCaching": (".2002", "47.83"),
    "Bernoulli": ("n/a", "n/a"),
    "LEMON": (".2145", "51.22"),
    "LEMON, replaced entity's": ("n/a", "n/a"),
    "uniform + self-adversarial": (".2232", "52.78"),
    "SANS + self-adversarial": (".2249", "53.21"),
    "RW-SANS + self-adversarial": (".2273", "53.81"),
    "LEMON + self-adversarial": (".2274", "53.20"),
}
"""MRR and Hits@10 in % of TransE on the whole of WN18RR, arXiv:2203.04703v1."""


def interval(values: np.ndarray, digits: int = 4) -> str:
    """Mean and 95 % interval, as tables show them."""
    estimate, low, high, _ = mean_interval(values)
    if not np.isfinite(low):
        return f"{estimate:.{digits}f}"
    return f"{estimate:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def result_table(result: GraphResult) -> Table:
    """Every arm of a graph: quality on test, cost, and what its draws are."""
    rows: list[list[str | float | int]] = []
    for arm in result.arms:
        plausible, false = result.shares.get(_share_key(arm), ("n/a", "n/a"))
        rows.append(
            [
                arm.name,
                interval(result.test["MRR"][arm]),
                interval(result.test["HITS@1"][arm], 3),
                interval(result.test["HITS@10"][arm], 3),
                f"{result.valid['MRR'][arm].mean():.4f}",
                f"{result.seconds_per_1000[arm]:.1f}",
                plausible,
                false,
            ]
        )
    return Table(
        f"{result.plan.graph}: {result.plan.model}, filtered test triples; mean and 95 % interval over seeds",
        ["negatives", "MRR", "Hits@1", "Hits@10", "MRR, validation", "s / 1000 steps", "plausible", "false"],
        rows,
    )


def paper_table(result: GraphResult) -> Table:
    """The paper's results on the whole of WN18RR beside ours on the word net of this run."""
    ours = {
        "uniform": Arm("uniform"),
        "SANS": Arm("sans"),
        "NSCaching": Arm("nscaching"),
        "Bernoulli": Arm("bernoulli"),
        "LEMON": Arm("lemon_code"),
        "LEMON, replaced entity's": result.chosen,
        "uniform + self-adversarial": Arm("uniform", adversarial=True),
        "SANS + self-adversarial": Arm("sans", adversarial=True),
        "LEMON + self-adversarial": Arm("lemon_code", adversarial=True),
    }

    def our(name: str, metric: str, scale: float, digits: int) -> str:
        arm = ours.get(name)
        if arm is None or arm not in result.test[metric]:
            return "n/a"
        return f"{scale * result.test[metric][arm].mean():.{digits}f}"

    return Table(
        f"The paper's TransE on WN18RR beside ours on {result.plan.graph} (LEMON as in the authors' code; "
        f"around the replaced entity: {result.chosen.name})",
        ["negatives", "MRR, paper", "Hits@10 %, paper", "MRR, ours", "Hits@10 %, ours"],
        [
            [name, *paper, our(name, "MRR", 1, 4), our(name, "HITS@10", 100, 2)]
            for name, paper in PAPER_WN18RR.items()
        ],
    )


def mechanism_table(result: GraphResult) -> Table:
    """What the samplers of a graph draw."""
    return Table(
        f"{result.plan.graph}: what is drawn (training triples filtered)",
        ["negatives", "plausible", "true in validation or test"],
        [[name, plausible, false] for name, (plausible, false) in result.shares.items()],
    )


def _share_key(arm: Arm) -> str:
    return Arm(arm.sampler, arm.mix, arm.clusters).name
