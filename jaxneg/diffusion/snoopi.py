"""PG-SB: distilling a diffusion model into one step, with a random guidance scale inside the loss.

Nguyen et al. 2024, "SNOOPI: Supercharged One-step Diffusion Distillation with Proper Guidance",
arXiv:2412.02687 (first version; equations of the third), on top of SwiftBrush (arXiv:2312.05239) and its
second version (arXiv:2408.14176, equations 5 and 6). One step:

1. the student makes a sample x of noise z in one step;
2. x is noised to a level t; a frozen teacher and one with adapters, which has learnt what the student makes,
   both predict the noise, guided by the same scale kappa;
3. their difference is the student's gradient (variational score distillation);
4. the adapters learn, by the ordinary denoising loss, on the same x, from before the student's update.

SwiftBrush has a fixed kappa. Here it is drawn for each sample or each step. The score is linear in kappa, so
that on average a random kappa gives the gradient of its mean.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.diffusion.arguments import (
    alpha_bar,
    at_least_float32,
    at_timesteps,
    beside,
    check_positive,
    check_range,
    one_of,
    over_trailing,
    same_shape,
    wide_norm,
)
from jaxneg.diffusion.conditions import null_like
from jaxneg.diffusion.lora import lora_apply, lora_init
from jaxneg.diffusion.predictions import add_noise, predict_x0
from jaxneg.diffusion.schedules import scaled_linear_schedule

KappaMode = Literal["random", "fixed", "random_teacher", "random_lora"]
Apply = Callable[..., Array]


def cfg_combine(
    uncond: Float[Array, "batch ..."], cond: Float[Array, "batch ..."], kappa: float | Array
) -> Float[Array, "batch ..."]:
    """Classifier-free guidance in the convention of this paper: kappa = 1 is the plain conditional model.

    ``(1 - kappa) uncond + kappa cond``

    Args:
        uncond: predicted noise without the prompt, or with a negative one.
        cond: predicted noise with the prompt.
        kappa: guidance scale, one number or one for each example.

    Returns:
        The guided noise, at least in float32.

    Raises:
        TypeError: predictions that are not floating.
        ValueError: shapes that do not fit.

    Source:
        arXiv:2412.02687, equations 4 and 5.

    Example:
        >>> cfg_combine(jnp.zeros((1, 2)), jnp.ones((1, 2)), 4.5).tolist()
        [[4.5, 4.5]]
    """
    uncond, cond = at_least_float32("uncond", uncond), at_least_float32("cond", cond)
    same_shape("cond", cond, "uncond", uncond)
    return uncond + over_trailing("kappa", kappa, uncond) * (cond - uncond)


def sample_kappa(key: PRNGKeyArray, shape: tuple[int, ...], kmin: float, kmax: float) -> Float[Array, "..."]:
    """Guidance scales of PG-SB.

    ``kappa ~ U(kmin, kmax)``

    Args:
        key: random key.
        shape: of the result: ``(B,)`` for one scale for each sample, ``()`` for one for all.
        kmin: the least scale.
        kmax: the largest one.

    Returns:
        Scales in float32.

    Raises:
        ValueError: kmin above kmax.

    Source:
        arXiv:2412.02687, Section 4: U(0.5, 4) for SD 1.5 and 2.1, U(0.5, 3) for PixArt-alpha.

    Example:
        >>> sample_kappa(jax.random.key(0), (3,), 0.5, 4.0).shape
        (3,)
    """
    if isinstance(kmin, Real) and isinstance(kmax, Real) and float(kmin) > float(kmax):
        raise ValueError(f"kmin: expected at most kmax = {kmax}, got {kmin}")
    return jax.random.uniform(key, shape, minval=kmin, maxval=kmax)


def one_step_predict(
    eps: Float[Array, "batch ..."], z: Float[Array, "batch ..."], abar_T: float | Array
) -> Float[Array, "batch ..."]:
    """What a student makes of noise in one step.

    ``(z - sqrt(1 - abar_T) eps) / sqrt(abar_T)``

    Args:
        eps: the student's prediction at the last timestep.
        z: noise, standard normal, of the same shape.
        abar_T: alpha-bar of the last timestep (0.0047 for Stable Diffusion).

    Returns:
        Samples, at least in float32.

    Raises:
        TypeError: arrays that are not floating.
        ValueError: shapes that do not fit.

    Source:
        arXiv:2312.05239, Section 3.2.

    Example:
        >>> one_step_predict(jnp.zeros((1, 2)), jnp.ones((1, 2)), 0.25).tolist()
        [[2.0, 2.0]]
    """
    abar_T = jnp.asarray(abar_T, jnp.promote_types(jnp.result_type(z), jnp.float32))
    return predict_x0(eps, z, jnp.sqrt(abar_T), jnp.sqrt(1 - abar_T))


def vsd_score_grad(
    teacher_cond: Float[Array, "batch ..."],
    teacher_uncond: Float[Array, "batch ..."],
    fake_cond: Float[Array, "batch ..."],
    fake_uncond: Float[Array, "batch ..."],
    kappa_teacher: float | Array,
    kappa_fake: float | Array,
    abar_t: float | Float[Array, " batch"],
) -> Float[Array, "batch ..."]:
    """The gradient that variational score distillation gives a sample.

    ``g = (1 - abar_t) (teacher - fake)``, each guided (`cfg_combine`)

    Args:
        teacher_cond: noise that the frozen teacher predicts with the prompt.
        teacher_uncond: without it; with the negative prompt for NASA-T.
        fake_cond: noise that the teacher with adapters predicts with the prompt.
        fake_uncond: without it.
        kappa_teacher: guidance scale of the frozen teacher, one number or one for each example.
        kappa_fake: of the one with adapters.
        abar_t: alpha-bar of the noise level.

    Returns:
        g, at least in float32: the two are nearly equal, and a narrower type would leave nothing of their
        difference. What is not finite is replaced as by ``jnp.nan_to_num``, as SwiftBrush does.

    Raises:
        TypeError: predictions that are not floating.
        ValueError: shapes that do not fit.

    Source:
        arXiv:2412.02687, equation 6; arXiv:2312.05239, equation 5.

    Example:
        >>> one, zero = jnp.ones((1, 2)), jnp.zeros((1, 2))
        >>> vsd_score_grad(one, zero, zero, zero, 2.0, 2.0, 0.75).tolist()
        [[0.5, 0.5]]
    """
    teacher = cfg_combine(teacher_uncond, teacher_cond, kappa_teacher)
    fake = cfg_combine(fake_uncond, fake_cond, kappa_fake)
    same_shape("fake_cond", fake, "teacher_cond", teacher)
    return jnp.nan_to_num((1 - over_trailing("abar_t", abar_t, teacher)) * (teacher - fake))


def vsd_loss(x0: Float[Array, "batch ..."], grad: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    """A loss whose gradient is the given one.

    ``0.5 mean_i (x - stop_gradient(x - g))_i^2``, so that ``d mean_b L_b / dx = g / size``

    Args:
        x0: the student's samples.
        grad: g of `vsd_score_grad`.

    Returns:
        One value for each example.

    Raises:
        TypeError: arrays that are not floating.
        ValueError: shapes that differ.

    Source:
        arXiv:2312.05239, its code.

    Example:
        >>> jax.grad(lambda x: vsd_loss(x, 3 * x).mean())(jnp.ones((1, 3))).tolist()
        [[1.0, 1.0, 1.0]]
    """
    x0, grad = at_least_float32("x0", x0), at_least_float32("grad", grad)
    same_shape("grad", grad, "x0", x0)
    target = jax.lax.stop_gradient(x0 - grad)
    return 0.5 * _per_example(jnp.square(x0 - target))


def lora_teacher_loss(
    pred: Float[Array, "batch ..."], noise: Float[Array, "batch ..."], abar_t: float | Float[Array, " batch"]
) -> Float[Array, " batch"]:
    """The denoising loss of the teacher with adapters, weighted by the signal.

    ``mean_i (alpha_t pred - alpha_t eps)_i^2,  alpha_t^2 = abar_t``

    Args:
        pred: the noise that it predicts.
        noise: eps, the noise that there is.
        abar_t: alpha-bar of the noise level.

    Returns:
        One value for each example.

    Raises:
        TypeError: arrays that are not floating.
        ValueError: shapes that do not fit.

    Source:
        arXiv:2312.05239, equation 6, with the factor of its code.

    Example:
        >>> lora_teacher_loss(jnp.ones((1, 4)), jnp.zeros((1, 4)), 0.25).tolist()
        [0.25]
    """
    pred, noise = at_least_float32("pred", pred), at_least_float32("noise", noise)
    same_shape("noise", noise, "pred", pred)
    return _per_example(over_trailing("abar_t", abar_t, pred) * jnp.square(pred - noise))


def clamped_clip_loss(
    img_emb: Float[Array, "batch width"], txt_emb: Float[Array, "batch width"], tau: float | Array = 0.37
) -> Float[Array, " batch"]:
    """Pulls image and text together until they are similar enough, and no further.

    ``max(0, tau - cos(img, txt))``

    Args:
        img_emb: embeddings of the student's images, of any length.
        txt_emb: embeddings of their prompts.
        tau: the cosine from which on nothing is asked (SwiftBrush v2: 0.35).

    Returns:
        One value for each example.

    Raises:
        TypeError: embeddings that are not floating.
        ValueError: shapes that do not fit.

    Source:
        arXiv:2408.14176, equation 6.

    Example:
        >>> clamped_clip_loss(jnp.eye(2), jnp.eye(2)[:, ::-1], 0.25).tolist()
        [0.25, 0.25]
    """
    img, txt = at_least_float32("img_emb", img_emb), at_least_float32("txt_emb", txt_emb)
    same_shape("txt_emb", txt, "img_emb", img)
    norms = jnp.linalg.norm(img, axis=-1) * jnp.linalg.norm(txt, axis=-1)
    return jnp.maximum(0, tau - (img * txt).sum(-1) / jnp.maximum(norms, 1e-12))


def clip_weight(step: int | Array, total: int, start: float = 0.1) -> Float[Array, "..."]:
    """The weight of the clamped CLIP loss, which falls to 0 at the end of training.

    ``start max(0, 1 - step / total)``

    Args:
        step: number of updates made so far.
        total: number of updates of the run.
        start: the weight at the beginning.

    Returns:
        The weight.

    Raises:
        ValueError: a total that is not positive.

    Source:
        arXiv:2412.02687 (0.1, decaying to 0; its shape is not stated: linear is ours).

    Example:
        >>> clip_weight(jnp.array([0, 500, 2000]), 1000, start=0.5).tolist()
        [0.5, 0.25, 0.0]
    """
    check_positive(total=total)
    return start * jnp.maximum(0, 1 - jnp.asarray(step) / total)


@dataclass(frozen=True)
class PGSBConfig:
    """The choices of PG-SB; hashable, so it may be a static argument. The presets are those of the paper."""

    shape: tuple[int, ...] = (64, 64, 4)
    """Shape of a sample, without the batch: latents of 512 x 512 images."""
    kappa_mode: KappaMode = "random"
    """"random": kappa of both teachers, the same (PG-SB). "fixed": ``kappa`` for both (SwiftBrush).
    "random_teacher": random for the frozen teacher, 1 for the one with adapters. "random_lora": the other way
    round, ``kappa`` for the frozen teacher."""
    kappa_min: float = 0.5
    """The least random kappa."""
    kappa_max: float = 4.0
    """The largest one."""
    kappa: float = 4.5
    """The fixed kappa."""
    kappa_per: Literal["sample", "step"] = "sample"
    """Whether each sample of a step has its own kappa, or all have one."""
    t_min: float = 0.02
    """Noise levels of the distillation: from this share of the timesteps ..."""
    t_max: float = 0.981
    """... to this one, excluded."""
    abar_T: float | None = 0.0047
    """Alpha-bar at which the student starts; None: that of the schedule's last timestep."""
    lora_rank: int = 64
    """Rank of the adapters, where `init_pgsb` makes them."""
    lora_gamma: float = 128.0
    """Scale of the adapters, divided by their rank."""
    lora_match: str = r"(to_q|to_v)/kernel$"
    """Which kernels have adapters, a regular expression for their paths."""
    lora_stacked: int = 0
    """Leading axes of these kernels that number layers."""
    drop: float = 0.1
    """Probability that the adapters learn without prompts, drawn once for a batch."""
    ttur: int = 1
    """Updates of the adapters for one of the student, all on the same samples (5: the trick of DMD2)."""
    nasa_t: bool = False
    """Whether the student runs with NASA, ``alpha ~ U(0, 1)`` in each step, on ``batch["neg_cond"]``, which
    takes the place of no prompt in the frozen teacher."""
    clip_tau: float = 0.37
    """Cosine from which on the CLIP loss asks nothing."""
    clip_start: float = 0.1
    """Weight of the CLIP loss at the beginning; it is used where `make_pgsb_step` gets ``embed``."""
    steps: int = 60_000
    """Updates of the run."""
    student_lr: float = 1e-6
    """Learning rate of the student."""
    lora_lr: float = 1e-3
    """Learning rate of the adapters."""
    clip_norm: float = 1.0
    """Norm to which both gradients are clipped."""

    def __post_init__(self) -> None:
        one_of("kappa_mode", self.kappa_mode, get_args(KappaMode))
        one_of("kappa_per", self.kappa_per, ("sample", "step"))
        check_positive(
            lora_gamma=self.lora_gamma,
            steps=self.steps,
            student_lr=self.student_lr,
            lora_lr=self.lora_lr,
            clip_norm=self.clip_norm,
        )
        check_range("drop", self.drop, 0, 1)
        check_range("t_min", self.t_min, 0, self.t_max)
        check_range("t_max", self.t_max, self.t_min, 1)
        check_range("kappa_min", self.kappa_min, -np.inf, self.kappa_max)
        if self.ttur < 1:
            raise ValueError(f"ttur: expected at least 1, got {self.ttur}")
        if self.abar_T is not None:
            check_positive(abar_T=self.abar_T)

    @classmethod
    def sdv15(cls) -> "PGSBConfig":
        """Stable Diffusion 1.5 (batch 64)."""
        return cls()

    @classmethod
    def sdv21(cls) -> "PGSBConfig":
        """Stable Diffusion 2.1 (batch 64)."""
        return cls(steps=40_000)

    @classmethod
    def pixart(cls) -> "PGSBConfig":
        """PixArt-alpha (batch 64; 32 and 50 000 steps in the third version)."""
        return cls(kappa_max=3.0)

    @classmethod
    def swiftbrush(cls) -> "PGSBConfig":
        """SwiftBrush, the baseline: one kappa for all (batch 64)."""
        return cls(kappa_mode="fixed", lora_gamma=108.0)

    @classmethod
    def swiftbrush_v2(cls) -> "PGSBConfig":
        """SwiftBrush v2, the second baseline: with ``embed``, and SD-Turbo's weights as ``student``.

        Its student of adapters is a ``student`` of `lora_init` and a ``student_apply`` with `lora_apply`
        (rank 256, gamma 512); ``optax.incremental_update(a, b, 0.5)`` is its mean of two students.
        """
        return cls(kappa_mode="fixed", clip_tau=0.35)


class PGSBState(NamedTuple):
    """What a step of PG-SB passes on: enough to resume exactly.

    Attributes:
        step: number of updates of the student made so far.
        params: ``"student"``; ``"lora"``, the adapters; ``"teacher"``, which stays as it is.
        opt_state: of the student's and of the adapters' optimizer, ``"student"`` and ``"lora"``.
        key: random key of the whole run; never changes.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: dict[str, Any]
    key: PRNGKeyArray


def pgsb_optimizers(cfg: PGSBConfig) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """The two optimizers of the paper.

    ``clip_by_global_norm(1)``, then Adam with ``b = (0.9, 0.999)``, ``eps = 1e-8``, no weight decay

    Args:
        cfg: learning rates and the norm.

    Returns:
        For the student and for the adapters. ``jaxneg.diffusion.track_ema`` at the end of the student's keeps
        an average for evaluation.

    Source:
        arXiv:2412.02687, appendix; arXiv:2312.05239, its code.

    Example:
        >>> len(pgsb_optimizers(PGSBConfig.sdv15()))
        2
    """
    student, lora = (
        optax.chain(optax.clip_by_global_norm(cfg.clip_norm), optax.adam(rate))
        for rate in (cfg.student_lr, cfg.lora_lr)
    )
    return student, lora


def init_pgsb(
    key: PRNGKeyArray,
    teacher: Any,
    cfg: PGSBConfig,
    *,
    student: Any = None,
    student_tx: optax.GradientTransformation | None = None,
    lora_tx: optax.GradientTransformation | None = None,
) -> PGSBState:
    """The state before the first step.

    Args:
        key: random key of the whole run; the adapters come from it too.
        teacher: parameters of the frozen teacher.
        cfg: which kernels have adapters, and of which rank.
        student: parameters to start with (SwiftBrush v2: those of SD-Turbo); None: the teacher's.
        student_tx: the optimizer that `make_pgsb_step` gets.
        lora_tx: likewise.

    Returns:
        The state at step 0.

    Raises:
        ValueError: as `lora_init`.

    Source:
        arXiv:2312.05239, Section 3.

    Example:
        >>> cfg = PGSBConfig(shape=(4,), lora_match="w", lora_rank=2)
        >>> state = init_pgsb(jax.random.key(0), {"w": jnp.ones((4, 4))}, cfg)
        >>> sorted(state.params)
        ['lora', 'student', 'teacher']
    """
    first, second = pgsb_optimizers(cfg)
    student_tx, lora_tx = student_tx or first, lora_tx or second

    def own(tree: Any) -> Any:  # not the same memory twice: a step donates its state
        return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), tree)

    lora = lora_init(
        jax.random.fold_in(key, 2**31 - 1),
        teacher,
        rank=cfg.lora_rank,
        match=cfg.lora_match,
        stacked=cfg.lora_stacked,
    )
    params = {"student": own(teacher if student is None else student), "lora": lora, "teacher": own(teacher)}
    opt_state = {
        name: tx.init({name: params[name]}) for name, tx in (("student", student_tx), ("lora", lora_tx))
    }
    return PGSBState(jnp.zeros((), jnp.int32), params, opt_state, key)


def make_pgsb_step(
    student_apply: Apply,
    teacher_apply: Apply,
    cfg: PGSBConfig,
    *,
    null_cond: Any,
    alphas_cumprod: Float[Array, " T"] | None = None,
    student_tx: optax.GradientTransformation | None = None,
    lora_tx: optax.GradientTransformation | None = None,
    embed: Callable[[Array, Mapping[str, Any]], tuple[Array, Array]] | None = None,
    adapted_apply: Apply | None = None,
) -> Callable[[PGSBState, Mapping[str, Any]], tuple[PGSBState, dict[str, Array]]]:
    """A pure step of PG-SB with both optimizers, for ``jit``, ``jaxneg.train.shard_step`` and ``fit``.

    ``student <- student + tx(grad mean_b vsd_loss_b)``, then
    ``lora <- lora + tx(grad mean_b lora_teacher_loss_b)`` on the same samples, ``ttur`` times

    Args:
        student_apply: ``(params, z [B, ...], t [B], cond) -> noise``; with ``cfg.nasa_t`` also
            ``neg_cond=`` and ``alpha=`` (a scalar), for `nasa_cross_attention` in its layers.
        teacher_apply: ``(params, x [B, ...], t [B], cond) -> noise``. Its adapters are added to its kernels
            (`lora_apply`).
        cfg: the choices.
        null_cond: what stands for no prompt, a tree that broadcasts to ``batch["cond"]``.
        alphas_cumprod: alpha-bar of the schedule; None: Stable Diffusion's, 1000 timesteps.
        student_tx: optimizer of the student, of a tree ``{"student": ...}``; None: the paper's.
        lora_tx: of the adapters, of a tree ``{"lora": ...}``; likewise.
        embed: ``(samples, batch) -> (image, text)`` embeddings for the clamped CLIP loss: decoder and CLIP.
        adapted_apply: the network with adapters, where the frozen teacher is another one, as an exact one
            that has no kernels; ``params["teacher"]`` are then the parameters of this network. None:
            ``teacher_apply``.

    Returns:
        ``step(state, batch) -> (state, metrics)``. The batch holds prompts and no images: ``"cond"``, a tree
        with B rows, for NASA-T ``"neg_cond"`` too, and what ``embed`` reads. Metrics: ``loss``, ``vsd_loss``,
        ``lora_loss``, ``clip_loss`` with ``embed``, ``kappa`` (the mean of the random or fixed one),
        ``grad_norm``, ``lora_grad_norm``, ``update_norm``. The random key of step n is
        ``fold_in(state.key, n)``.

    Raises:
        ValueError: an alpha-bar that does not fall, a range of timesteps that is empty; from the step, a
            batch without prompts, or networks whose outputs have another shape.

    Source:
        arXiv:2412.02687, Section 4; arXiv:2312.05239, Algorithm 1.

    Example:
        >>> cfg = PGSBConfig(shape=(4,), lora_match="w", lora_rank=2)
        >>> apply = lambda params, x, t, cond: x @ params["w"]
        >>> step = make_pgsb_step(apply, apply, cfg, null_cond=0)
        >>> state = init_pgsb(jax.random.key(0), {"w": jnp.eye(4)}, cfg)
        >>> state, metrics = jax.jit(step)(state, {"cond": jnp.array([1, 2])})
        >>> int(state.step), metrics["kappa"].shape
        (1, ())
    """
    table = (
        scaled_linear_schedule(1000).alphas_cumprod if alphas_cumprod is None else alpha_bar(alphas_cumprod)
    )
    T = len(table)
    low, high = round(cfg.t_min * T), round(cfg.t_max * T)
    if low >= high:
        raise ValueError(f"t_min: expected a timestep between {cfg.t_min} T and {cfg.t_max} T, T = {T}")
    abar_T = table[-1] if cfg.abar_T is None else cfg.abar_T
    first, second = pgsb_optimizers(cfg)
    student_tx, lora_tx = student_tx or first, lora_tx or second
    adapted_name = "teacher_apply" if adapted_apply is None else "adapted_apply"
    adapted_apply = adapted_apply or teacher_apply

    def noised(x: Array, key: PRNGKeyArray, low: int, high: int) -> tuple[Array, Array, Array, Array]:
        """x_t, t, the noise, and alpha-bar."""
        t_key, noise_key = jax.random.split(key)
        t = beside(jax.random.randint(t_key, x.shape[:1], low, high), x)
        noise = beside(jax.random.normal(noise_key, x.shape, x.dtype), x)
        abar = at_timesteps(table, t, x.dtype)
        # From the tables of the roots: 1 - abar loses digits in float32 near t = 0.
        alpha, sigma = (at_timesteps(root, t, x.dtype) for root in (table**0.5, (1 - table) ** 0.5))
        return add_noise(x, noise, alpha, sigma), t, noise, abar

    def score(params: dict[str, Any], x: Array, batch: Mapping[str, Any], keys: Array) -> tuple[Array, Array]:
        """The student's gradient, and kappa."""
        cond = batch["cond"]
        null = null_like(null_cond, cond)
        x_t, t, _, abar = noised(x, keys[0], low, high)
        adapted = lora_apply(params["teacher"], params["lora"], gamma=cfg.lora_gamma)

        def frozen(cond: Any) -> Array:
            return _checked_output(teacher_apply(params["teacher"], x_t, t, cond), x, "teacher_apply")

        def fake(cond: Any) -> Array:
            return _checked_output(adapted_apply(adapted, x_t, t, cond), x, adapted_name)

        kappa = jnp.asarray(cfg.kappa, x.dtype)
        if cfg.kappa_mode != "fixed":
            drawn = sample_kappa(
                keys[1], x.shape[:1] if cfg.kappa_per == "sample" else (), cfg.kappa_min, cfg.kappa_max
            )
            kappa = beside(drawn, x) if drawn.ndim else drawn
        of_teacher = cfg.kappa if cfg.kappa_mode == "random_lora" else kappa
        fake_cond = fake(cond)
        if cfg.kappa_mode == "random_teacher":  # kappa = 1 has no use for the branch without prompts
            of_fake, fake_null = 1.0, fake_cond
        else:
            of_fake, fake_null = kappa, fake(null)
        away = frozen(batch["neg_cond"] if cfg.nasa_t else null)
        g = vsd_score_grad(frozen(cond), away, fake_cond, fake_null, of_teacher, of_fake, abar)
        return jax.lax.stop_gradient(g), kappa

    def step(state: PGSBState, batch: Mapping[str, Any]) -> tuple[PGSBState, dict[str, Array]]:
        cond = batch.get("cond")
        if not jax.tree.leaves(cond):
            raise ValueError("batch: expected prompts in 'cond', an array or a tree of arrays, got none")
        if cfg.nasa_t and "neg_cond" not in batch:
            raise ValueError(f"batch: expected 'neg_cond' for nasa_t, got {sorted(batch)}")
        rows = jax.tree.leaves(cond)[0]
        z_key, alpha_key, lora_key, *score_keys = jax.random.split(
            jax.random.fold_in(state.key, state.step), 5
        )
        z = beside(jax.random.normal(z_key, (rows.shape[0], *cfg.shape)), rows)
        last = beside(jnp.full(rows.shape[0], T - 1, jnp.int32), rows)
        nasa = {"neg_cond": batch["neg_cond"], "alpha": jax.random.uniform(alpha_key)} if cfg.nasa_t else {}
        params = state.params

        def student_loss(student: Any) -> tuple[Array, tuple[Array, dict[str, Array]]]:
            eps = _checked_output(student_apply(student, z, last, cond, **nasa), z, "student_apply")
            x = one_step_predict(eps, z, abar_T)
            fixed = jax.lax.stop_gradient(x)
            g, kappa = score(params, fixed, batch, jnp.stack(score_keys))
            loss = vsd_loss(x, g).mean()
            aux = {"vsd_loss": loss, "kappa": kappa.mean()}
            if embed is not None:
                aux["clip_loss"] = clamped_clip_loss(*embed(x, batch), cfg.clip_tau).mean()
                loss = loss + clip_weight(state.step, cfg.steps, cfg.clip_start) * aux["clip_loss"]
            return loss, (fixed, aux)

        (loss, (x, aux)), grads = jax.value_and_grad(student_loss, has_aux=True)(params["student"])
        student, student_state, update_norm = _updated(
            student_tx, "student", grads, state.opt_state["student"], params["student"]
        )

        def lora_step(
            carry: tuple[Any, Any], key: PRNGKeyArray
        ) -> tuple[tuple[Any, Any], tuple[Array, Array]]:
            lora, opt_state = carry
            noise_key, drop_key = jax.random.split(key)
            x_t, t, noise, abar = noised(x, noise_key, 0, T)
            dropped = jax.random.bernoulli(drop_key, cfg.drop)
            seen = jax.tree.map(lambda c, n: jnp.where(dropped, n, c), cond, null_like(null_cond, cond))

            def lora_loss(lora: Any) -> Array:
                adapted = lora_apply(params["teacher"], lora, gamma=cfg.lora_gamma)
                pred = _checked_output(adapted_apply(adapted, x_t, t, seen), x, adapted_name)
                return lora_teacher_loss(pred, noise, abar).mean()

            loss, grads = jax.value_and_grad(lora_loss)(lora)
            lora, opt_state, _ = _updated(lora_tx, "lora", grads, opt_state, lora)
            return (lora, opt_state), (loss, wide_norm(grads))

        (lora, lora_state), (lora_losses, lora_norms) = jax.lax.scan(
            lora_step, (params["lora"], state.opt_state["lora"]), jax.random.split(lora_key, cfg.ttur)
        )
        metrics = {
            "loss": loss,
            **aux,
            "lora_loss": lora_losses.mean(),
            "grad_norm": wide_norm(grads),
            "lora_grad_norm": lora_norms.mean(),
            "update_norm": update_norm,
        }
        params = {"student": student, "lora": lora, "teacher": params["teacher"]}
        opt_state = {"student": student_state, "lora": lora_state}
        return PGSBState(state.step + 1, params, opt_state, state.key), metrics

    return step


def _updated(
    tx: optax.GradientTransformation, name: str, grads: Any, opt_state: Any, params: Any
) -> tuple[Any, Any, Array]:
    """Parameters and optimizer state after an update, and its norm."""
    # Under their name, so that the optimizer's arrays have paths that end in those of their parameters.
    updates, opt_state = tx.update({name: grads}, opt_state, {name: params})
    return optax.apply_updates({name: params}, updates)[name], opt_state, wide_norm(updates)  # pyright: ignore


def _checked_output(output: Array, x: Array, name: str) -> Array:
    if output.shape != x.shape:
        raise ValueError(
            f"{name}: expected an output of the shape of its input, {x.shape}, got {output.shape}"
        )
    return at_least_float32(name, output)


def _per_example(values: Array) -> Float[Array, " batch"]:
    return values.mean(axis=tuple(range(1, values.ndim)))
