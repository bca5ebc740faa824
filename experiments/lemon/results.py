"""What was measured on a graph."""

from dataclasses import dataclass, field

import numpy as np

from experiments.lemon.training import Arm, GraphPlan

Metrics = dict[str, dict[Arm, np.ndarray]]
"""By metric and arm, ``[seeds]``."""


@dataclass
class GraphResult:
    """Measurements of all arms on one graph."""

    plan: GraphPlan
    arms: list[Arm]
    valid: Metrics
    test: Metrics
    seconds_per_1000: dict[Arm, float]
    plausible: dict[Arm, np.ndarray]
    """Share of plausible draws, ``[seeds]``."""
    false: dict[Arm, np.ndarray]
    """Share of draws that are true in validation or test, ``[seeds]``."""
    hardness: dict[Arm, np.ndarray] = field(default_factory=dict)
    drawing_ratio: np.ndarray = field(default_factory=lambda: np.zeros(0))
    building_seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    reduced: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    """Embeddings after PCA, of the first seed."""
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    names: list[str] = field(default_factory=list)

    def best(self, *, adversarial: bool) -> Arm:
        """The LEMON setting with the best mean MRR on the validation triples."""
        lemon = [arm for arm in self.arms if arm.sampler == "lemon" and arm.adversarial == adversarial]
        return max(lemon, key=lambda arm: float(self.valid["MRR"][arm].mean()))

    @property
    def chosen(self) -> Arm:
        """The LEMON setting that stands for the method, with the plain loss."""
        return self.best(adversarial=False)

    @property
    def chosen_adversarial(self) -> Arm:
        """Likewise with the self-adversarial loss."""
        return self.best(adversarial=True)

    @property
    def pure(self) -> Arm:
        """LEMON's first number of clusters with the smallest mix."""
        lemon = [arm for arm in self.arms if arm.sampler == "lemon" and arm.clusters == self.plan.clusters[0]]
        return min(lemon, key=lambda arm: (arm.adversarial, arm.mix))

    def lead(self, metric: str, first: Arm, second: Arm) -> np.ndarray:
        """``first`` minus ``second`` on test, one number a seed."""
        return self.test[metric][first] - self.test[metric][second]

    @property
    def shares(self) -> dict[str, tuple[str, str]]:
        """Shares as text, by the arm's name."""
        return {
            arm.name: (f"{self.plausible[arm].mean():.3f}", f"{100 * self.false[arm].mean():.3g} %")
            for arm in self.plausible
        }
