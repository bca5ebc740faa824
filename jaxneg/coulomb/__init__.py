"""Two Coulomb field theories out of equilibrium: driven electrolytes, and polar chemotaxis.

Closed forms of the linear theory (structure factors, correlations in space, the force between walls), exact
and exponential integrators of the stochastic equations in Fourier space, on one device or in slabs over a
mesh, and what is measured on their fields. Everything is in the precision of its arguments: for digits beyond
float32's set ``jax_enable_x64``.
"""

from jaxneg.coulomb.casimir import (
    casimir_amplitude,
    casimir_force,
    casimir_force_quench,
    mode_sum_force,
    quench_excess,
    wall_pressure,
)
from jaxneg.coulomb.chemotaxis import (
    ChemotaxisConfig,
    chemotaxis_init,
    chemotaxis_rhs,
    chemotaxis_run,
    chemotaxis_step,
    etdrk2_step,
)
from jaxneg.coulomb.conductivity import conductivity_integral
from jaxneg.coulomb.driven_electrolyte import (
    SdftConfig,
    SdftState,
    density_fields,
    electric_current,
    maxwell_wall_pressure,
    sdft_drift,
    sdft_init,
    sdft_run,
    sdft_step,
)
from jaxneg.coulomb.exponents import Exponents, exponents
from jaxneg.coulomb.grid import SpectralGrid, power_spectrum
from jaxneg.coulomb.measurements import (
    MeanWithError,
    RadialSpectrum,
    correlation_time,
    log_slope,
    mean_with_error,
    radial_spectrum,
    time_correlation,
)
from jaxneg.coulomb.propagator import ou_noise_factor, propagator, quench_structure_factor
from jaxneg.coulomb.real_space import grid_correlation, real_space_tail, second_harmonic
from jaxneg.coulomb.slab_fft import sharded_irfftn, sharded_rfftn, slab_grid
from jaxneg.coulomb.structure_factor import (
    PhysicalStructureFactor,
    StructureFactor,
    long_wavelength_limit,
    mode_structure_factor,
    physical_structure_factor,
    structure_factor,
)

__all__ = [
    "ChemotaxisConfig",
    "Exponents",
    "MeanWithError",
    "PhysicalStructureFactor",
    "RadialSpectrum",
    "SdftConfig",
    "SdftState",
    "SpectralGrid",
    "StructureFactor",
    "casimir_amplitude",
    "casimir_force",
    "casimir_force_quench",
    "chemotaxis_init",
    "chemotaxis_rhs",
    "chemotaxis_run",
    "chemotaxis_step",
    "conductivity_integral",
    "correlation_time",
    "density_fields",
    "electric_current",
    "etdrk2_step",
    "exponents",
    "grid_correlation",
    "log_slope",
    "long_wavelength_limit",
    "maxwell_wall_pressure",
    "mean_with_error",
    "mode_structure_factor",
    "mode_sum_force",
    "ou_noise_factor",
    "physical_structure_factor",
    "power_spectrum",
    "propagator",
    "quench_excess",
    "quench_structure_factor",
    "radial_spectrum",
    "real_space_tail",
    "sdft_drift",
    "sdft_init",
    "sdft_run",
    "sdft_step",
    "second_harmonic",
    "sharded_irfftn",
    "sharded_rfftn",
    "slab_grid",
    "structure_factor",
    "time_correlation",
    "wall_pressure",
]
