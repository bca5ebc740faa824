"""One interface to the forget and retain losses: ``gamma * forget + alpha * retain``.

Implements the totals of Zhang et al., arXiv:2404.05868, Sections 2 and 3 (GA+RT is also known as
GradDiff), and of Fan et al., arXiv:2410.07163. A method is named ``forget`` or ``forget+retain``: "npo",
"npo+rt", "npo+kl".

A *batch* is a dictionary of up to three parts, "forget", "retain" and "idk" (the forget questions with a
refusal for an answer), each a dictionary with ``tokens`` (what the model reads), ``labels`` and, from
`precompute_reference`, ``ref_seq_nll`` or ``ref_logits``. The reference is frozen, so it is run once on the
data and not in every step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.unlearning.arguments import check_positive
from jaxneg.unlearning.dpo import dpo_loss
from jaxneg.unlearning.gradient_ascent import ga_loss
from jaxneg.unlearning.idk import idk_loss
from jaxneg.unlearning.kto import kto_baseline, kto_loss
from jaxneg.unlearning.npo import npo_loss, npo_weights
from jaxneg.unlearning.retain import ce_loss, check_logits, kl_retain_loss
from jaxneg.unlearning.sequence import IGNORE, answer_lengths, sequence_nll
from jaxneg.unlearning.simnpo import simnpo_loss

_FORGET_PARTS = {
    "ga": ("forget",),
    "npo": ("forget",),
    "dpo": ("idk", "forget"),
    "kto": ("idk", "forget"),
    "idk": ("idk",),
    "simnpo": ("forget",),
}
_WITH_REFERENCE = ("npo", "dpo", "kto")

METHODS = tuple(forget + retain for forget in _FORGET_PARTS for retain in ("", "+rt", "+kl"))
"""The names of the methods: "ga", "ga+rt", "ga+kl", "npo", ..."""

Batch = Mapping[str, Mapping[str, Any]]
"""Parts by name; each has ``tokens``, ``labels`` and what the reference says of it."""


@dataclass(frozen=True)
class UnlearnConfig:
    """What is minimised, with the coefficients of the papers; hashable, so it may be a static argument."""

    method: str = "npo+rt"
    """One of `METHODS`; what `make_unlearn_loss` minimises."""
    gamma: float = 1.0
    """Coefficient of the forget loss."""
    alpha: float = 1.0
    """Coefficient of the retain loss (TOFU Forget50: 5, Forget90: 12)."""
    beta: float = 0.1
    """Inverse temperature of NPO, DPO, KTO and SimNPO (which wants 2.5 to 4.5), above 0."""
    factor: float = 2.0
    """DPO's factor: 2 as in the official code, 1 as in the paper's equation."""
    delta: float = 0.0
    """SimNPO's margin, nats per token."""
    kto_kind: Literal["logsigmoid", "sigmoid"] = "logsigmoid"
    """The form of KTO."""
    scale_z: bool = False
    """Whether KTO multiplies its baseline by beta, as the paper does and the code does not."""
    clamp_z: bool = False
    """Whether KTO clamps its baseline at zero."""
    kl_mask: bool = False
    """Whether KL counts only the positions that predict a label; the official code counts all."""
    kl_direction: Literal["forward", "reverse"] = "forward"
    """"forward" is KL(reference || policy), as in the official code; "reverse" as in the paper."""

    def __post_init__(self) -> None:
        _split(self.method)
        check_positive(beta=self.beta, factor=self.factor)
        for name in ("gamma", "alpha"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a finite number of at least 0, got {getattr(self, name)}")
        for name, allowed in (
            ("kto_kind", ("logsigmoid", "sigmoid")),
            ("kl_direction", ("forward", "reverse")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")


def unlearning_loss(
    name: str,
    batch: Batch,
    outputs: Mapping[str, Array],
    ref_outputs: Mapping[str, Array],
    cfg: UnlearnConfig,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """The loss of a method by its name.

    ``loss = gamma mean_b forget[b] + alpha mean_b retain[b]``; "idk+rt" is one cross-entropy over both parts.

    Args:
        name: one of `METHODS`.
        batch: parts by name with their ``labels`` ``[B, T]``; ``mean_tokens`` where the batch is a piece of a
            larger one (`with_token_means`). DPO pairs row b of "idk" with row b of "forget".
        outputs: the policy's logits ``[B, T, V]`` of each part.
        ref_outputs: what the reference says of a part: logits ``[B, T, V]``, or, for NPO, DPO and KTO, the
            cached ``sequence_nll`` ``[B]``. Empty for methods without a reference.
        cfg: coefficients; its own ``method`` is not read here.

    Returns:
        The loss, and its parts: ``forget_loss``, ``retain_loss``, the mean cross-entropy of each part
        (``forget_ce``, ...), and ``npo_weight``, NPO's mean weight, which falls from 1 to 0 as forgetting
        proceeds.

    Raises:
        TypeError: logits that are not floating, labels that are not integers, cached likelihoods
            below float32.
        ValueError: a name that does not exist, a part that is missing, vocabularies or shapes that differ.

    Source:
        arXiv:2404.05868, Sections 2 and 3.

    Example:
        >>> batch = {"forget": {"labels": jnp.ones((2, 3), int)}}
        >>> loss, aux = unlearning_loss("ga", batch, {"forget": jnp.zeros((2, 3, 8))}, {}, UnlearnConfig())
        >>> float(loss / jnp.log(8))
        -1.0
    """
    forget, retain = _split(name)
    parts = _parts(name)
    for part in parts:
        _require(batch, part, "batch", name)
        _require(outputs, part, "outputs", name)
    nll, n_tokens = {}, {}
    for part in parts:
        nll[part], n_tokens[part] = sequence_nll(outputs[part], batch[part]["labels"])
    reference = {}
    if forget in _WITH_REFERENCE:
        for part in _FORGET_PARTS[forget]:
            _require(ref_outputs, part, "ref_outputs", name)
            reference[part] = _reference_nll(part, ref_outputs[part], outputs[part], batch[part]["labels"])
    mean_tokens = {part: batch[part].get("mean_tokens") for part in parts}

    aux = {f"{part}_ce": jnp.mean(ce_loss(nll[part], n_tokens[part], mean_tokens[part])) for part in parts}
    if name == "idk+rt":
        forget_rows, retain_rows = idk_loss(
            nll["idk"],
            n_tokens["idk"],
            nll["retain"],
            n_tokens["retain"],
            mean_tokens["idk"],
            mean_tokens["retain"],
        )
    else:
        forget_rows = _forget_rows(forget, nll, n_tokens, reference, mean_tokens, batch, cfg)
        retain_rows = None
        if retain == "rt":
            retain_rows = ce_loss(nll["retain"], n_tokens["retain"], mean_tokens["retain"])
        elif retain == "kl":
            _require(ref_outputs, "retain", "ref_outputs", name)
            retain_rows = _kl_rows(outputs["retain"], ref_outputs["retain"], batch["retain"], cfg)
    if forget == "npo":
        aux["npo_weight"] = jnp.mean(npo_weights(nll["forget"], reference["forget"], cfg.beta))
    aux["forget_loss"] = jnp.mean(forget_rows)
    loss = cfg.gamma * aux["forget_loss"]
    if retain_rows is not None:
        aux["retain_loss"] = jnp.mean(retain_rows)
        loss = loss + cfg.alpha * aux["retain_loss"]
    return loss, aux


def make_unlearn_loss(
    apply: Callable[[Any, Any], Array], cfg: UnlearnConfig
) -> Callable[[Any, Batch, Array | None], tuple[Array, dict[str, Any]]]:
    """The loss function of an unlearning step, for ``jaxneg.train.make_step`` or any loop with
    ``value_and_grad``.

    ``loss_fn(params, batch, key) = unlearning_loss(cfg.method, batch, apply(params, tokens), reference,
    cfg)``.

    Args:
        apply: ``apply(params, tokens) -> logits [B, T, V]``; ``tokens`` is whatever the parts' "tokens" hold,
            an array or a pytree with masks and positions.
        cfg: the method and its coefficients.

    Returns:
        ``loss_fn(params, batch, key) -> (loss, aux)``. Methods with a reference read ``ref_seq_nll`` or
        ``ref_logits`` from the batch, where `precompute_reference` puts them. The key is not used.

    Raises:
        ValueError: while tracing, a part or a reference that the method needs and the batch lacks.

    Source:
        arXiv:2404.05868, Section 2.

    Example:
        >>> loss_fn = make_unlearn_loss(lambda params, tokens: params[tokens], UnlearnConfig("ga"))
        >>> part = {"tokens": jnp.ones((2, 3), int), "labels": jnp.ones((2, 3), int)}
        >>> float(loss_fn(jnp.zeros((8, 8)), {"forget": part}, None)[0] / jnp.log(8))
        -1.0
    """
    parts = _parts(cfg.method)
    needs = _reference_needs(cfg.method)

    def loss_fn(params: Any, batch: Batch, key: Array | None) -> tuple[Array, dict[str, Any]]:
        del key
        for part in parts:
            _require(batch, part, "batch", cfg.method)
        outputs = {part: apply(params, batch[part]["tokens"]) for part in parts}
        ref_outputs = {}
        for part, entry in needs.items():
            found = [batch[part][each] for each in (entry, "ref_logits") if each in batch[part]]
            if not found:
                raise ValueError(
                    f"batch[{part!r}]: expected {entry!r} for {cfg.method!r}, got {sorted(batch[part])};"
                    " precompute_reference adds it"
                )
            ref_outputs[part] = found[0]
        return unlearning_loss(cfg.method, batch, outputs, ref_outputs, cfg)

    return loss_fn


def precompute_reference(
    apply: Callable[[Any, Any], Array], ref_params: Any, batch: Batch, cfg: UnlearnConfig
) -> dict[str, dict[str, Any]]:
    """What a method needs of the reference, added to a batch: once for the data, not in every step.

    ``ref_seq_nll[b] = S_ref[b]``, a scalar for each row; the KL retain loss alone needs ``ref_logits``.

    Args:
        apply: ``apply(params, tokens) -> logits [B, T, V]``; with LoRA, the model with its adapters off.
        ref_params: the parameters before unlearning.
        batch: parts by name with ``tokens`` and ``labels``.
        cfg: the method and its coefficients.

    Returns:
        The batch with ``ref_seq_nll`` ``[B]`` in the parts of the forget loss (NPO, DPO, KTO) and
        ``ref_logits`` ``[B, T, V]`` in "retain" (KL). No gradient flows into them.

    Raises:
        ValueError: a part that the method needs and the batch lacks.

    Source:
        arXiv:2404.05868, Section 2: the reference is the model before unlearning, frozen.

    Example:
        >>> part = {"tokens": jnp.ones((2, 3), int), "labels": jnp.ones((2, 3), int)}
        >>> apply = lambda params, tokens: params[tokens]
        >>> batch = precompute_reference(apply, jnp.zeros((8, 8)), {"forget": part}, UnlearnConfig("npo"))
        >>> batch["forget"]["ref_seq_nll"].shape
        (2,)
    """
    extended = {part: dict(content) for part, content in batch.items()}
    for part, entry in _reference_needs(cfg.method).items():
        _require(batch, part, "batch", cfg.method)
        logits = jax.lax.stop_gradient(apply(ref_params, batch[part]["tokens"]))
        extended[part][entry] = (
            logits if entry == "ref_logits" else sequence_nll(logits, batch[part]["labels"])[0]
        )
    return extended


def with_token_means(batch: Batch) -> dict[str, dict[str, Any]]:
    """The batch with its mean row length in every row, so that a piece of it keeps the whole's normalisation.

    ``mean_tokens[b] = mean_b' n[b']``: a step that accumulates gradients over pieces of equal size then has
    exactly the gradient of the whole batch, where normalising each piece by its own tokens would weigh short
    answers up.

    Args:
        batch: parts by name with their ``labels`` ``[B, T]``; the whole batch, before it is cut.

    Returns:
        The batch with ``mean_tokens`` ``[B]`` in each part.

    Example:
        >>> batch = with_token_means({"forget": {"labels": jnp.array([[1, 2, 3], [1, -100, 3]])}})
        >>> batch["forget"]["mean_tokens"].tolist()
        [1.5, 1.5]
    """
    extended = {}
    for part, content in batch.items():
        n_tokens = (content["labels"][:, 1:] != IGNORE).sum(-1, dtype=jnp.float32)
        extended[part] = {**content, "mean_tokens": jnp.full_like(n_tokens, n_tokens.mean())}
    return extended


def _forget_rows(
    forget: str,
    nll: Mapping[str, Array],
    n_tokens: Mapping[str, Array],
    reference: Mapping[str, Array],
    mean_tokens: Mapping[str, Array | None],
    batch: Batch,
    cfg: UnlearnConfig,
) -> Array:
    """The forget loss of each row."""
    match forget:
        case "ga":
            return ga_loss(nll["forget"], n_tokens["forget"], mean_tokens["forget"])
        case "npo":
            return npo_loss(nll["forget"], reference["forget"], cfg.beta)
        case "dpo":
            if nll["idk"].shape != nll["forget"].shape:
                raise ValueError(
                    f"batch['idk']: expected a row for each of the {nll['forget'].size} forget rows,"
                    f" got {nll['idk'].size}"
                )
            return dpo_loss(
                nll["idk"], reference["idk"], nll["forget"], reference["forget"], cfg.beta, cfg.factor
            )
        case "kto":
            z = kto_baseline(nll["idk"], reference["idk"])
            return kto_loss(
                nll["forget"],
                reference["forget"],
                z,
                cfg.beta,
                cfg.kto_kind,
                scale_z=cfg.scale_z,
                clamp_z=cfg.clamp_z,
            )
        case "idk":
            return ce_loss(nll["idk"], n_tokens["idk"], mean_tokens["idk"])
        case _:
            return simnpo_loss(nll["forget"], answer_lengths(batch["forget"]["labels"]), cfg.beta, cfg.delta)


def _kl_rows(logits: Array, ref_logits: Array, part: Mapping[str, Any], cfg: UnlearnConfig) -> Array:
    if ref_logits.ndim != 3:
        raise ValueError(
            f"ref_outputs['retain']: KL needs logits [batch, tokens, vocab], got shape {ref_logits.shape}"
        )
    if not cfg.kl_mask:
        return kl_retain_loss(logits, ref_logits, direction=cfg.kl_direction)
    mask = jnp.pad(part["labels"][:, 1:] != IGNORE, ((0, 0), (0, 1)))
    return kl_retain_loss(logits, ref_logits, mask, direction=cfg.kl_direction)


def _reference_nll(part: str, ref_output: Array, logits: Array, labels: Array) -> Array:
    """The reference's likelihoods, from its logits or as cached; without gradient."""
    if ref_output.ndim == 3:
        check_logits(logits, ref_output)
        return jax.lax.stop_gradient(sequence_nll(ref_output, labels)[0])
    if ref_output.shape != labels.shape[:1]:
        raise ValueError(
            f"ref_outputs[{part!r}]: expected logits {logits.shape} or one value for each row,"
            f" {labels.shape[:1]}, got shape {ref_output.shape}"
        )
    if ref_output.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(
            f"ref_outputs[{part!r}]: expected float32 or float64, got {ref_output.dtype}: a sum over tokens"
            " does not survive a narrower dtype; train.Precision(keep='ref_seq_nll') leaves it as it is"
        )
    return jax.lax.stop_gradient(ref_output)


def _split(name: str) -> tuple[str, str | None]:
    if name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    forget, _, retain = name.partition("+")
    return forget, retain or None


def _parts(name: str) -> tuple[str, ...]:
    forget, retain = _split(name)
    return _FORGET_PARTS[forget] + (("retain",) if retain else ())


def _reference_needs(name: str) -> dict[str, str]:
    """Which parts need the reference, and the entry that holds what they need."""
    forget, retain = _split(name)
    needs = dict.fromkeys(_FORGET_PARTS[forget], "ref_seq_nll") if forget in _WITH_REFERENCE else {}
    return needs | ({"retain": "ref_logits"} if retain == "kl" else {})


def _require(mapping: Mapping[str, Any], part: str, argument: str, name: str) -> None:
    if part not in mapping:
        raise ValueError(f"{argument}: expected the part {part!r} for {name!r}, got {sorted(mapping)}")
