"""QCRD: a small student learns to reason from many rationales of a teacher, and from its own bad ones.

Reproduces Wang et al., arXiv:2405.13014, on generated word problems whose rationales can be checked exactly,
with a simulated teacher who makes mistakes: finetuning, distilling-step-by-step (DSS), and what QCRD adds to
it part by part, each with true labels and with the teacher's. `svamp` is the same on SVAMP with PaLM's
rationales, `pod` the step of T5-base for chips that are not there, `rationale_files` reads the files of
distilling-step-by-step.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from experiments.claims import mean_interval
from experiments.parallel import in_parallel
from experiments.qcrd.claims import CLAIMS, FURTHER, NEEDED, Results, judge_auc, measurements, values
from experiments.qcrd.comparison import (
    KINDS,
    PORTIONS,
    LabelKind,
    World,
    recipe_of,
    run_arm,
    teacher_accuracy,
)
from experiments.qcrd.distillation import ARMS, NAMES, Arm, Recipe
from experiments.qcrd.figures import draw_arms, draw_judge, draw_mechanism
from experiments.qcrd.svamp import svamp_tables
from experiments.qcrd.word_problems import MOST_DISTRACTORS, MOST_EVENTS
from experiments.run_dir import Outcome, RunDir, Table

if TYPE_CHECKING:
    from jaxneg.train import Target

__all__ = ["CLAIMS", "PRESETS", "Config", "compile_target", "run"]


@dataclass(frozen=True)
class Config:
    """Every arm of QCRD on word problems, and SVAMP if asked for."""

    seed: int = 0
    """Number of the first seed."""
    seeds: int = 3
    """Runs with questions, teacher and student of their own; at least 2."""
    questions: int = 1000
    """Training questions."""
    test_questions: int = 500
    """Test questions."""
    most_events: int = 3
    """Events of the main person, from 2 on; 2 to 4."""
    most_distractors: int = 1
    """Sentences on other people; 0 to 2."""
    samples: int = 5
    """Of the teacher for each question."""
    positives: int = 2
    """Most different rationales of a question that are kept. There are seldom more than one in each of the
    teacher's two styles, and the nearest positive needs each once."""
    width: int = 64
    """Of student and judge."""
    layers: int = 2
    """Of the encoder, and as many of the decoder."""
    heads: int = 4
    """Of attention."""
    hidden: int = 128
    """Hidden units of the feed-forward parts."""
    batch: int = 32
    """Questions in a step."""
    steps: int = 400
    """Of Adam; the same in every arm."""
    learning_rate: float = 2e-3
    """Its highest, after the warm-up; then a cosine to zero."""
    warmup: int = 40
    """Steps until then."""
    refresh: int = 40
    """Steps of an iteration, after which negatives are written anew."""
    back: int = 5
    """How many iterations back the student is that writes them."""
    temperature: float = 1.5
    """At which it writes them."""
    beta: float = 0.2
    """Weight of the negatives."""
    delta: float = 3.0
    """Their margin, nats per token."""
    judge_steps: int = 13
    """Steps at the beginning of each iteration in which the judge learns."""
    judge_pretraining: int = 100
    """Steps in which it learns before there is a student."""
    every_arm: bool = False
    """Whether arms that no claim compares are trained too: finetuning and the ablations with the teacher's
    labels."""
    history: Literal["memory", "checkpoints"] = "memory"
    """Where earlier students are kept: in the host's memory, rounded to bfloat16, or as checkpoints."""
    svamp_seeds: int = 0
    """Runs on SVAMP, with its real questions and PaLM's rationales; 0 leaves it out."""
    svamp_steps: int = 1500
    """Of Adam on SVAMP."""
    t5: Literal["small", "base"] = "base"
    """Size of the T5 1.1 that `compile` compiles."""
    t5_batch: int = 1024
    """Questions in its global batch: 4 for each of 256 chips."""

    def __post_init__(self) -> None:
        for name in ("questions", "test_questions", "samples", "positives", "width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("hidden", "batch", "t5_batch", "svamp_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("back", "judge_steps", "judge_pretraining", "svamp_seeds", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if self.seeds < 2:
            raise ValueError(f"seeds: expected at least 2, got {self.seeds}")
        if self.refresh < PORTIONS:
            raise ValueError(f"refresh: expected at least {PORTIONS} steps, got {self.refresh}")
        if self.steps < 2 * self.refresh or self.steps % self.refresh:
            raise ValueError(
                f"steps: expected whole iterations of {self.refresh}, at least two, got {self.steps}"
            )
        if not 2 <= self.most_events <= MOST_EVENTS:
            raise ValueError(f"most_events: expected 2 to {MOST_EVENTS}, got {self.most_events}")
        if not 0 <= self.most_distractors <= MOST_DISTRACTORS:
            raise ValueError(
                f"most_distractors: expected 0 to {MOST_DISTRACTORS}, got {self.most_distractors}"
            )

    @property
    def world(self) -> World:
        """Sizes of the questions."""
        return World(
            questions=self.questions,
            test_questions=self.test_questions,
            events=tuple(range(2, self.most_events + 1)),
            distractors=tuple(range(self.most_distractors + 1)),
            samples=self.samples,
            positives=self.positives,
        )

    @property
    def recipe(self) -> Recipe:
        """Sizes and choices of the training."""
        names = (
            *("width", "layers", "heads", "hidden", "batch", "steps", "learning_rate", "warmup", "refresh"),
            *("back", "temperature", "beta", "delta", "judge_steps", "judge_pretraining", "history"),
        )
        return recipe_of(self.world, **{name: getattr(self, name) for name in names})


PRESETS: dict[str, Config] = {
    "smoke": Config(
        seeds=2,
        questions=64,
        test_questions=32,
        most_events=2,
        most_distractors=0,
        samples=3,
        width=16,
        layers=1,
        heads=2,
        hidden=16,
        batch=8,
        steps=10,
        refresh=5,
        back=1,
        warmup=1,
        judge_steps=1,
        judge_pretraining=2,
        history="checkpoints",
    ),
    # Shorter problems, a narrower student, fewer steps and fewer seeds than "full": minutes instead of hours.
    "cpu": Config(),
    "full": Config(
        seeds=8,
        test_questions=2000,
        most_events=4,
        most_distractors=2,
        positives=5,
        width=128,
        hidden=512,
        batch=64,
        steps=3000,
        learning_rate=1e-3,
        warmup=100,
        refresh=150,
        judge_steps=50,
        judge_pretraining=500,
        every_arm=True,
        svamp_seeds=10,
    ),
    # The same with narrower intervals, and negatives through checkpoints. The paper's own scale is T5 on four
    # data sets with GPT-3.5's rationales, which are not public: experiments/qcrd/pod.py is its step.
    "paper": Config(
        seeds=20,
        test_questions=2000,
        most_events=4,
        most_distractors=2,
        positives=5,
        width=128,
        hidden=512,
        batch=64,
        steps=3000,
        learning_rate=1e-3,
        warmup=100,
        refresh=150,
        judge_steps=50,
        judge_pretraining=500,
        every_arm=True,
        history="checkpoints",
        svamp_seeds=20,
    ),
}


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Trains and tests every arm with every seed.

    Args:
        config: sizes.
        run_dir: where results and figures go.

    Returns:
        A value of each claim for each seed, and the tables.
    """
    world, recipe = config.world, config.recipe
    arms = (*NEEDED, *(FURTHER if config.every_arm else ()))
    seeds = range(config.seed, config.seed + config.seeds)

    def one(item: tuple[int, Arm, LabelKind]) -> dict[str, np.ndarray]:
        seed, arm, kind = item
        return run_dir.stage(f"{arm}_{kind}_{seed}", lambda: run_arm(world, recipe, seed, arm, kind))

    items = [(seed, *arm) for seed in seeds for arm in arms]
    found = dict(zip(items, in_parallel(one, items, run_dir, "Students"), strict=True))
    results = {arm: [found[seed, *arm] for seed in seeds] for arm in arms}
    teacher = [teacher_accuracy(world, seed) for seed in seeds]
    shares = np.array([[each["one"], each["majority"]] for each in teacher])
    _log(run_dir, config, results)
    draw_arms(run_dir, results, shares)
    draw_mechanism(run_dir, results, config.delta)
    draw_judge(run_dir, results)
    tables = [_arm_table(results), _increment_table(results), _mechanism_table(results), PAPER_TABLE]
    if config.svamp_seeds:
        tables += svamp_tables(
            recipe, config.svamp_steps, range(config.seed, config.seed + config.svamp_seeds), run_dir
        )
    return Outcome(measurements(results), tables=tables, notes=_notes(results, shares))


def compile_target(config: Config) -> "Target":
    """QCRD's step with a T5 1.1 and its judge, for a mesh of 256 chips.

    Args:
        config: size and batch.

    Returns:
        The step and its abstract arguments.
    """
    from experiments.qcrd.pod import t5_target

    return t5_target(config.t5, config.t5_batch)


PAPER_TABLE = Table(
    "The paper's own accuracies (%), T5-base; one run each, SVAMP has 200 test questions (nothing here is of"
    " that size)",
    [
        "method",
        "SVAMP",
        "CQA",
        "ANLI1",
        "e-SNLI",
        "CQA, LLM labels",
        "ANLI1, LLM labels",
        "e-SNLI, LLM labels",
    ],
    [
        ["finetuning", "63.0", "62.19", "43.58", "88.38", "", "", ""],
        ["DSS", "65.5", "63.23", "52.80", "90.09", "59.15", "44.10", "74.88"],
        ["+ED", "67.0", "", "", "", "", "", ""],
        ["+ED +NK", "68.5", "", "", "", "", "", ""],
        ["QCRD", "69.0", "63.64", "54.00", "90.26", "59.80", "46.70", "74.88"],
    ],
)


def _interval(numbers: np.ndarray, digits: int = 1) -> str:
    estimate, _, high, _ = mean_interval(numbers)
    return f"{estimate:.{digits}f} ± {high - estimate:.{digits}f}"


def _arm_table(results: Results) -> Table:
    rows: list[list[str | float | int]] = []
    for arm in ARMS:
        cells = []
        for name in ("accuracy", "validity"):
            for kind in KINDS:
                there = (arm, kind) in results and name in results[arm, kind][0]
                cells.append(_interval(100 * values(results, arm, kind, name)) if there else "")
        rows.append([NAMES[arm], *cells])
    columns = [
        f"{name}, {labels}"
        for name in ("accuracy", "valid rationales")
        for labels in ("true labels", "teacher's")
    ]
    return Table("Test questions (%, mean ± 95 %)", ["arm", *columns], rows)


def _increment_table(results: Results) -> Table:
    """Each arm less the one before it, paired by seed; with the p value of the paired t test."""
    from scipy.stats import ttest_1samp

    rows: list[list[str | float | int]] = []
    for kind in KINDS:
        there: list[Arm] = [arm for arm in ARMS if (arm, kind) in results]
        pairs: set[tuple[Arm, Arm]] = {*zip(there[1:], there[:-1], strict=True), ("qcrd", "dss")}
        for better, worse in sorted(pairs, key=lambda pair: [ARMS.index(arm) for arm in pair]):
            gains = 100 * (
                values(results, better, kind, "accuracy") - values(results, worse, kind, "accuracy")
            )
            p = float(ttest_1samp(gains, 0.0).pvalue) if np.ptp(gains) else 1.0  # pyright: ignore
            labels = "true" if kind == "true" else "the teacher's"
            rows.append([f"{NAMES[better]} minus {NAMES[worse]}", labels, _interval(gains), f"{p:.3f}"])
    return Table(
        "What each part adds to the accuracy (points, mean ± 95 %, paired by seed)",
        ["difference", "labels", "points", "p, paired t test"],
        rows,
    )


def _mechanism_table(results: Results) -> Table:
    rows: list[list[str | float | int]] = []
    for (arm, kind), seeds in results.items():
        if "neg_ce" not in seeds[0]:
            continue
        last = {name: np.array([found[name][-1].mean() for found in seeds]) for name in ("pos_ce", "neg_ce")}
        right = np.array([found["valid_negatives"][-1] for found in seeds])
        judged = [
            _interval(np.array([judge_auc(found, whose) for found in seeds]), 2) if arm == "qcrd" else ""
            for whose in ("teacher", "student")
        ]
        rows.append(
            [
                NAMES[arm],
                "true" if kind == "true" else "the teacher's",
                _interval(last["pos_ce"], 2),
                _interval(last["neg_ce"], 2),
                _interval(100 * right),
                *judged,
            ]
        )
    columns = [
        "arm",
        "labels",
        "positives, nats per token",
        "negatives, nats per token",
        "negatives that are right, %",
        "judge's AUC, teacher's samples",
        "judge's AUC, student's samples",
    ]
    return Table("The last iteration (mean ± 95 %)", columns, rows)


def _log(run_dir: RunDir, config: Config, results: Results) -> None:
    """The costs of the arms with negatives, mean over seeds, at the end of each iteration."""
    for (arm, kind), seeds in results.items():
        for iteration in range(len(seeds[0]["pred_loss"])):
            numbers = {
                f"{arm}/{kind}/{name}": float(np.mean([found[name][iteration].mean() for found in seeds]))
                for name in ("pred_loss", "pos_ce", "neg_ce")
                if name in seeds[0]
            }
            run_dir.log((iteration + 1) * config.refresh, **numbers)


def _notes(results: Results, shares: np.ndarray) -> list[str]:
    """What limits the claims, in numbers of this run."""
    rises = measurements(results)["negatives-become-unlikely"]
    up = int((np.asarray(rises) > 0).sum())
    one, majority = 100 * shares.mean(0)
    return [
        f"One sample of the simulated teacher is right for {one:.1f} % of the training questions, the"
        f" majority for {majority:.1f} %. PaLM's on SVAMP is right for 73.5 %.",
        f"The negatives became less likely within an iteration in {up} of {len(np.asarray(rises))} seeds.",
        "The gains that the paper reports for negatives and judge, 1.5 and 0.5 points on 200 test questions"
        " in one run, lie within one standard error there; their verdicts here are those of the intervals.",
        "Iterations, refresh of the negatives, the judge's layers and its schedule are readings of ours where"
        " the paper's text could not be had.",
    ]
