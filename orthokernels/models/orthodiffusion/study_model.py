"""The reference model as the pipeline asks for it: PyTorch inside, NumPy arrays in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.features import Network
from orthokernels.models.orthodiffusion.inference import SlabFeatures, series_vector, slab_features, slab_output
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.models.orthodiffusion.weights import PlaneWeights, Weights
from orthokernels.models.patient_data import PatientColumns
from orthokernels.models.study_model import Array, SlabOutput


class TorchPlane:
    """One plane's modules on a device, convolutions in channels-last memory.

    Args:
        weights: in evaluation; moved to the device.
        device: that features and heads are computed on.
        engines: what computes a network's features, where not the network itself.
    """

    def __init__(
        self, weights: PlaneWeights, device: torch.device, engines: Mapping[UNet, Network] | None = None
    ) -> None:
        self.weights, self.device, self._engines = weights, device, engines
        for module in weights.modules().values():
            module.to(device)
        for unet in weights.networks():
            unet.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    @property
    def timestep(self) -> int:
        return self.weights.timestep

    @property
    def block(self) -> str:
        return self.weights.block

    @property
    def classes(self) -> int | None:
        return None if self.weights.segmentation is None else self.weights.segmentation.classes

    @property
    def scores(self) -> bool:
        return self.weights.head is not None

    @torch.inference_mode()
    def features(self, x0: Array, *, seed: int, draws: int, sample: int) -> SlabFeatures:
        return slab_features(
            self.weights, self._tensor(x0), seed=seed, draws=draws, sample=sample, engines=self._engines
        )

    @torch.inference_mode()
    def heads(self, found: SlabFeatures, x0: Array) -> SlabOutput:
        output = slab_output(self.weights, found, self._tensor(x0))
        return SlabOutput(
            *(None if own is None else own[0].float().cpu().numpy() for own in (output.logits, output.vector))
        )

    @torch.inference_mode()
    def series_vector(self, slabs: Sequence[Array]) -> Array:
        found: Array = series_vector(self.weights, [self._row(slab) for slab in slabs])[0].cpu().numpy()
        return found

    @torch.inference_mode()
    def score(self, vector: Array) -> Array:
        assert self.weights.head is not None
        logits: Array = self.weights.head(self._row(vector))[0].cpu().numpy()
        return logits

    def release(self) -> None:
        """Nothing: the weights are the caller's, and PyTorch keeps no more than them."""

    def _row(self, vector: Array) -> Tensor:
        return torch.from_numpy(vector)[None].to(self.device)

    def _tensor(self, x0: Array) -> Tensor:
        volume = torch.from_numpy(x0)[None, None].to(self.device)  # [1, 1, 16, size, size]
        return volume.contiguous(memory_format=torch.channels_last_3d)


class TorchModel:
    """Weights as a ``StudyModel``.

    Args:
        weights: of one joint.
        device: that everything but the fusion, which is tiny, is computed on.
        native: features by the package's own C++ instead, on the CPU.
    """

    form = "fp32"
    bundle = None

    def __init__(self, weights: Weights, device: torch.device, *, native: bool = False) -> None:
        self.weights = weights
        self.engine = "native" if native else "torch"
        self.name, self.trained, self.notice = weights.name, weights.trained, weights.notice
        self.joint, self.size, self.thresholds = weights.joint, weights.size, weights.thresholds
        self.preparation = weights.preparation
        self.digest = weights.digest()
        self.fusion_name = weights.fusion_name if weights.fusion is not None else None
        self.late_fusion = weights.late_fusion_card
        self.planes = {
            plane: TorchPlane(own, device, _native(own) if native else None) for plane, own in weights.planes.items()
        }

    def release(self) -> None:
        """Nothing, as a plane's."""

    @torch.inference_mode()
    def fuse(self, planes: Array) -> tuple[Array, Array | None]:
        assert self.weights.fusion is not None
        fusion, rows = self.weights.fusion.to("cpu"), torch.from_numpy(np.ascontiguousarray(planes))
        if self.fusion_name == "gating":
            logits, shares = fusion(rows[None])
            return logits[0].numpy(), shares[0].numpy()
        return fusion(*rows[:, None])[0].numpy(), None

    @torch.inference_mode()
    def fuse_with_patient(self, vectors: Array, patient: PatientColumns) -> tuple[Array, Array]:
        assert self.weights.late_fusion is not None
        columns = (patient.continuous, patient.sex, patient.patient_type)
        found = self.weights.late_fusion.to("cpu")(
            torch.from_numpy(np.ascontiguousarray(vectors).reshape(1, -1)),
            *(torch.from_numpy(column)[None] for column in columns),
            torch.tensor([patient.event]),
        )
        return found["fused"][0].numpy(), found["alpha"].numpy()


def _native(weights: PlaneWeights) -> dict[UNet, Network]:
    from orthokernels.models.orthodiffusion.native import NativeUNet

    return {unet: NativeUNet(unet) for unet in weights.networks()}


def load_torch(weights: Weights, device: str = "auto", *, native: bool = False) -> TorchModel:
    """The reference model on a device: "auto", "cpu" or "cuda[:N]".

    Raises:
        InputError: the device can not be used.
    """
    return TorchModel(weights, torch.device("cpu") if native else device_named(device), native=native)


def device_named(name: str) -> torch.device:
    """The device of a name, "auto", "cpu" or "cuda[:N]".

    Raises:
        InputError: it can not be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("networks run on cpu and cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {name!r} can't be used: {str(error).splitlines()[0]}. Use 'cpu' or 'auto'."
        ) from error
    return device
