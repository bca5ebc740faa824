"""The paper's synthetic experiment: full-batch gradient descent on a logistic model of random ReLU features.

Implements Zhang et al., arXiv:2404.05868, Section 4 and Figure 4, with the losses of `jaxneg.unlearning`:
every point is a sequence of one token, whose negative log-likelihood is that of its label. Everything runs in
the dtype of its arguments; the paper's code uses float64.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxneg.unlearning import (
    GaussianLogistic,
    ce_loss,
    dpo_loss,
    ga_loss,
    kl_retain_loss,
    kto_loss,
    npo_loss,
)

FIT_LEARNING_RATE = 0.05
"""Step size of gradient descent for the reference and the retrained model."""


class Method(NamedTuple):
    """A method and its hyperparameters."""

    loss: str
    """A forget loss (GA, NPO, DPO, KTO, IDK), and a retain term (RT, KL) after a "+"."""
    learning_rate: float
    beta: float = float("nan")
    """Inverse temperature, for the methods that have one."""


class Problem(NamedTuple):
    """Random features and labels; the labels are the classes 0 and 1."""

    forget: Float[Array, "forget width"]
    y_forget: Int[Array, " forget"]
    y_idk: Int[Array, " forget"]
    retain: Float[Array, "retain width"]
    y_retain: Int[Array, " retain"]
    eval_forget: Float[Array, "eval width"]
    eval_retain: Float[Array, "eval width"]


def problem(data: GaussianLogistic) -> Problem:
    """The data as the model sees them: ``relu(W x)``.

    Args:
        data: what `jaxneg.unlearning.synthetic_gaussian_logistic` drew.

    Returns:
        Features and labels.
    """

    def features(inputs: Array) -> Array:
        return jax.nn.relu(inputs @ data.projection.T)

    return Problem(
        forget=features(data.x_forget),
        y_forget=data.y_forget,
        y_idk=data.y_idk,
        retain=features(data.x_retain),
        y_retain=data.y_retain,
        eval_forget=features(data.eval_forget),
        eval_retain=features(data.eval_retain),
    )


def negative_log_likelihood(logit: Float[Array, " n"], label: Int[Array, " n"]) -> Float[Array, " n"]:
    """``-log P(label)`` with ``P(1) = sigmoid(logit)``, nats."""
    return jax.nn.softplus((1 - 2 * label) * logit)


def fit(data: Problem, steps: int) -> tuple[Float[Array, " width"], Float[Array, " width"]]:
    """Gradient descent from zero on all the data, and on the retain data alone.

    Args:
        data: the problem.
        steps: gradient steps.

    Returns:
        Weights of the reference model, which unlearning starts from, and of the retrained model, its aim.
    """

    def gradient(features: Array, labels: Array, theta: Array) -> Array:
        """Of the summed cross-entropy; written out, it is half again as fast as through softplus."""
        return (jax.nn.sigmoid(features @ theta) - labels) @ features

    def step(_: int, models: tuple[Array, Array]) -> tuple[Array, Array]:
        reference, retrained = models
        on_all = gradient(data.retain, data.y_retain, reference) + gradient(
            data.forget, data.y_forget, reference
        )
        on_retain = gradient(data.retain, data.y_retain, retrained)
        reference -= FIT_LEARNING_RATE / (n_retain + n_forget) * on_all
        retrained -= FIT_LEARNING_RATE / n_retain * on_retain
        return reference, retrained

    n_forget, n_retain = len(data.forget), len(data.retain)
    start = jnp.zeros_like(data.forget, shape=data.forget.shape[1:])
    return jax.lax.fori_loop(0, steps, step, (start, start))


def unlearn(
    data: Problem,
    reference: Float[Array, " width"],
    retrained: Float[Array, " width"],
    methods: Mapping[str, Method],
    steps: int,
    every: int,
) -> tuple[dict[str, Float[Array, "evaluations 2"]], dict[str, Float[Array, " width"]]]:
    """Unlearns with each method from the same start, by full-batch gradient descent.

    Args:
        data: the problem.
        reference: weights to start from.
        retrained: weights of the model that has never seen the forget data.
        methods: by a name of the caller's choice.
        steps: gradient steps, a multiple of ``every``.
        every: steps between evaluations.

    Returns:
        By name the distances to the retrained model, ``mean KL(retrained || model)`` in nats on fresh forget
        and on fresh retain points, at steps 0, every, ..., steps; and the weights after all steps.
    """
    if steps % every:
        raise ValueError(f"every: expected a divisor of the {steps} steps, got {every}")

    def loss(weights: dict[str, Array]) -> Array:
        losses = [objective(method, weights[name], data, reference) for name, method in methods.items()]
        return sum(losses, jnp.zeros(()))

    def distances(weights: dict[str, Array]) -> dict[str, Array]:
        return {name: distance(data, theta, retrained) for name, theta in weights.items()}

    def step(_: int, weights: dict[str, Array]) -> dict[str, Array]:
        gradient = jax.grad(loss)(weights)
        return {name: theta - methods[name].learning_rate * gradient[name] for name, theta in weights.items()}

    def evaluate(weights: dict[str, Array], _: None) -> tuple[dict[str, Array], dict[str, Array]]:
        return jax.lax.fori_loop(0, every, step, weights), distances(weights)

    weights = dict.fromkeys(methods, reference)
    weights, curves = jax.lax.scan(evaluate, weights, length=steps // every)
    last = distances(weights)
    return {name: jnp.vstack([curves[name], last[name]]) for name in weights}, weights


def objective(
    method: Method, theta: Float[Array, " width"], data: Problem, reference: Float[Array, " width"]
) -> Float[Array, ""]:
    """What a method minimises.

    Args:
        method: the method.
        theta: weights.
        data: the problem.
        reference: weights before unlearning.

    Returns:
        Its loss, a scalar: the mean of the forget loss plus the mean of the retain term.

    Raises:
        ValueError: a method that does not exist.
    """
    forget, _, retain = method.loss.partition("+")
    logit, ref_logit = data.forget @ theta, data.forget @ reference
    nll = negative_log_likelihood(logit, data.y_forget)
    ref_nll = negative_log_likelihood(ref_logit, data.y_forget)
    match forget:
        case "GA":
            loss = ga_loss(nll, jnp.ones(nll.shape, int))
        case "NPO":
            loss = npo_loss(nll, ref_nll, method.beta)
        case "DPO":
            nll_idk = negative_log_likelihood(logit, data.y_idk)
            ref_idk = negative_log_likelihood(ref_logit, data.y_idk)
            loss = dpo_loss(nll_idk, ref_idk, nll, ref_nll, method.beta)
        case "KTO":
            divergence = kl_retain_loss(_logits(logit), _logits(ref_logit), direction="reverse")
            loss = kto_loss(nll, ref_nll, divergence.mean(), method.beta, scale_z=True)
        case "IDK":
            nll_idk = negative_log_likelihood(logit, data.y_idk)
            loss = ce_loss(nll_idk, jnp.ones(nll.shape, int))
        case _:
            raise ValueError(f"loss: expected GA, NPO, DPO, KTO or IDK, got {method.loss!r}")
    total = loss.mean()
    if retain == "RT":
        total += negative_log_likelihood(data.retain @ theta, data.y_retain).mean()
    elif retain == "KL":
        logits, ref_logits = _logits(data.retain @ theta), _logits(data.retain @ reference)
        total += kl_retain_loss(logits, ref_logits).mean()
    elif retain:
        raise ValueError(f"loss: expected the retain term RT or KL, got {method.loss!r}")
    return total


def distance(
    data: Problem, theta: Float[Array, " width"], retrained: Float[Array, " width"]
) -> Float[Array, " 2"]:
    """How far a model is from the retrained one on fresh points.

    Args:
        data: the problem.
        theta: the model's weights.
        retrained: weights of the retrained model.

    Returns:
        ``mean KL(retrained || model)`` on the forget and on the retain population, nats.
    """
    return jnp.stack(
        [
            kl_retain_loss(_logits(points @ theta), _logits(points @ retrained)).mean()
            for points in (data.eval_forget, data.eval_retain)
        ]
    )


def _logits(logit: Float[Array, " n"]) -> Float[Array, "n 1 2"]:
    """The two classes as a vocabulary."""
    return jnp.stack([jnp.zeros_like(logit), logit], -1)[:, None]


METHODS: dict[float, dict[str, Method]] = {
    1.0: {
        "GA": Method("GA", 5e-4),
        "GA+RT": Method("GA+RT", 5e-4),
        "GA+KL": Method("GA+KL", 5e-4),
        "IDK+RT": Method("IDK+RT", 5e-4),
        "NPO": Method("NPO", 5e-3, 1.0),
        "NPO+RT": Method("NPO+RT", 5e-3, 1.0),
        "NPO+KL": Method("NPO+KL", 5e-3, 1.0),
        "DPO": Method("DPO", 5e-3, 0.1),
        "DPO+RT": Method("DPO+RT", 5e-3, 0.1),
        "DPO+KL": Method("DPO+KL", 5e-3, 0.1),
        "KTO": Method("KTO", 5e-3, 1.0),
    },
    0.0: {
        "GA": Method("GA", 1e-4),
        "GA+RT": Method("GA+RT", 1e-4),
        "IDK+RT": Method("IDK+RT", 1e-4),
        "NPO": Method("NPO", 5e-2, 10.0),
        "NPO+RT": Method("NPO+RT", 5e-2, 10.0),
        "DPO+RT": Method("DPO+RT", 5e-2, 5.0),
    },
}
"""By alpha, half the distance between the populations' centres, the methods with their hyperparameters.

Source: arXiv:2404.05868, Table 1; KTO, which it does not have, takes those of NPO.
"""
