"""A toy: the mean of normal draws.

It is an experiment like the real ones, small enough to test the harness with.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.claims import AtLeast, AtMost, Claim, Within
from experiments.run_dir import Outcome, RunDir, Table


@dataclass(frozen=True)
class Draws:
    """How the numbers are drawn."""

    count: int = 100
    """Draws for each seed."""
    scale: float = 1.0
    """Their standard deviation."""


@dataclass(frozen=True)
class Config:
    """The toy's settings."""

    seeds: int = 8
    """Independent repetitions."""
    draws: Draws = Draws()
    """How the numbers are drawn."""
    shifts: tuple[float, ...] = (0.0, 1.0)
    """What is added to the draws, one table row for each."""
    family: Literal["normal", "uniform"] = "normal"
    """The distribution."""
    data: Path | None = None
    """A file that is not read."""
    seconds: float = 0.0
    """How long each seed sleeps, in seconds."""
    fail_at: int = -1
    """The seed that raises an error; -1 for none."""
    quiet: bool = False
    """Whether to leave out the notes."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds: expected at least 1, got {self.seeds}")


PRESETS = {
    "smoke": Config(seeds=3, draws=Draws(count=10)),
    "cpu": Config(),
    "paper": Config(seeds=32, draws=Draws(count=10_000)),
}

CLAIMS = (
    Claim(
        name="mean-is-small",
        sentence="The mean of the draws lies near zero, however many there are & <whatever> they are called.",
        source="arXiv:0000.00000, Section 1",
        paper="0.00 ± 0.01",
        measure="mean of the draws, no unit",
        criterion=Within(-10, 10),
    ),
    Claim(
        name="mean-is-large",
        sentence="The mean of the draws is large.",
        source="arXiv:0000.00000, Section 2",
        paper="100",
        measure="mean of the draws, no unit",
        criterion=AtLeast(50),
        statistic="median",
    ),
    Claim(
        name="mean-is-negative",
        sentence="The mean of the draws is negative.",
        source="arXiv:0000.00000, Section 3",
        paper="qualitative only",
        measure="mean of the draws, no unit",
        criterion=AtMost(0),
    ),
)


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Draws the numbers, one stage for each seed."""
    from matplotlib.figure import Figure

    def one_seed(seed: int) -> dict[str, Any]:
        if seed == config.fail_at:
            raise RuntimeError(f"seed {seed} fails as it was told to")
        time.sleep(config.seconds)
        draws = np.random.default_rng(seed).normal(scale=config.draws.scale, size=config.draws.count)
        run_dir.log(seed, mean=draws.mean())
        return {"mean": draws.mean()}

    means = np.array(
        [
            run_dir.stage(f"seed-{seed}", lambda seed=seed: one_seed(seed))["mean"]
            for seed in run_dir.progress(range(config.seeds), "seeds")
        ]
    )
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot(means, "o")
    run_dir.figure("means", figure, 'The mean of each seed: points around zero, "quoted" & <marked>.')
    return Outcome(
        measurements={claim.name: means for claim in CLAIMS},
        tables=[
            Table(
                "Shifted means",
                ["shift", "mean", "what it is"],
                [[shift, float(means.mean() + shift), "a <shifted> mean"] for shift in config.shifts],
            )
        ],
        notes=[] if config.quiet else ["The toy's draws are generated, not measured."],
    )


def compile_target(config: Config) -> Config:
    """What the test's stand-in for the compiler gets to see."""
    return config
