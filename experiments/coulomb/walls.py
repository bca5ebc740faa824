"""The force between neutral walls: closed form, simulation, and after a quench."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxneg import coulomb
from jaxneg.coulomb import SdftConfig

FIELDS_2D, FIELDS_3D = (1.0, 2.0, 5.0), (1.0, 2.0, 3.0)
"""Fields at which the force's exponent is read off."""
RELAXING = ((1.0, 5.0), (3.0, 5.0), (1.0, 10.0), (2.0, 8.0))
"""Fields and distances at which the force relaxes after a quench."""
EARLY = ((1.0, 40.0, 10.0), (0.5, 40.0, 10.0), (0.5, 60.0, 20.0), (1.0, 60.0, 12.0))
"""Fields, distances and times ``1 << t << H^2`` at which it has its first amplitude."""


def closed_form() -> dict[str, np.ndarray]:
    """The force against distance and its exponents, in float64.

    Returns:
        ``H`` and ``force`` [fields, H] in two dimensions, ``slopes_2d`` over H = 10..100 and ``slopes_3d``
        over H = 10..50, one for each field.
    """
    with jax.enable_x64(True):
        H, far, near = np.geomspace(2, 100, 40), np.geomspace(10, 100, 12), np.geomspace(10, 50, 8)
        plane, space = (
            jax.jit(lambda H, fields, d=d: coulomb.casimir_force(H, fields[:, None], d)) for d in (2, 3)
        )
        force = np.asarray(plane(np.concatenate([H, far]), np.array(FIELDS_2D)))
        three = space(near, np.array(FIELDS_3D))
        return {
            "H": H,
            "force": force[:, : len(H)],
            "slopes_2d": np.asarray(coulomb.log_slope(far, force[:, len(H) :])),
            "slopes_3d": np.asarray(coulomb.log_slope(near, three)),
        }


def simulated_force(key: jax.Array, cfg: SdftConfig, samples: int) -> dict[str, np.ndarray]:
    """The wall pressure of the linear theory, by exact steps with and without the field and the same noise.

    Args:
        key: random key.
        cfg: the electrolyte between walls, with its field.
        samples: steps, each measured.

    Returns:
        ``force`` (P less the wall pressure far apart, in the finite box), its ``error`` and ``tau``,
        ``box``: what the box's own modes give, ``corrected``: with the modes of k_x = 0 that no box has,
        ``closed``: the closed form.
    """
    H, Lx = cfg.shape[-1] * cfg.dx, cfg.shape[0] * cfg.dx
    pressures = np.asarray(_pressures(key, cfg, samples))
    found = jax.jit(coulomb.mean_with_error)(pressures[0] - pressures[1])
    field, s = float(np.asarray(cfg.Ef)), 1 + float(np.asarray(cfg.Ef)) ** 2
    with jax.enable_x64(True):
        far_apart, closed = (float(x) for x in _far_and_near(H, field))
        box = float(_box(cfg.shape, H, Lx, field)) - far_apart
    force = float(found.mean) - far_apart
    return {
        "force": np.array(force),
        "error": np.array(found.error),
        "tau": np.array(found.tau),
        "box": np.array(box),
        "corrected": np.array(force + field**2 / (2 * s * H * Lx)),
        "closed": np.array(closed),
    }


@jax.jit
def _far_and_near(H: Any, field: Any) -> Any:
    return coulomb.wall_pressure(field, 2), coulomb.casimir_force(H, field, 2)


@partial(jax.jit, static_argnums=0)
def _box(shape: tuple[int, int], H: Any, Lx: Any, field: Any) -> Any:
    """The pressure of the modes that the grid has."""
    kx = 2 * math.pi / Lx * jnp.arange(1, shape[0] // 2)[:, None]
    k2 = kx**2 + (math.pi / H * jnp.arange(shape[1])) ** 2
    excess = coulomb.mode_structure_factor(k2, kx, field).s_qq - k2 / (k2 + 1)
    return coulomb.mode_sum_force(excess, H, Lx)


@partial(jax.jit, static_argnums=2)
def _pressures(key: jax.Array, cfg: SdftConfig, samples: int) -> Any:
    def of_field(Ef: Any) -> Any:
        driven = SdftConfig(cfg.shape, cfg.dx, Ef, cfg.g, cfg.dt, "linear_exact", walls=True)
        return coulomb.sdft_run(
            key, driven, samples, observe=lambda s: coulomb.maxwell_wall_pressure(s, driven)
        )[1]

    return jax.vmap(of_field)(jnp.stack([jnp.asarray(cfg.Ef, jnp.float32), jnp.zeros(())]))


def quench() -> dict[str, np.ndarray]:
    """How the force relaxes after the field is switched on, in float64.

    Returns:
        ``t`` and ``excess`` ``[cases, t]`` (F(t) - F) over ``10 H^2 .. 1000 H^2``, their ``slopes``,
        ``late``: ratios to the power law at both ends ``[cases, 2]``, ``early``: first amplitudes over their
        law, one for each of `EARLY`, and ``curve_t`` and ``curve`` for the figure.
    """
    field, H = (np.array(x)[:, None] for x in zip(*RELAXING, strict=True))
    early_field, early_H, early_t = (np.array(x) for x in zip(*EARLY, strict=True))
    t, curve_t = H * H * np.geomspace(10, 1000, 9), np.geomspace(0.2, 2e4, 40)
    parts = [(t, H, field), (curve_t, H, field), (early_t, early_H, early_field)]
    with jax.enable_x64(True):
        # One after the other in one program: together their nodes would fill the memory.
        flat = [
            np.concatenate([np.ravel(x) for x in column])
            for column in zip(*(np.broadcast_arrays(*part) for part in parts), strict=True)
        ]
        found = np.asarray(jax.jit(lambda cases: jax.lax.map(_relaxed, cases))(tuple(flat)))
    relaxing, curve, early = np.split(found, np.cumsum([len(RELAXING) * 9, len(RELAXING) * 40]), axis=0)
    excess = relaxing[:, 0].reshape(len(RELAXING), -1)
    s = 1 + field**2
    law = field**4 / (4 * s * H * np.sqrt(2 * np.pi * s * t))
    return {
        "t": t,
        "excess": excess,
        "slopes": np.array([np.polyfit(np.log(x), np.log(y), 1)[0] for x, y in zip(t, excess, strict=True)]),
        "late": (excess / law)[:, [0, -1]],
        "early": early.sum(1) * early_H**2 / (math.pi * early_field**2 / 16),
        "curve_t": curve_t,
        "curve": curve.sum(1).reshape(len(RELAXING), -1),
        "stationary": relaxing[::9, 1],
    }


def _relaxed(case: Any) -> Any:
    """How far the force is from its stationary value, and that value."""
    t, H, field = case
    return jnp.stack([coulomb.quench_excess(t, H, field), coulomb.casimir_force(H, field, 2)])
