"""What the pipeline asks of a model, whichever engine computes it: NumPy arrays in and out, no PyTorch in sight.

One volume goes through as slabs of 16 slices. Each takes one noisy pass (``features``), whose maps the heads read
(``heads``); a series' vector is made of its slabs' (``series_vector``), scored by the plane's own head (``score``) or,
with the other planes', by the fusion (``StudyModel.fuse``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from orthokernels.data.prepare import Mode
from orthokernels.models.patient_data import LateFusionCard, PatientColumns

Array = NDArray[np.float32]


@dataclass(frozen=True)
class SlabOutput:
    """What the heads make of a slab; None where the model has no such head.

    Attributes:
        logits: of every class, [classes, 16, size, size].
        vector: what the pooling makes of it, [width]; ``series_vector`` makes the series' vector of its slabs'.
    """

    logits: Array | None
    vector: Array | None


class PlaneModel(Protocol):
    """One plane's denoiser and heads.

    Attributes:
        timestep, block: of the diagnosis features.
        classes: of the segmentation, with the background; None without a segmentation head.
        scores: whether ``score`` can be asked.
    """

    @property
    def timestep(self) -> int: ...
    @property
    def block(self) -> str: ...
    @property
    def classes(self) -> int | None: ...
    @property
    def scores(self) -> bool: ...

    def features(self, x0: Array, *, seed: int, draws: int, sample: int) -> Any:
        """The maps that the heads read, in whatever form the engine keeps them.

        Args:
            x0: [16, size, size], values in [-1, 1].
            seed, draws: of the noise (``feature_noise``), and how many draws the maps are averaged over.
            sample: which noise this slab gets; the pipeline gives the number of its first slice.
        """

    def heads(self, found: Any, x0: Array) -> SlabOutput:
        """Logits and vector of a slab, from what ``features`` found."""

    def series_vector(self, slabs: Sequence[Array]) -> Array:
        """A series' vector, [width], of its slabs' vectors."""

    def score(self, vector: Array) -> Array:
        """The single-plane head's logits, [labels], of a series' vector."""

    def release(self) -> None:
        """Let go of memory that this plane's ``features`` and ``heads`` alone need.

        They may be asked again, at the cost of time. What planes share stays with the ``StudyModel``.
        """


class StudyModel(Protocol):
    """Every network and head that a study of one joint needs.

    Attributes:
        name, digest, trained, notice: as ``orthokernels.result.Model`` shows them.
        engine: what computes it: "torch", "native", "openvino" or "onnxruntime".
        form: in which arithmetic, as bundles name it: "fp32", "int8", ...
        bundle: digest of the manifest it came from; None for plain weights.
        size: side of the square slices that the networks take, in pixels.
        preparation: of the studies that the heads were trained on; None where it is not known.
        fusion_name: how planes are fused, None without a fusion. "gating" reads the planes' logits, the others their
            vectors.
        thresholds: probability from which a label counts as present, where it is not 0.5.
        planes: models by plane.
        late_fusion: how a fusion with patient data reads a patient, and its thresholds; None without such a fusion.
    """

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def trained(self) -> bool: ...
    @property
    def notice(self) -> str | None: ...
    @property
    def engine(self) -> str: ...
    @property
    def form(self) -> str: ...
    @property
    def bundle(self) -> str | None: ...
    @property
    def joint(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def preparation(self) -> Mode | None: ...
    @property
    def fusion_name(self) -> str | None: ...
    @property
    def thresholds(self) -> Mapping[str, float]: ...
    @property
    def planes(self) -> Mapping[str, PlaneModel]: ...
    @property
    def late_fusion(self) -> LateFusionCard | None: ...

    def release(self) -> None:
        """Let go of all memory that ``features`` and ``heads`` need, once no plane is left to be looked at."""

    def fuse(self, planes: Array) -> tuple[Array, Array | None]:
        """Logits of a study, and the share of each plane in each label where the fusion gates.

        Args:
            planes: in the order of ``orthokernels.tasks.PLANES``: logits [3, labels] for "gating", else vectors
                [3, width].

        Returns:
            Logits [labels]; shares [3, labels] or None.
        """

    def fuse_with_patient(self, vectors: Array, patient: PatientColumns) -> tuple[Array, Array]:
        """Logits of a study with what is known of the patient, and the images' share in each.

        Args:
            vectors: of the planes, in the order of ``orthokernels.tasks.PLANES``, [3, width].
            patient: as ``late_fusion.encoding`` gives it.

        Returns:
            Logits [labels]; shares [labels].
        """
