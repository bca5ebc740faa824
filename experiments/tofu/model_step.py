"""The unlearning step of a large language model: all parameters, or low-rank adapters beside them.

Zhang et al., arXiv:2404.05868, Section 5, for the optimiser: AdamW, weight decay 0.01, one epoch of warm-up,
then a linear decay. Hu et al., arXiv:2106.09685, for the adapters, of rank r and with a scale of 32 / r, as
TOFU's official code has them (Maini et al., arXiv:2401.06121).
"""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from experiments.tofu.training import asked_once
from jaxneg.diffusion import lora_apply, lora_init
from jaxneg.nn.transformer import TRANSFORMER_RULES
from jaxneg.train import make_step
from jaxneg.unlearning import UnlearnConfig, make_unlearn_loss

WEIGHT_DECAY, LORA_ALPHA = 0.01, 32.0
ADAPTED = r"(query|key|value|gate|up|down)/kernel$"
"""The kernels with adapters: all but the attention's last one, whose inputs are two axes."""
RULES = ((r"^adapters/", P()), *TRANSFORMER_RULES)
"""Adapters are small and lie on every chip."""

Apply = Callable[..., Any]


def trained(key: jax.Array, params: Any, rank: int) -> Any:
    """What a step trains: the parameters, or adapters that change nothing yet beside them.

    Args:
        key: random key of the adapters.
        params: of the model, its layers stacked.
        rank: of the adapters; 0 for none.

    Returns:
        The parameters, or a dictionary of "adapters" and "base".
    """
    if not rank:
        return params
    return {"adapters": lora_init(key, params, rank=rank, match=ADAPTED, stacked=1), "base": params}


def adapted(apply: Apply, rank: int) -> Apply:
    """The model as a function of what a step trains.

    Args:
        apply: ``apply(params, tokens, ...)``.
        rank: of the adapters; 0 for none.

    Returns:
        The same function of `trained` parameters. No gradient flows into the base.
    """
    if not rank:
        return apply

    def with_adapters(both: Any, *inputs: Array, **options: Any) -> Any:
        base = jax.lax.stop_gradient(both["base"])
        return apply(lora_apply(base, both["adapters"], gamma=LORA_ALPHA), *inputs, **options)

    return with_adapters


def optimizer(
    learning_rate: float, steps: int, warm_up: int, rank: int
) -> optax.GradientTransformationExtraArgs:
    """AdamW with a warm-up and a linear decay; with adapters it leaves the base alone.

    Args:
        learning_rate: at its highest.
        steps: of the whole run.
        warm_up: steps until it is highest.
        rank: of the adapters; 0 for none.

    Returns:
        The transformation.
    """
    rising = optax.linear_schedule(learning_rate / warm_up, learning_rate, max(warm_up - 1, 1))
    falling = optax.linear_schedule(learning_rate, 0.0, max(steps - warm_up, 1))
    schedule = optax.join_schedules([rising, falling], [warm_up])
    adamw = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
    if not rank:
        return optax.with_extra_args_support(adamw)
    parts: dict[Hashable, optax.GradientTransformation] = {"adapters": adamw, "base": optax.set_to_zero()}
    return optax.with_extra_args_support(
        optax.transforms.partition(parts, {"adapters": "adapters", "base": "base"})
    )


def model_step(
    apply: Apply, objective: UnlearnConfig, tx: optax.GradientTransformation, rank: int
) -> Callable[[Any, Any], tuple[Any, dict[str, Array]]]:
    """The step. A reference that is more than a number for each forget row is run in it: with adapters, the
    base without them.

    Args:
        apply: the model.
        objective: the method.
        tx: from `optimizer`.
        rank: of the adapters; 0 for none.

    Returns:
        For `jaxneg.train.shard_step`.

    Raises:
        ValueError: a method whose reference would need a second model in memory.
    """
    if asked_once(objective):
        return make_step(make_unlearn_loss(adapted(apply, rank), objective), tx)
    if not rank:
        raise ValueError(
            f"rank: {objective.method!r} asks the reference in every step, which without adapters would be a"
            " second model in memory: expected at least 1, got 0"
        )

    def without_adapters(both: Any, *inputs: Array) -> Any:
        return apply(both["base"], *inputs)

    return make_step(make_unlearn_loss(adapted(apply, rank), objective, reference=without_adapters), tx)
