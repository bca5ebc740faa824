"""The methods by name, what each needs of a batch and of the reference, and their coefficients.

A method is named ``forget`` or ``forget+retain``: "npo", "npo+rt", "npo+kl", as in Zhang et al.,
arXiv:2404.05868, Sections 2 and 3 (GA+RT is also known as GradDiff).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxneg.unlearning.arguments import check_positive

_FORGET_PARTS = {
    "ga": ("forget",),
    "npo": ("forget",),
    "dpo": ("idk", "forget"),
    "kto": ("idk", "forget"),
    "idk": ("idk",),
    "simnpo": ("forget",),
    "wga": ("forget",),
    "satimp": ("forget",),
    "undial": ("forget",),
    "ceu": ("forget",),
    "pdu": ("forget",),
    "rmu": ("forget",),
}

METHODS = (*(forget + retain for forget in _FORGET_PARTS for retain in ("", "+rt", "+kl")), "rmu+ed")
"""The names of the methods: "ga", "ga+rt", "ga+kl", "npo", ...; "rmu+ed" keeps the retain data's states."""

Batch = Mapping[str, Mapping[str, Any]]
"""Parts by name; each has ``tokens``, ``labels`` and what the reference says of it."""


@dataclass(frozen=True)
class UnlearnConfig:
    """What is minimised, with the coefficients of the papers; hashable, so it may be a static argument."""

    method: str = "npo+rt"
    """One of `METHODS`; what `make_unlearn_loss` minimises."""
    gamma: float = 1.0
    """Coefficient of the forget loss (SatImp: 0.1, SimNPO: 0.125)."""
    alpha: float = 1.0
    """Coefficient of the retain loss (TOFU Forget50: 5, Forget90: 12)."""
    retain_eps: float = 0.0
    """PDU's constraint: alpha multiplies what the retain loss exceeds it by, which changes no gradient."""
    beta: float = 0.1
    """Inverse temperature of NPO, DPO, KTO and SimNPO (which wants 2.5 to 4.5), WGA's exponent (1), and by
    how much UNDIAL lowers a logit (10); above 0."""
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
    beta1: float = 5.0
    """SatImp's exponent of the saturation, above 0."""
    beta2: float = 1.0
    """SatImp's exponent of the importance, above 0."""
    undial_masked: bool = True
    """Whether UNDIAL counts only the positions that predict a label; the official code counts all."""
    ignore_first_n: int = 1
    """How many of each row's first labels CE-U leaves out."""
    rmu_own_length: bool = True
    """Whether RMU divides each row by its own length; the official code divides by their harmonic mean."""
    kl_mask: bool = False
    """Whether KL counts only the positions that predict a label; the official code counts all."""
    kl_direction: Literal["forward", "reverse"] = "forward"
    """"forward" is KL(reference || policy), as in the official code; "reverse" as in the paper."""

    def __post_init__(self) -> None:
        split_name(self.method)
        check_positive(beta=self.beta, factor=self.factor, beta1=self.beta1, beta2=self.beta2)
        for name in ("gamma", "alpha", "ignore_first_n"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a finite number of at least 0, got {getattr(self, name)}")
        for name, allowed in (
            ("kto_kind", ("logsigmoid", "sigmoid")),
            ("kl_direction", ("forward", "reverse")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")


def split_name(name: str) -> tuple[str, str | None]:
    """The forget and the retain loss of a method.

    Args:
        name: one of `METHODS`.

    Returns:
        Both; None where there is no retain loss.

    Raises:
        ValueError: a name that does not exist.

    Example:
        >>> split_name("npo+rt"), split_name("npo")
        (('npo', 'rt'), ('npo', None))
    """
    if name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    forget, _, retain = name.partition("+")
    return forget, retain or None


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of a batch that a method reads.

    Args:
        name: one of `METHODS`.

    Returns:
        Of "forget", "retain" and "idk".

    Example:
        >>> parts_of("dpo+rt")
        ('idk', 'forget', 'retain')
    """
    forget, retain = split_name(name)
    return _FORGET_PARTS[forget] + (("retain",) if retain else ())


def hidden_parts_of(name: str) -> tuple[str, ...]:
    """The parts of which a method reads hidden states in place of logits.

    Args:
        name: one of `METHODS`.

    Returns:
        Of "forget" and "retain".

    Example:
        >>> hidden_parts_of("rmu+rt"), hidden_parts_of("npo+rt")
        (('forget',), ())
    """
    forget, retain = split_name(name)
    return (("forget",) if forget == "rmu" else ()) + (("retain",) if retain == "ed" else ())


def reference_needs(name: str) -> dict[str, str]:
    """Which parts need the reference, and the entry of the part that holds what they need.

    Args:
        name: one of `METHODS`.

    Returns:
        "ref_seq_nll", "ref_logits" or "ref_hidden" by part.

    Example:
        >>> reference_needs("npo+kl")
        {'forget': 'ref_seq_nll', 'retain': 'ref_logits'}
    """
    forget, retain = split_name(name)
    needs = {}
    if forget in ("npo", "dpo", "kto"):
        needs = dict.fromkeys(_FORGET_PARTS[forget], "ref_seq_nll")
    elif forget == "undial":
        needs = {"forget": "ref_logits"}
    if retain in ("kl", "ed"):
        needs["retain"] = "ref_logits" if retain == "kl" else "ref_hidden"
    return needs


def require_part(mapping: Mapping[str, Any], part: str, argument: str, name: str) -> None:
    """Refuses a mapping without a part.

    Args:
        mapping: by part.
        part: its name.
        argument: the mapping's name, for the message.
        name: the method.

    Raises:
        ValueError: the part is not there.

    Example:
        >>> require_part({"forget": 1}, "forget", "batch", "npo")
    """
    if part not in mapping:
        raise ValueError(f"{argument}: expected the part {part!r} for {name!r}, got {sorted(mapping)}")
