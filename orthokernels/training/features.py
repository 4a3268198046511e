"""Feature maps of whole volumes, computed once and kept on disk.

A volume is cut into slabs as the pipeline cuts it, and each slab gets the noise that the pipeline gives it, so that
what heads are trained on is what they will be given. An entry is one .npy file, named by a hash of all it depends on:
the network's digest, the prepared volume, block, timestep, seed and draws. It is written beside its place and renamed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from orthokernels.data.prepare import SLAB, slab_starts
from orthokernels.models.orthodiffusion.diffusion import GaussianDiffusion
from orthokernels.models.orthodiffusion.features import feature_noise
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.models.orthodiffusion.weights import digest_of
from orthokernels.training.cache import PreparedCache, entry_path, write_array
from orthokernels.training.series import Record

_VERSION = 1
_BATCH = 8  # slabs in one pass

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class SlabMaps:
    """Maps of several series' slabs, one behind the other.

    Attributes:
        maps: [slabs, channels, depth, height, width], float16.
        first: [series + 1], the slab at which each series starts; the last is the number of slabs.
    """

    maps: Tensor
    first: Tensor

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen series' maps, float32, and for each slab which of the chosen it belongs to."""
        owner = torch.cat([torch.full((int(self.first[r + 1] - self.first[r]),), n) for n, r in enumerate(rows)])
        slabs = torch.cat([torch.arange(int(self.first[r]), int(self.first[r + 1])) for r in rows])
        return self.maps[slabs].float(), owner

    @classmethod
    def of(cls, series: Sequence[np.ndarray]) -> SlabMaps:
        """From each series' [slabs, channels, depth, height, width]."""
        lengths = [len(maps) for maps in series]
        return cls(torch.from_numpy(np.concatenate(series)), torch.tensor([0, *np.cumsum(lengths).tolist()]))


def mean_per_series(values: Tensor, owner: Tensor) -> Tensor:
    """Mean over each series' slabs: [slabs, width] -> [series, width]."""
    total = values.new_zeros(int(owner.max()) + 1, values.shape[1]).index_add(0, owner, values)
    return total / torch.bincount(owner).to(total)[:, None]


@functools.lru_cache(maxsize=16)
def _noise(shape: tuple[int, ...], seed: int, draw: int, sample: int) -> Tensor:
    return feature_noise(shape, seed=seed, draw=draw, sample=sample)


def noise_for(x0: Tensor, samples: Sequence[int], *, seed: int, draw: int = 0) -> Tensor:
    """The pipeline's noise for slabs [batch, 1, 16, size, size] that begin at the slices ``samples``."""
    shape = tuple(x0.shape[1:])
    return torch.stack([_noise(shape, seed, draw, sample) for sample in samples]).to(x0)


def slab_maps(
    unet: UNet,
    x0: Tensor,
    samples: Sequence[int],
    blocks: Sequence[str],
    timestep: int,
    *,
    seed: int = 0,
    draws: int = 1,
) -> dict[str, Tensor]:
    """Maps of slabs [batch, 1, 16, size, size], each noised as the pipeline noises the slab at its first slice.

    Equals ``models.orthodiffusion.features`` slab by slab; slabs of different places share a pass.
    """
    diffusion = GaussianDiffusion()
    timesteps = torch.full((len(x0),), timestep, device=x0.device)
    total: dict[str, Tensor] = {}
    for draw in range(draws):
        noisy = diffusion.add_noise(x0, timesteps, noise_for(x0, samples, seed=seed, draw=draw))
        for name, found in unet.features(noisy, timesteps, blocks).items():
            total[name] = found if draw == 0 else total[name] + found
    return {name: found / draws for name, found in total.items()} if draws > 1 else total


def slabs_of(cache: PreparedCache, record: Record) -> tuple[Tensor, tuple[int, ...]]:
    """A prepared volume's slabs, float32 [slabs, 1, 16, size, size], and the slice at which each begins."""
    slices = torch.from_numpy(cache.slices(record))
    starts = slab_starts(len(slices))
    return torch.stack([slices[start : start + SLAB] for start in starts])[:, None], starts


class FeatureStore:
    """Maps of one network, on disk.

    Args:
        folder: where entries lie.
        unet: the network; moved to ``device``.
        cache: of prepared volumes.
        seed, draws: of the noise, as the pipeline's.
    """

    def __init__(
        self,
        folder: Path,
        unet: UNet,
        cache: PreparedCache,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        draws: int = 1,
    ) -> None:
        self.folder, self.cache, self.device = Path(folder), cache, torch.device(device)
        self.digest = digest_of(unet.state_dict())
        self.unet = unet.eval().to(self.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.seed, self.draws = seed, draws

    def maps(
        self, records: Sequence[Record], block: str, timestep: int, *, tell: Tell = lambda done, total: None
    ) -> list[np.ndarray]:
        """Each record's maps, float16 [slabs, channels, depth, height, width]."""
        return self._entries(records, (block,), timestep, "map", tell)[block]

    def means(
        self, records: Sequence[Record], blocks: Sequence[str], timestep: int, *, tell: Tell = lambda done, total: None
    ) -> dict[str, Tensor]:
        """Each record's mean over slabs and voxels, float32 [records, channels], for several blocks from one pass."""
        found = self._entries(records, tuple(blocks), timestep, "mean", tell)
        return {block: torch.from_numpy(np.stack([m.mean(axis=0) for m in means])) for block, means in found.items()}

    def _entries(
        self, records: Sequence[Record], blocks: tuple[str, ...], timestep: int, form: str, tell: Tell
    ) -> dict[str, list[np.ndarray]]:
        missing = [r for r in records if any(read_array(self._path(r, b, timestep, form)) is None for b in blocks)]
        done = 0
        for group in self._groups(missing):
            tell(done, len(missing))
            self._compute(group, blocks, timestep, form)
            done += len(group)
        found: dict[str, list[np.ndarray]] = {}
        for block in blocks:
            entries = [read_array(self._path(record, block, timestep, form)) for record in records]
            assert all(entry is not None for entry in entries)
            found[block] = [entry for entry in entries if entry is not None]
        return found

    def _groups(self, records: Sequence[Record]) -> Iterator[list[Record]]:
        """Records whose slabs fill a pass."""
        group: list[Record] = []
        slabs = 0
        for record in records:
            group.append(record)
            slabs += len(slab_starts(self.cache.depth(record)))
            if slabs >= _BATCH:
                yield group
                group, slabs = [], 0
        if group:
            yield group

    @torch.inference_mode()
    def _compute(self, records: Sequence[Record], blocks: tuple[str, ...], timestep: int, form: str) -> None:
        slabs, starts = zip(*(slabs_of(self.cache, record) for record in records), strict=True)
        x0 = torch.cat(slabs).to(self.device).contiguous(memory_format=torch.channels_last_3d)
        samples = [start for own in starts for start in own]
        found = slab_maps(self.unet, x0, samples, blocks, timestep, seed=self.seed, draws=self.draws)
        for block, maps in found.items():
            values = maps.float().flatten(2).mean(dim=2) if form == "mean" else maps.half().contiguous()
            for record, own in zip(records, values.cpu().split([len(s) for s in starts]), strict=True):
                write_array(self._path(record, block, timestep, form), own.numpy())

    def _path(self, record: Record, block: str, timestep: int, form: str) -> Path:
        told = f"{_VERSION} {self.digest} {self.cache.key(record)} {block} {timestep} {self.seed} {self.draws} {form}"
        return entry_path(self.folder, told, form)


def read_array(path: Path) -> np.ndarray | None:
    """An entry; None where it is missing or broken."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
