"""Feasibility of graph pre-training: how near the generator space comes to the downstream graphon.

Cao et al. 2023 (When to Pre-Train Graph Neural Networks? From Data Generation Perspective!,
arXiv:2303.16458). The generator space is the convex hull of graphons; its distance to the downstream
graphon, negated, is the feasibility.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray

from jaxneg.graphs.arguments import at_least, square
from jaxneg.graphs.gromov_wasserstein import gw_distance

BETAS = (0.9, 0.99)
WEIGHT_DECAY = 1e-5


class FeasibilityResult(NamedTuple):
    """The feasibility of one basis; with leading axes where several were computed at once.

    Attributes:
      zeta: ``-min_alpha GW``, at most 0; the best iterate's.
      alpha: Its weights of the graphons.
      trace: GW^2 at each step's weights.
      zeta_uniform: ``-GW`` at equal weights.
      zeta_vertices: ``-GW`` of each graphon alone.
    """

    zeta: Float[Array, ""]
    alpha: Float[Array, " bases"]
    trace: Float[Array, " steps"]
    zeta_uniform: Float[Array, ""]
    zeta_vertices: Float[Array, " bases"]


def feasibility(
    bases: Float[Array, "bases r r"] | np.ndarray,
    target: Float[Array, "r r"] | np.ndarray,
    *,
    steps: int = 100,
    lr: float = 0.05,
    starts: int = 2,
    iters: int = 40,
    key: PRNGKeyArray | None = None,
) -> FeasibilityResult:
    """How near the mixtures of some graphons come to a target graphon.

    ``zeta = -min_(alpha in simplex) GW(sum_k alpha_k B_k, B_d)``, with ``alpha = softmax(a)``, a = 1 at
    first, and Adam on GW^2 (b1 0.9, b2 0.99, L2 decay 1e-5). Its gradient is the envelope's: the optimal
    plan counts as constant, ``dGW^2 / dalpha_k = <2 (C * p p^T - T B_d T^T), B_k>``.

    Args:
      bases: Graphons, all of the resolution of the target (:func:`resize_graphon`).
      target: Downstream graphon.
      steps: Adam steps; the best of their iterates counts. A single graphon needs none.
      lr: Step size.
      starts: Starts of each Gromov-Wasserstein problem, as in :func:`gw_distance`.
      iters: Most iterations of each.
      key: For starts from the third on.

    Returns:
      Feasibility, weights, trace, and the feasibility of equal weights and of each graphon alone. Batches are
      made by ``vmap``, or over a mesh by :func:`feasibility_grid`.

    Raises:
      ValueError: A shape or setting does not fit.

    Source:
      Cao et al. 2023, published code, where the entropic plan's own derivative takes the envelope's place.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import feasibility
      >>> bases = jnp.stack([jnp.full((2, 2), 0.2), jnp.full((2, 2), 0.6)])
      >>> bool(feasibility(bases, jnp.full((2, 2), 0.5), steps=50).zeta > -0.01)
      True
    """
    bases, target = square("bases", bases, leading=1), square("target", target)
    if bases.shape[1:] != target.shape:
        raise ValueError(f"bases: expected graphons of shape {target.shape} as the target, got {bases.shape}")
    for name, value in {"steps": steps, "starts": starts, "iters": iters}.items():
        at_least(name, value, 1)
    if not lr > 0:
        raise ValueError(f"lr: expected a positive number, got {lr}")
    dtype = jnp.promote_types(bases.dtype, target.dtype)
    key = jax.random.key(0) if key is None else key
    return _fit(bases.astype(dtype), target.astype(dtype), key, steps, float(lr), starts, iters)


def feasibility_grid(
    bases: Float[Array, "batch bases r r"] | np.ndarray,
    targets: Float[Array, "batch r r"] | np.ndarray,
    *,
    mesh: Mesh | None = None,
    axis_name: str = "data",
    steps: int = 100,
    lr: float = 0.05,
    starts: int = 2,
    iters: int = 40,
    key: PRNGKeyArray | None = None,
) -> FeasibilityResult:
    """Feasibilities of many pairs of a basis and a target in one call, spread over a mesh.

    Args:
      bases: One basis for each pair; flatten (selection, downstream) into the batch.
      targets: One target for each.
      mesh: Devices; this one alone by default. The batch need not be a multiple of their number.
      axis_name: Its axis over which the batch is spread. No number crosses it.
      steps: As in :func:`feasibility`.
      lr: Likewise.
      starts: Likewise.
      iters: Likewise.
      key: Likewise; the same for all pairs, so that the result does not depend on the mesh.

    Returns:
      As :func:`feasibility`, each with a leading axis.

    Raises:
      ValueError: A shape or setting does not fit, or the mesh lacks the axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import feasibility_grid
      >>> feasibility_grid(jnp.ones((3, 1, 2, 2)), jnp.ones((3, 2, 2)), steps=1).zeta.tolist()
      [-0.0, -0.0, -0.0]
    """
    bases, targets = square("bases", bases, leading=2), square("targets", targets, leading=1)
    if len(bases) != len(targets):
        raise ValueError(f"targets: expected one for each of {len(bases)} bases, got {len(targets)}")
    key = jax.random.key(0) if key is None else key
    if mesh is None:
        return _grid(bases, targets, key, None, axis_name, steps, lr, starts, iters)
    if axis_name not in mesh.shape:
        raise ValueError(f"axis_name: expected one of {', '.join(mesh.axis_names)}, got {axis_name!r}")
    count = len(bases)
    extra = -count % mesh.shape[axis_name]
    if extra:  # the last pair fills the batch up
        bases, targets = (jnp.concatenate([x, jnp.repeat(x[-1:], extra, axis=0)]) for x in (bases, targets))
    bases, targets = jax.device_put((bases, targets), NamedSharding(mesh, P(axis_name)))
    found = _grid(bases, targets, key, mesh, axis_name, steps, lr, starts, iters)
    if extra == 0:
        return found
    return jax.tree.map(lambda x: x[:count], jax.device_put(found, NamedSharding(mesh, P())))


@partial(jax.jit, static_argnames=("mesh", "axis_name", "steps", "lr", "starts", "iters"))
def _grid(
    bases: Array,
    targets: Array,
    key: PRNGKeyArray,
    mesh: Mesh | None,
    axis_name: str,
    steps: int,
    lr: float,
    starts: int,
    iters: int,
) -> FeasibilityResult:
    def each(bases: Array, targets: Array, key: PRNGKeyArray) -> Any:
        one = partial(feasibility, steps=steps, lr=lr, starts=starts, iters=iters, key=key)
        # Matching is loops of unknown length: side by side all wait for the longest, which only pays where a
        # device is wide.
        return jax.lax.platform_dependent(
            bases,
            targets,
            cpu=lambda *pairs: jax.lax.map(lambda pair: one(*pair), pairs),
            default=jax.vmap(one),
        )

    if mesh is None:
        return each(bases, targets, key)
    # Loops start from constants, which are the same everywhere: the check of what varies is of no use here.
    specs = {"in_specs": (P(axis_name), P(axis_name), P()), "out_specs": P(axis_name)}
    return jax.shard_map(each, mesh=mesh, check_vma=False, **specs)(bases, targets, key)


@partial(jax.jit, static_argnames=("steps", "lr", "starts", "iters"))
def _fit(
    bases: Array, target: Array, key: PRNGKeyArray, steps: int, lr: float, starts: int, iters: int
) -> FeasibilityResult:
    """The vertices of the simplex and Adam's iterates in one loop, as its body takes long to compile."""
    count = len(bases)
    tx = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.adam(lr, b1=BETAS[0], b2=BETAS[1]))

    def objective(a: Array, vertex: Array) -> tuple[Array, Array]:
        alpha = jnp.where(jnp.any(vertex), vertex, jax.nn.softmax(a))
        graphon = jnp.einsum("k,kij->ij", alpha, bases, precision="highest")
        return gw_distance(graphon, target, starts=starts, iters=iters, key=key).value, alpha

    def step(state: tuple[Any, ...], vertex: Array) -> tuple[tuple[Any, ...], Array]:
        a, opt_state, best, best_alpha = state
        (value, alpha), gradient = jax.value_and_grad(objective, has_aux=True)(a, vertex)
        updates, new = tx.update(gradient, opt_state, a)
        moved = (optax.apply_updates(a, updates), new, value, alpha)
        free = ~jnp.any(vertex)
        better = value < best
        keep = (a, opt_state, best, best_alpha)
        takes = (free, free, free & better, free & better)
        state = tuple(
            jax.tree.map(lambda new, old, take=take: jnp.where(take, new, old), new, old)
            for take, new, old in zip(takes, moved, keep, strict=True)
        )
        return state, value

    vertices = jnp.eye(count, dtype=bases.dtype)
    free = 0 if count == 1 else steps
    rows = jnp.concatenate([vertices, jnp.zeros((free, count), bases.dtype)])
    a = jnp.ones(count, bases.dtype)
    start = (a, tx.init(a), jnp.asarray(math.inf, bases.dtype), jnp.full(count, 1 / count, bases.dtype))
    (_, _, value, alpha), values = jax.lax.scan(step, start, rows)
    alone = values[:count]
    trace = values[count:] if free else jnp.repeat(alone, steps)
    # NaN is less than nothing; a single graphon has no steps.
    value = jnp.where(jnp.isfinite(trace[0]), value, trace[0]) if free else trace[0]
    zeta, uniform, alone = (-jnp.sqrt(jnp.maximum(x, 0)) for x in (value, trace[0], alone))
    return FeasibilityResult(zeta, alpha, trace, uniform, alone)
