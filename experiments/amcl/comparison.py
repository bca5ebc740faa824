"""Every method on real images: pre-training, then neighbours, a linear probe, similarities, temperatures."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.amcl.sources import ImageData
from experiments.amcl.training import AMCLState, StepConfig, init_amcl_state, make_amcl_train_step, network_of
from jaxneg import contrastive
from jaxneg.nn import mean_statistics
from jaxneg.train import fit

BINS = 40
PAIRS = 512
"""Test images whose views are compared; all pairs of different ones are negatives."""
STATISTICS_BATCHES = 8
"""Batches behind the statistics of an encoder with batch normalisation."""


@dataclass(frozen=True)
class Arm:
    """A method at its settings."""

    name: str
    """What tables and figures call it."""
    step: StepConfig


def arms(step: StepConfig, temperatures: tuple[float, ...], tau_mins: tuple[float, ...]) -> list[Arm]:
    """The base method at every temperature, and AMCL with one head and with several at every lower bound.

    Args:
        step: what all have in common.
        temperatures: of the base method.
        tau_mins: lower bounds.

    Returns:
        The arms, the base method's first.
    """
    single = [Arm(base_name(t), replace(step, adaptive=False, heads=1, temperature=t)) for t in temperatures]
    adaptive = [
        Arm(amcl_name(heads, low), replace(step, adaptive=True, heads=heads, tau_min=low))
        for heads in dict.fromkeys((1, step.heads))
        for low in tau_mins
    ]
    return single + adaptive


def fixed_arms(step: StepConfig, temperature: float) -> list[Arm]:
    """Without adaptive temperatures: several heads, and one as large as these together.

    Args:
        step: what all have in common.
        temperature: of the base method where it was best.

    Returns:
        Both arms.
    """
    fixed = replace(step, adaptive=False, temperature=temperature)
    return [
        Arm(FIXED_HEADS, fixed),
        Arm(WIDE_HEAD, replace(fixed, heads=1, hidden=step.heads * step.hidden)),
    ]


def official_arm(step: StepConfig) -> Arm:
    """AMCL at the official code's defaults.

    Args:
        step: what all have in common.

    Returns:
        The arm.
    """
    return Arm(OFFICIAL, replace(step, adaptive=True, tau_min=1e-5, negatives="topk", topk=100, beta=1e-4))


FIXED_HEADS, WIDE_HEAD = "several fixed heads", "one wide head"
OFFICIAL = "AMCL, official defaults"


def base_name(temperature: float) -> str:
    """What the base method at a temperature is called."""
    return f"base, temperature {temperature:g}"


def amcl_name(heads: int, tau_min: float) -> str:
    """What AMCL is called."""
    return f"AMCL, {heads} head{'s' * (heads > 1)}, tau_min {tau_min:g}"


@cache
def _step_program(config: StepConfig) -> Any:
    return jax.jit(make_amcl_train_step(config))


_view = jax.jit(contrastive.augment_batch, static_argnames=("letters", "size"))


def _views(key: Array, images: np.ndarray, config: StepConfig) -> tuple[Array, Array]:
    first, second = jax.random.split(key)
    options = {"letters": config.letters, "size": config.size}
    return _view(first, images, **options), _view(second, images, **options)


def _common(config: StepConfig) -> StepConfig:
    """The config of the compiled program: what is handed over as an array has one value."""
    return replace(config, temperature=0.5, tau_min=0.1, letters="")


def batches(config: StepConfig, images: np.ndarray, seed: int) -> Iterator[dict[str, Array]]:
    """Views of random batches, without end; the same for every method.

    Args:
        config: of the step.
        images: uint8.
        seed: of order and augmentation.

    Yields:
        What a step takes.
    """
    rng, key, number = np.random.default_rng(seed), jax.random.key(seed), 0
    while True:
        order = rng.permutation(len(images))
        for rows in np.split(order[: len(order) // config.batch * config.batch], len(order) // config.batch):
            first, second = _views(jax.random.fold_in(key, number), images[rows], config)
            number += 1
            yield {
                "first": first,
                "second": second,
                "temperature": jnp.asarray(config.temperature),
                "tau_min": jnp.asarray(config.tau_min),
            }


def train_and_judge(arm: Arm, data: ImageData, seed: int, log_every: int) -> dict[str, np.ndarray]:
    """Trains an arm and measures everything that claims, tables and figures need.

    Args:
        arm: the method.
        data: images.
        seed: of weights, order and augmentation.
        log_every: steps between two points of the curves.

    Returns:
        Arrays by name: ``knn``, ``linear`` (shares of the test images), what `pair_measurements` gives, and
        curves against ``steps``.
    """
    config = arm.step
    fitted = fit(
        _step_program(_common(config)),
        init_amcl_state(config, jax.random.key(seed)),  # pyright: ignore[reportArgumentType]
        batches(config, data.train.x, seed),
        steps=config.steps,
        log_every=log_every,
        progress=False,
    )
    state: Any = fitted.state
    train, test = (_features(config, state, part.x) for part in (data.train, data.test))
    nearest = _knn(test, train, jnp.asarray(data.train.y), classes=data.classes)
    probe = _probe(jax.random.key(seed), train, jnp.asarray(data.train.y), classes=data.classes)
    curves = {
        name: np.array([line[name] for line in fitted.history])
        for name in ("step", "loss", "tau_pos_mean", "tau_neg_mean", "tau_pos_at_lower_bound")
        if name in fitted.history[-1]
    }
    return {
        "knn": np.asarray(np.mean(np.asarray(nearest) == data.test.y)),
        "linear": np.asarray(probe.accuracy(test, jnp.asarray(data.test.y))),
        **pair_measurements(config, state, data.test.x[:: max(1, len(data.test.x) // PAIRS)][:PAIRS]),
        **{f"curve_{name}": values for name, values in curves.items()},
    }


@partial(jax.jit, static_argnames="classes")
def _knn(features: Array, bank: Array, labels: Array, *, classes: int) -> Array:
    return contrastive.knn_classify(features, bank, labels, classes=classes).predictions


@partial(jax.jit, static_argnames="classes")
def _probe(key: Array, features: Array, labels: Array, *, classes: int) -> contrastive.LinearProbe:
    return contrastive.linear_probe(key, features, labels, classes=classes)


@cache
def _encoder_programs(config: StepConfig) -> tuple[Any, Any]:
    """Features of images, and the statistics that an encoder with batch normalisation needs for them."""
    network = network_of(config)

    def prepared(images: Array) -> Array:
        return contrastive.augment_batch(jax.random.key(0), images, "")

    def pooled(found: Array) -> Array:
        return found.mean((1, 2)) if found.ndim == 4 else found

    if config.encoder == "mixer":
        return jax.jit(lambda params, _, x: network.model.apply(params, prepared(x))), None
    statistics = jax.jit(lambda params, x: network.model.statistics(params, prepared(x)))
    evaluate = jax.jit(lambda params, stats, x: pooled(network.model.evaluate(params, stats, prepared(x))))
    return evaluate, statistics


def _features(config: StepConfig, state: AMCLState, images: np.ndarray) -> Array:
    evaluate, statistics = _encoder_programs(
        StepConfig(encoder=config.encoder, width=config.width, size=config.size, dtype=config.dtype)
    )
    params, stats = state.params["encoder"], None
    chunks = [images[start : start + 500] for start in range(0, len(images), 500)]
    if statistics is not None:
        stats = mean_statistics([statistics(params, chunk) for chunk in chunks[:STATISTICS_BATCHES]])
    return jnp.concatenate([evaluate(params, stats, chunk) for chunk in chunks])


@cache
def _pair_program(config: StepConfig) -> Any:
    network = network_of(config)

    def compared(params: Any, first: Array, second: Array, low: Array):
        z = [network.project(params["heads"], network.encode(params["encoder"], v)) for v in (first, second)]
        z1, z2 = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in z)
        sim = jnp.einsum("icd,jcd->cij", z1, z2)
        if not config.adaptive or config.base == "barlow_twins":
            return sim, jnp.zeros_like(sim)
        heads = (jnp.swapaxes(x, 0, 1) for x in (z1, z2))
        score = contrastive.temperature_scores(params["phi"], *heads, matrix=True)
        return sim, contrastive.score_to_temperature(score, low, config.tau_max)

    return jax.jit(compared)


def pair_measurements(config: StepConfig, state: AMCLState, images: np.ndarray) -> dict[str, np.ndarray]:
    """Similarities and temperatures of pairs of views that training has not seen.

    Args:
        config: of the step.
        state: after training.
        images: of the test set; a pair of views of the same is positive, all others are negative.

    Returns:
        ``auc``, ``overlap``, ``below_half`` of the similarities' means over the heads; their histograms
        ``pos_sim`` and ``neg_sim``; of adaptive temperatures the histograms ``pos_tau`` and ``neg_tau``,
        their least and mean values, and ``spearman``, the rank correlation of the positives' temperatures
        with their similarities, mean over the heads.
    """
    from scipy.stats import spearmanr

    first, second = _views(jax.random.key(2**20), images, config)
    sim, tau = _pair_program(_common(config))(state.params, first, second, jnp.asarray(config.tau_min))
    same = np.eye(len(images), dtype=bool)
    sim, tau = np.asarray(sim), np.asarray(tau)
    mean = sim.mean(0)
    found = contrastive.separation_metrics(jnp.asarray(mean[same]), jnp.asarray(mean[~same]))
    result = {name: np.asarray(value) for name, value in found._asdict().items()}
    edges = np.linspace(-1, 1, BINS + 1)
    for name, chosen in (("pos", same), ("neg", ~same)):
        result[f"{name}_sim"] = np.histogram(mean[chosen], edges)[0] / chosen.sum()
    if config.adaptive:
        edges = np.linspace(0, config.tau_max, BINS + 1)
        for name, chosen in (("pos", same), ("neg", ~same)):
            values = tau[:, chosen]
            result[f"{name}_tau"] = np.histogram(values, edges)[0] / values.size
            result[f"{name}_tau_mean"] = values.mean()
            result[f"{name}_tau_least"] = values.min()
        by_head = [spearmanr(t[same], s[same])[0] for t, s in zip(tau, sim, strict=True)]
        # Where all temperatures of a head are equal there is no order, and no correlation.
        result["spearman"] = np.asarray(np.mean(np.nan_to_num(by_head)))  # pyright: ignore
    return result
