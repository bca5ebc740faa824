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
        H = jnp.geomspace(2, 100, 40)
        fields = jnp.asarray(FIELDS_2D)[:, None]
        force = jax.jit(lambda H: coulomb.casimir_force(H, fields, 2))(H)
        far, near = jnp.geomspace(10, 100, 12), jnp.geomspace(10, 50, 8)
        slopes_2d = coulomb.log_slope(far, coulomb.casimir_force(far, fields, 2))
        three = coulomb.casimir_force(near, jnp.asarray(FIELDS_3D)[:, None], 3)
        return {
            "H": np.asarray(H),
            "force": np.asarray(force),
            "slopes_2d": np.asarray(slopes_2d),
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
    found = coulomb.mean_with_error(jnp.asarray(pressures[0] - pressures[1]))
    field, s = float(np.asarray(cfg.Ef)), 1 + float(np.asarray(cfg.Ef)) ** 2
    with jax.enable_x64(True):
        m = jnp.arange(1, cfg.shape[0] // 2)[:, None]
        p = jnp.arange(cfg.shape[1]) * math.pi / H
        kx = 2 * math.pi / Lx * m
        with_field, without = (coulomb.mode_structure_factor(kx**2 + p**2, kx, x).s_qq for x in (field, 0.0))
        far_apart = float(coulomb.wall_pressure(field, 2))
        box = float(coulomb.mode_sum_force(with_field - without, H, Lx)) - far_apart
        closed = float(coulomb.casimir_force(H, field, 2))
    force = float(found.mean) - far_apart
    return {
        "force": np.array(force),
        "error": np.array(found.error),
        "tau": np.array(found.tau),
        "box": np.array(box),
        "corrected": np.array(force + field**2 / (2 * s * H * Lx)),
        "closed": np.array(closed),
    }


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
    with jax.enable_x64(True):
        excess = jax.jit(coulomb.quench_excess)
        found, times = [], []
        for field, H in RELAXING:
            t = H * H * jnp.geomspace(10, 1000, 9)
            times.append(t)
            found.append(excess(t, H, field))
        t, values = np.stack(times), np.stack(found)
        field, H = (np.array(x)[:, None] for x in zip(*RELAXING, strict=True))
        s = 1 + field**2
        law = field**4 / (4 * s * H * np.sqrt(2 * np.pi * s * t))
        early = [
            float(coulomb.casimir_force_quench(time, H, field)) * H**2 / (math.pi * field**2 / 16)
            for field, H, time in EARLY
        ]
        curve_t = jnp.geomspace(0.2, 2e4, 40)
        curve = [
            np.asarray(excess(curve_t, H, field) + coulomb.casimir_force(H, field, 2))
            for field, H in RELAXING
        ]
        return {
            "t": t,
            "excess": values,
            "slopes": np.stack([np.asarray(coulomb.log_slope(*x)) for x in zip(t, values, strict=True)]),
            "late": (values / law)[:, [0, -1]],
            "early": np.array(early),
            "curve_t": np.asarray(curve_t),
            "curve": np.stack(curve),
            "stationary": np.array([float(coulomb.casimir_force(H, field, 2)) for field, H in RELAXING]),
        }
