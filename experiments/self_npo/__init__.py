"""Self-NPO and Diffusion-NPO: a network that is bad in its own way, to be guided away from.

Reproduces Wang et al., arXiv:2505.11777 (Self-NPO), and Wang et al., arXiv:2505.11245 (Diffusion-NPO), at a
size where everything can be measured:

A. `mixture`: a plane whose exact density is the preference, with every rival: other settings of Self-NPO,
   Diffusion-NPO, autoguidance, preference optimisation, full simulation, and a network that is trained well;
B. `digits`: latents of real digits, with the distance to digits that were held out as the preference;
C. `cost`: what a step costs.

`pod` is the step at the size of DiT-XL/2 that is compiled for chips that are not there.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp

from experiments.digits import TRAIN, digit_latents
from experiments.run_dir import Outcome, RunDir
from experiments.self_npo import digits, mixture
from experiments.self_npo.arms import CFG, Arm, Courses, Measured, Part, Results, run_parts
from experiments.self_npo.claims import (
    AUTOGUIDANCE,
    CLAIMS,
    DPO_ARMS,
    GUIDANCES,
    HALF_INVERSE,
    INVERSE,
    INVERSE_FROM_NOISE,
    LONGER_DPO_ARM,
    NPO,
    PLAIN,
    SIMULATED,
    STRONG,
    UNCONDITIONAL,
    WEAKLY_INVERSE,
    measurements,
)
from experiments.self_npo.cost import cost_table, count
from experiments.self_npo.figures import draw_digit_quality, draw_digits, draw_gains, draw_pareto, draw_plane
from experiments.self_npo.tables import (
    PAPER_TABLE,
    PLANE_PROTOTYPE,
    digit_table,
    dpo_table,
    gain_table,
    plane_table,
    ratio_table,
)

if TYPE_CHECKING:
    from jaxneg.train import Target

__all__ = ["CLAIMS", "PRESETS", "Config", "compile_target", "run"]


LOGGED = 60
"""How often losses are logged."""
SHOWN_GUIDANCE = 2.0


@dataclass(frozen=True)
class Config:
    """Self-NPO: an exact preference in the plane, real digits, and the cost of a step."""

    seed: int = 0
    """Number that all seeds are drawn from."""
    seeds: int = 6
    """Networks trained in the plane; at least 2."""
    digit_seeds: int = 5
    """Networks trained on digits; at least 2."""
    plane_width: int = 32
    """Width of the network in the plane."""
    digit_width: int = 64
    """Width of the network on digits, and of the well trained one in the plane."""
    plane_steps: int = 1500
    """Adam steps of the network in the plane, few on purpose."""
    well_trained_steps: int = 3000
    """Adam steps of the well trained one."""
    digit_steps: int = 3000
    """Adam steps of the network on digits."""
    steps: int = 300
    """AdamW steps of Self-NPO and of full simulation."""
    well_trained_tuning_steps: int = 600
    """AdamW steps of Self-NPO with the well trained network."""
    preference_steps: int = 1000
    """AdamW steps of Diffusion-NPO and of DPO."""
    pairs: int = 20_000
    """Ranked pairs of samples for these."""
    samples: int = 4000
    """Points drawn of every arm at every guidance; of digits half as many."""
    all_arms: bool = True
    """Whether to run every arm, or the fewest that the claims need."""
    dit: Literal["S", "B", "L", "XL"] = "XL"
    """Size of the DiT that `compile` compiles, with patches of 2."""
    latent_batch: int = 5120
    """Latents of its global batch: 20 for each of 256 chips."""
    latent_steps: int = 0
    """AdamW steps of Self-NPO with a DiT on ImageNet's latents; 0 leaves it out."""
    latent_samples: int = 10_000
    """Samples of it, and as many of CFG, saved for an evaluator."""
    data_dir: Path = Path("data")
    """Holds the folder imagenet_latents, and dit.safetensors, the DiT's parameters."""

    def __post_init__(self) -> None:
        for name in ("seeds", "digit_seeds"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: expected at least 2, got {getattr(self, name)}")
        for name in (
            "plane_width",
            "digit_width",
            "steps",
            "well_trained_tuning_steps",
            "preference_steps",
            "pairs",
            "latent_batch",
            "latent_samples",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.latent_steps < 0:
            raise ValueError(f"latent_steps: expected at least 0, got {self.latent_steps}")
        for name, unit in (
            ("plane_steps", 3),
            ("well_trained_steps", 3),
            ("digit_steps", 3),
            ("samples", 40),
        ):
            if getattr(self, name) < unit or getattr(self, name) % unit:
                raise ValueError(f"{name}: expected a positive multiple of {unit}, got {getattr(self, name)}")


PRESETS: dict[str, Config] = {
    "smoke": Config(
        seeds=2,
        digit_seeds=2,
        plane_width=16,
        digit_width=16,
        plane_steps=150,
        well_trained_steps=150,
        digit_steps=150,
        steps=10,
        well_trained_tuning_steps=10,
        preference_steps=10,
        pairs=400,
        samples=400,
        all_arms=False,
    ),
    "cpu": Config(),
    "paper": Config(seeds=50, digit_seeds=50, samples=20_000, latent_steps=1000),
}


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Trains all networks and measures the samples of every arm.

    Args:
        config: sizes.
        run_dir: where stages, figures and metrics go.

    Returns:
        A value of each claim for each seed, and the tables.
    """
    of_plane, of_digits = jax.random.split(jax.random.key(config.seed))
    of_plane, of_digits = (
        jax.random.split(of_plane, config.seeds),
        jax.random.split(of_digits, config.digit_seeds),
    )
    (plane, well_trained), digit = plane_parts(config), digit_part(config)
    parts = (
        (plane, plane_arms(config), of_plane),
        (well_trained, well_trained_arms(config), of_plane),
        (digit, digit_arms(config), of_digits),
    )
    (on_plane, on_well_trained, on_digits), courses = run_parts(parts, run_dir)
    costs = count(plane, digit)
    _log(run_dir, courses)
    _draw(run_dir, on_plane, on_well_trained, on_digits)
    tables = [
        plane_table("A. Plane", on_plane, PLANE_PROTOTYPE),
        gain_table("A. Plane", on_plane),
        dpo_table(on_plane),
        plane_table("A. Plane, network that is trained well", on_well_trained, {}),
        gain_table("A. Plane, network that is trained well", on_well_trained),
        digit_table(on_digits),
        ratio_table(on_digits),
        cost_table(costs),
        PAPER_TABLE,
    ]
    notes = [
        "Claims of parts A and B are the paper's sentences on data where preference can be measured; their"
        " thresholds are those of an independent prototype, and nothing was tuned here.",
        f"Part A has {config.seeds} seeds, part B {config.digit_seeds}; the prototype had 5 and 3.",
        "True points have a mean reward of 1.04 nats. At the same w_g Self-NPO pushes harder than CFG, which"
        " costs diversity: see the Pareto figure.",
        "The teacher's w counts from the condition: 0 follows it, -1 ignores it, -5 runs away from it. ∅ 0.5"
        " is the probability that the student sees no class.",
        "In the table of costs the paper's hours are of whole trainings on SD1.5.",
    ]
    notes += _on_latents(config, run_dir)
    return Outcome(measurements(on_plane, on_well_trained, on_digits, costs), tables, notes)


def plane_arms(config: Config) -> list[Arm]:
    """The arms of part A."""
    arms = [CFG, INVERSE, PLAIN, NPO[10.0], UNCONDITIONAL, NPO[2.0]]
    if config.all_arms:
        arms += [INVERSE_FROM_NOISE, WEAKLY_INVERSE, HALF_INVERSE, SIMULATED, NPO[50.0], AUTOGUIDANCE]
        return [*arms, *DPO_ARMS.values(), LONGER_DPO_ARM]
    return [*arms, *(DPO_ARMS[name] for name in (("base", 0), ("base", 1), ("Self-NPO", 1)))]


def well_trained_arms(config: Config) -> list[Arm]:
    """The arms of part A with the network that is trained well."""
    return [CFG, STRONG, *([INVERSE] if config.all_arms else [])]


def digit_arms(config: Config) -> list[Arm]:
    """The arms of part B."""
    arms = [CFG, INVERSE, WEAKLY_INVERSE, UNCONDITIONAL, PLAIN]
    return arms + ([SIMULATED, AUTOGUIDANCE] if config.all_arms else [])


def plane_parts(config: Config) -> tuple[Part, Part]:
    """Part A.

    Args:
        config: sizes.

    Returns:
        With the network that stops early, and with the one that is trained well.
    """
    quality = partial(mixture.quality, threshold=float(mixture.outlier_threshold(jax.random.key(0))))
    parts = []
    for name, width, base_steps, steps in (
        ("plane", config.plane_width, config.plane_steps, config.steps),
        ("well trained", config.digit_width, config.well_trained_steps, config.well_trained_tuning_steps),
    ):
        task = mixture.mixture_task(width)
        measured = Measured(task, config.samples, GUIDANCES, mixture.log_density, quality)
        parts.append(Part(name, measured, base_steps, steps, config.preference_steps, config.pairs))
    return parts[0], parts[1]


def digit_part(config: Config) -> Part:
    """Part B.

    Args:
        config: sizes.

    Returns:
        The part.
    """
    latents = digit_latents(TRAIN)
    held_out, labels = jnp.asarray(latents.x[TRAIN:]), jnp.asarray(latents.y[TRAIN:])
    measured = Measured(
        digits.digit_task(latents, config.digit_width),
        config.samples // 2,
        GUIDANCES,
        lambda x, label: -digits.nearest(x, label, held_out, labels),
        partial(digits.quality, judges=digits.judges(latents)),
    )
    return Part(
        "digits",
        measured,
        config.digit_steps,
        config.steps,
        config.preference_steps,
        config.pairs,
    )


def compile_target(config: Config) -> "Target":
    """The step of a DiT on ImageNet's latents, for a pod: the networks of the parts fill no chip.

    Args:
        config: for the DiT's size and the batch.

    Returns:
        The step and its abstract arguments.
    """
    from experiments.self_npo.pod import pod_target

    return pod_target(config.dit, config.latent_batch)


def _on_latents(config: Config, run_dir: RunDir) -> list[str]:
    """The papers' scale, of which no claim speaks: no verdict hangs on who has the data."""
    from experiments.self_npo.pod import fine_tune_latents, missing

    if not config.latent_steps:
        return []
    if lacking := missing(config.data_dir):
        return [
            f"There is no {', no '.join(map(str, lacking))}: the DiT was left out (--data-dir says where to"
            " look)."
        ]
    sizes = (config.dit, config.latent_batch, config.latent_steps, config.latent_samples)
    loss = fine_tune_latents(config.data_dir, *sizes, run_dir)["loss"]
    return [
        f"The DiT's loss began at {loss[0]:.4f} and ended at {loss[-1]:.4f}; its samples lie in latents/."
    ]


def _log(run_dir: RunDir, courses: Courses) -> None:
    """The losses over the training, means over the seeds and over the steps since the last time."""
    longest = max(course.shape[1] for course in courses.values())
    every = max(longest // LOGGED, 1)
    for step in range(every, longest + 1, every):
        seen = {name: c[:, step - every : step] for name, c in courses.items() if step <= c.shape[1]}
        run_dir.log(step, **{name: values.mean() for name, values in seen.items()})


def _draw(run_dir: RunDir, plane: Results, well_trained: Results, digit: Results) -> None:
    seeds = f"Mean over {len(plane[CFG]['cosine'])} seeds"
    run_dir.figure(
        "pareto",
        draw_pareto(plane, well_trained),
        "Part A: mean reward log p(x | class) against how unevenly the Gaussians of a class are met, along"
        f" the weights of guidance 0, 0.5, 1, 2, 4; upper left is better. {seeds}. Left: negatives of the"
        " base network. Middle: a network that learnt the preference. Right: a network that is trained well.",
    )
    run_dir.figure(
        "gains",
        draw_gains(plane),
        "Part A: gain in reward over classifier-free guidance from the same noise, and share of samples that"
        f" are less likely than 99 % of true points. {seeds}, 95 % interval shaded.",
    )
    run_dir.figure(
        "plane",
        draw_plane(plane),
        "Part A: the exact densities of the four classes (contours at -3 and 0 nats), and samples of the"
        " first seed over them, a colour for each class, by negative and weight of guidance.",
    )
    run_dir.figure(
        "digit_quality",
        draw_digit_quality(digit),
        "Part B: distance of samples to the nearest held-out digit of their class, Fréchet distance of all"
        f" samples, and both over those of CFG. Mean over {len(digit[CFG]['cosine'])} seeds, 95 % interval"
        " shaded.",
    )
    run_dir.figure(
        "digits",
        draw_digits(digit, digit_latents(TRAIN), SHOWN_GUIDANCE),
        f"Part B: digits of the first seed from the same noise under w_g = {SHOWN_GUIDANCE:g}.",
    )
