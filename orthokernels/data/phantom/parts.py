"""What a point of a joint can be: every part of the anatomy, and which of the segmented structures it belongs to."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from orthokernels.tasks import STRUCTURES


class Part(IntEnum):
    """A part of the anatomy. One tissue each, so that a table by part gives the signal."""

    AIR = 0
    SKIN = 1
    SUBCUTANEOUS_FAT = 2
    FASCIA = 3
    DEEP_FAT = 4
    HOFFA_FAT = 5
    MUSCLE = 6
    TENDON = 7
    LIGAMENT = 8
    ARTERY = 9
    VEIN = 10
    NERVE = 11
    FLUID = 12
    SYNOVIUM = 13
    FEMUR_CORTEX = 14
    FEMUR_MARROW = 15
    FEMUR_SCAR = 16
    TIBIA_CORTEX = 17
    TIBIA_MARROW = 18
    TIBIA_SCAR = 19
    PATELLA_CORTEX = 20
    PATELLA_MARROW = 21
    FIBULA_CORTEX = 22
    FIBULA_MARROW = 23
    FEMORAL_CARTILAGE = 24
    TIBIAL_CARTILAGE = 25
    PATELLAR_CARTILAGE = 26
    MEDIAL_MENISCUS = 27
    LATERAL_MENISCUS = 28
    ACL = 29
    PCL = 30
    BONE_CORTEX = 31
    BONE_MARROW = 32
    CARTILAGE = 33
    LABRUM = 34
    MARROW_OEDEMA = 35
    FAINT_MARROW_OEDEMA = 36
    FAT_OEDEMA = 37
    TORN_FIBRES = 38
    DEGENERATE_FIBRES = 39
    TORN_ACL = 40
    MUCOID_ACL = 41
    TORN_PCL = 42
    TORN_MEDIAL_MENISCUS = 43
    TORN_LATERAL_MENISCUS = 44
    DEGENERATE_MEDIAL_MENISCUS = 45
    DEGENERATE_LATERAL_MENISCUS = 46
    MUSCLE_OEDEMA = 47
    FEMUR_OEDEMA = 48
    FAINT_FEMUR_OEDEMA = 49
    TIBIA_OEDEMA = 50
    FAINT_TIBIA_OEDEMA = 51
    PATELLA_OEDEMA = 52
    FAINT_PATELLA_OEDEMA = 53
    FIBULA_OEDEMA = 54


_STRUCTURE = {
    Part.FEMUR_CORTEX: "femur",
    Part.FEMUR_MARROW: "femur",
    Part.FEMUR_SCAR: "femur",
    Part.TIBIA_CORTEX: "tibia",
    Part.TIBIA_MARROW: "tibia",
    Part.TIBIA_SCAR: "tibia",
    Part.PATELLA_CORTEX: "patella",
    Part.PATELLA_MARROW: "patella",
    Part.FIBULA_CORTEX: "fibula",
    Part.FIBULA_MARROW: "fibula",
    Part.FEMORAL_CARTILAGE: "femoral_cartilage",
    Part.TIBIAL_CARTILAGE: "tibial_cartilage",
    Part.PATELLAR_CARTILAGE: "patellar_cartilage",
    Part.MEDIAL_MENISCUS: "medial_meniscus",
    Part.LATERAL_MENISCUS: "lateral_meniscus",
    Part.ACL: "acl",
    Part.PCL: "pcl",
    Part.TORN_ACL: "acl",
    Part.MUCOID_ACL: "acl",
    Part.TORN_PCL: "pcl",
    Part.TORN_MEDIAL_MENISCUS: "medial_meniscus",
    Part.TORN_LATERAL_MENISCUS: "lateral_meniscus",
    Part.DEGENERATE_MEDIAL_MENISCUS: "medial_meniscus",
    Part.DEGENERATE_LATERAL_MENISCUS: "lateral_meniscus",
    Part.FEMUR_OEDEMA: "femur",
    Part.FAINT_FEMUR_OEDEMA: "femur",
    Part.TIBIA_OEDEMA: "tibia",
    Part.FAINT_TIBIA_OEDEMA: "tibia",
    Part.PATELLA_OEDEMA: "patella",
    Part.FAINT_PATELLA_OEDEMA: "patella",
    Part.FIBULA_OEDEMA: "fibula",
}


def label_of_part() -> np.ndarray:
    """The label of each part, (parts,) uint8: a structure's index in ``tasks.STRUCTURES``, or 0."""
    index = {s.key: s.index for s in STRUCTURES}
    labels = np.zeros(len(Part), np.uint8)
    for part, key in _STRUCTURE.items():
        labels[part] = index[key]
    return labels
