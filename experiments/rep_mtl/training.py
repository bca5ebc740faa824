"""Training with Rep-MTL: a network in two halves, the methods that are compared, all seeds in one program.

The loss of a step is `jaxneg.mtl.make_rep_mtl_loss`, the step `jaxneg.train.make_step`; steps run in a scan
and seeds side by side. The weights of the two regularisers are arguments of the compiled program, so that a
sweep over them compiles once. Every method gets the same data, first parameters and batches.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxneg.mtl import csa_terms, make_rep_mtl_loss, task_saliency, tsr_entropy, uw
from jaxneg.train import init_state, make_step

Params = dict[str, Any]

EVERY = 10
"""Steps between looks at the saliencies; numbers of steps are multiples of it."""
TAU = 0.5


@dataclass(frozen=True)
class Method:
    """What is trained: weights of the regularisers, and the choices that the paper leaves open."""

    lam_tsr: float = 0.0
    """Weight of the entropy."""
    lam_csa: float = 0.0
    """Weight of the alignment."""
    tau: float = TAU
    """Temperature of the alignment."""
    reg_grad_to: Literal["encoder", "all"] = "encoder"
    """What the regularisers move."""
    losses: Literal["sum", "log", "uncertainty"] = "sum"
    """How the task losses are put together: summed, their logarithms summed as in DB-MTL, or by uncertainty
    weighting."""
    paired: bool = False
    """Whether the images of all tasks at one place of a batch share their class."""
    alone: bool = False
    """Single-task networks: an encoder for each task."""

    @property
    def name(self) -> str:
        """The name in tables and figures."""
        terms = [f"{term} {lam:g}" for term, lam in (("TSR", self.lam_tsr), ("CSA", self.lam_csa)) if lam]
        others = {
            f"τ {self.tau:g}": self.tau != TAU,
            "heads too": self.reg_grad_to == "all",
            "log losses": self.losses == "log",
            "UW": self.losses == "uncertainty",
            "paired by label": self.paired,
        }
        plain = "STL" if self.alone else "EW"
        return ", ".join([" + ".join(terms) or plain, *(text for text, said in others.items() if said)])

    @property
    def stage(self) -> str:
        """The name as a file may have it."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.name.replace("τ", "tau"))


class Network(NamedTuple):
    """A network that Rep-MTL can train, and the data that it sees. Its functions are of one seed."""

    encode: Callable[[Params, Any], Array]
    """``(encoder, batch) -> Z``. Leaves with a leading task axis are encoders of their own."""
    logits: Callable[[Params, Array], Array]
    """``(heads, Z) -> [tasks, batch, classes]``."""
    batch: Callable[[Any, Any, Array], dict[str, Array]]
    """``(data of all seeds, data of this seed, a draw) -> batch`` with the labels ``y [tasks, batch]``."""
    optimizer: Callable[[int], optax.GradientTransformation]
    """From the number of steps."""
    own_inputs: bool
    """Whether each task has images of its own: Z ``[tasks, batch, ...]``."""


class Saliencies(NamedTuple):
    """What the regularisers look at, on the batch of a step."""

    entropy: Float[Array, "..."]
    """Of the saliency over the tasks, nats."""
    positive: Float[Array, "..."]
    """Mean cosine between an example's anchor and its tasks' affinities."""
    negative: Float[Array, "..."]
    """Mean cosine between the anchors of two examples."""


def cross_entropies(logits: Float[Array, "tasks batch classes"], y: Array) -> Float[Array, "tasks"]:
    """Mean cross-entropy of each task.

    Args:
        logits: of all tasks.
        y: labels ``[tasks, batch]``.

    Returns:
        One loss for each task, nats.
    """
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y), axis=1)


def train(
    network: Network, method: Method, params: Params, common: Any, data: Any, draws: Array
) -> tuple[Params, Saliencies]:
    """Trains a network for each seed.

    Args:
        network: the network.
        method: how.
        params: first parameters ``{"encoder", "heads"}``, a leading seed axis on each leaf.
        common: data of all seeds.
        data: data of each seed, a leading seed axis on each leaf.
        draws: what each batch holds, ``[seeds, steps, ...]``.

    Returns:
        Parameters, and the saliencies at every tenth step ``[seeds, steps / 10]``; of single-task networks
        nothing is looked at, and these are zero.

    Raises:
        ValueError: steps that are no multiple of 10.
    """
    if draws.shape[1] % EVERY:
        raise ValueError(f"draws: expected a multiple of {EVERY} steps, got {draws.shape[1]}")
    regularised = bool(method.lam_tsr or method.lam_csa)
    form = replace(method, lam_tsr=0.0, lam_csa=0.0, paired=False)
    lams = jnp.array([method.lam_tsr, method.lam_csa])
    return _train(network, form, regularised, lams, params, common, data, draws)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _train(
    network: Network,
    form: Method,
    regularised: bool,
    lams: Array,
    params: Params,
    common: Any,
    data: Any,
    draws: Array,
) -> tuple[Params, Saliencies]:
    optimizer = network.optimizer(draws.shape[1])
    step = make_step(_loss(network, form, regularised, lams), optimizer)

    def of_seed(params: Params, data: Any, draws: Array) -> tuple[Params, Saliencies]:
        def one(state: Any, draw: Array) -> tuple[Any, None]:
            return step(state, network.batch(common, data, draw))[0], None

        def chunk(state: Any, draws: Array) -> tuple[Any, Saliencies]:
            state, _ = jax.lax.scan(one, state, draws)
            if form.alone:
                return state, Saliencies(*jnp.zeros(3))
            return state, _saliencies(network, form, state.params, network.batch(common, data, draws[-1]))

        if form.losses == "uncertainty":
            tasks = params["heads"]["bias"].shape[0]
            params = params | {"log_variances": jnp.zeros(tasks)}
        # Nothing in a step is random but its batch.
        state = init_state(params, optimizer, jax.random.key(0))
        state, seen = jax.lax.scan(chunk, state, draws.reshape(-1, EVERY, *draws.shape[1:]))
        return state.params, seen

    return jax.vmap(of_seed)(params, data, draws)


def _loss(network: Network, form: Method, regularised: bool, lams: Array) -> Callable:
    """The loss function of a step."""

    def head_losses(heads: Params, Z: Array, batch: dict[str, Array]) -> Array:
        return cross_entropies(network.logits(heads, Z), batch["y"])

    def plain(params: Params, batch: dict[str, Array], key: Any) -> tuple[Array, dict[str, Array]]:
        del key
        losses = head_losses(params["heads"], network.encode(params["encoder"], batch), batch)
        losses = jnp.log(losses + 1e-8) if form.losses == "log" else losses
        return jnp.sum(losses), {"task_losses": losses}

    regularising = make_rep_mtl_loss(
        network.encode,
        head_losses,
        reg_grad_to=form.reg_grad_to,
        log_transform=form.losses == "log",
        own_inputs=network.own_inputs,
        lam_tsr=lams[0],
        lam_csa=lams[1],
        tau=form.tau,
    )
    loss_fn = regularising if regularised else plain
    if form.losses != "uncertainty":
        return loss_fn

    def weighed(params: Params, batch: dict[str, Array], key: Any) -> tuple[Array, dict[str, Array]]:
        loss, aux = loss_fn(params, batch, key)
        losses = aux["task_losses"]
        # The regularisers stay as they are; the sum of the losses gives way to their weighted sum.
        return loss - jnp.sum(losses) + uw(losses, params["log_variances"]), aux

    return weighed


def _saliencies(network: Network, form: Method, params: Params, batch: dict[str, Array]) -> Saliencies:
    def losses(Z: Array) -> Array:
        found = cross_entropies(network.logits(params["heads"], Z), batch["y"])
        return jnp.log(found + 1e-8) if form.losses == "log" else found

    Z = network.encode(params["encoder"], batch)
    _, S = task_saliency(losses, Z, own_inputs=network.own_inputs)
    S = S / (jnp.sqrt(jnp.mean(S**2)) + 1e-20)
    positive, negative = csa_terms(S)
    others = ~jnp.eye(len(negative), dtype=bool)
    return Saliencies(tsr_entropy(S), jnp.mean(positive), jnp.mean(negative, where=others))
