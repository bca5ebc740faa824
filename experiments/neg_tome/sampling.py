"""Sampling with negative token merging: all settings of one part are one program.

The hook sits before the attention's out-projection in every block and in both halves of classifier-free
guidance, as in Flux; what differs between settings is traced.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.neg_tome.network import PATCH, SIZE, TIME_SCALE, guided_velocity
from jaxneg.diffusion import in_window, match_tokens, negtome_batch
from jaxneg.nn.bridge import Model

Kind = Literal["none", "first", "leave-one-out", "official", "random match"]
"""What tokens are pushed away from: nothing; those of the group's first image; of all other images; of the
first image as the released code matches them; tokens of the first image at random."""

CADS_LOW, CADS_HIGH, CADS_NOISE = 0.6, 0.9, 0.25
"""Times below and above which the condition is untouched and nothing but noise, and the noise's size."""

UPPER_HALF = np.arange((SIZE // PATCH) ** 2) < (SIZE // PATCH) ** 2 // 2
"""Tokens, row after row."""


class Setting(NamedTuple):
    """How samples are made."""

    kind: Kind = "none"
    guidance: float = 3.0
    """Scale of classifier-free guidance."""
    alpha: float = 0.9
    threshold: float = 0.65
    t_end: float = 600.0
    """Tokens are pushed from t = 1000 down to here."""
    cads: bool = False
    """Whether the condition is noise at first, a rival (Sadat et al., arXiv:2310.17347)."""
    noised: bool = True
    """Whether a given reference is noised to the time of each step, or stays clean."""
    masked: bool = False
    """Whether only the upper half of the first image may be matched."""


def sample(
    model: Model,
    params: Any,
    settings: Sequence[Setting],
    start: Float[Array, "batch height width channels"],
    label: Int[Array, " batch"],
    key: PRNGKeyArray,
    *,
    group: int,
    steps: int,
    references: Float[Array, "groups height width channels"] | None = None,
) -> Float[Array, "settings batch height width channels"]:
    """Samples of every setting from the same noise.

    Args:
        model: of `experiments.neg_tome.network`.
        params: its parameters.
        settings: how samples are made, one after the other.
        start: noise; images of a group lie next to each other.
        label: what the images are to show.
        key: for what is drawn on the way.
        group: images of a prompt, G.
        steps: of Euler's method, from t = 1 to 0.
        references: given images, which then run along as the first image of each group.

    Returns:
        The samples; where there are references, these are the first of each group.
    """
    indexed = [setting._replace(kind=get_args(Kind).index(setting.kind)) for setting in settings]  # pyright: ignore[reportArgumentType]
    rows = jax.tree.map(lambda *fields: jnp.asarray(fields), *indexed)
    times = jnp.asarray(np.linspace(1, 0, steps + 1), jnp.float32)

    def of_setting(setting: Any) -> Array:
        def step(x: Array, now: tuple[Array, Array, PRNGKeyArray]) -> tuple[Array, None]:
            t, following, key = now
            of_noise, of_match, of_label = jax.random.split(key, 3)
            if references is not None:
                noise = jax.random.normal(of_noise, references.shape)
                given = jnp.where(setting.noised, (1 - t) * references + t * noise, references)
                x = x.reshape(-1, group, *x.shape[1:]).at[:, 0].set(given).reshape(x.shape)
            told = _with_annealed_labels(params, label, t, setting.cads, of_label)
            hook = _hook(setting, TIME_SCALE * t, group, of_match)
            # The labels of these images are the rows of the table, which ends with the null label.
            own = jnp.arange(len(label))
            velocity = guided_velocity(
                model, told, x, t, own, setting.guidance, null=len(label), attention_hook=hook
            )
            return x + (following - t) * velocity, None

        x, _ = jax.lax.scan(step, start, (times[:-1], times[1:], jax.random.split(key, steps)))
        return x

    return jax.lax.map(of_setting, rows)


def _hook(setting: Any, t: Array, group: int, key: PRNGKeyArray) -> Callable[[Array, str], Array]:
    keep = jnp.asarray(UPPER_HALF) | ~setting.masked
    options = {"alpha": setting.alpha, "threshold": setting.threshold, "ref_mask": keep}
    branches = (
        lambda h: h,
        lambda h: negtome_batch(h, group_size=group, **options),
        lambda h: negtome_batch(h, group_size=group, reference="leave_one_out", **options),
        lambda h: negtome_batch(h, group_size=group, match="official", **options),
        lambda h: _random_match(h, group, setting, keep, key),
    )

    def hook(h: Array, _: str) -> Array:
        return jax.lax.switch(jnp.where(in_window(t, 1000.0, setting.t_end), setting.kind, 0), branches, h)

    return hook


def _random_match(h: Array, group: int, setting: Any, keep: Array, key: PRNGKeyArray) -> Array:
    """The control: the same tokens are pushed, away from tokens of the first image at random."""
    first = jnp.repeat(h[::group], group, axis=0)
    _, similarity = match_tokens(h, first, ref_mask=keep)
    index = jax.random.randint(key, h.shape[:2], 0, h.shape[1])
    pushed = h + setting.alpha * (h - jnp.take_along_axis(first, index[..., None], axis=1))
    others = (jnp.arange(len(h)) % group != 0)[:, None]
    return jnp.where(((similarity > setting.threshold) & others)[..., None], pushed, h)


def _with_annealed_labels(params: Any, label: Array, t: Array, cads: Array, key: PRNGKeyArray) -> Any:
    """Parameters whose table of labels has a row for each image, and the null label behind them.

    CADS mixes noise into the rows and gives them the mean and the standard deviation that they had.
    """
    table = params["conditioning"]["label"]["embedding"]
    rows = table[label]
    share = jnp.clip((CADS_HIGH - t) / (CADS_HIGH - CADS_LOW), 0, 1)
    mixed = jnp.sqrt(share) * rows + CADS_NOISE * jnp.sqrt(1 - share) * jax.random.normal(key, rows.shape)
    mean, std = (f(rows, axis=1, keepdims=True) for f in (jnp.mean, jnp.std))
    mixed = (mixed - mixed.mean(1, keepdims=True)) / mixed.std(1, keepdims=True) * std + mean
    rows = jnp.concatenate([jnp.where(cads, mixed, rows), table[-1:]])
    return {**params, "conditioning": {**params["conditioning"], "label": {"embedding": rows}}}
