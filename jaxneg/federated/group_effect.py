"""The group effect: what averaging alone gains or loses (Sun, Chong and Ochiai 2022, arXiv:2203.11635).

The abstract calls it the performance gain by model aggregation; the paper's own formula could not be read,
and this is our reading of those words.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def group_effect(
    global_acc: Float[Array, "..."],
    client_acc: Float[Array, "... clients"],
    *,
    where: Bool[Array, "... clients"] | None = None,
) -> Float[Array, "..."]:
    """How much better the average of the clients' models is than the models are on average.

    ``GE = A(mean_k w_k) - mean_k A(w_k)``; below 0 aggregation transfers negatively.

    Args:
      global_acc: Accuracy A of the averaged model, before it is tuned.
      client_acc: Accuracy of each client's model, right after its local training.
      where: Which clients took part; all by default.

    Returns:
      The difference, in the unit of the accuracies.

    Raises:
      ValueError: If the shapes do not fit.

    Source:
      Sun, Chong and Ochiai 2022, arXiv:2203.11635, abstract; our reading.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.federated import group_effect
      >>> round(float(group_effect(jnp.array(0.8), jnp.array([0.7, 0.6]))), 2)
      0.15
    """
    global_acc, client_acc = jnp.asarray(global_acc), jnp.asarray(client_acc)
    if client_acc.ndim == 0 or client_acc.shape[:-1] != global_acc.shape or client_acc.shape[-1] == 0:
        raise ValueError(
            f"client_acc: expected shape {(*global_acc.shape, 'clients')}, got {client_acc.shape}"
        )
    return global_acc - jnp.mean(client_acc, axis=-1, where=where)
