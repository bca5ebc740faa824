"""ANT: negative transfer between the noise levels of a diffusion model, and its cure (arXiv:2306.00354).

Small diffusion models learn the latents of scikit-learn's digits, 16 principal components, with every method
of the paper: vanilla and stratified training, PCGrad, Nash-MTL and uncertainty weighting on five clusters of
timesteps, Min-SNR and P2. Measured are

A. the affinity of the tasks' gradients against the distance of their noise levels;
B. the quality of samples over the training, for all methods and three clusterings;
C. the negative transfer gaps of five intervals, by specialists that learn one interval alone;
D. pixels instead of latents, and what a step of each method costs.

The paper's own scale, DiT on ImageNet's latents, is that of `experiments.ant.latents`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
import numpy as np

from experiments.ant import quality
from experiments.ant.affinity import affinities, boundaries
from experiments.ant.claims import CLAIMS, CLUSTERINGS, Found, measurements
from experiments.ant.cost import METHODS, over_vanilla, step_times
from experiments.ant.figures import (
    draw_affinity,
    draw_clusters,
    draw_curves,
    draw_gaps,
    draw_quality,
    draw_samples,
)
from experiments.ant.quality import Judge, Quality
from experiments.ant.tables import (
    affinity_table,
    cluster_table,
    convergence_table,
    cost_table,
    gap_table,
    loss_gap_table,
    quality_table,
    with_interval,
)
from experiments.ant.training import (
    MIN_SNR,
    NASH,
    P2,
    PCGRAD,
    STRATIFIED,
    TIMESTEPS,
    UW,
    VANILLA,
    Arm,
    Method,
    Sizes,
    train,
)
from experiments.parallel import in_parallel
from experiments.run_dir import Outcome, RunDir, Table
from jaxneg.diffusion import negative_transfer_gap, timestep_intervals

if TYPE_CHECKING:
    from jaxneg.train import Target

__all__ = ["CLAIMS", "PRESETS", "Config", "compile_target", "run"]


@dataclass(frozen=True)
class Config:
    """ANT on digits, and what `compile` compiles."""

    seeds: int = 5
    """Networks of each method; at least 2."""
    hidden: int = 64
    """Width of the networks."""
    clusters: int = 5
    """Clusters of timesteps, and intervals of the transfer gaps; at least 2."""
    batch: int = 125
    """Examples in a batch, a multiple of the clusters; a specialist takes a cluster's share of them."""
    steps: int = 6000
    """Steps after which methods are compared, a multiple of 'every'."""
    longer: int = 9000
    """Steps of vanilla, stratified and UW training for the curves, a multiple of 'every'."""
    every: int = 1500
    """Steps between the checkpoints that are judged."""
    samples: int = 2000
    """Samples in a draw."""
    draws: int = 2
    """Draws over which distances are averaged."""
    affinity_points: int = 50
    """Timesteps at which gradients are compared, a divisor of 1000."""
    all_methods: bool = True
    """Whether to train every method, or the fewest that the claims need."""
    pixel_steps: int = 20_000
    """Steps on pixels instead of latents; 0 leaves them out."""
    cost_repeats: int = 5
    """Medians of step times, each of five measurements of every method in turn."""
    cost_hidden: int = 256
    """Width of the network whose steps are timed."""
    cost_batch: int = 250
    """Its batch, a multiple of the clusters."""
    latent_methods: tuple[Method, ...] = ()
    """Methods to train a DiT with, on ImageNet's latents: vanilla, linear, uw, pcgrad, nash."""
    data_dir: Path = Path("data")
    """Holds the folder imagenet_latents, as `experiments.images.LatentArrays` reads it."""
    dit: Literal["S", "B", "L", "XL"] = "B"
    """Size of the DiT, also of the one that `compile` compiles."""
    latent_steps: int = 400_000
    """Its steps, the paper's."""
    latent_batch: int = 1280
    """Its global batch, also that of `compile`: a multiple of the clusters and of the chips."""
    latent_samples: int = 10_000
    """Samples of each DiT, saved for an evaluator."""
    compile_method: Method = "uw"
    """Method of the step that `compile` compiles."""

    def __post_init__(self) -> None:
        least = {
            "seeds": 2,
            "clusters": 2,
            "samples": 10,
            "cost_repeats": 2,
            "pixel_steps": 0,
            "affinity_points": 10,
        }
        for name in (
            "seeds", "hidden", "clusters", "batch", "steps", "longer", "every", "samples", "draws",
            "affinity_points", "pixel_steps", "cost_repeats", "cost_hidden", "cost_batch", "latent_steps",
            "latent_batch", "latent_samples",
        ):  # fmt: skip
            if getattr(self, name) < least.get(name, 1):
                raise ValueError(f"{name}: expected at least {least.get(name, 1)}, got {getattr(self, name)}")
        for name in ("batch", "cost_batch", "latent_batch"):
            if getattr(self, name) % self.clusters:
                raise ValueError(
                    f"{name}: expected a multiple of clusters = {self.clusters}, got {getattr(self, name)}"
                )
        for name in ("steps", "longer"):
            if getattr(self, name) % self.every:
                raise ValueError(
                    f"{name}: expected a multiple of every = {self.every}, got {getattr(self, name)}"
                )
        if self.longer < self.steps:
            raise ValueError(f"longer: expected at least steps = {self.steps}, got {self.longer}")
        if TIMESTEPS % self.affinity_points or self.affinity_points < self.clusters:
            raise ValueError(
                f"affinity_points: expected a divisor of {TIMESTEPS}, no fewer than the clusters, got"
                f" {self.affinity_points}"
            )


PRESETS: dict[str, Config] = {
    "smoke": Config(
        seeds=2,
        hidden=8,
        clusters=2,
        batch=20,
        steps=10,
        longer=15,
        every=5,
        samples=50,
        draws=1,
        affinity_points=10,
        all_methods=False,
        pixel_steps=0,
        cost_repeats=2,
        cost_hidden=8,
        cost_batch=20,
    ),
    "cpu": Config(),
    "paper": Config(seeds=20, latent_methods=("vanilla", "uw")),
}

GAP_ARMS = (VANILLA, PCGRAD, NASH, UW)
"""Methods whose transfer gaps are measured."""
LONG_ARMS = (VANILLA, STRATIFIED, UW)


def _arms(config: Config, clusterings: Sequence[str]) -> list[Arm]:
    """The methods with these clusterings."""
    methods: tuple[Method, ...] = ("pcgrad", "nash", "uw") if config.all_methods else ("nash", "uw")
    arms = [
        Arm(method, clustering)
        for clustering in CLUSTERINGS
        if clustering in clusterings
        for method in methods
    ]
    if "timestep" in clusterings:
        arms += [PCGRAD, VANILLA, STRATIFIED, MIN_SNR]
        arms += [P2, Arm("uw", weight="p2")] if config.all_methods else []
    return sorted(set(arms), key=_longest_first)


def _longest_first(arm: Arm) -> tuple[bool, str]:
    return arm.method not in ("pcgrad", "nash"), arm.stage


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Trains every method, and measures affinities, samples, gaps and steps.

    Args:
        config: sizes.
        run_dir: where stages, figures and metrics go.

    Returns:
        A value of each claim for each seed, and the tables.
    """
    judge = quality.latent_judge()
    noise = quality.first_noise(config.seeds, config.draws, config.samples, judge.x.shape[1])
    intervals = boundaries("timestep", config.clusters, np.eye(config.affinity_points))
    clusters = {
        name: boundaries(name, config.clusters, np.eye(config.affinity_points)) for name in CLUSTERINGS[:2]
    }
    last = config.steps // config.every - 1

    def of_arm(arm: Arm) -> dict[str, np.ndarray]:
        return run_dir.stage(
            f"train-{arm.stage}", lambda: _train(config, arm, clusters[arm.clustering], judge, noise)
        )

    def of_interval(number: int) -> dict[str, np.ndarray]:
        sizes = Sizes(config.hidden, config.steps, config.steps, config.batch // config.clusters)
        return run_dir.stage(
            f"specialist-{number}",
            lambda: {
                "ema": np.asarray(
                    train(VANILLA, judge.x, intervals[number : number + 2], sizes, config.seeds).ema
                )
            },
        )

    arms = _arms(config, ("timestep", "SNR"))
    results = dict(zip(arms, in_parallel(of_arm, arms, run_dir, "Methods"), strict=True))
    places = _spread(last)
    affinity = run_dir.stage(
        "affinity", lambda: _affinity(config, results[VANILLA]["params"][:, places], judge)
    )
    clusters["gradient"] = boundaries("gradient", config.clusters, affinity["affinity"].mean(axis=0))
    arms = _arms(config, ("gradient",))
    results |= dict(
        zip(arms, in_parallel(of_arm, arms, run_dir, "Methods, clusters by gradient"), strict=True)
    )
    specialists = in_parallel(of_interval, range(config.clusters), run_dir, "Specialists")
    found = {arm: Quality(*(stage[name] for name in Quality._fields)) for arm, stage in results.items()}

    emas = {arm: results[arm]["ema"][:, last] for arm in GAP_ARMS}
    alone = np.stack([stage["ema"][:, -1] for stage in specialists], axis=1)
    shared = {arm: found[arm].fd[:, last] for arm in GAP_ARMS}

    def of_gaps(arm: Arm) -> dict[str, np.ndarray]:
        return run_dir.stage(
            f"gaps-{arm.stage}", lambda: _gaps(config, emas[arm], alone, shared[arm], intervals, judge, noise)
        )

    gaps = dict(zip(GAP_ARMS, in_parallel(of_gaps, GAP_ARMS, run_dir, "Transfer gaps"), strict=True))
    pixels = _pixels(config, run_dir, clusters["timestep"])
    times = run_dir.stage(
        "cost",
        lambda: step_times(
            config.cost_hidden,
            config.clusters,
            config.cost_batch,
            config.cost_repeats,
            tuple(METHODS) if config.all_methods else ("vanilla", "UW"),
        ),
    )
    halves = quality.halves_apart(judge)

    for place in range(config.longer // config.every):
        curves = {
            f"fd/{arm.name}": found[arm].fd[:, place].mean()
            for arm in found
            if place < found[arm].fd.shape[1]
        }
        run_dir.log((place + 1) * config.every, **curves)
    measured = Found(
        affinity["affinity"],
        found,
        {arm: gap["fd"] for arm, gap in gaps.items()},
        over_vanilla(times, "UW"),
    )
    _draw(config, run_dir, judge, measured, results, clusters, last)
    tables = [
        affinity_table(affinity["affinity"]),
        quality_table(found, last, results),
        convergence_table({arm: found[arm] for arm in LONG_ARMS}, config.every),
        gap_table(measured.gaps, intervals),
        loss_gap_table({arm: gap["loss"] for arm, gap in gaps.items()}, intervals),
        cluster_table(clusters),
        *pixels,
        cost_table(times),
    ]
    latent_tables, latent_notes = _latents(config, run_dir)
    return Outcome(
        measurements(measured, last),
        tables + latent_tables,
        [*_notes(config, measured, halves, last), *latent_notes],
    )


def compile_target(config: Config) -> "Target":
    """The step of a DiT on ImageNet's latents, for a pod: the networks of the digits fill no chip.

    Args:
        config: for the DiT's size, the method and the batch.

    Returns:
        The step and its abstract arguments.
    """
    from experiments.ant.latents import pod_target

    return pod_target(config.dit, config.compile_method, config.clusters, config.latent_batch)


def _train(
    config: Config, arm: Arm, clusters: Sequence[int], judge: Judge, noise: quality.Array
) -> dict[str, np.ndarray]:
    """Trains with a method, and judges its samples at every checkpoint."""
    steps = config.longer if arm in LONG_ARMS else config.steps
    trained = train(
        arm, judge.x, clusters, Sizes(config.hidden, steps, config.every, config.batch), config.seeds
    )
    return {
        "params": np.asarray(trained.params),
        "ema": np.asarray(trained.ema),
        **_judged(trained.ema, config.hidden, judge, noise, config.draws, config.steps // config.every - 1),
    }


def _judged(
    emas: quality.Array, hidden: int, judge: Judge, noise: quality.Array, draws: int, last: int
) -> dict[str, np.ndarray]:
    """Distances at every checkpoint, precision and recall and some samples at the last one that counts."""
    samples = [quality.draw(emas[:, place], noise, hidden, judge.clip) for place in range(emas.shape[1])]
    distances = [quality.distances(found, judge, draws) for found in samples]
    fd, own = (np.stack(each, axis=1) for each in zip(*distances, strict=True))
    precision, recall = quality.precision_and_recall(samples[last], judge, draws)
    shown = np.asarray(judge.pixels(samples[last][0, : quality.SHOWN]))
    return {"fd": fd, "own_fd": own, "precision": precision, "recall": recall, "shown": shown}


def _spread(last: int) -> np.ndarray:
    """Checkpoints up to the last one that counts, three where there are as many."""
    return np.unique(np.linspace(0, last, 3).round().astype(int))


def _affinity(config: Config, params: np.ndarray, judge: Judge) -> dict[str, np.ndarray]:
    """Of vanilla training, averaged over its checkpoints."""
    seeds, checkpoints, size = params.shape
    vectors = jnp.asarray(params.reshape(-1, size))
    found = affinities(vectors, jnp.asarray(judge.x), config.affinity_points, config.hidden)
    return {"affinity": np.asarray(found).reshape(seeds, checkpoints, *found.shape[1:]).mean(axis=1)}


def _gaps(
    config: Config,
    emas: np.ndarray,
    specialists: np.ndarray,
    shared: np.ndarray,
    intervals: Sequence[int],
    judge: Judge,
    noise: quality.Array,
) -> dict[str, np.ndarray]:
    """Transfer gaps of distances and, relative, of losses ``[seeds, intervals]``."""
    own = []
    for number, interval in enumerate(pairwise(intervals)):
        samples = quality.draw_with_specialists(
            jnp.asarray(emas), jnp.asarray(specialists[:, number]), interval, noise, config.hidden, judge.clip
        )
        own.append(quality.distances(samples, judge, config.draws)[0])
    fd = negative_transfer_gap(np.stack(own, axis=1), shared[:, None])
    x, bounds = jnp.asarray(judge.x), jnp.asarray(intervals)
    together = np.asarray(quality.interval_losses(jnp.asarray(emas), x, bounds, config.hidden))
    alone = [
        np.asarray(quality.interval_losses(jnp.asarray(specialists[:, number]), x, bounds, config.hidden))[
            :, number
        ]
        for number in range(len(intervals) - 1)
    ]
    return {"fd": fd, "loss": negative_transfer_gap(np.stack(alone, axis=1), together) / together}


def _pixels(config: Config, run_dir: RunDir, clusters: Sequence[int]) -> list[Table]:
    """The same on pixels, which the paper does not do."""
    if not config.pixel_steps:
        return []
    judge = quality.pixel_judge()
    noise = quality.first_noise(config.seeds, config.draws, config.samples, judge.x.shape[1])
    sizes = Sizes(config.hidden, config.pixel_steps, config.pixel_steps, config.batch)

    def of_arm(arm: Arm) -> dict[str, np.ndarray]:
        def compute() -> dict[str, np.ndarray]:
            trained = train(arm, judge.x, clusters, sizes, config.seeds)
            return _judged(trained.ema, config.hidden, judge, noise, config.draws, 0)

        return run_dir.stage(f"pixels-{arm.stage}", compute)

    arms = (STRATIFIED, UW)
    results = dict(zip(arms, in_parallel(of_arm, arms, run_dir, "Methods on pixels"), strict=True))
    found = {arm: Quality(*(stage[name] for name in Quality._fields)) for arm, stage in results.items()}
    title = f"D. Pixels instead of latents, after {config.pixel_steps} steps"
    return [quality_table(found, 0, results, title, published=False)]


def _draw(
    config: Config,
    run_dir: RunDir,
    judge: Judge,
    found: Found,
    results: dict[Arm, dict[str, np.ndarray]],
    clusters: dict[str, tuple[int, ...]],
    last: int,
) -> None:
    seeds = f"mean and 95 % interval over {config.seeds} seeds"
    run_dir.figure(
        "affinity",
        draw_affinity(found.affinity, clusters["gradient"]),
        "Cosine of the gradients of two denoising tasks in vanilla training, mean over"
        f" {len(_spread(last))} checkpoints and the seeds; lines: clusters by gradient. Right: against the"
        f" distance in timesteps, {seeds}.",
    )
    run_dir.figure(
        "clusters",
        draw_clusters(clusters),
        "The three clusterings, on the logarithm of the signal-to-noise ratio that the second of them is by.",
    )
    run_dir.figure(
        "quality",
        draw_quality(found.quality, last),
        f"Fréchet distance of samples to the digits after {config.steps} steps, in a classifier's features"
        f" and in the space of the latents: {seeds}; dots: the seeds.",
    )
    run_dir.figure(
        "convergence",
        draw_curves(found.quality, config.every),
        f"Fréchet distance in a classifier's features over the training, clusters by timestep: {seeds}.",
    )
    run_dir.figure(
        "gaps",
        draw_gaps(found.gaps, clusters["timestep"]),
        "Transfer gaps: how much farther from the digits samples are if a specialist takes the steps of one"
        f" interval. Below zero the interval suffers from the others: {seeds}. Right: the paper's, in FID.",
    )
    run_dir.figure(
        "samples",
        draw_samples(
            {arm.name: results[arm]["shown"] for arm in results if arm.clustering == "timestep"}, judge
        ),
        f"Samples of the first seed after {config.steps} steps, a method in a row, all from the same noise;"
        " real digits, decoded from their latents, in the first row.",
    )


def _notes(config: Config, found: Found, halves: np.ndarray, last: int) -> list[str]:
    gaps = found.gaps[VANILLA]
    own = {arm: found.quality[arm].own_fd for arm in LONG_ARMS}
    longest = np.minimum(own[VANILLA][:, -1], own[STRATIFIED][:, -1])
    notes = [
        f"Two random halves of the digits are {halves.mean():.2f} apart in the classifier's features:"
        " distances of sets of that size have such a bias, and are compared at equal sizes only.",
        "In the latents' own space UW's distance over vanilla's is"
        f" {with_interval(own[UW][:, last] / own[VANILLA][:, last])} after {config.steps} steps, and"
        f" {with_interval(own[UW][:, last] / longest)} over the lower of vanilla's and stratified's after"
        f" {config.longer}.",
        f"In the last interval vanilla training's gap is negative with {(gaps[:, -1] < 0).sum()} of"
        f" {config.seeds} seeds, and lower than in the first with {(gaps[:, -1] < gaps[:, 0]).sum()}.",
        "The prototype's figures come from another program with other networks and another classifier: ratios"
        " can be compared with ours, distances hardly.",
        "A specialist sees as many examples of its interval as the other networks do: its batch is a"
        " cluster's share of theirs.",
    ]
    if not config.all_methods:
        notes.append("all_methods is off: P2, and PCGrad with the other clusterings, were left out.")
    return notes


def _latents(config: Config, run_dir: RunDir) -> tuple[list[Table], list[str]]:
    """The paper's own data, of which no claim speaks: no verdict hangs on who has them."""
    if not config.latent_methods:
        return [], []
    from experiments.ant.latents import latent_table, train_latents
    from experiments.imagenet_dit import FOLDER

    folder = config.data_dir / FOLDER
    if not folder.is_dir():
        return [], [
            f"There is no folder {folder}: ImageNet's latents were left out (--data-dir says where to look)."
        ]
    results = {
        method: train_latents(
            folder,
            config.dit,
            method,
            clusters=config.clusters,
            batch=config.latent_batch,
            steps=config.latent_steps,
            samples=config.latent_samples,
            run_dir=run_dir,
        )
        for method in config.latent_methods
    }
    bounds = timestep_intervals(TIMESTEPS, config.clusters)
    note = (
        "Samples of the DiTs are in the run folder's latents/, as latents and classes: decode them with the"
        " autoencoder, and take ADM's evaluator for the FID."
    )
    return [latent_table(results, bounds)], [note]
