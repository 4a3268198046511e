"""A suite's run: ceilings first, then case after case until the time is up."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch
from orthokernels.bench.gpu.case import Case, decompose, judge, rows_of
from orthokernels.bench.gpu.ceilings import Ceilings, measure_ceilings
from orthokernels.bench.gpu.peers import peers
from orthokernels.bench.gpu.setting import Setting, device_facts
from orthokernels.bench.gpu.timing import Clock, Deadline, Effort, clock_of, empty_cache, measure, reason_of
from orthokernels.bench.record import circumstances

SUITES = ("ops", "model", "training")
MINUTES = {"ops": 3.0, "model": 2.5, "training": 2.0}
Told = Callable[[dict[str, Any]], None]
# The share of a suite's time that one contender may take to be compiled and warmed up, and the least seconds of it:
# torch.compile's max-autotune of a whole network can take minutes, and is worth waiting for when there are many.
_PATIENCE, _LEAST_PATIENCE = {"ops": 0.15, "model": 0.4, "training": 0.4}, 30.0


def run_suite(
    suite: str, setting: Setting, command: str, *, minutes: float | None = None, told: Told | None = None,
    own_cases: list[Case] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure a suite's cases.

    Args:
        suite: of ``SUITES``.
        command: that a reader would repeat.
        minutes: after which no other case begins; a default of the suite where it is None.
        told: is given the record after the ceilings and after every case, so that an end from outside loses little.
        own_cases: instead of the suite's.

    Returns:
        A record for ``report``: circumstances, device, ceilings, peers, rows, decompositions, bars, and what was left
        out for lack of time.

    Raises:
        RuntimeError: the device's ceilings could not be measured.
    """
    minutes = MINUTES[suite] if minutes is None else minutes
    deadline, patience = Deadline(minutes), max(60 * minutes * _PATIENCE[suite], _LEAST_PATIENCE)
    clock = clock_of(setting.device)
    with clock.here():
        ceilings = measure_ceilings(setting, clock)
    device = device_facts(setting.device)
    facts: dict[str, Any] = {
        **circumstances(command), "suite": suite, "tiny": setting.tiny, "device": device,
        "ceilings": asdict(ceilings), "peers": [asdict(peer) for peer in peers()],
        "rows": [], "decompositions": [], "bars": [], "left_out": [],
    }  # fmt: skip
    told = told or (lambda facts: None)
    told(facts)
    if own_cases is None:
        own_cases = import_module(f"orthokernels.bench.gpu.{suite}_suite").cases(setting)
    for case in own_cases:
        if deadline.left() <= 0:
            facts["left_out"].append(f"{case.name}: the time was up")
            continue
        _run_case(suite, case, setting, clock, ceilings, deadline, patience, facts)
        told(facts)
    return facts


def _run_case(
    suite: str, case: Case, setting: Setting, clock: Clock, ceilings: Ceilings, deadline: Deadline,
    patience: float, facts: dict[str, Any],
) -> None:  # fmt: skip
    with clock.here():
        try:
            contenders = list(case.contenders())
        except Exception as error:  # its inputs do not fit, or can't be made
            facts["left_out"].append(f"{case.name}: {reason_of(error)}")
            return
    effort = Effort(seconds=0.1, least=2, most=3) if setting.tiny else case.effort
    timings = measure(contenders, clock, effort=effort, deadline=deadline, patience=patience)
    del contenders
    rows = rows_of(suite, case, timings)
    facts["rows"] += [row.figures(ceilings) for row in rows]
    if parts := decompose(rows):
        facts["decompositions"].append(parts)
    facts["bars"] += judge(case, rows, ceilings, binding="H200" in str(facts["device"]["name"]))
    torch._dynamo.reset()
    gc.collect()
    if setting.device.type == "cuda":
        empty_cache()
