"""What each op takes, gives and promises, in one table; ``orthokernels info --ops`` prints it."""

from __future__ import annotations

from dataclasses import dataclass

from orthokernels.backends.registry import backends

_ALL = ("float32", "float16", "bfloat16", "float64 in plain PyTorch")


@dataclass(frozen=True)
class Capability:
    """One op.

    Attributes:
        op: its name, and that of its file in every room.
        computes: in a line.
        shapes: of what it is given first, and the limits.
        memory: formats that it reads in place and keeps.
        dtypes: of volumes or tokens; sums are float32, float64 for float64.
        gradients: the inputs that have one.
        contract: how exact the result is, and what is the same in every run.
    """

    op: str
    computes: str
    shapes: str
    memory: str
    dtypes: tuple[str, ...]
    gradients: str
    contract: str


_TWICE = "error at most twice plain PyTorch's against float64"
_BYTES = "two runs on one device, one setting: the same bytes"
_BOTH = "contiguous, channels last; kept"

CAPABILITIES = (
    Capability(
        "group_norm_silu", "group normalisation, time embedding or FiLM, SiLU; a skip read as if concatenated",
        "(N, C, *voxels), groups divide C; places are 64 bits wide", _BOTH, _ALL,
        "x, skip, weight, bias, shift, scale_shift", f"two-pass moments; {_TWICE}; {_BYTES}",
    ),
    Capability(
        "attention3d", "attention over D x H x W tokens, relative-position bias, windows",
        "(N, heads, d, T); d to 256",
        "any strides; order of channels and tokens kept", _ALL, "q, k, v, bias", f"{_TWICE}; {_BYTES}",
    ),
    Capability(
        "attention_block", "group normalisation, attention over few tokens, projection and residual, in two launches",
        "(N, C, *voxels), heads divide C; to 1,024 voxels, C to 512 in half precision, 256 in float32", _BOTH, _ALL,
        "x, and all parameters", f"two-pass moments; {_TWICE}; {_BYTES}",
    ),
    Capability(
        "attention_pool", "attention, then the mean over its queries",
        "(N, heads, T, d); d to 256, in float32 on the cuda backend to 128", "any strides", _ALL, "q, k, v",
        f"{_TWICE}; {_BYTES}",
    ),
    Capability(
        "conv3d", "convolution of 3 x 3 x 3 or 1 x 1 x 1, stride 1 or 2, zeros around",
        "(N, C, D, H, W)", _BOTH, ("float32", "any in plain PyTorch"), "x, weight, bias",
        "relative L2 error to 4e-6 at 64 channels, of the weights' gradient to 8e-6 (1e-6 with exact=True, and there "
        "PyTorch's); an outlier or NaN reaches the outputs of its tile, and inputs near 1e36 may overflow, but for "
        "exact=True; the same bytes at any number of threads, but for weights' gradients of 1 x 1 x 1, of few channels "
        "and of small volumes, which PyTorch sums",
    ),
    Capability(
        "denoise_step", "a step of DDPM, DDIM, DPM-Solver++(2M) or rectified flow, noise inside",
        "(N, C, *voxels)", _BOTH, _ALL, "none: sampling has none",
        "float32 arithmetic, rounded once; the noise's bits depend on seed, step and place alone",
    ),
    Capability(
        "add_noise", "clean volumes to noisy ones, noise drawn inside or given", "(N, C, *voxels)", _BOTH, _ALL,
        "none", "float32 arithmetic, rounded once; noise as denoise_step's",
    ),
    Capability(
        "diffusion_loss", "target, error, weight and mean of the denoiser's loss", "(N, C, *voxels)",
        "any; computed in the clean volume's format", _ALL, "prediction", f"relative error 1e-5 in float32; {_BYTES}",
    ),
    Capability(
        "plane_fusion", "three planes' features on one grid, mixed by a gate",
        "three of (N, C, D, H, W), sides of their own, any may be missing", _BOTH, _ALL, "volumes, gates",
        f"within 1e-4 of the largest value in float32 (coordinates are float32); {_BYTES}",
    ),
    Capability(
        "plane_gating", "the planes' logits mixed by a gate, all labels at once",
        "(N, P, labels), P to 8, hidden units to 128", "contiguous", _ALL, "logits, and the gate's parameters",
        f"{_TWICE}; {_BYTES}",
    ),
    Capability(
        "upsample2x_trilinear", "trilinear doubling, as align_corners=False", "(N, C, D, H, W)", _BOTH, _ALL, "x",
        f"a rounding an addition in float32, one at the end in half precision; backward gathers, {_BYTES}",
    ),
)  # fmt: skip


def backends_of(op: str) -> dict[str, str | None]:
    """The backends that compute an op, each with the reason where it can not run here."""
    return {backend.name: backend.unavailable for backend in backends() if op in backend.ops}
