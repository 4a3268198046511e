"""``orthokernels train``: each command reads its settings, joins its process to the run, and calls one function.

Heavy imports are inside the commands, so that ``--help`` is instant and an extra can be missing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orthokernels.errors import InputError, need

if TYPE_CHECKING:
    from orthokernels.training.distributed import Processes

app = typer.Typer(
    no_args_is_help=True,
    help="Train: denoisers without labels, then heads on their features. Under torchrun, pretrain, segment and "
    "diagnose run on several devices; the others run as one process.",
)

SHARED = ("pretrain", "segment", "diagnose")  # commands that several processes do together

Data = Annotated[Path, typer.Option("--data", help="A folder with studies.csv, or a CSV of a published layout.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for weights, checkpoints and TensorBoard curves.")]
Planes = Annotated[str | None, typer.Option(help="Planes to train, separated by commas; all by default.")]
Config = Annotated[Path | None, typer.Option("--config", help="Settings, YAML or TOML. Defaults are the published.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="One setting, such as loop.steps=100. Repeatable.")]
Resume = Annotated[bool, typer.Option("--resume/--fresh", help="Take up the checkpoints in --out, or start again.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]


@contextmanager
def joined_run(command: str, device: str) -> Iterator[Processes]:
    """This process's part of the run, once everything that training needs is known to be installed.

    Raises:
        InputError: something is not installed, the device can't be used, or the command can't be shared.
    """
    for module in ("torch", "tensorboard", "yaml"):
        need(f"orthokernels train {command}", module, "train")
    # PyTorch reads it at its first allocation: fresh memory in large pages instead of 4 KiB at a time (bench/NOTES.md).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from orthokernels.training.distributed import joined, world_size
    from orthokernels.training.signals import AskedToStop

    if world_size() > 1 and command not in SHARED:
        raise InputError(
            f"orthokernels train {command} runs as one process, and {world_size()} were started. Start it without "
            f"torchrun; on several devices run {', '.join(SHARED)}."
        )
    with joined(device) as processes:
        try:
            yield processes
        except AskedToStop as asked:
            if processes.first:
                print(asked.told, file=sys.stderr)
            raise


def overrides(given: list[str] | None, planes: str | None) -> list[str]:
    """``--set`` and ``--planes`` as settings."""
    return [*(given or []), *([f"planes=[{planes}]"] if planes is not None else [])]


def report(lines: list[str], facts: Any, processes: Processes, quiet: bool, as_json: bool) -> None:
    """Print the result once: as JSON, as text, or not at all."""
    if not processes.first:
        return
    if as_json:
        print(json.dumps(facts))
    elif not quiet:
        print("\n".join(lines))


@app.command("settings")
def settings_command(
    command: Annotated[str, typer.Argument(help="The command that the settings are for, such as segment.")],
    config: Config = None,
    settings: Set = None,
) -> None:
    """Print all settings of a command as YAML, with what each means: a file to change, for --config.

    --config and --set are taken in, and mistakes in them told.
    """
    need("orthokernels train settings", "yaml", "train")
    from orthokernels.training.config import load_config
    from orthokernels.training.settings_file import COMMANDS, model_of, written

    if command not in COMMANDS:
        raise InputError(f"there are no settings of {command!r}; choose from {', '.join(COMMANDS)}.")
    if command == "demo":
        need("orthokernels train settings demo", "torch", "train")
        from orthokernels.training.demo import RECIPE

        config = config or RECIPE
    print(f"# Settings of orthokernels train {command}. What a file leaves out stays at its default.\n")
    print(written(load_config(model_of(command), config, settings or [])), end="")


@app.command("pretrain")
def pretrain_command(
    data: Data,
    out: Out,
    planes: Planes = None,
    config: Config = None,
    settings: Set = None,
    resume: Resume = True,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train one denoiser per plane on images alone; --out becomes a weights folder."""
    with joined_run("pretrain", device) as processes:
        from orthokernels.training.config import PretrainConfig, load_config
        from orthokernels.training.pretrain import pretrain

        chosen = load_config(PretrainConfig, config, overrides(settings, planes))
        made = pretrain(data, out, chosen, processes=processes, resume=resume, silent=quiet or as_json)
        report([one.told() for one in made], {one.plane: one.facts() for one in made}, processes, quiet, as_json)


Weights = Annotated[Path, typer.Option("--weights", "-w", help="Folder with the denoisers, of 'train pretrain'.")]


@app.command("segment")
def segment_command(
    data: Data,
    weights: Weights,
    out: Out,
    planes: Planes = None,
    config: Config = None,
    settings: Set = None,
    resume: Resume = True,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a segmentation head per plane; --out becomes a weights folder with the heads added."""
    with joined_run("segment", device) as processes:
        from orthokernels.training.config import load_config
        from orthokernels.training.config_heads import SegmentConfig
        from orthokernels.training.segment import segment

        chosen = load_config(SegmentConfig, config, overrides(settings, planes))
        silent = quiet or as_json
        made = segment(data, weights, out, chosen, processes=processes, resume=resume, silent=silent)
        lines = [
            f"{plane}: {'training' if own['validated_on_training_data'] else 'validation'} Dice "
            f"{own.get('validation/dice', float('nan')):.3f}"
            for plane, own in made.items()
        ]
        report([*lines, f"weights: {out}"], made, processes, quiet, as_json)


@app.command("diagnose")
def diagnose_command(
    data: Data,
    weights: Weights,
    out: Out,
    planes: Planes = None,
    config: Config = None,
    settings: Set = None,
    resume: Resume = True,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train poolings, heads and the fusion of the planes; --out becomes a weights folder with them added."""
    with joined_run("diagnose", device) as processes:
        from orthokernels.training.config import load_config
        from orthokernels.training.config_heads import DiagnoseConfig
        from orthokernels.training.diagnose import diagnose
        from orthokernels.training.tables import print_rows

        chosen = load_config(DiagnoseConfig, config, overrides(settings, planes))
        silent = quiet or as_json
        made = diagnose(data, weights, out, chosen, processes=processes, resume=resume, silent=silent)
        if processes.first and not silent:
            parts = {**made["planes"], **made.get("fusion", {})}
            shown = ("macro_auroc", "map", "CF1", "OF1")
            print_rows([{"": name, **{key: own.get(key) for key in shown}} for name, own in parts.items()])
        lines = [f"kept: {made.get('kept_fusion', 'no fusion')}; weights: {out}"]
        if made.get("validated_on_training_data"):
            lines.append("No study with every plane was held out: figures and thresholds are of the training data.")
        report(lines, made, processes, quiet, as_json)


@app.command("evaluate")
def evaluate_command(
    data: Data,
    weights: Annotated[str, typer.Option("--weights", "-w", help="A name or folder, as 'orthokernels run' takes it.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for tables and plots.")] = None,
    config: Config = None,
    settings: Set = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score weights on a test set: every metric with its interval; with --out also tables and plots."""
    with joined_run("evaluate", device) as processes:
        from orthokernels.training.config import load_config
        from orthokernels.training.config_heads import EvaluateConfig
        from orthokernels.training.evaluate import evaluate
        from orthokernels.training.tables import print_evaluation

        chosen = load_config(EvaluateConfig, config, settings or [])
        silent = quiet or as_json
        result = evaluate(data, weights, chosen, out, device=processes.device, silent=silent)
        if not silent:
            print_evaluation(result)
        report([], result, processes, quiet or not as_json, as_json)


@app.command("sweep")
def sweep_command(
    data: Data,
    weights: Weights,
    out: Out,
    planes: Planes = None,
    config: Config = None,
    settings: Set = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find the timestep and block of the best features on validation data; --out gets them in its settings."""
    with joined_run("sweep", device) as processes:
        from orthokernels.training.config import load_config
        from orthokernels.training.config_heads import SweepConfig
        from orthokernels.training.sweep import sweep
        from orthokernels.training.tables import print_rows

        chosen = load_config(SweepConfig, config, overrides(settings, planes))
        rows = sweep(data, weights, out, chosen, processes=processes, silent=quiet or as_json)
        if not quiet and not as_json:
            print_rows([row for row in rows if row["chosen"]])
        report([f"table and plots: {out}"], rows, processes, quiet, as_json)


@app.command("labels")
def labels_command(
    data: Data,
    weights: Weights,
    out: Out,
    config: Config = None,
    settings: Set = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare pre-trained features with training from scratch and with MONAI, with fewer and fewer labels."""
    with joined_run("labels", device) as processes:
        from orthokernels.training.config import load_config
        from orthokernels.training.config_heads import LabelsConfig
        from orthokernels.training.labels import METRIC, labels
        from orthokernels.training.tables import print_labels

        chosen = load_config(LabelsConfig, config, settings or [])
        rows = labels(data, weights, out, chosen, processes=processes, silent=quiet or as_json)
        if not quiet and not as_json:
            print_labels(rows, METRIC[chosen.task], chosen.baseline)
        report([f"table and plot: {out}"], rows, processes, quiet, as_json)


@app.command("demo")
def demo_command(
    out: Out,
    config: Config = None,
    settings: Set = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that make studies.")] = 2,
    resume: Resume = True,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make the demo weights from nothing: phantoms, denoisers, heads, figures on a test set and a model card."""
    with joined_run("demo", device) as processes:
        from orthokernels.system import versions
        from orthokernels.training.config import load_config
        from orthokernels.training.demo import RECIPE, DemoConfig, judge_demo, train_demo, weights_folder

        chosen = load_config(DemoConfig, config or RECIPE, settings or [])
        silent = quiet or as_json

        def tell(what: str) -> None:
            if not silent:
                print(f"== {what}", flush=True)

        seconds = train_demo(out, chosen, workers=workers, processes=processes, resume=resume, silent=silent, tell=tell)
        changed = "".join(f" --set {one}" for one in settings or [])
        facts = {
            "command": f"`orthokernels train demo --out DIR{changed}`" + (" with other settings" if config else ""),
            "time": f"{sum(seconds.values()) / 60:.0f} minutes",
            "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        }
        found = judge_demo(out, chosen, facts=facts, device=processes.device, silent=silent, tell=tell)
        report([f"weights: {weights_folder(out)}"], found, processes, quiet, as_json)
