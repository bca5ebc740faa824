"""Cross-entropy against a teacher whose logit of the label is lowered: what UNDIAL and CE-U share.

Dong et al., arXiv:2402.10052 (UNDIAL), and Yang, arXiv:2503.01224 (CE-U). As in `sequence`, the derivative,
softmax minus target, is spelled out, so that neither of the two distributions is stored.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxneg.unlearning.retain import bounded, softmax
from jaxneg.unlearning.sequence import log_sum_exp, one_hot


def lowered_label_ce(
    logits: Float[Array, "batch tokens vocab"],
    teacher_logits: Float[Array, "batch tokens vocab"],
    targets: Int[Array, "batch tokens"],
    amount: float | Array,
) -> Float[Array, "batch tokens"]:
    """Cross-entropy of each position against the teacher without what it says of the label.

    ``-sum_v q[v] log softmax(logits)[v]`` with ``q = softmax(teacher_logits - amount onehot(target))``.

    Args:
        logits: the student's, in any floating dtype.
        teacher_logits: the teacher's; no gradient flows into them.
        targets: token ids; one outside the vocabulary lowers nothing.
        amount: by how much the target's logit is lowered; infinity excludes it.

    Returns:
        One value for each position, in nats.

    Source:
        arXiv:2402.10052 and arXiv:2503.01224, the training targets.

    Example:
        >>> logits = jnp.array([[[0.0, 0.0, 100.0]]])
        >>> value = lowered_label_ce(logits[..., :2], logits[..., :2], jnp.array([[1]]), jnp.inf)
        >>> float(value[0, 0]).__round__(4)
        0.6931
    """
    return _cross_entropy(logits, *jax.lax.stop_gradient((teacher_logits, targets, jnp.asarray(amount))))


@jax.custom_jvp
def _cross_entropy(logits: Array, teacher_logits: Array, targets: Array, amount: Array) -> Array:
    return _value(logits, teacher_logits, targets, amount)[0]


@_cross_entropy.defjvp
def _cross_entropy_jvp(
    primals: tuple[Array, Array, Array, Array], tangents: tuple[Array, Array, Array, Array]
) -> tuple[Array, Array]:
    value, lse, teacher_lse = _value(*primals)
    # Recomputed in the backward pass from the logits, so that no distribution is stored.
    tangent = jax.checkpoint(_tangent)
    return value, tangent(*primals, lse, teacher_lse, tangents[0])


def _value(logits: Array, teacher_logits: Array, targets: Array, amount: Array) -> tuple[Array, Array, Array]:
    lowered = _lowered(teacher_logits, targets, amount)
    lse, teacher_lse = log_sum_exp(logits), log_sum_exp(lowered)
    return lse - jnp.sum(softmax(lowered, teacher_lse) * bounded(logits), -1), lse, teacher_lse


def _tangent(
    logits: Array,
    teacher_logits: Array,
    targets: Array,
    amount: Array,
    lse: Array,
    teacher_lse: Array,
    tangent: Array,
) -> Array:
    lowered = _lowered(teacher_logits, targets, amount)
    return jnp.sum((softmax(logits, lse) - softmax(lowered, teacher_lse)) * tangent, -1)


def _lowered(teacher_logits: Array, targets: Array, amount: Array) -> Array:
    wide = teacher_logits.astype(jnp.promote_types(teacher_logits.dtype, jnp.float32))
    # Added, not selected: under explicit axes the two cases of a selection must be sharded as the mask is.
    return wide + jnp.where(one_hot(wide, targets), -amount.astype(wide.dtype), 0)
