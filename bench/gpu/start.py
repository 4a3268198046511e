"""The kernels' compilation and the GPU suites by themselves, for a machine that has PyTorch and Triton and little else.

``orthokernels bench`` does the same; its command line wants packages that measuring does not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orthokernels.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile every kernel, or measure a suite. Exit 1 if a kernel won't do, 2 if it can't be tried here."""
    options = argparse.ArgumentParser(prog="python -m orthokernels.bench.gpu.start", description=main.__doc__)
    commands = options.add_subparsers(dest="command", required=True)
    own = commands.add_parser("compile", help="Compile every kernel, without a GPU.")
    own.add_argument("--targets", default="80,90,100", help="Compute capabilities times ten, separated by commas.")
    for suite in ("ops", "model", "training"):
        own = commands.add_parser(suite, help=f"Measure the suite {suite}.")
        own.add_argument("--out", type=Path, help="Folder for the suite's JSON, CSV, Markdown and pictures.")
        own.add_argument("--device", default="cuda", help="cuda[:N], or cpu with --tiny, to try the machinery.")
        own.add_argument("--tiny", action="store_true", help="Small shapes, which say nothing about the kernels.")
        own.add_argument("--minutes", type=float, help="After which no other case begins.")
    given = options.parse_args(arguments)
    try:
        if given.command == "compile":
            return _compile(given.targets)
        measure(given.command, given.out, given.device, given.tiny, given.minutes, print)
    except InputError as error:
        print(f"orthokernels: {error}", file=sys.stderr)
        return 2
    return 0


def _compile(targets: str) -> int:
    from orthokernels.bench.compile import compile_all, table, wanted_targets

    found = list(compile_all(wanted_targets(targets)))
    print(table(found))
    return int(any(row.fault for row in found))


def measure(
    suite: str, out: Path | None, device: str, tiny: bool, minutes: float | None, say: Callable[[object], object]
) -> dict[str, Any]:
    """Measure a suite, tell each case as it ends, and write the record into ``out``; returns the record.

    Raises:
        InputError: the device is not there.
    """
    from orthokernels.bench.gpu import plots, report
    from orthokernels.bench.gpu.setting import setting_for
    from orthokernels.bench.gpu.suite import run_suite

    setting = setting_for(device, tiny)
    shown = 0

    def told(facts: dict[str, Any]) -> None:
        nonlocal shown
        if not facts["rows"] and not shown:
            say(report.device_told(facts))
            say(report.ceilings_told(facts))
        elif len(facts["rows"]) > shown:
            say(report.last_table(facts))
        shown = len(facts["rows"])
        if out is not None:
            report.write(facts, out)

    command = f"orthokernels bench {suite} --device {device}" + (" --tiny" if tiny else "")
    command += "" if minutes is None else f" --minutes {minutes:g}"
    facts = run_suite(suite, setting, command, minutes=minutes, told=told)
    written = [] if out is None else [*report.write(facts, out), *plots.draw(facts, out)]
    say(report.summary([facts]))
    for case in facts["left_out"]:
        say(f"Left out: {case}")
    for path in written:
        say(str(path))
    return facts


if __name__ == "__main__":
    sys.exit(main())
