"""Turns the ops on inside someone's model.

    report = orthokernels.accelerate(model)     # after model.to(device)
    print(report)                               # what was replaced, and what was not, with the reason
    orthokernels.restore(model)

A module keeps its place, its parameters and its state dict: it is given a subclass of its own class, whose forward
calls the ops. Modules are known by what they hold: residual and attention blocks of guided-diffusion (this project's,
the published ones), MONAI's residual blocks of ``DiffusionModelUNet`` and ``AutoencoderKL`` and its self-attention, and
any ``nn.Sequential`` in which a GroupNorm is followed by a SiLU. Blocks of others' classes are tried on random numbers
first (``trial``), and replaced where they compute the same; of PyTorch's and MONAI's modules, a subclass with a forward
of its own is left. Where all of this project's decoder is replaced, it reads its skips where they lie: nothing is
concatenated. An attention block of guided-diffusion over few voxels is one op, ``attention_block``, which goes with
"attention3d". On a processor convolutions are replaced too, in training those of all but small volumes, which are then
differentiable once, and attention without bias and window stays PyTorch's; on a GPU convolutions are cuDNN's and stay
so.

What comes afterwards is not looked at: a hook that is put on a GroupNorm whose work an op has taken over is not called.
``torch.jit.script``, ``torch.fx`` and ONNX export want ``restore`` first, ``torch.compile`` and ``torch.export`` do
not.

No kernel was timed on a GPU yet, so nothing is left out for being slower there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from orthokernels.acceleration import blocks, fused_optimisers
from orthokernels.acceleration.classes import is_accelerated, is_covered, original_of
from orthokernels.acceleration.rules import class_for, is_project_unet, rule_of
from orthokernels.backends.registry import can_accelerate, ops_of

ON_A_GPU = ("group_norm_silu", "upsample2x_trilinear", "attention3d")
OPS = (*ON_A_GPU, "conv3d")
BACKENDS = ("auto", "torch", "cpu", "triton")  # those that compute any of OPS


@dataclass(frozen=True)
class Row:
    """A module: the ops that it calls now, or the reason why it was left as it is."""

    name: str
    kind: str
    ops: tuple[str, ...] = ()
    reason: str = ""


@dataclass
class Report:
    """What ``accelerate`` did."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def replaced(self) -> list[Row]:
        return [row for row in self.rows if row.ops]

    @property
    def left(self) -> list[Row]:
        return [row for row in self.rows if not row.ops]

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} modules replaced, {len(self.left)} left as they are"]
        lines += [f"  {row.name or '(model)'}: {row.kind} -> {', '.join(row.ops)}" for row in self.replaced]
        lines += [f"  {row.name or '(model)'}: {row.kind}, left: {row.reason}" for row in self.left]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def accelerate(
    model: nn.Module,
    *,
    ops: str | Sequence[str] = "auto",
    memory_format: torch.memory_format | None = torch.channels_last_3d,
    backend: str = "auto",
) -> Report:
    """Let a model's modules call the ops, in place.

    Args:
        model: on the device that it will run on, since kernels are chosen for it. Call again after moving it, after
            weight_norm and fully_shard (they make classes of their own), and before DistributedDataParallel.
        ops: "auto" for all that a kernel computes there, or names of ``OPS``.
        memory_format: that parameters are brought into, where a module was replaced, and what fused optimisers keep
            beside them follows; None leaves them, and so does a model that holds a DistributedDataParallel.
        backend: of the ops: "auto", or one by name, which is then called wherever the model runs.

    Returns:
        Every module that an op could serve: replaced, or left with the reason.

    Raises:
        ValueError: an unknown op or backend, or a module that ``restore`` refuses.
        BackendUnavailable: a backend that was asked for by name can not run. Whatever is raised, nothing was replaced.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r}; there are {', '.join(BACKENDS)}.")
    own = next(model.parameters(), torch.empty(0))
    wanted = _wanted(ops, backend, own.device)
    reasons = {name: can_accelerate(name, backend, own.device, own.dtype) for name in wanted}
    restore(model)
    try:
        report = _replaced(model, wanted, reasons, backend)
        if memory_format is not None and report.replaced:
            report.notes += _bring(model, memory_format)
    except BaseException:
        restore(model)
        raise
    return report


def _replaced(model: nn.Module, wanted: Sequence[str], reasons: dict[str, str], backend: str) -> Report:
    """Every module that an op could serve, given the class that calls it; ``reasons`` are those of the device."""
    report = Report()
    inside: list[str] = []  # of blocks that were looked at: their sequences are theirs
    # A network's own rule looks at what became of its blocks.
    modules = sorted(model.named_modules(), key=lambda named: is_project_unet(named[1]))
    for name, module in modules:
        rule = rule_of(module)
        if rule is None or (rule.forward is blocks.sequence and any(name.startswith(block) for block in inside)):
            continue
        if not is_project_unet(module) and rule.forward is not blocks.sequence:
            inside.append(f"{name}." if name else "")
        kind = type(module).__name__
        served = [op for op in rule.ops if op in wanted]
        if not served and rule.ops == ("conv3d",):
            continue  # a network has dozens, and nobody expects them in the list
        if not served:
            report.rows.append(Row(name, kind, reason=f"{', '.join(rule.ops)} was not asked for"))
        elif isinstance(made := reasons[served[0]] or class_for(module, rule, backend), str):
            report.rows.append(Row(name, kind, reason=made))
        else:
            module.__class__ = made
            report.rows.append(Row(name, kind, tuple(served)))
    return report


def _bring(model: nn.Module, memory_format: torch.memory_format) -> list[str]:
    """Parameters into a memory format. ``Module.to`` asks for it where it means nothing: weights in 2D."""
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        # Its buckets keep the strides that gradients had when it was made.
        return [
            "the memory format was left: DistributedDataParallel laid out its gradients; accelerate before wrapping"
        ]
    fused_optimisers.keep_in_order()
    axes = {torch.channels_last: (4,), torch.channels_last_3d: (5,)}.get(memory_format, (4, 5))
    for parameter in model.parameters():
        if not is_lazy(parameter) and parameter.ndim in axes:
            parameter.data = parameter.data.to(memory_format=memory_format)
            if parameter.grad is not None:
                parameter.grad.data = parameter.grad.data.to(memory_format=memory_format)
    return []


def _wanted(ops: str | Sequence[str], backend: str, device: torch.device) -> tuple[str, ...]:
    """The ops to use, as ``accelerate`` was asked; "auto" leaves convolutions to who does them best on a GPU."""
    if ops == "auto":
        computed = ops_of(backend) if backend != "auto" else OPS if device.type == "cpu" else ON_A_GPU
        return tuple(name for name in OPS if name in computed)
    wanted = (ops,) if isinstance(ops, str) else tuple(ops)
    if unknown := [name for name in wanted if name not in OPS]:
        raise ValueError(f"ops: {unknown[0]!r}; there are {', '.join(OPS)}, and auto.")
    return wanted


def restore(model: nn.Module) -> None:
    """Undo ``accelerate``: every module has its own class again. The parameters' memory format stays.

    Raises:
        ValueError: another class was made on top of a module's (by weight_norm, by fully_shard). Nothing was changed.
    """
    for name, module in model.named_modules():
        if is_covered(module):
            raise ValueError(
                f"model: {name or '(model)'} became {type(module).__name__} after accelerate; undo that first "
                "(remove_parametrizations undoes weight_norm), or make the model again and accelerate it last."
            )
    for module in model.modules():
        if is_accelerated(module):
            module.__class__ = original_of(module)
