"""The exponential moving average of the parameters, as the last link of an optax chain.

Paper: arXiv:2006.11239, Appendix B (decay 0.9999).
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxneg.diffusion.arguments import check_range


class TrackEmaState(NamedTuple):
    """The state of `track_ema`.

    Attributes:
        ema: the average, a tree like the parameters, in float32 or wider.
    """

    ema: Any


def track_ema(decay: float) -> optax.GradientTransformation:
    """Keeps an average of the parameters after each update, and leaves the updates as they are.

    ``ema <- decay ema + (1 - decay) (params + updates)``, from ``ema = params``

    Put it last in the chain, where the updates are those that are applied. The average is kept in float32
    even where the parameters are bfloat16, in which a step of 1e-4 would be lost.

    Args:
        decay: share of the average that stays, 0..1.

    Returns:
        The link; `ema_params` finds the average in the state of the chain.

    Raises:
        ValueError: decay outside 0..1; in ``update``, no parameters.

    Source:
        arXiv:2006.11239, Appendix B.

    Example:
        >>> tx = optax.chain(optax.sgd(1.0), track_ema(0.9))
        >>> _, state = tx.update(jnp.array(1.0), tx.init(jnp.array(2.0)), jnp.array(2.0))
        >>> round(float(ema_params(state)), 4)
        1.9
    """
    check_range("decay", decay, 0, 1)

    def init(params: optax.Params) -> TrackEmaState:
        # A copy: parameters and average must not share a buffer that a step donates.
        return TrackEmaState(jax.tree.map(lambda leaf: jnp.array(leaf, _wide(leaf), copy=True), params))

    def update(
        updates: optax.Updates, state: TrackEmaState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, TrackEmaState]:
        if params is None:
            raise ValueError("params: track_ema averages parameters, call update(updates, state, params)")
        new = optax.apply_updates(params, updates)
        new = jax.tree.map(lambda leaf: leaf.astype(_wide(leaf)), new)
        return updates, TrackEmaState(optax.incremental_update(new, state.ema, 1 - decay))

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def ema_params(opt_state: chex.ArrayTree) -> Any:
    """The average that `track_ema` keeps, found anywhere in the state of a chain.

    Args:
        opt_state: of a chain with one `track_ema`.

    Returns:
        A tree like the parameters, in float32 or wider.

    Raises:
        ValueError: a state without the average, or with several.

    Example:
        >>> tx = optax.chain(optax.adam(1e-3), track_ema(0.999))
        >>> ema_params(tx.init({"w": jnp.ones(2)}))["w"].tolist()
        [1.0, 1.0]
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, TrackEmaState))
    found = [leaf.ema for leaf in leaves if isinstance(leaf, TrackEmaState)]
    if len(found) != 1:
        raise ValueError(
            f"opt_state: expected the state of one track_ema, found {len(found)}: put track_ema(decay) once, "
            "last in the chain"
        )
    return found[0]


def _wide(leaf: Any) -> Any:
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)
