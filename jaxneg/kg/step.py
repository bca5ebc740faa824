"""The train step: sample, filter, score, and update all rows or only those that the batch touches.

Tables may be sharded by rows over a mesh axis and batches over another; what crosses the mesh is decided by
the compiler. With ``update="touched"`` gradients and optimizer state are formed for the rows of the batch
alone, which pays where the batch touches a small share of the table: a dense step of Adam reads and writes
every row of three tables.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from jaxneg.kg.arguments import SIDES, at_least, one_of
from jaxneg.kg.known_triples import KnownTriples, filter_known
from jaxneg.kg.losses import kge_loss, l3_regularization
from jaxneg.kg.scores import MODELS, kge_score

Negatives = Int[Array, "b n"] | tuple[Int[Array, "b n"], Bool[Array, "b n"]]
Sampler = Callable[[PRNGKeyArray, Int[Array, "b 3"], str], Negatives]
UPDATES = ("all", "touched")


class KGEState(NamedTuple):
    """What a step passes on.

    Attributes:
        step: updates made so far.
        params: tables as of `kge_init`.
        opt_state: state of the optimizer.
        key: random key of the whole run; never changes.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    key: PRNGKeyArray


def init_kge_state(params: Mapping[str, Array], tx: optax.GradientTransformation, key: Array) -> KGEState:
    """The state before the first step.

    Args:
        params: tables as of `kge_init`.
        tx: the optimizer.
        key: random key of the whole run.

    Returns:
        The state at step 0.

    Example:
        >>> import jax
        >>> from jaxneg.kg import kge_init
        >>> params = kge_init(jax.random.key(0), "TransE", 9, 2, 4, gamma=6.0)
        >>> int(init_kge_state(params, optax.adam(1e-3), jax.random.key(1)).step)
        0
    """
    return KGEState(jnp.zeros((), jnp.int32), dict(params), tx.init(dict(params)), key)


def make_kge_step(
    model: str,
    tx: optax.GradientTransformation,
    sampler: Sampler,
    *,
    alpha: float | Array | None = None,
    known: KnownTriples | None = None,
    rounds: int = 4,
    regularization: float = 0.0,
    update: str = "all",
) -> Callable[[KGEState, Mapping[str, Array]], tuple[KGEState, dict[str, Array]]]:
    """A pure train step ``(state, batch) -> (state, metrics)``.

    Steps 1, 3, ... replace tails and steps 2, 4, ... heads, as RotatE's code does; a positive of a batch has
    n negatives. gamma is never updated.

    Args:
        model: one of `MODELS`.
        tx: an optax transformation. With update="touched" one that treats rows independently (SGD, Adam,
            Adagrad; no clipping by the global norm).
        sampler: ``(key, triples [B, 3], side) -> entities [B, n]``, or, for one that chooses sides itself,
            ``(entities, is_head)``.
        alpha: adversarial temperature; None: all negatives count alike.
        known: training triples, whose negatives are drawn again; None: no filter. For a sampler that
            chooses sides they are drawn again uniformly.
        rounds: of `filter_known`.
        regularization: coefficient of `l3_regularization`.
        update: "all": every row. "touched": the rows of the batch; rows that it lacks keep their moments,
            as in "lazy" Adam, where a dense Adam would go on moving them.

    Returns:
        The step. ``batch`` has ``triples [B, 3]`` and, if there are weights, ``weight [B]``; metrics are
        ``loss``, ``positive_score`` and ``negative_score`` (means).

    Raises:
        ValueError: an unknown option; a regularization of whole tables with update="touched".

    Source:
        arXiv:1902.10197, Section 3; RotatE's ``train_step``.

    Example:
        >>> import jax
        >>> from jaxneg.kg import kge_init, sample_uniform
        >>> tx = optax.adam(1e-3)
        >>> step = make_kge_step("TransE", tx, lambda key, x, side: sample_uniform(key, x[:, 0], 4, 9))
        >>> params = kge_init(jax.random.key(0), "TransE", 9, 2, 4, gamma=6.0)
        >>> state, batch = init_kge_state(params, tx, jax.random.key(1)), {"triples": jnp.array([[0, 1, 2]])}
        >>> int(step(state, batch)[0].step)
        1
    """
    one_of("model", model, MODELS)
    one_of("update", update, UPDATES)
    at_least("rounds", rounds, 0)
    if update == "touched" and regularization:
        raise ValueError(
            'regularization: expected 0 with update="touched", which never sees the whole tables, got '
            f"{regularization}"
        )

    def negatives(key: PRNGKeyArray, triples: Array, side: str) -> Negatives:
        of_sample, of_filter = jax.random.split(key)
        drawn = sampler(of_sample, triples, side)
        if known is None:
            return drawn
        if isinstance(drawn, tuple):
            entities, is_head = drawn
            heads, tails = (filter_known(of_filter, entities, triples, known, s, rounds) for s in SIDES)
            return jnp.where(is_head, heads, tails), is_head

        def again(key: PRNGKeyArray) -> Array:
            return sampler(key, triples, side)  # pyright: ignore[reportReturnType]

        return filter_known(of_filter, drawn, triples, known, side, rounds, draw=again)

    def loss(params: Any, ids: _Ids, weight: Array | None) -> tuple[Array, dict[str, Array]]:
        positive = kge_score(model, params, ids.head, ids.relation, ids.tail)
        negative = kge_score(model, params, ids.negative_head, ids.relation, ids.negative_tail, side=ids.side)
        value = kge_loss(positive, negative, weight, alpha)
        if regularization:
            value = value + regularization * l3_regularization(params)
        return value, {"positive_score": jnp.mean(positive), "negative_score": jnp.mean(negative)}

    def gradient(params: Any, batch: Mapping[str, Array], key: Array, side: str) -> Any:
        triples = batch["triples"]
        ids = _ids(triples, negatives(key, triples, side), side)
        if update == "all":
            (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params, ids, batch.get("weight"))
            return value, aux, grads, jnp.zeros(0, jnp.int32)
        touched, local = _renumbered(ids, params["entity"].shape[0])
        part = {**params, "entity": _some_rows(params["entity"], touched)}
        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(part, local, batch.get("weight"))
        return value, aux, grads, touched

    def step(state: KGEState, batch: Mapping[str, Array]) -> tuple[KGEState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        value, aux, grads, touched = jax.lax.cond(
            state.step % 2 == 0,
            lambda: gradient(state.params, batch, key, "tail"),
            lambda: gradient(state.params, batch, key, "head"),
        )
        if update == "all":
            params, opt_state = _updated(tx, grads, state.opt_state, state.params)
        else:
            params, opt_state = update_rows(tx, grads, state.opt_state, state.params, touched)
        return KGEState(state.step + 1, params, opt_state, state.key), {"loss": value, **aux}

    return step


def update_rows(
    tx: optax.GradientTransformation,
    grads: Mapping[str, Array],
    opt_state: Any,
    params: Mapping[str, Array],
    touched: Int[Array, "rows"],
) -> tuple[dict[str, Array], Any]:
    """An optimizer's update of some rows of the entity table, and of all that is not the entity table.

    Args:
        tx: an optax transformation that treats rows independently.
        grads: of the parameters, where ``entity [rows, width]`` holds the touched rows alone.
        opt_state: state for the whole tables.
        params: the whole tables.
        touched: different rows of the entity table; the table's length and beyond stand for no row.

    Returns:
        New tables and state.

    Example:
        >>> params = {"entity": jnp.zeros((3, 1)), "gamma": jnp.zeros(())}
        >>> tx, grads = optax.sgd(1.0), {"entity": jnp.ones((1, 1)), "gamma": jnp.zeros(())}
        >>> update_rows(tx, grads, tx.init(params), params, jnp.array([1]))[0]["entity"].tolist()
        [[0.0], [-1.0], [0.0]]
    """
    names = {name: name for name in params}
    # Which leaves of the optimizer's state have a row for each entity.
    by_entity = optax.tree.map_params(
        tx, lambda _, name: name == "entity", opt_state, names, transform_non_params=lambda _: False
    )
    of_params = {name: name == "entity" for name in params}

    def gathered(leaf: Array, has_rows: bool) -> Array:
        return _some_rows(leaf, touched) if has_rows else leaf

    def scattered(whole: Array, part: Array, has_rows: bool) -> Array:
        return whole.at[touched].set(part, mode="drop", unique_indices=True) if has_rows else part

    small, small_state = _updated(
        tx,
        grads,
        jax.tree.map(gathered, opt_state, by_entity),
        jax.tree.map(gathered, dict(params), of_params),
    )
    return (
        jax.tree.map(scattered, dict(params), small, of_params),
        jax.tree.map(scattered, opt_state, small_state, by_entity),
    )


class _Ids(NamedTuple):
    """Ids of a batch's positives and negatives; ``side`` is the side of which there are many."""

    head: Array
    relation: Array
    tail: Array
    negative_head: Array
    negative_tail: Array
    side: str


def _ids(triples: Array, drawn: Negatives, side: str) -> _Ids:
    h, r, t = triples[:, 0], triples[:, 1], triples[:, 2]
    if isinstance(drawn, tuple):
        entities, is_head = drawn
        heads = jnp.where(is_head, entities, h[:, None])
        return _Ids(h, r, t, heads, jnp.where(is_head, t[:, None], entities), "tail")
    return _Ids(h, r, t, h, drawn, side) if side == "tail" else _Ids(h, r, t, drawn, t, side)


def _renumbered(ids: _Ids, num_rows: int) -> tuple[Array, _Ids]:
    """The distinct entities of a batch, and the ids as places among them.

    There are as many places as ids; those that are left over point behind the table.
    """
    arrays = [ids.head, ids.tail, ids.negative_head, ids.negative_tail]
    every = jnp.concatenate([array.reshape(-1) for array in arrays])
    size = min(len(every), num_rows)
    touched, place = jnp.unique(every, size=size, fill_value=num_rows, return_inverse=True)
    # Left-over places get different rows behind the table: scattering asks for different ones.
    touched = jnp.where(touched == num_rows, num_rows + jnp.arange(size), touched)
    ends = [0]
    for array in arrays:
        ends.append(ends[-1] + array.size)
    local = [place[a:b].reshape(x.shape) for a, b, x in zip(ends, ends[1:], arrays, strict=False)]
    return touched, _Ids(local[0], ids.relation, local[1], local[2], local[3], ids.side)


def _some_rows(table: Array, touched: Array) -> Array:
    return table.at[touched].get(mode="fill", fill_value=0)


def _updated(tx: optax.GradientTransformation, grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
    updates: Any
    updates, opt_state = tx.update(grads, opt_state, params)
    updates = {**updates, "gamma": jnp.zeros_like(params["gamma"])}  # a constant, even under weight decay
    return optax.apply_updates(params, updates), opt_state
