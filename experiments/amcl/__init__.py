"""AMCL: several heads and a temperature for every pair, against one head and one temperature.

Reproduces the effects of Wang et al., arXiv:2310.05615, in minutes: pre-training on small images without
labels, judged by neighbours and a linear probe, with few and with many augmentations; and views whose
nuisances are known. The paper's gains are those of 1000 epochs on whole data sets.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.amcl.claims import (
    CLAIMED_TAU_MIN,
    CLAIMS,
    FEW,
    MANY,
    Results,
    best_temperature,
    measurements,
)
from experiments.amcl.comparison import (
    OFFICIAL,
    Arm,
    amcl_name,
    arms,
    base_name,
    fixed_arms,
    official_arm,
    train_and_judge,
)
from experiments.amcl.controlled import COUNTS, METHODS, compare
from experiments.amcl.figures import draw_accuracies, draw_controlled, draw_similarities, draw_temperatures
from experiments.amcl.sources import ImageData, load_images, subset
from experiments.amcl.training import Base, Encoder, StepConfig
from experiments.claims import mean_interval
from experiments.parallel import in_parallel
from experiments.run_dir import Outcome, RunDir, Table

if TYPE_CHECKING:
    from jaxneg.train import Target

__all__ = ["CLAIMS", "PRESETS", "Config", "compile_target", "run"]


@dataclass(frozen=True)
class Config:
    """Pre-training on images, and on controlled views."""

    seed: int = 0
    """Of the first run; the others follow."""
    seeds: int = 5
    """Runs of each method, with weights, order and augmentations of their own."""
    source: str = "auto"
    """auto (the reduced CIFAR-10 if it is there, else digits), digits, cifar10:PATH or cifar100:PATH (folder
    of the binary version), folder:PATH (with train and test), or tfds:NAME."""
    images: int = 4000
    """Training images, evenly of all classes; at most what there is."""
    base: Base = "simclr"
    """The method that AMCL is put on."""
    temperatures: tuple[float, ...] = (0.1, 0.2, 0.5)
    """Of the base method."""
    tau_mins: tuple[float, ...] = (0.01, 0.1)
    """Lower bounds of AMCL's temperatures; 0.1, which the claims are about, among them."""
    heads: int = 3
    """Of AMCL and of the fixed heads."""
    official: bool = True
    """Whether AMCL is also run at the official code's defaults, with all augmentations."""
    epochs: int = 10
    """Passes over the images."""
    batch: int = 128
    """Images in a step."""
    encoder: Encoder = "mixer"
    """A small MLP-Mixer, which a CPU trains fast, or a residual network: "resnet18-cifar" with width 16 takes
    five times as long."""
    width: int = 48
    """Of the encoder's first features."""
    size: int = 16
    """Side of the views in pixels."""
    hidden: int = 128
    """Units of a head's hidden layer."""
    outputs: int = 64
    """Numbers that a head gives."""
    optimizer: str = "adam"
    """adam, or sgd as in the paper."""
    learning_rate: float = 2e-3
    """At the beginning."""
    controlled_seeds: int = 5
    """Worlds of controlled views."""
    controlled_steps: int = 400
    """Steps on controlled views."""
    pod_batch: int = 4096
    """Images of the step that `compile` compiles, and nothing else reads."""

    def __post_init__(self) -> None:
        for name in (
            "seeds",
            "images",
            "epochs",
            "heads",
            "controlled_seeds",
            "controlled_steps",
            "pod_batch",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.heads < 2:
            raise ValueError("heads: expected at least 2, since one head is compared with several, got 1")
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(f"temperatures: expected positive numbers, got {self.temperatures}")
        if CLAIMED_TAU_MIN not in self.tau_mins or not 0 < min(self.tau_mins) <= max(self.tau_mins) < 2:
            raise ValueError(
                f"tau_mins: expected numbers above 0 and below 2, with {CLAIMED_TAU_MIN} among them, got"
                f" {self.tau_mins}"
            )
        if not 2 <= self.batch <= self.images:
            raise ValueError(f"batch: expected 2 to {self.images}, the number of images, got {self.batch}")
        if self.optimizer not in ("adam", "sgd"):
            raise ValueError(f"optimizer: expected adam or sgd, got {self.optimizer!r}")
        self.step_config(1)

    def step_config(self, steps: int) -> StepConfig:
        """What all arms have in common.

        Args:
            steps: of the schedule.

        Returns:
            The config of a step.
        """
        return StepConfig(
            base=self.base,
            heads=self.heads,
            hidden=self.hidden,
            outputs=self.outputs,
            encoder=self.encoder,
            width=self.width,
            size=self.size,
            optimizer=self.optimizer,  # pyright: ignore[reportArgumentType]
            learning_rate=self.learning_rate,
            beta=1e-6 if self.base == "barlow_twins" else 1e-4,
            steps=steps,
            batch=self.batch,
        )


PRESETS: dict[str, Config] = {
    "smoke": Config(
        seeds=2,
        source="digits",
        images=128,
        temperatures=(0.5,),
        tau_mins=(0.1,),
        official=False,
        epochs=2,
        batch=32,
        width=16,
        hidden=16,
        outputs=8,
        controlled_seeds=2,
        controlled_steps=20,
    ),
    "cpu": Config(),
    # The paper's recipe on CIFAR-10; `compile` compiles its largest run, ImageNet with ResNet-50.
    "paper": Config(
        seeds=5,
        source="tfds:cifar10",
        images=50_000,
        epochs=1000,
        batch=512,
        encoder="resnet18-cifar",
        width=64,
        size=32,
        hidden=512,
        outputs=128,
        optimizer="sgd",
        learning_rate=0.06,
        controlled_steps=2000,
        controlled_seeds=10,
    ),
}


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Trains every arm, judges it, and compares on controlled views.

    Args:
        config: sizes.
        run_dir: where results and figures go.

    Returns:
        A value of each claim for each seed, tables, notes.
    """
    default = Path(__file__).parents[3] / "shared" / "data"
    data = load_images(config.source, config.size, Path(os.environ.get("JAXNEG_DATA", default)))
    if data.train.x.shape[1] != config.size:
        raise ValueError(f"size: expected that of the images, {data.train.x.shape[1]}, got {config.size}")
    images = min(config.images, len(data.train.y))
    steps = config.epochs * (images // config.batch)
    common = config.step_config(steps)
    first = {
        letters: arms(replace(common, letters=letters), config.temperatures, config.tau_mins)
        for letters in (FEW, MANY)
    }
    if config.official:
        first[MANY].append(official_arm(replace(common, letters=MANY)))
    results = _train(config, run_dir, data, images, steps, first, "pre-training")
    best = {letters: best_temperature(results[letters], config.temperatures) for letters in results}
    second = {letters: fixed_arms(replace(common, letters=letters), best[letters]) for letters in results}
    for letters, found in _train(config, run_dir, data, images, steps, second, "fixed heads").items():
        results[letters] |= found
    controlled = run_dir.stage(
        "controlled", lambda: compare(config.seed, config.controlled_seeds, config.controlled_steps)
    )
    chosen = results[MANY][amcl_name(config.heads, CLAIMED_TAU_MIN)]
    for index, step in enumerate(chosen["curve_step"][0]):
        values = {n: chosen[f"curve_{n}"][:, index].mean() for n in ("loss", "tau_pos_mean", "tau_neg_mean")}
        run_dir.log(int(step), **values)
    draw_accuracies(run_dir, results)
    draw_similarities(run_dir, results, config.temperatures, config.heads)
    draw_temperatures(run_dir, results, config.heads)
    draw_controlled(run_dir, controlled)
    return Outcome(
        measurements(results, controlled, config.temperatures, config.heads),
        tables=[*(_table(letters, of) for letters, of in results.items()), _controlled_table(controlled)],
        notes=_notes(config, data, images, results, best),
    )


def compile_target(config: Config) -> "Target":
    """A step of SimCLR with AMCL on ImageNet at batch 4096: ResNet-50, three heads, views made on the chips.

    Args:
        config: batch.

    Returns:
        The step and its abstract arguments.
    """
    from experiments.amcl.pod import pod_step, pod_target

    return pod_target(pod_step(config.pod_batch))


def _train(
    config: Config,
    run_dir: RunDir,
    data: ImageData,
    images: int,
    steps: int,
    planned: dict[str, list[Arm]],
    description: str,
) -> Results:
    """Every arm on every seed; each run is kept when it is done."""
    items = [
        (seed, letters, arm)
        for seed in range(config.seed, config.seed + config.seeds)
        for letters, of in planned.items()
        for arm in of
    ]

    def one(item: tuple[int, str, Arm]) -> dict[str, np.ndarray]:
        seed, letters, arm = item
        name = f"{letters}-{''.join(c if c.isalnum() else '_' for c in arm.name)}-{seed}"
        log_every = max(1, steps // 50)
        return run_dir.stage(name, lambda: train_and_judge(arm, subset(data, images, seed), seed, log_every))

    found = in_parallel(one, items, run_dir, description)
    results: Results = {letters: {arm.name: {} for arm in of} for letters, of in planned.items()}
    for letters, of in results.items():
        for name in of:
            runs = [
                r for (_, at, arm), r in zip(items, found, strict=True) if (at, arm.name) == (letters, name)
            ]
            of[name] = {key: np.stack([one_run[key] for one_run in runs]) for key in runs[0]}
    return results


def _interval(values: np.ndarray, scale: float = 1.0) -> str:
    estimate, low, high, _ = mean_interval(scale * values)
    return f"{estimate:.3g} [{low:.3g}, {high:.3g}]"


def _table(letters: str, of: dict[str, dict[str, np.ndarray]]) -> Table:
    rows = []
    for name, found in of.items():
        cells = [_interval(found[measure], 100) for measure in ("linear", "knn")]
        cells += [f"{found[measure].mean():.3f}" for measure in ("auc", "overlap", "below_half")]
        adaptive = ("pos_tau_mean", "neg_tau_mean", "pos_tau_least", "spearman")
        cells += [f"{found[measure].mean():.3g}" if measure in found else "" for measure in adaptive]
        rows.append([name, *cells])
    columns = ["method", "linear, % [95 %]", "kNN, % [95 %]", "AUC", "overlap", "positives < 0.5"]
    columns += ["tau of positives", "of negatives", "least of positives", "Spearman"]
    return Table(f"Augmentations {letters!r}", columns, rows)  # pyright: ignore[reportArgumentType]


def _controlled_table(controlled: dict[str, np.ndarray]) -> Table:
    rows = [
        [count, method, _interval(controlled["linear"][m, c], 100), _interval(controlled["knn"][m, c], 100)]
        for c, count in enumerate(COUNTS)
        for m, method in enumerate(METHODS)
    ]
    columns = ["kinds of nuisance", "method", "linear, % [95 %]", "kNN, % [95 %]"]
    return Table("Controlled views", columns, rows)  # pyright: ignore[reportArgumentType]


def _notes(
    config: Config, data: ImageData, images: int, results: Results, best: dict[str, float]
) -> list[str]:
    """What limits the claims, in numbers of this run."""
    many = results[MANY]
    notes = [
        f"Data: {images} training and {len(data.test.y)} test images of {data.name}, {config.epochs} epochs;"
        f" the encoder is {config.encoder!r} of width {config.width}. The paper's gains are those of whole"
        " data sets and 200 to 1000 epochs, with a ResNet.",
        *(
            f"With augmentations {letters!r} the base method is best at temperature {temperature:g}"
            f" (linear {100 * results[letters][base_name(temperature)]['linear'].mean():.1f} %): it is"
            " compared at the temperature of its best mean, AMCL at a range that was settled before."
            for letters, temperature in best.items()
        ),
    ]
    if data.name.startswith("digits"):
        notes.append(
            "These are the embedded digits: set JAXNEG_DATA to the folder that holds amcl/, or give --source,"
            " for photographs."
        )
    if OFFICIAL in many:
        share = many[OFFICIAL]["curve_tau_pos_at_lower_bound"][:, -1].mean()
        loss = many[OFFICIAL]["curve_loss"]
        notes.append(
            "At the official defaults (temperatures from 1e-5, the 100 nearest negatives, beta 1e-4) the loss"
            f" falls from {loss[:, 0].mean():.3g} to {loss[:, -1].mean():.3g}, and {100 * share:.0f} % of the"
            " positives end at the lower bound: the objective is not bounded but by it."
        )
    return notes
