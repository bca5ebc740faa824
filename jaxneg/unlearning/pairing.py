"""Which retain row and which refusal go with a forget row.

The official loader of Zhang et al., arXiv:2404.05868, seeds its generator with the row's number, so that a
forget row meets the same retain row and the same refusal in every epoch; the original one of TOFU, Maini et
al., arXiv:2401.06121, draws anew. The latter is the default here.
"""

import jax
from jaxtyping import Array, Int, PRNGKeyArray

from jaxneg.unlearning.arguments import check_positive


def draw_partners(
    key: PRNGKeyArray,
    rows: Int[Array, " batch"],
    epoch: int | Int[Array, ""],
    *,
    n_retain: int,
    n_refusals: int,
    fixed_pairing: bool = False,
) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
    """A retain row and a refusal for each forget row, uniformly.

    Args:
        key: random key of the whole run.
        rows: numbers of the forget rows; what is drawn for one does not depend on the others.
        epoch: number of the pass over the forget data.
        n_retain: retain rows that there are.
        n_refusals: refusals that there are.
        fixed_pairing: whether a row has the same partners in every epoch.

    Returns:
        Numbers of retain rows, and of refusals.

    Raises:
        ValueError: no retain rows or no refusals.

    Source:
        arXiv:2404.05868, the official loader of its TOFU experiments, for ``fixed_pairing=True``.

    Example:
        >>> rows = jax.numpy.arange(4)
        >>> retain, refusal = draw_partners(jax.random.key(0), rows, 0, n_retain=400, n_refusals=100)
        >>> retain.shape, refusal.shape
        ((4,), (4,))
    """
    check_positive(n_retain=n_retain, n_refusals=n_refusals)

    def of_row(row: Array) -> tuple[Array, Array]:
        own = jax.random.fold_in(key, row)
        retain_key, refusal_key = jax.random.split(own if fixed_pairing else jax.random.fold_in(own, epoch))
        retain = jax.random.randint(retain_key, (), 0, n_retain)
        return retain, jax.random.randint(refusal_key, (), 0, n_refusals)

    return jax.vmap(of_row)(rows)
