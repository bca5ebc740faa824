"""NPO: from catastrophic collapse to effective unlearning, on the paper's synthetic experiment.

Reproduces Zhang et al., arXiv:2404.05868: Section 4 and Figure 4 (distance of every method to the model that
was retrained without the forget data), Proposition 1 (NPO becomes gradient ascent as beta goes to 0), and
Theorem 2 (gradient ascent diverges linearly, NPO logarithmically). It is the paper's own experiment at its
full size, in float64, on more seeds than the paper's five.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np

from experiments.claims import mean_interval, median_interval
from experiments.npo.claims import CLAIMS, OFFICIAL, Curves, measurements
from experiments.npo.divergence import INSTANCES, diverge, draw_instance, slopes
from experiments.npo.figures import draw_distances, draw_divergence, draw_frontier, draw_sweep
from experiments.npo.gaussian_logistic import METHODS, Method, fit, problem, unlearn
from experiments.run_dir import Outcome, RunDir, Table
from jaxneg.unlearning import synthetic_gaussian_logistic

if TYPE_CHECKING:
    from jaxneg.train import Target

__all__ = ["CLAIMS", "PRESETS", "Config", "compile_target", "run"]


@dataclass(frozen=True)
class Config:
    """The synthetic experiment; the defaults are the paper's, except for the number of seeds."""

    seed: int = 0
    """Number that the data of all seeds are drawn from."""
    seeds: int = 20
    """Data sets drawn; the paper has 5, too few for an interval of 95 % around a median."""
    fit_steps: int = 20_000
    """Gradient steps for the reference model and for the retrained one."""
    steps: int = 2_000
    """Gradient steps of unlearning."""
    every: int = 25
    """Steps between evaluations, a divisor of steps and of sweep_steps."""
    betas: tuple[float, ...] = (0.01, 0.1, 0.2, 0.5, 1.0)
    """NPO's inverse temperatures in the sweep."""
    sweep_steps: int = 10_000
    """Gradient steps of the sweep."""
    divergence_steps: int = 4_000
    """Gradient steps of the check of Theorem 2."""
    pod_batch: int = 256
    """Rows in a batch of the language model that `compile` compiles, and nothing else reads."""
    pod_tokens: int = 512
    """Tokens in a row of it."""

    def __post_init__(self) -> None:
        for name in ("seeds", "fit_steps", "steps", "every", "sweep_steps", "divergence_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("steps", "sweep_steps"):
            if getattr(self, name) % self.every:
                raise ValueError(
                    f"{name}: expected a multiple of every = {self.every}, got {getattr(self, name)}"
                )
        if not self.betas or min(self.betas) <= 0:
            raise ValueError(f"betas: expected at least one, all positive, got {self.betas}")


PRESETS: dict[str, Config] = {
    "smoke": Config(
        seeds=2, fit_steps=1_000, steps=200, betas=(0.01, 1.0), sweep_steps=500, divergence_steps=400
    ),
    # The paper's experiment in full: every method, both populations, all steps.
    "cpu": Config(),
    # The paper has nothing larger: this only narrows the intervals.
    "paper": Config(seeds=100),
}

SWEEP_LEARNING_RATE = 5e-4
"""Of gradient ascent and of NPO with every beta in the sweep."""

MODELS = ("reference", "retrained")


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Unlearns with every method on every seed, and checks Proposition 1 and Theorem 2.

    Args:
        config: sizes.
        run_dir: where curves, figures and metrics go.

    Returns:
        A value of each claim for each seed, the tables of distances, and that of the rates of divergence.
    """
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(config.seed), config.seeds)
        curves, models = {}, {}
        for alpha in METHODS:
            curves[alpha], models[alpha] = _unlearned(config, run_dir, keys, alpha)
        sweep = _swept(config, run_dir, keys, models[1.0])
        distances = {name: _diverged(config, run_dir, keys, name) for name in INSTANCES}
    rates = {
        name: np.array([slopes(ga, npo, INSTANCES[name]) for ga, npo in zip(*both, strict=True)])
        for name, both in distances.items()
    }
    steps = np.arange(0, config.steps + 1, config.every)
    sweep_steps = np.arange(0, config.sweep_steps + 1, config.every)
    _log(run_dir, steps, curves)
    draw_distances(run_dir, steps, curves)
    draw_frontier(run_dir, curves[1.0])
    draw_sweep(run_dir, sweep_steps, sweep)
    draw_divergence(run_dir, *distances["general"], INSTANCES["general"])
    least = _beta_label(min(config.betas))
    measured = measurements(steps, curves, sweep_steps, sweep["GA"], sweep[least], rates["general"])
    margins = np.array([values for name, values in measured.items() if name.startswith("overlap-")])
    in_order = int((margins.min(0) > 1).sum())
    return Outcome(
        measured,
        tables=[*(_distance_table(alpha, curves[alpha]) for alpha in curves), _rate_table(rates)],
        notes=[
            f"Where the populations overlap, the whole order holds in {in_order} of {config.seeds} seeds.",
            "The paper shows its synthetic results as curves; the numbers here are a rerun of its code.",
            "This is the paper's own experiment in float64; only the seeds are more than its five, drawn"
            " anew.",
            "A median's interval is the narrowest pair of order statistics that covers it with at least 95"
            " %.",
        ],
    )


def compile_target(config: Config) -> "Target":
    """The NPO+RT step of a language model with the shapes of Llama-3.2-1B, for a mesh of 256 chips.

    Args:
        config: batch and row length.

    Returns:
        The step and its abstract arguments.
    """
    from experiments.npo.pod import npo_step_target

    return npo_step_target(config.pod_batch, config.pod_tokens)


def _unlearned(config: Config, run_dir: RunDir, keys: jax.Array, alpha: float) -> tuple[Curves, Curves]:
    """The distances of every method, and the weights of the reference and of the retrained model."""

    @jax.jit
    def unlearn_seed(key: jax.Array) -> dict[str, jax.Array]:
        data = problem(synthetic_gaussian_logistic(key, alpha))
        models = fit(data, config.fit_steps)
        curves, _ = unlearn(data, *models, METHODS[alpha], config.steps, config.every)
        return curves | dict(zip(MODELS, models, strict=True))

    found = _by_seed(run_dir, f"alpha{alpha:g}", f"unlearning, alpha = {alpha:g}", unlearn_seed, keys)
    return {name: found[name] for name in METHODS[alpha]}, {name: found[name] for name in MODELS}


def _swept(config: Config, run_dir: RunDir, keys: jax.Array, models: Curves) -> Curves:
    """The distances of GA and of NPO with every beta, all at one learning rate, on the data of alpha = 1."""
    methods = {"GA": Method("GA", SWEEP_LEARNING_RATE)}
    for beta in sorted(config.betas):
        methods[_beta_label(beta)] = Method("NPO", SWEEP_LEARNING_RATE, beta)

    @jax.jit
    def unlearn_seed(key: jax.Array, reference: jax.Array, retrained: jax.Array) -> dict[str, jax.Array]:
        data = problem(synthetic_gaussian_logistic(key, 1.0))
        return unlearn(data, reference, retrained, methods, config.sweep_steps, config.every)[0]

    return _by_seed(run_dir, "sweep", "sweep of beta", unlearn_seed, keys, *(models[each] for each in MODELS))


def _diverged(config: Config, run_dir: RunDir, keys: jax.Array, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Distances of GA and of NPO from their start, ``[seeds, steps]``."""
    instance = INSTANCES[name]

    @jax.jit
    @jax.vmap
    def diverge_seed(key: jax.Array) -> dict[str, jax.Array]:
        return diverge(draw_instance(key, instance), instance, config.divergence_steps)[0]

    found = run_dir.stage(f"divergence_{name}", partial(diverge_seed, keys))
    return found["GA"], found["NPO"]


def _by_seed(
    run_dir: RunDir,
    stage: str,
    description: str,
    compute: Callable[..., dict[str, jax.Array]],
    *arguments: Sequence | np.ndarray | jax.Array,
) -> dict[str, np.ndarray]:
    """``compute`` for every seed, stacked. Each seed is a stage of its own, so that a run that died goes on.

    A thread for each core and a seed at a time, not vmapped: one seed's features fit into a core's cache.
    """

    def stage_of(number: int, *of_seed: jax.Array) -> dict[str, np.ndarray]:
        with jax.enable_x64(True):  # a setting of each thread
            return run_dir.stage(f"{stage}_seed{number:02d}", partial(compute, *of_seed))

    seeds = range(len(arguments[0]))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        stages = threads.map(stage_of, seeds, *arguments)
        found = [next(stages) for _ in run_dir.progress(seeds, description)]
    return {name: np.stack([arrays[name] for arrays in found]) for name in found[0]}


def _log(run_dir: RunDir, steps: np.ndarray, curves: dict[float, Curves]) -> None:
    """The medians over seeds, for TensorBoard."""
    medians = {
        f"alpha{alpha:g}/{kind}/{name}": np.median(curve[:, :, side], axis=0)
        for alpha, by_name in curves.items()
        for name, curve in by_name.items()
        for side, kind in enumerate(("forget", "retain"))
    }
    for index, step in enumerate(steps):
        run_dir.log(int(step), **{name: median[index] for name, median in medians.items()})


def _distance_table(alpha: float, curves: Curves) -> Table:
    """Where every method ends, beside the paper's code."""
    statistic, interval = ("median", median_interval) if alpha else ("mean", mean_interval)
    populations = "populations apart" if alpha else "populations overlap"
    rows = []
    for name, curve in curves.items():
        cells = []
        for side, official in enumerate(OFFICIAL[alpha].get(name, ("", ""))):
            estimate, low, high, _ = interval(curve[:, -1, side])
            cells += [official, f"{estimate:.3g} [{low:.3g}, {high:.3g}]"]
        rows.append([name, *cells])
    return Table(
        f"alpha = {alpha:g}, {populations}: KL to the retrained model at the last step ({statistic}, nats)",
        ["method", "forget: paper", "ours [95 %]", "retain: paper", "ours [95 %]"],
        rows,
    )


def _rate_table(rates: dict[str, np.ndarray]) -> Table:
    """The rates of Theorem 2 on both kinds of instances."""
    rows = []
    for name, values in rates.items():
        shape = f"{name}, {INSTANCES[name].n_forget} points in {INSTANCES[name].dimension}"
        for what, slope in zip(("GA, log distance", "NPO, β distance / √n"), values.T, strict=True):
            estimate, low, high, _ = mean_interval(slope)
            rows.append([shape, what, f"{estimate:.4f} [{low:.4f}, {high:.4f}]"])
    title = "Theorem 2: slope against log t, second half of the steps (mean; 1 in theory)"
    return Table(title, ["instances", "what", "slope [95 %]"], rows)


def _beta_label(beta: float) -> str:
    return f"NPO, β = {beta:g}"
