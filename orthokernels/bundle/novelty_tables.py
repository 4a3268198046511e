"""What a bundle knows of the studies that its model was made for, written when it is made and read with each study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from orthokernels.bundle.manifest import Known
from orthokernels.bundle.verify import Bundle
from orthokernels.errors import InputError
from orthokernels.models.study_model import Array
from orthokernels.novelty import Novelty

FOLDER = "novelty"
DOUBTFUL_ABOVE = 99.0  # percent of the known studies


def write_table(folder: Path, joint: str, plane: str, novelty: Novelty) -> str:
    """Write a plane's table into a bundle's folder; its path there."""
    name = f"{FOLDER}/{joint}.{plane}.safetensors"
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    # Not save_file, whose files only their owner can read: whoever serves a bundle is seldom who made it.
    path.write_bytes(save({key: np.ascontiguousarray(own) for key, own in novelty.arrays().items()}))
    return name


def read_tables(bundle: Bundle, joint: str) -> dict[str, Novelty]:
    """What is known of each plane of a joint; planes of which nothing is known are not in it.

    Args:
        bundle: that was verified.

    Raises:
        InputError: a table can not be read, or its arrays do not fit together.
    """
    joints = bundle.manifest.joints
    planes = joints[joint].planes if joint in joints else {}
    return {plane: _read(bundle, own.known) for plane, own in planes.items() if own.known is not None}


def _read(bundle: Bundle, known: Known) -> Novelty:
    path = bundle.unchanged(known.file)
    try:
        return Novelty.of(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: is no table of known studies ({error}). Make the bundle again.") from error


def unlike_the_known(bundle: Bundle, joint: str, vectors: Mapping[str, Array]) -> Iterator[str]:
    """A sentence for each plane that is more unlike the known studies than nearly all of these.

    Args:
        bundle: that was verified.
        joint: that the study shows.
        vectors: of its planes, [width] each.

    Raises:
        InputError: as ``read_tables``.
    """
    for plane, novelty in read_tables(bundle, joint).items():
        if plane in vectors and novelty.score(vectors[plane]) > DOUBTFUL_ABOVE:
            yield (
                f"the {plane} volume is unlike the studies that the model is known to read: "
                f"{novelty.times_farthest(vectors[plane]):.1f} times as far from them as the farthest of these"
            )
