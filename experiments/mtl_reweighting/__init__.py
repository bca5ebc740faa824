"""Multi-task reweighting: what the sum of the losses does wrong and which methods mend it.

Four parts, each in its own file:

1. `toy`: two losses of two parameters with a known Pareto set (CAGrad, Nash-MTL, FAMO), in float64;
2. `gradnorm_toy`: regression tasks that differ in scale (GradNorm), every method, trained through the engine;
3. `solver_accuracy`: residuals of the Nash-MTL and FairGrad equations on hard Jacobians;
4. `tables`: real multi-target tables, every method, trained through the engine, without a claim.

`methods` names the methods; `conflict` follows in 2 and 4 how the gradients conflict over training; `pod` is
the step that is compiled for chips that are not there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from experiments.claims import AtLeast, AtMost, Claim, Within
from experiments.mtl_reweighting import conflict, gradnorm_toy, solver_accuracy, tables, toy
from experiments.mtl_reweighting.delta import increases
from experiments.mtl_reweighting.methods import EPOCH, WATCHED
from experiments.mtl_reweighting.pod import nash_step_target
from experiments.parallel import in_parallel
from experiments.run_dir import Outcome, RunDir, Table
from jaxneg.train import Target


@dataclass(frozen=True)
class Config:
    """Multi-task reweighting: two toys with a known answer, the solvers' accuracy, and real tables."""

    seeds: int = 6
    """Seeds behind every interval; at least 2."""
    toy_steps: int = 100_000
    """Adam steps of the two-loss toy in CAGrad's setting, a multiple of 1000; the others take half."""
    toy_jitter: float = 0.1
    """Standard deviation of the noise that moves the toy's starting points, one draw for each seed."""
    gradnorm_steps: int = 1500
    """Adam steps of GradNorm's toy, a multiple of 100."""
    gradnorm_tasks: int = 0
    """Tasks of a second run of GradNorm's toy with sigma = 1, 10, 100, 1, ...; 0 leaves it out."""
    jacobians: int = 20
    """Random Jacobians of each kind for the solvers' accuracy; at least 2."""
    tables: tuple[str, ...] = ("enb", "jura", "oes97")
    """Multi-target tables: enb, jura, atp1d, wq, oes97, oes10, yeast, or wine, which needs no file."""
    table_steps: int = 1000
    """Adam steps on a table."""
    table_batch: int = 64
    """Rows of a batch."""
    table_width: int = 64
    """Units of each of the two hidden layers."""
    all_methods: bool = True
    """Whether to run every method, or the fewest without which the claims have nothing to compare."""

    def __post_init__(self) -> None:
        at_least = {
            "seeds": 2,
            "toy_steps": 1000,
            "gradnorm_steps": gradnorm_toy.CHUNK,
            "jacobians": 2,
            "table_steps": 1,
            "table_batch": 1,
            "table_width": 1,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        for name, unit in (("toy_steps", 1000), ("gradnorm_steps", gradnorm_toy.CHUNK)):
            if getattr(self, name) % unit:
                raise ValueError(f"{name}: expected a multiple of {unit}, got {getattr(self, name)}")
        if self.toy_jitter <= 0:
            raise ValueError(f"toy_jitter: expected a positive standard deviation, got {self.toy_jitter}")
        if self.gradnorm_tasks < 0 or self.gradnorm_tasks == 1:
            raise ValueError(f"gradnorm_tasks: expected 0 or at least 2, got {self.gradnorm_tasks}")
        if not self.tables:
            raise ValueError(
                f"tables: expected at least one table, or {tables.FALLBACK}, which needs no file"
            )


PRESETS = {
    "smoke": Config(
        seeds=2,
        toy_steps=1000,
        gradnorm_steps=50,
        jacobians=2,
        tables=(tables.FALLBACK,),
        table_steps=20,
        table_batch=16,
        table_width=8,
        all_methods=False,
    ),
    "cpu": Config(),
    "paper": Config(
        seeds=10,
        gradnorm_tasks=10,
        jacobians=100,
        tables=tables.BENCHMARKS,
        table_steps=5000,
    ),
}

CAGRAD = "CAGrad, arXiv:2110.14048, Figure 1"
NASH = "Nash-MTL, arXiv:2202.01017, Figure 1"
FAMO = "FAMO, arXiv:2306.03792, Section 5.1, Figure 1"
MOVED = "one value for each set of starting points moved by noise of standard deviation 0.1"
BALANCED = "Nash-MTL, IMTL-G, Aligned-MTL, GradNorm (α = 0.12) and DB-MTL (β = 0)"
POINTS = "in percent points of the increase of the test error over single-task networks (mean of two tasks)"

CLAIMS = (
    Claim(
        "toy-sum-gets-stuck",
        "Adam on the sum of the losses gets stuck on two of the three starting points.",
        CAGRAD,
        "2 of 3",
        f"Starting points from which the sum does not reach the Pareto set, of 3; {MOVED}.",
        AtLeast(2),
    ),
    Claim(
        "toy-cagrad-finds-the-optimum",
        "CAGrad reaches the least average loss from every starting point.",
        CAGRAD,
        "3 of 3",
        "CAGrad (c = 0.5): greatest excess of the mean loss over its least value, -15.0917, at the end from "
        "the 3 "
        f"starting points; {MOVED}.",
        AtMost(0.01),
    ),
    Claim(
        "toy-mgda-and-pcgrad-stop-short",
        "MGDA and PCGrad stop at the Pareto set, wherever they meet it, and not at the least average loss.",
        CAGRAD,
        "qualitative only",
        "MGDA and PCGrad: least excess of the mean loss over -15.0917 among their ends from the 3 starting "
        "points, "
        f"where an end off the Pareto set counts as 0; {MOVED}.",
        AtLeast(0.1),
    ),
    Claim(
        "toy-bargaining-reaches-the-pareto-set",
        "Nash-MTL, IMTL-G and MGDA reach the Pareto set from every starting point, though one loss is "
        "scaled by 0.1.",
        NASH,
        "5 of 5 (read off the picture)",
        "The least, over the three methods, of the starting points that reach the Pareto set, of 5; "
        f"{MOVED}.",
        AtLeast(5),
    ),
    Claim(
        "toy-others-miss-the-pareto-set",
        "The sum, PCGrad and CAGrad do not reach the Pareto set from every starting point.",
        NASH,
        "qualitative only",
        "The greatest, over the sum, PCGrad and CAGrad (c = 0.4), of the starting points that reach the "
        "Pareto set, "
        f"of 5; {MOVED}.",
        AtMost(4),
    ),
    Claim(
        "toy-famo-reaches-the-pareto-set",
        "FAMO reaches the Pareto set from every starting point.",
        FAMO,
        "5 of 5",
        f"Starting points from which FAMO reaches the Pareto set, of 5; {MOVED}.",
        AtLeast(5),
    ),
    Claim(
        "toy-adam-fails-once-of-five",
        "Adam on the sum fails to reach the Pareto set in one of five runs.",
        FAMO,
        "1 of 5",
        f"Starting points from which the sum does not reach the Pareto set, of 5; {MOVED}.",
        Within(1, 1),
    ),
    Claim(
        "gradnorm-sum-pays-for-scale",
        "Summed with equal weights, tasks that differ in scale alone disturb each other.",
        "GradNorm, arXiv:1711.02257, Section 3 (toy example), Figure 2",
        "qualitative only; 58 in an independent prototype",
        "Increase of the sum's test error over single-task networks, percent (mean of two tasks, σ = 1, "
        "100); one "
        "value a seed.",
        Within(53, 63),
    ),
    Claim(
        "gradnorm-equal-norms-beat-the-sum",
        "Methods that balance the tasks' gradients do better than those that follow the sum.",
        "GradNorm, arXiv:1711.02257, Figure 2; IMTL-G, Nash-MTL and Aligned-MTL make the same claim",
        "qualitative only; 17 in an independent prototype",
        f"Least of sum and PCGrad minus greatest of {BALANCED}, {POINTS}; one value a seed.",
        AtLeast(0),
    ),
    Claim(
        "gradnorm-leaning-beats-equal-norms",
        "Methods that lean towards the task that fares worst do better still.",
        "MGDA, arXiv:1810.04650; FairGrad, arXiv:2402.15638; FAMO, arXiv:2306.03792",
        "no paper orders them; 6 in an independent prototype",
        f"Least of {BALANCED} minus greatest of MGDA, FairGrad (α = 2) and FAMO, {POINTS}; one value a seed.",
        AtLeast(0),
    ),
    Claim(
        "gradnorm-scale-free-losses-are-best",
        "Losses that no change of scale alters (sum of logarithms, geometric mean) do best where only scale "
        "differs.",
        "Nash-MTL, arXiv:2202.01017, Section 5 (SI); GLS, arXiv:1904.08492",
        "no paper orders them; 14 in an independent prototype",
        "Least of MGDA, FairGrad (α = 2) and FAMO minus greatest of the sum of log losses and the geometric "
        "mean, "
        f"{POINTS}; one value a seed.",
        AtLeast(0),
    ),
    Claim(
        "gradnorm-sum-is-in-the-worst-group",
        "The sum, PCGrad, UPGrad and uncertainty weighting are the worst of all.",
        "GradNorm, arXiv:1711.02257, Figure 2",
        "qualitative only; 7 in an independent prototype",
        "Least of these (uncertainty weighting at both its rates) minus greatest of the others that the "
        f"prototype ran, {POINTS}; one value a seed.",
        AtLeast(0),
    ),
    *(
        Claim(
            f"solver-{method}-{case}",
            f"{title} asks for the solution of an equation: ours is exact for {solver_accuracy.CASES[case]}.",
            source,
            f"residual {solver_accuracy.PEERS.get((case, title), 'not reported')} (torchjd 0.18.0)",
            "Greatest relative residual over the tasks, max_t |w_t^(1/α) (G w)_t - 1|, in float64; one "
            "value a Jacobian.",
            AtMost(1e-10),
        )
        for method, title, source in (
            ("nash", "Nash-MTL", "arXiv:2202.01017, Section 3.2"),
            ("fairgrad", "FairGrad α=2", "arXiv:2402.15638, Section 4.2"),
        )
        for case in solver_accuracy.CASES
    ),
)


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Runs the four parts."""
    tables.find_tables(config.tables)  # a wrong name is told before the long parts
    parts = (_toy, _gradnorm_toy, _solver_accuracy, _tables)
    outcomes = [part(config, run_dir) for part in parts]
    if not config.all_methods:
        note = "all_methods is off: claims that compare groups of methods were measured on the few that ran."
        outcomes.append(Outcome({}, [], [note]))
    return Outcome(
        {name: values for outcome in outcomes for name, values in outcome.measurements.items()},
        [table for outcome in outcomes for table in outcome.tables],
        [note for outcome in outcomes for note in outcome.notes],
    )


def _toy(config: Config, run_dir: RunDir) -> Outcome:
    results = toy.run_toy(config.toy_steps, config.seeds, config.toy_jitter, config.all_methods, run_dir)
    for key, descents in results.items():
        setting, steps = toy.SETTINGS[key], toy.steps_of(key, config.toy_steps)
        caption = (
            f"{steps:,} steps of Adam at rate 0.001 in the setting of {setting.paper}: from the white "
            "points (the paper's own) "
            "to the "
            "crosses (green: on the Pareto set; red: not). Behind the paths the mean of the two losses, "
            "blue the "
            "Pareto set as the papers draw it."
        )
        run_dir.figure(f"toy-{key}-{setting.paper.lower()}", toy.draw(key, descents, steps), caption)

    def count(key: str, method: str) -> np.ndarray:
        return toy.reached(results[key][method].ends).sum(axis=1)

    def counts(*methods: str) -> list[np.ndarray]:
        return [count("B", method) for method in methods if method in results["B"]]

    short = [results["A"][method].ends for method in ("MGDA", "PCGrad") if method in results["A"]]
    excess = [np.where(toy.reached(ends), toy.excess(ends), 0.0) for ends in short]
    measurements: dict[str, ArrayLike] = {
        "toy-sum-gets-stuck": 3 - count("A", "Sum"),
        "toy-cagrad-finds-the-optimum": toy.excess(results["A"]["CAGrad c=0.5"].ends).max(axis=1),
        "toy-mgda-and-pcgrad-stop-short": np.min(excess, axis=(0, 2)),
        "toy-bargaining-reaches-the-pareto-set": np.min(counts("Nash-MTL", "IMTL-G", "MGDA"), axis=0),
        "toy-others-miss-the-pareto-set": np.max(counts("Sum", "PCGrad", "CAGrad c=0.4"), axis=0),
        "toy-famo-reaches-the-pareto-set": count("C", "FAMO"),
        "toy-adam-fails-once-of-five": 5 - count("C", "Sum"),
    }
    note = (
        "Nothing in the two-loss toy is random. The tables and figures show the papers' own starting "
        "points; the "
        "claims are measured on the same points moved by normal noise, since an outcome that hangs on the "
        "exact "
        "point says little of the method. The point (0, 0) is a symmetric saddle, from which methods part by "
        "rounding alone."
    )
    return Outcome(measurements, [toy.outcome_table(key, result) for key, result in results.items()], [note])


def _gradnorm_toy(config: Config, run_dir: RunDir) -> Outcome:
    methods = gradnorm_toy.METHODS if config.all_methods else gradnorm_toy.FEWEST
    result_tables: list[Table] = []
    measurements: dict[str, ArrayLike] = {}
    runs: dict[str, tuple[float, ...]] = {"gradnorm": (1.0, 100.0)}
    if config.gradnorm_tasks:
        runs["gradnorm-larger"] = tuple((1.0, 10.0, 100.0)[t % 3] for t in range(config.gradnorm_tasks))
    for name, sigmas in runs.items():
        found = run_dir.stage(
            name,
            lambda sigmas=sigmas: gradnorm_toy.train(
                sigmas, config.seeds, config.gradnorm_steps, run_dir, methods
            ),
        )
        errors, single = found["errors"], found["single"]
        result_tables.append(gradnorm_toy.result_table(sigmas, methods, errors, single))
        caption = (
            f"GradNorm's toy with {len(sigmas)} tasks after {config.gradnorm_steps} steps: how much greater "
            "the test "
            "error over σ² is than that of single-task networks. Bars: mean over the tasks with its 95 % "
            "interval "
            f"over {config.seeds} seeds; open marks: the tasks of each scale."
        )
        run_dir.figure(name, gradnorm_toy.draw(sigmas, methods, errors, single), caption)
        watched = [method for method in methods if method in WATCHED]
        of_methods = dict(zip(watched, found["conflict"], strict=True))
        result_tables.append(
            _conflict(f"{name}, {len(sigmas)} tasks", name, of_methods, len(sigmas), run_dir)
        )
        if name == "gradnorm":
            of = dict(zip(methods, increases(errors, single), strict=True))
            measurements |= _margins(of)
    note = (
        "GradNorm's toy: GradNorm takes the losses of its first step as those at the start, and the "
        "gradients of the last shared layer, as its paper does. It learns its weights at 0.025: at the "
        "network's own rate they cannot part by the factor that the scales ask for within these steps. Where "
        f"a method counts epochs, {EPOCH} steps are one. SDMGrad and MoDo cut each batch in three, so that "
        "all methods see the same examples. The claim on the worst group compares the methods that the "
        "prototype has."
    )
    return Outcome(measurements, result_tables, [note])


def _conflict(title: str, name: str, found: conflict.Conflict, tasks: int, run_dir: RunDir) -> Table:
    """The figure and the table of the gradients' conflict on one problem."""
    caption = (
        f"{title}: the task gradients of the shared parameters over training, before the method acts. Lines: "
        "mean over the seeds (of the ratio the geometric one); bands: its 95 % interval."
    )
    run_dir.figure(f"conflict-{name}", conflict.draw(found, tasks * (tasks - 1) // 2), caption)
    return conflict.conflict_table(title, found)


def _margins(of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    def margin(worse: tuple[str, ...], better: tuple[str, ...]) -> np.ndarray:
        worst_of_better = np.max([of[m] for m in better if m in of], axis=0)
        return np.min([of[m] for m in worse if m in of], axis=0) - worst_of_better

    worst = gradnorm_toy.WORST
    rest = tuple(method for method in of if method in gradnorm_toy.PROTOTYPE and method not in worst)
    return {
        "gradnorm-sum-pays-for-scale": of["Sum"],
        "gradnorm-equal-norms-beat-the-sum": margin(
            gradnorm_toy.FOLLOW_THE_LARGE, gradnorm_toy.EQUALISE_NORMS
        ),
        "gradnorm-leaning-beats-equal-norms": margin(gradnorm_toy.EQUALISE_NORMS, gradnorm_toy.LEAN_TO_SMALL),
        "gradnorm-scale-free-losses-are-best": margin(gradnorm_toy.LEAN_TO_SMALL, gradnorm_toy.SCALE_FREE),
        "gradnorm-sum-is-in-the-worst-group": margin(worst, rest),
    }


def _solver_accuracy(config: Config, run_dir: RunDir) -> Outcome:
    precisions = {"float64": np.float64, "float32": np.float32}
    residuals = partial(solver_accuracy.residuals, config.jacobians)
    of_precisions = in_parallel(residuals, list(precisions.values()), run_dir, "Solver accuracy")
    found = dict(zip(precisions, of_precisions, strict=True))
    caption = (
        f"How far the task weights are from solving their equation, for {config.jacobians} random Jacobians "
        "of each "
        "hard kind; a residual of 0 is drawn at half the rounding unit. Red: the residuals that torchjd "
        "0.18.0 "
        "leaves on such Jacobians."
    )
    run_dir.figure("solver-accuracy", solver_accuracy.draw(found), caption)
    measurements: dict[str, ArrayLike] = {
        f"solver-{method}-{case}": found["float64"][case, title]
        for method, title in (("nash", "Nash-MTL"), ("fairgrad", "FairGrad α=2"))
        for case in solver_accuracy.CASES
    }
    return Outcome(measurements, [solver_accuracy.residual_table(found)])


def _tables(config: Config, run_dir: RunDir) -> Outcome:
    recipe = tables.Recipe(config.table_width, 2, config.table_batch, config.table_steps)
    methods = tables.METHODS if config.all_methods else (tables.THROUGH_FIT,)
    names, notes = tables.find_tables(config.tables)
    results = tables.run_tables(names, config.seeds, recipe, run_dir, methods)
    caption = (
        f"Real tables after {config.table_steps} steps: mean over the tasks of the increase of the test "
        "error over "
        f"single-task networks. Blue: mean and 95 % interval over {config.seeds} random splits; gray: each "
        "split."
    )
    run_dir.figure("tables", tables.draw(results), caption)
    note = (
        "The real tables carry no claim: with tasks of like kind and little data no method is expected to "
        "beat the "
        "sum. Targets keep their relative scales; nothing was tuned for any method. "
        f"{tables.THROUGH_FIT} on {results[0].table.name} also ran through jaxneg.train.fit: metrics and "
        "checkpoints "
        "are in fit/ of this run's folder."
    )
    most = max(results, key=lambda result: result.table.Y.shape[1])
    tasks = most.table.Y.shape[1]
    title = f"{most.table.name}, {tasks} tasks"
    conflicts = _conflict(title, most.table.name, most.conflict, tasks, run_dir)
    return Outcome({}, [tables.result_table(results), conflicts], [note, *notes])


def compile_target(config: Config) -> Target:
    """The Nash-MTL step on a network of a pod's size: 8 hidden layers of 16,384 units, 8 tasks, batch 8192.

    Args:
        config: not read; no network of this experiment fills a chip.

    Returns:
        The step and its shapes, for 32 x 8 chips.
    """
    del config
    mesh = {"data": 32, "model": 8}
    return nash_step_target(16_384, 8, tasks=8, batch=8192, mesh=mesh, features=2048, outputs=128)
