"""SNOOPI: a random guidance scale in the distillation to one step, and negative texts without guidance.

Reproduces Nguyen et al., arXiv:2412.02687, on real digits:

A. `distillation`: students of one step from three teachers, with fixed and random guidance scales in the
   loss (PG-SB), and the control that the paper has not: a fixed scale at the mean of the random ones;
B. `negatives`: negative texts in the cross-attention (NASA) of such a student and of its teacher, beside
   guidance of the output and NAG.

`pod` is the step at the size of PixArt-alpha that is compiled for chips that are not there, `maxdiffusion`
puts NASA and PG-SB into MaxDiffusion's Stable Diffusion.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.parallel import in_parallel, over_seeds
from experiments.run_dir import Outcome, RunDir
from experiments.snoopi import negatives, teachers
from experiments.snoopi.claims import CLAIMS, Courses, measurements
from experiments.snoopi.distillation import (
    EVALUATIONS,
    MEAN,
    NASA_T,
    PLAIN,
    RANDOM,
    RANDOM_LORA,
    RANDOM_TEACHER,
    STRONG,
    SWIFT,
    TTUR,
    Arm,
    Backbone,
    distil,
)
from experiments.snoopi.figures import draw_courses, draw_digits, draw_negatives, draw_sweep
from experiments.snoopi.judge import judge
from experiments.snoopi.networks import exact_noise, residual_mlp
from experiments.snoopi.tables import course_table, negative_table, notes, teacher_table
from experiments.snoopi.text_dit import text_dit

if TYPE_CHECKING:
    from jaxneg.train import Target

__all__ = ["CLAIMS", "PRESETS", "Config", "compile_target", "run"]


@dataclass(frozen=True)
class Config:
    """Both parts: distillation of three teachers, and negative texts."""

    seed: int = 0
    """Number that all seeds are drawn from."""
    seeds: int = 3
    """Teachers of each kind, each with students of its own; at least 2."""
    mlp_width: int = 192
    """Width of the residual MLP."""
    mlp_blocks: int = 3
    """Its blocks."""
    mlp_teacher_steps: int = 6000
    """Adam steps of the MLP as a teacher."""
    mlp_teacher_batch: int = 256
    """Images in such a step."""
    mlp_steps: int = 2000
    """Steps of a student of the MLP and of the exact teacher, a multiple of 8."""
    mlp_batch: int = 128
    """Prompts in such a step."""
    mlp_rank: int = 32
    """Rank of the adapters."""
    dit_width: int = 48
    """Width of the DiT, a multiple of 4."""
    dit_teacher_steps: int = 4000
    """Adam steps of the DiT as a teacher."""
    dit_teacher_batch: int = 96
    """Images in such a step."""
    dit_steps: int = 1600
    """Steps of a student of the DiT, a multiple of 8."""
    dit_batch: int = 48
    """Texts in such a step."""
    dit_rank: int = 16
    """Rank of the adapters."""
    samples: int = 1000
    """Images that a Fréchet distance is taken of."""
    images: int = 200
    """Images of each pair of a text and a negative text, at least 4."""
    all_arms: bool = False
    """Whether to run every arm, or the fewest that the claims need."""
    pod_batch: int = 256
    """Latents in the step that `compile` compiles, and nothing else reads; a multiple of 64."""

    def __post_init__(self) -> None:
        least = {"seeds": 2, "images": negatives.SHOWN, "samples": 100}
        positive = ("mlp_width", "mlp_blocks", "mlp_teacher_steps", "mlp_teacher_batch", "mlp_batch")
        positive += ("mlp_rank", "dit_teacher_steps", "dit_teacher_batch", "dit_batch", "dit_rank")
        for name, bound in (least | dict.fromkeys(positive, 1)).items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}: expected at least {bound}, got {getattr(self, name)}")
        units = {"mlp_steps": EVALUATIONS, "dit_steps": EVALUATIONS, "dit_width": 4, "pod_batch": 64}
        for name, unit in units.items():
            if getattr(self, name) < unit or getattr(self, name) % unit:
                raise ValueError(f"{name}: expected a positive multiple of {unit}, got {getattr(self, name)}")


PRESETS: dict[str, Config] = {
    "smoke": Config(
        seeds=2,
        mlp_width=16,
        mlp_blocks=1,
        mlp_teacher_steps=60,
        mlp_teacher_batch=32,
        mlp_steps=16,
        mlp_batch=16,
        mlp_rank=4,
        dit_width=16,
        dit_teacher_steps=40,
        dit_teacher_batch=16,
        dit_steps=16,
        dit_batch=8,
        dit_rank=2,
        samples=100,
        images=8,
    ),
    # With half the steps and half the batch a student is still far from its end, whatever the scale.
    "cpu": Config(),
    # Every arm.
    "full": replace(Config(), all_arms=True),
    # The same with more seeds. The paper's own scale is Stable Diffusion and PixArt-alpha: `compile` compiles
    # the step at that size, experiments/snoopi/maxdiffusion.py plugs the functions in.
    "paper": replace(Config(), all_arms=True, seeds=10),
}


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Trains the teachers, distils them with every arm, and asks for digits with negative texts.

    Args:
        config: sizes.
        run_dir: where stages, figures and metrics go.

    Returns:
        A value of each claim for each seed, and the tables.
    """
    runner = _Runner(config, run_dir)
    mlp, gmm, dit = backbones(config)
    judge()  # not in two threads at once
    of_teachers, of_students, of_negatives = (
        jax.random.split(key, config.seeds) for key in jax.random.split(jax.random.key(config.seed), 3)
    )
    trained = in_parallel(
        lambda backbone: runner.train(backbone, of_teachers), [dit, mlp], run_dir, "Teachers"
    )
    parameters = {"dit": trained[0]["params"], "mlp": trained[1]["params"], "gmm": trained[1]["params"]}
    items = [(backbone, arm) for backbone in (dit, mlp, gmm) for arm in arms(config, backbone.name)]
    items.sort(key=lambda item: arms(config, item[0].name).index(item[1]))
    found = in_parallel(
        lambda item: runner.distil(*item, parameters[item[0].name], of_students), items, run_dir, "Students"
    )
    courses: Courses = {
        (backbone.name, arm): each for (backbone, arm), each in zip(items, found, strict=True)
    }
    sampled = {
        "one-step": (courses["dit", RANDOM]["student"], negatives.in_one_step),
        "four-steps": (parameters["dit"], negatives.in_four_steps),
    }
    if config.all_arms:
        sampled["NASA-T, one-step"] = (courses["dit", NASA_T]["student"], negatives.in_one_step)
    results = in_parallel(
        lambda name: runner.negatives(name, *sampled[name], of_negatives),
        list(sampled),
        run_dir,
        "Negative texts",
    )
    of_negative = dict(zip(sampled, results, strict=True))
    by_guidance = runner.sample_teacher(mlp, parameters["mlp"], of_negatives)
    _log(run_dir, courses)
    draw_courses(run_dir, courses)
    draw_digits(run_dir, courses)
    draw_sweep(run_dir, of_negative)
    draw_negatives(run_dir, of_negative)
    own = {name: of_negative[name] for name in ("one-step", "four-steps")}
    return Outcome(
        measurements(courses, own),
        [
            *(course_table(courses, name) for name in ("mlp", "gmm", "dit")),
            *(negative_table(name, each) for name, each in of_negative.items()),
            teacher_table(by_guidance),
        ],
        notes(courses, own),
    )


def backbones(config: Config) -> tuple[Backbone, Backbone, Backbone]:
    """What is distilled.

    Args:
        config: sizes.

    Returns:
        The residual MLP, the exact mixture with the MLP as the student, and the DiT.
    """
    network = residual_mlp(config.mlp_width, config.mlp_blocks)
    mlp = Backbone("mlp", network, config.mlp_steps, config.mlp_batch, config.mlp_rank)
    dit = text_dit(config.dit_width)
    return (
        mlp,
        mlp._replace(name="gmm", exact=exact_noise()),
        Backbone("dit", dit, config.dit_steps, config.dit_batch, config.dit_rank, lora_steps=2),
    )


def arms(config: Config, backbone: str) -> list[Arm]:
    """The arms of a backbone.

    Args:
        config: whether to run all of them.
        backbone: its name.

    Returns:
        The arms, those of the claims first.
    """
    needed = [RANDOM, SWIFT] if backbone == "dit" else [RANDOM, SWIFT, STRONG, MEAN]
    if not config.all_arms:
        return needed
    return needed + ([MEAN, NASA_T] if backbone == "dit" else [PLAIN, TTUR, RANDOM_TEACHER, RANDOM_LORA])


def compile_target(config: Config) -> "Target":
    """A step of PG-SB at the size of PixArt-alpha, for a mesh of 256 chips.

    Args:
        config: batch.

    Returns:
        The step and its abstract arguments.
    """
    from experiments.snoopi.pod import distillation_target

    return distillation_target(config.pod_batch)


class _Runner:
    """The compiled programs, each made once, and the stages that keep what they find."""

    def __init__(self, config: Config, run_dir: RunDir):
        self.config, self.run_dir = config, run_dir
        self.programs: dict[Any, Callable[..., Any]] = {}

    def train(self, backbone: Backbone, keys: jax.Array) -> dict[str, Any]:
        """Teachers of all seeds, and their losses."""
        config = self.config
        steps, batch = (
            (config.dit_teacher_steps, config.dit_teacher_batch)
            if backbone.name == "dit"
            else (config.mlp_teacher_steps, config.mlp_teacher_batch)
        )
        program = self._program(
            ("train", backbone.name), partial(teachers.train, backbone.network, steps, batch)
        )
        return self._stage(
            f"teacher_{backbone.name}", lambda: dict(zip(("params", "loss"), program(keys), strict=True))
        )

    def distil(self, backbone: Backbone, arm: Arm, params: Any, keys: jax.Array) -> dict[str, Any]:
        """The courses of all seeds; of the DiT's students also their parameters."""
        program = self._program(
            ("distil", backbone.name, arm.program), partial(distil, backbone, arm, self.config.samples)
        )

        def compute() -> dict[str, Any]:
            scales = jnp.broadcast_to(jnp.array([arm.low, arm.high]), (self.config.seeds, 2))
            course = program(params, scales, keys)
            kept = {"student": course.student} if backbone.name == "dit" else {}
            return kept | {
                "frechet": course.frechet,
                "accuracy": course.accuracy,
                "samples": course.samples[0],
            }

        return self._stage(f"{backbone.name}_{arm.stage}", compute)

    def negatives(
        self, name: str, params: Any, draw: Callable[..., Any], keys: jax.Array
    ) -> dict[str, np.ndarray]:
        """What negative texts do, for all seeds."""
        images = self.config.images
        program = self._program(
            ("negatives", draw), lambda params, key: negatives.measure(params, images, draw, key)
        )
        return self._stage(f"negatives_{name}".replace(", ", "_"), lambda: program(params, keys)._asdict())

    def sample_teacher(self, backbone: Backbone, params: Any, keys: jax.Array) -> np.ndarray:
        """Fréchet distances of a teacher by guidance."""
        program = self._program(
            ("sample", backbone.name),
            partial(teachers.frechet_by_guidance, backbone.network, self.config.samples),
        )
        return self._stage(f"samples_{backbone.name}", lambda: {"frechet": program(params, keys)})["frechet"]

    def _program(self, name: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        made = jax.jit(over_seeds(function))
        return self.programs.setdefault(name, made)

    def _stage(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """A stage whose arrays may lie in a tree."""

        def flat() -> dict[str, Any]:
            return flatten_dict(dict(compute()), sep="/")

        return unflatten_dict(self.run_dir.stage(name, flat), sep="/")


def _log(run_dir: RunDir, courses: Courses) -> None:
    """The means over the seeds of all Fréchet distances."""
    for number in range(EVALUATIONS):
        values = {f"{name}/{arm.stage}": each["frechet"] for (name, arm), each in courses.items()}
        run_dir.log(number + 1, **{name: each[:, number].mean() for name, each in values.items()})
