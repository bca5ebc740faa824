"""Tables of embeddings, and scores of triples given as ids, by any model of this room.

A model answers a *query*, made of the known entity and the relation, with a score for each candidate for the
missing entity. That a query is made once for all its candidates is what makes many negatives, and all
entities, cheap.

The tables of a model are a dictionary: ``entity``, ``relation``, ``gamma``, for pRotatE ``modulus``. gamma
is a constant and has gradient 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.kg.arguments import at_least, explicit_axes, one_of
from jaxneg.kg.complex import complex_query
from jaxneg.kg.distmult import distmult_query
from jaxneg.kg.protate import protate_distance, protate_query
from jaxneg.kg.rotate import rotate_distance, rotate_query
from jaxneg.kg.transe import transe_distance, transe_query

Params = Mapping[str, Array]

COORDINATES_AT_ONCE = 8
"""Coordinates that a pass over all entities adds to the distances: more would not stay in registers."""


@dataclass(frozen=True)
class KGEModel:
    """How a model makes queries and compares entities with them.

    Attributes:
        query: of the known entity's embedding, the relation's and the side of the missing entity.
        distance: what one coordinate adds to the distance, of the halves (or the whole) of query and entity;
            None: the score is the inner product of query and entity.
        entity_width: numbers of an entity for each dimension.
        relation_width: of a relation.
    """

    query: Callable[..., Array]
    distance: Callable[..., Array] | None = None
    entity_width: int = 1
    relation_width: int = 1
    scaled: bool = False
    """Whether query and distance also take the embedding range."""


MODELS: Mapping[str, KGEModel] = {
    "TransE": KGEModel(transe_query, transe_distance),
    "DistMult": KGEModel(distmult_query),
    "ComplEx": KGEModel(complex_query, None, entity_width=2, relation_width=2),
    "RotatE": KGEModel(rotate_query, rotate_distance, entity_width=2, scaled=True),
    "pRotatE": KGEModel(protate_query, protate_distance, scaled=True),
}


def kge_init(
    key: PRNGKeyArray, model: str, nE: int, nR: int, d: int, gamma: float, *, row_multiple: int = 1
) -> dict[str, Array]:
    """The tables before training: uniform in ``[-rho, rho]`` with ``rho = (gamma + 2) / d``.

    Args:
        key: random key.
        model: one of `MODELS`.
        nE: number of entities.
        nR: number of relations.
        d: dimensions; the complex models keep two numbers for each.
        gamma: margin inside the score; for DistMult and ComplEx it only sets rho.
        row_multiple: the entity table gets rows of zeros at its end, which stand for no entity, until its
            rows are a multiple of this: the size of the mesh axis that shards them.

    Returns:
        ``entity [rows, width]``, ``relation [nR, width]``, ``gamma []``, for pRotatE ``modulus [1, 1]``.

    Raises:
        ValueError: an unknown model, a number that is not positive.

    Source:
        RotatE's ``model.py``.

    Example:
        >>> import jax
        >>> kge_init(jax.random.key(0), "RotatE", 10, 2, 4, gamma=6.0)["entity"].shape
        (10, 8)
    """
    one_of("model", model, MODELS)
    for name, value in (("nE", nE), ("nR", nR), ("d", d), ("row_multiple", row_multiple)):
        at_least(name, value, 1)
    if not gamma > 0:
        raise ValueError(f"gamma: expected a positive number, got {gamma}")
    kind, limit = MODELS[model], (gamma + 2.0) / d
    of_entity, of_relation = jax.random.split(key)
    entity = jax.random.uniform(of_entity, (nE, d * kind.entity_width), minval=-limit, maxval=limit)
    relation = jax.random.uniform(of_relation, (nR, d * kind.relation_width), minval=-limit, maxval=limit)
    params = {
        "entity": jnp.pad(entity, ((0, -nE % row_multiple), (0, 0))),
        "relation": relation,
        "gamma": jnp.asarray(gamma, entity.dtype),
    }
    return params | ({"modulus": jnp.full((1, 1), 0.5 * limit)} if model == "pRotatE" else {})


def kge_score(
    model: str,
    params: Params,
    h: Int[Array, "*b"],
    r: Int[Array, "*b"],
    t: Int[Array, "*b"],
    *,
    side: str | None = None,
) -> Float[Array, "*b"]:
    """Scores of triples of ids, one value a triple; accumulated in float32 at least.

    Args:
        model: one of `MODELS`.
        params: tables as of `kge_init`.
        h: ids of heads. Ids broadcast from the left: ``h [B], r [B], t [B, n]`` gives ``[B, n]``.
        r: ids of relations.
        t: ids of tails.
        side: which of head and tail is compared with the query of the other two; the score is the same but
            for rounding. None: the one with more ids.

    Returns:
        Scores; the higher the more plausible.

    Raises:
        ValueError: an unknown model or side, ids whose shapes do not broadcast, tables of another model.

    Source:
        RotatE's ``model.py``.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> params = kge_init(jax.random.key(0), "TransE", 10, 2, 4, gamma=6.0)
        >>> kge_score("TransE", params, jnp.array([0]), jnp.array([1]), jnp.array([[2, 3, 4]])).shape
        (1, 3)
    """
    one_of("model", model, MODELS)
    h, r, t = jnp.asarray(h), jnp.asarray(r), jnp.asarray(t)
    side = side or ("head" if h.ndim > t.ndim else "tail")
    one_of("side", side, ("head", "tail"))
    known, candidates = (h, t) if side == "tail" else (t, h)
    query = make_query(model, params, known, r, side)
    return score_candidates(model, params, query, rows(params["entity"], candidates))


def make_query(
    model: str, params: Params, known: Int[Array, "*b"], r: Int[Array, "*b"], side: str
) -> Float[Array, "*b width"]:
    """What candidates for the missing entity of ``side`` are compared with.

    Args:
        model: one of `MODELS`.
        params: tables.
        known: ids of the other entity.
        r: ids of the relations; broadcast from the left.
        side: "head" or "tail".

    Returns:
        One vector of the entity table's width for each query.
    """
    kind = MODELS[model]
    _check_tables(model, params)
    known, r = rows(params["entity"], known), rows(params["relation"], r)
    axes = max(known.ndim, r.ndim)
    known, r = (jnp.expand_dims(x, range(x.ndim - 1, axes - 1)) for x in (known, r))
    return kind.query(known, r, side, *(_range(params, r) if kind.scaled else ()))


def score_candidates(
    model: str, params: Params, query: Float[Array, "*b width"], entity: Float[Array, "*c width"]
) -> Float[Array, "*c"]:
    """Scores of candidates' embeddings; leading axes broadcast from the left."""
    kind = MODELS[model]
    axes = max(query.ndim, entity.ndim)
    query, entity = (jnp.expand_dims(x, range(x.ndim - 1, axes - 1)) for x in (query, entity))
    if kind.distance is None:
        return jnp.sum((query * entity).astype(_accumulated(query)), axis=-1)
    halves = [x for each in (query, entity) for x in jnp.split(each, kind.entity_width, axis=-1)]
    distance = kind.distance(*halves, *(_range(params, query) if model == "pRotatE" else ()))
    return _margin(params, query) - _modulus(params) * jnp.sum(distance.astype(_accumulated(query)), axis=-1)


def score_all(
    model: str, params: Params, query: Float[Array, "b width"], table: Float[Array, "entities width"]
) -> Float[Array, "b entities"]:
    """Scores of every row of a table for every query, without an array of queries x entities x dimensions.

    Args:
        model: one of `MODELS`.
        params: tables, for what they hold beside embeddings.
        query: of `make_query`.
        table: entities to compare with.

    Returns:
        Scores, float32 at least. Equal rows get equal scores, bit for bit.
    """
    kind = MODELS[model]
    dtype = _accumulated(query)
    if kind.distance is None:
        return jnp.matmul(query, table.T, precision="highest", preferred_element_type=dtype)
    extra = _range(params, query) if model == "pRotatE" else ()
    halves = [x.T for each in (query, table) for x in jnp.split(each, kind.entity_width, axis=-1)]
    dimensions = halves[0].shape[0]
    padding = -dimensions % COORDINATES_AT_ONCE  # a coordinate that is 0 in both adds no distance
    groups = [jnp.pad(x, ((0, padding), (0, 0))).reshape(-1, COORDINATES_AT_ONCE, x.shape[1]) for x in halves]

    def add(total: Array, group: list[Array]) -> tuple[Array, None]:
        for i in range(COORDINATES_AT_ONCE):
            queries = [x[i][:, None].astype(dtype) for x in group[: kind.entity_width]]
            entities = [x[i][None, :].astype(dtype) for x in group[kind.entity_width :]]
            total = total + kind.distance(*queries, *entities, *extra)  # pyright: ignore[reportOptionalCall]
        return total, None

    start = jnp.zeros_like(halves[0][0][:, None] * halves[-1][0][None, :], dtype)
    distance, _ = jax.lax.scan(add, start, groups)
    return _margin(params, query) - _modulus(params) * distance


def rows(table: Float[Array, "rows width"], ids: Int[Array, "*b"]) -> Float[Array, "*b width"]:
    """Rows of a table; under explicit mesh axes they lie where their ids lie."""
    if explicit_axes(table):
        spec = PartitionSpec(*jax.typeof(ids).sharding.spec, None)
        return table.at[ids].get(out_sharding=spec)
    return table[ids]


def _accumulated(like: Array) -> Any:
    return jnp.promote_types(like.dtype, jnp.float32)


def _margin(params: Params, like: Array) -> Array:
    return jax.lax.stop_gradient(jnp.asarray(params["gamma"], _accumulated(like)))


def _modulus(params: Params) -> Array | float:
    return params["modulus"].reshape(()) if "modulus" in params else 1.0


def _range(params: Params, relation: Array) -> tuple[Array]:
    """``rho = (gamma + 2) / d``; for the models that need it a relation and a query hold it."""
    width = params["relation"].shape[1]
    return (jax.lax.stop_gradient((jnp.asarray(params["gamma"], relation.dtype) + 2) / width),)


def _check_tables(model: str, params: Params) -> None:
    kind = MODELS[model]
    needed = {"entity", "relation", "gamma"} | ({"modulus"} if model == "pRotatE" else set())
    if missing := needed - set(params):
        raise ValueError(f"params: {model} needs {', '.join(sorted(needed))}; {sorted(missing)} missing")
    entity, relation = params["entity"].shape, params["relation"].shape
    if entity[-1] * kind.relation_width != relation[-1] * kind.entity_width:
        raise ValueError(
            f"params: {model} has {kind.entity_width} numbers of an entity for {kind.relation_width} of a "
            f"relation, got entity {entity} and relation {relation}"
        )
