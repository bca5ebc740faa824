"""PG-SB and its rivals on digits: a student of one step, watched while it learns.

The schedule is Stable Diffusion's, the step `jaxneg.diffusion.make_pgsb_step`. All arms of a backbone start
from the same teacher, with the same noise.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from experiments.digits import CLASSES
from experiments.snoopi.judge import judge
from experiments.snoopi.networks import PIXELS, TIMESTEPS, Network, Params
from experiments.snoopi.text_dit import PAD
from jaxneg.diffusion import PGSBConfig, PGSBState, init_pgsb, make_pgsb_step, one_step_predict
from jaxneg.diffusion.snoopi import KappaMode

STUDENT_LR, LORA_LR, LORA_SCALE = 3e-5, 2e-3, 2.0
ABAR_T = 0.0047
"""Alpha-bar at which students start, as SwiftBrush has it."""
EVALUATIONS, LAST = 8, 4
"""How often a student is measured, and how many of the last times count."""
SWIFT_BRUSH, LOW, HIGH = 4.5, 0.5, 4.0
"""SwiftBrush's guidance scale, and the range of PG-SB."""
SHOWN = 100


@dataclass(frozen=True)
class Arm:
    """How the guidance scale inside the loss is chosen, and what else differs."""

    name: str
    """As tables have it."""
    low: float
    """The least guidance scale ..."""
    high: float
    """... and the largest."""
    mode: KappaMode = "random"
    lora_steps: int = 1
    """Updates of the adapters for one of the student, times the backbone's own."""
    nasa_t: bool = False
    """Whether negative texts are part of the training."""

    @property
    def stage(self) -> str:
        """The name as a file may have it."""
        return re.sub(r"[^A-Za-z0-9.-]+", "_", self.name.replace("κ", "kappa"))

    @property
    def program(self) -> tuple[Any, ...]:
        """What needs a program of its own: guidance scales do not."""
        return self.mode, self.lora_steps, self.nasa_t


def fixed(kappa: float) -> Arm:
    """The arm of a guidance scale that is always the same."""
    return Arm(f"κ = {kappa:g}", kappa, kappa)


RANDOM = Arm(f"κ ~ U({LOW:g}, {HIGH:g})", LOW, HIGH)
SWIFT = fixed(SWIFT_BRUSH)
MEAN = fixed((LOW + HIGH) / 2)
"""The control: the mean of the random scales."""
STRONG = fixed(7.5)
PLAIN = fixed(1.0)
TTUR = Arm(f"κ = {MEAN.low:g}, five LoRA steps", MEAN.low, MEAN.high, lora_steps=5)
RANDOM_TEACHER = Arm("random in the teacher only", LOW, HIGH, mode="random_teacher")
RANDOM_LORA = Arm("random in the LoRA teacher only", LOW, HIGH, mode="random_lora")
NASA_T = Arm("NASA-T", LOW, HIGH, nasa_t=True)


class Backbone(NamedTuple):
    """What is distilled."""

    name: str
    network: Network
    """Of the student, of the teacher with adapters, and of the frozen one unless that is exact."""
    steps: int
    """Of the student, a multiple of `EVALUATIONS`."""
    batch: int
    rank: int
    """Of the adapters."""
    lora_steps: int = 1
    exact: Callable[[Array, Array, Array], Array] | None = None
    """The frozen teacher ``(x, t, cond) -> noise``, if it is no network."""


class Course(NamedTuple):
    """What becomes of a student."""

    frechet: Float[Array, " evaluations"]
    """Fréchet distance of digits made in one step, every eighth of the training."""
    accuracy: Float[Array, " evaluations"]
    """Share of them that are taken for the digit that was asked for."""
    samples: Float[Array, "shown 64"]
    """The last ones, the digits in turn."""
    student: Params


def one_step(
    network: Network, params: Params, z: Float[Array, "batch ..."], cond: Any
) -> Float[Array, "batch ..."]:
    """What a student makes of noise.

    Args:
        network: of the student.
        params: its parameters.
        z: noise.
        cond: conditions.

    Returns:
        Samples.
    """
    last = jnp.full(z.shape[0], TIMESTEPS - 1)
    return one_step_predict(network.apply(params, z, last, cond), z, ABAR_T)


def distil(
    backbone: Backbone,
    arm: Arm,
    samples: int,
    teacher: Params,
    scales: Float[Array, "2"],
    key: PRNGKeyArray,
) -> Course:
    """Distils a teacher into one step.

    Args:
        backbone: what is distilled.
        arm: how; its scales are not read.
        samples: how many a student is measured with.
        teacher: parameters of the network.
        scales: the least and the largest guidance scale.
        key: random key.

    Returns:
        The student and its course.
    """
    network = backbone.network
    cfg = PGSBConfig(
        shape=network.shape,
        kappa_mode=arm.mode,
        kappa_min=scales[0],  # pyright: ignore[reportArgumentType]
        kappa_max=scales[1],  # pyright: ignore[reportArgumentType]
        kappa=SWIFT_BRUSH,
        abar_T=ABAR_T,
        lora_rank=backbone.rank,
        lora_gamma=LORA_SCALE * backbone.rank,
        lora_match=network.lora_match,
        ttur=arm.lora_steps * backbone.lora_steps,
        nasa_t=arm.nasa_t,
        steps=backbone.steps,
        student_lr=STUDENT_LR,
        lora_lr=LORA_LR,
    )
    exact = backbone.exact

    def frozen(params: Params, x: Array, t: Array, cond: Array) -> Array:
        return network.apply(params, x, t, cond) if exact is None else exact(x, t, cond)

    step = make_pgsb_step(
        network.apply,
        frozen,
        cfg,
        null_cond=network.null,
        adapted_apply=network.apply,
    )
    of_state, of_prompts, of_noise = jax.random.split(key, 3)
    z = jax.random.normal(of_noise, (samples, *network.shape))
    digit = jnp.arange(samples) % CLASSES

    def one(state: PGSBState, key: PRNGKeyArray) -> tuple[PGSBState, None]:
        of_text, of_negative = jax.random.split(key)
        batch = {"cond": network.prompts(of_text, backbone.batch)}
        if arm.nasa_t:
            batch["neg_cond"] = another_digit(of_negative, batch["cond"])
        return step(state, batch)[0], None

    def part(state: PGSBState, keys: PRNGKeyArray) -> tuple[PGSBState, tuple[Array, ...]]:
        state, _ = jax.lax.scan(one, state, keys)
        x = one_step(network, state.params["student"], z, network.digits(digit)).reshape(samples, PIXELS)
        accuracy = jnp.mean(judge().label(x) == digit)
        return state, (judge().frechet(x), accuracy, x[:SHOWN])

    keys = jax.random.split(of_prompts, (EVALUATIONS, backbone.steps // EVALUATIONS))
    state, (frechet, accuracy, shown) = jax.lax.scan(part, init_pgsb(of_state, teacher, cfg), keys)
    return Course(frechet, accuracy, shown[-1], state.params["student"])


def another_digit(key: PRNGKeyArray, text: Array) -> Array:
    """A digit for each text, as a text of its own, that is not the first word of the text.

    Args:
        key: random key.
        text: ``[batch, 2]``.

    Returns:
        ``[batch, 2]``.
    """
    first = text[:, 0]
    shift = jax.random.randint(key, first.shape, 1, CLASSES)
    digit = jnp.where(first < CLASSES, (first + shift) % CLASSES, shift)
    return jnp.stack([digit, jnp.full_like(digit, PAD)], axis=1)


def last(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the last measurements.

    Args:
        values: ``[seeds, evaluations]``.

    Returns:
        One of each for each seed.
    """
    ends = values[:, -LAST:]
    return ends.mean(axis=1), ends.std(axis=1, ddof=1)
