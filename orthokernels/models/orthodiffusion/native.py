"""A U-Net whose features are computed by the native engine, for those who have PyTorch around it."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch
from torch import Tensor

from orthokernels.models.native.unet import UNetPlan
from orthokernels.models.orthodiffusion.unet import UNet


class NativeUNet:
    """``UNet.features`` by plans, one for each shape of volume and set of features.

    The network's weights are read when a plan is built: a network that learns meanwhile needs a new ``NativeUNet``.

    Args:
        unet: in evaluation, on the CPU.
        exact: direct convolutions only.
    """

    def __init__(self, unet: UNet, *, exact: bool = False) -> None:
        self.unet = unet
        self.exact = exact
        self._plans: dict[tuple[object, ...], UNetPlan] = {}
        self._in_use = threading.Lock()  # a plan keeps its timestep from when it is set until it has run

    def features(self, x: Tensor, timesteps: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """As ``UNet.features``, one volume after the other; without gradients.

        Raises:
            ValueError: as ``UNet.features``; or the volumes are not float32 on the CPU.
        """
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise ValueError(f"x: {x.dtype} on {x.device}; the native engine takes float32 on the CPU.")
        if timesteps.shape != x.shape[:1]:
            raise ValueError(f"timesteps of shape {tuple(timesteps.shape)} for a batch of {x.shape[0]}")
        wanted = tuple(names)
        made = []
        for volume, timestep in zip(x, timesteps.tolist(), strict=True):
            with self._in_use:
                plan = self.plan(tuple(volume.shape[1:]), wanted, timestep)
                found = plan.run(volume.detach().numpy(), threads=torch.get_num_threads())
            made.append({name: torch.from_numpy(found[name]) for name in plan.names})
        return {name: torch.stack([own[name] for own in made]) for name in made[0]}

    def plan(self, sides: tuple[int, ...], names: tuple[str, ...], timestep: float) -> UNetPlan:
        """The plan of a shape, made where there is none yet."""
        key = (sides, names)
        if key in self._plans:
            self._plans[key].set_timestep(timestep)
            return self._plans[key]
        state = {name: value.detach().numpy() for name, value in self.unet.state_dict().items()}
        made = UNetPlan(
            state, sides=sides, names=names, timestep=timestep, heads=self.unet.heads,
            head_channels=self.unet.head_channels, groups=self.unet.groups, patch=self.unet.patch, exact=self.exact,
        )  # fmt: skip
        self._plans[key] = made
        return made
