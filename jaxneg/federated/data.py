"""The data of clients and of the cloud, checked and padded to one length."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int, Num


class FedKAData(NamedTuple):
    """The data of all clients and of the cloud; made by `federated_data`.

    Attributes:
      source_x: Examples of each client; what is beyond its size is padding.
      source_y: Their classes.
      sizes: Number of examples of each client.
      participating: Which clients take part.
      target_x: Unlabelled examples of the target domain.
      eval_x: Examples to measure accuracy on; None measures nothing.
      eval_y: Their classes.
    """

    source_x: Num[Array, "clients examples ..."]
    source_y: Int[Array, "clients examples"]
    sizes: Int[Array, " clients"]
    participating: Bool[Array, " clients"]
    target_x: Num[Array, "target ..."]
    eval_x: Num[Array, "evaluated ..."] | None = None
    eval_y: Int[Array, " evaluated"] | None = None


def federated_data(
    clients: Sequence[tuple[ArrayLike, ArrayLike]],
    target: ArrayLike,
    *,
    num_classes: int,
    evaluation: tuple[ArrayLike, ArrayLike] | None = None,
    participating: Sequence[bool] | None = None,
    names: Sequence[str] | None = None,
) -> FedKAData:
    """The data of a round, checked, with the clients' examples padded to one length.

    Args:
      clients: Examples ``[n_k, ...]`` and classes ``[n_k]`` of each client.
      target: Unlabelled examples of the target domain.
      num_classes: Number of classes that the network knows.
      evaluation: Labelled examples of the target domain, to measure on.
      participating: Which clients take part; all by default.
      names: What the clients are called in messages.

    Returns:
      The data.

    Raises:
      ValueError: If a client has no data, examples of another shape, values that are not finite, classes that
        are not one for each example, or a class outside ``0 .. num_classes - 1``; likewise for the target,
        also for a class that no client has; if nobody participates. The message names the client.

    Example:
      >>> import numpy as np
      >>> from jaxneg.federated import federated_data
      >>> clients = [(np.zeros((2, 4)), [0, 1]), (np.zeros((3, 4)), [1, 1, 0])]
      >>> federated_data(clients, np.ones((5, 4)), num_classes=2).source_x.shape
      (2, 3, 4)
    """
    if not clients:
        raise ValueError("clients: expected at least one, got none")
    names = [f"client {i}" for i in range(len(clients))] if names is None else list(names)
    if len(names) != len(clients):
        raise ValueError(f"names: expected one for each of {len(clients)} clients, got {len(names)}")
    target = np.asarray(target)
    if target.ndim < 2 or not len(target):
        raise ValueError(f"target: expected examples [n, ...], at least one, got shape {target.shape}")
    pairs = []
    for name, (x, y) in zip(names, clients, strict=True):
        pairs.append(_labelled(name, x, y, target.shape[1:], num_classes))
    _require_finite("target", target)
    seen = np.unique(np.concatenate([y for _, y in pairs]))
    known: dict[str, Any] = {"eval_x": None, "eval_y": None}
    if evaluation is not None:
        x, y = _labelled("evaluation", *evaluation, target.shape[1:], num_classes)
        if unseen := sorted(set(y.tolist()) - set(seen.tolist())):
            raise ValueError(
                f"evaluation: class {unseen[0]} is in the target domain, but no client has an example of it"
            )
        known = {"eval_x": jnp.asarray(x), "eval_y": jnp.asarray(y)}
    sizes = np.array([len(y) for _, y in pairs])
    takes_part = np.ones(len(pairs), bool) if participating is None else np.asarray(participating, bool)
    if takes_part.shape != sizes.shape or not takes_part.any():
        raise ValueError(
            f"participating: expected a truth value for each of {len(pairs)} clients, one true at least, got "
            f"{participating}"
        )

    def padded(rows: np.ndarray) -> np.ndarray:
        return np.pad(rows, [(0, sizes.max() - len(rows))] + [(0, 0)] * (rows.ndim - 1))

    return FedKAData(
        jnp.asarray(np.stack([padded(x) for x, _ in pairs])),
        jnp.asarray(np.stack([padded(y) for _, y in pairs])),
        jnp.asarray(sizes, jnp.int32),
        jnp.asarray(takes_part),
        jnp.asarray(target),
        **known,
    )


def _labelled(
    name: str, x: ArrayLike, y: ArrayLike, shape: tuple[int, ...], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x), np.asarray(y)
    if not len(x):
        raise ValueError(f"{name}: expected at least one example, got none")
    if x.shape[1:] != shape:
        raise ValueError(f"{name}: expected examples of shape {shape} as the target has, got {x.shape[1:]}")
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"{name}: expected an integer class for each of {len(x)} examples, got {y.dtype} {y.shape}"
        )
    if wrong := [int(c) for c in np.unique(y) if not 0 <= c < num_classes]:
        raise ValueError(f"{name}: expected classes 0 to {num_classes - 1}, got {wrong[0]}")
    _require_finite(name, x)
    return x, y.astype(np.int32)


def _require_finite(name: str, x: np.ndarray) -> None:
    if not np.isfinite(x).all():
        row = int(np.argwhere(~np.isfinite(x))[0][0])
        raise ValueError(f"{name}: expected finite examples, example {row} is not")
