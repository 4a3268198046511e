"""From tissue to signal: what a spin-echo series receives from each part of the anatomy.

Relaxation times are typical of 3 T, after Jordan et al., Musculoskeletal MRI at 3.0T and 7.0T (Eur J Radiol 2013),
and Pai et al., A comparative study at 3 Tesla of sequence dependence of T2 quantitation in the knee (Magn Reson
Imaging 2008); those of cortex, tendon, meniscus and vessels are chosen for how dark they look in such series.

Proton densities are effective ones: trabeculae take from marrow's, magnetisation transfer from muscle's and
cartilage's. They, and the T2 of fat, marrow and muscle, are set so that a spin echo of 6 to 50 ms gives the ratios of
a real multi-echo series (bench/phantom.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from orthokernels.data.phantom.parts import Part


class Tissue(NamedTuple):
    """Proton density relative to water, relaxation times in ms, and the share of the protons that are fat."""

    proton_density: float
    t1: float
    t2: float
    fat: float = 0.0


class Contrast(NamedTuple):
    """A spin-echo contrast: times in ms; ``fat_left`` is the share of fat's signal that suppression leaves, or 1."""

    echo_time: float
    repetition_time: float
    fat_left: float


_NOTHING = Tissue(0.0, 1000.0, 10.0)
_CORTEX = Tissue(0.15, 500.0, 5.0)
_MARROW = Tissue(0.74, 365.0, 122.0, 0.88)
_SCAR = Tissue(0.6, 365.0, 50.0, 0.85)
_OEDEMA = Tissue(0.78, 900.0, 85.0, 0.42)
_FAINT_OEDEMA = Tissue(0.76, 600.0, 95.0, 0.72)
_CLEFT = Tissue(0.90, 1800.0, 80.0)
_CARTILAGE = Tissue(0.60, 1200.0, 36.0)
_FIBROCARTILAGE = Tissue(0.55, 900.0, 13.0)

TISSUES: dict[Part, Tissue] = {
    Part.AIR: _NOTHING,
    Part.SKIN: Tissue(0.65, 900.0, 24.0),
    Part.SUBCUTANEOUS_FAT: Tissue(1.0, 370.0, 120.0, 0.97),
    Part.FASCIA: Tissue(0.50, 900.0, 16.0, 0.2),
    Part.DEEP_FAT: Tissue(0.95, 380.0, 115.0, 0.93),
    Part.HOFFA_FAT: Tissue(0.93, 390.0, 114.0, 0.91),
    Part.MUSCLE: Tissue(0.58, 1400.0, 30.5, 0.03),
    Part.TENDON: Tissue(0.45, 800.0, 8.0),
    Part.LIGAMENT: Tissue(0.50, 850.0, 10.0),
    Part.ARTERY: Tissue(0.30, 1600.0, 20.0),
    Part.VEIN: Tissue(0.70, 1900.0, 42.0),
    Part.NERVE: Tissue(0.75, 1100.0, 50.0, 0.2),
    Part.FLUID: Tissue(1.0, 3700.0, 600.0),
    Part.SYNOVIUM: Tissue(0.85, 900.0, 50.0, 0.6),
    Part.FEMUR_CORTEX: _CORTEX,
    Part.FEMUR_MARROW: _MARROW,
    Part.FEMUR_SCAR: _SCAR,
    Part.TIBIA_CORTEX: _CORTEX,
    Part.TIBIA_MARROW: _MARROW,
    Part.TIBIA_SCAR: _SCAR,
    Part.PATELLA_CORTEX: _CORTEX,
    Part.PATELLA_MARROW: _MARROW,
    Part.FIBULA_CORTEX: _CORTEX,
    Part.FIBULA_MARROW: _MARROW,
    Part.FEMORAL_CARTILAGE: _CARTILAGE,
    Part.TIBIAL_CARTILAGE: _CARTILAGE,
    Part.PATELLAR_CARTILAGE: Tissue(0.60, 1200.0, 38.0),
    Part.MEDIAL_MENISCUS: _FIBROCARTILAGE,
    Part.LATERAL_MENISCUS: _FIBROCARTILAGE,
    Part.ACL: Tissue(0.62, 950.0, 19.0),
    Part.PCL: Tissue(0.52, 900.0, 12.0),
    Part.BONE_CORTEX: _CORTEX,
    Part.BONE_MARROW: _MARROW,
    Part.CARTILAGE: _CARTILAGE,
    Part.LABRUM: _FIBROCARTILAGE,
    Part.MARROW_OEDEMA: _OEDEMA,
    Part.FAINT_MARROW_OEDEMA: _FAINT_OEDEMA,
    Part.FAT_OEDEMA: Tissue(0.95, 900.0, 90.0, 0.55),
    Part.TORN_FIBRES: Tissue(0.80, 1300.0, 42.0),
    Part.DEGENERATE_FIBRES: Tissue(0.65, 1000.0, 25.0),
    Part.TORN_ACL: Tissue(0.78, 1250.0, 36.0),
    Part.MUCOID_ACL: Tissue(0.66, 1000.0, 25.0),
    Part.TORN_PCL: Tissue(0.76, 1200.0, 33.0),
    Part.TORN_MEDIAL_MENISCUS: _CLEFT,
    Part.TORN_LATERAL_MENISCUS: _CLEFT,
    Part.DEGENERATE_MEDIAL_MENISCUS: Tissue(0.62, 1000.0, 26.0),
    Part.DEGENERATE_LATERAL_MENISCUS: Tissue(0.62, 1000.0, 26.0),
    Part.MUSCLE_OEDEMA: Tissue(0.68, 1700.0, 48.0, 0.03),
    Part.FEMUR_OEDEMA: _OEDEMA,
    Part.FAINT_FEMUR_OEDEMA: _FAINT_OEDEMA,
    Part.TIBIA_OEDEMA: _OEDEMA,
    Part.FAINT_TIBIA_OEDEMA: _FAINT_OEDEMA,
    Part.PATELLA_OEDEMA: _OEDEMA,
    Part.FAINT_PATELLA_OEDEMA: _FAINT_OEDEMA,
    Part.FIBULA_OEDEMA: _OEDEMA,
}


def spin_echo(tissue: Tissue, contrast: Contrast) -> float:
    """Signal of a spin echo, relative to water at TE 0 and infinite TR: PD (1 - exp(-TR/T1)) exp(-TE/T2)."""
    recovered = 1.0 - math.exp(-contrast.repetition_time / tissue.t1)
    left = math.exp(-contrast.echo_time / tissue.t2)
    protons = tissue.proton_density * (1.0 - tissue.fat + tissue.fat * contrast.fat_left)
    return protons * recovered * left


def signal_of_parts(contrast: Contrast) -> np.ndarray:
    """Signal of each part, (parts,) float32, in units of water's at TE 0 and infinite TR."""
    return np.array([spin_echo(TISSUES[part], contrast) for part in Part], np.float32)
