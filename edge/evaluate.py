"""What the worker does with a study: checks, the bundle's pipeline, checks of what came of it, DICOM objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from orthokernels.edge.checks import Check, check_novelty, check_result, check_study, doubts, failures
from orthokernels.edge.completeness import examine
from orthokernels.edge.config import Config
from orthokernels.edge.objects import write_abstention, write_objects
from orthokernels.edge.runner import Rejected, Request, end_with_parent, serve
from orthokernels.edge.store import Verdict
from orthokernels.edge.viewing import draw_and_keep, keep_abstention, keep_result

from orthokernels.bundle.golden import check_golden, golden_study
from orthokernels.bundle.novelty_tables import read_tables
from orthokernels.bundle.verify import verify
from orthokernels.data.study import read_study
from orthokernels.data.volume import hash_of
from orthokernels.errors import InputError
from orthokernels.pipeline import StudyRun, run
from orthokernels.result import Finding
from orthokernels.runtime.model import open_bundle
from orthokernels.tasks import PLANES


class PipelineEvaluator:
    """Runs a bundle, which is verified, loaded and tried on its golden case once, at the start.

    Raises:
        InputError: there is no bundle, it is not what its manifest says or what the configuration asks for, or it gives
            something else than it should.
    """

    def __init__(self, config: Config) -> None:
        if config.work.bundle is None:
            raise InputError("work.bundle: names no bundle, so there is no model. Make one: orthokernels export")
        self._bundle = verify(config.work.bundle, key=config.work.bundle_key)
        self._results = config.results
        prepared = self._bundle.manifest.preparation
        if config.results.preparation != prepared:
            raise InputError(
                f'results.preparation = "{config.results.preparation}": the bundle was trained and judged on studies '
                f'prepared otherwise. Set results.preparation = "{prepared}", or take another bundle.'
            )
        self._forms = config.forms()
        # Pictures are drawn and compressed by a process of their own: that takes a third of what follows the model.
        self._beside = ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent)
        self._beside.submit(int)  # so that it starts before the first study
        planes = [plane for plane in PLANES if plane in self._results.planes]
        self._model = open_bundle(self._bundle, self._results.joint, planes)
        self._known = read_tables(self._bundle, self._results.joint)
        self.verified = self._try_golden()

    def _try_golden(self) -> str | None:
        """Run the bundle's own study as any other, with the options that its record was made with."""
        joint = self._results.joint
        images = golden_study(self._bundle, joint)
        if not images:
            return None
        made = run(images, model=self._model, planes=self._results.planes, joint=joint)
        labels = {plane: own for plane, (own, _) in made.label_maps.items()}
        probabilities = {finding.label: finding.probability for finding in made.result.findings}
        return check_golden(self._bundle, joint, labels, probabilities, made.result.model.form).told()

    def examine(self, sources: Sequence[Path]) -> tuple[Verdict, str]:
        return examine(sources, self._results.planes)

    def evaluate(self, request: Request, tell: Callable[[str, int, int], None], writing: Callable[[], None]) -> None:
        made, checks = self._run(request, tell)
        writing()
        objects = write_objects(
            made,
            request.sources,
            request.out,
            model_digest=self._bundle.digest,
            configuration_digest=self._results.digest(),
            forms=self._forms,
            remarks=doubts(checks),
            received=datetime.fromtimestamp(request.received),
            supersedes=request.supersedes,
            draw=lambda pictures: self._beside.submit(draw_and_keep, pictures),
        )
        keep_result(made.result, checks, objects, request.out)

    def label(self, request: Request) -> dict[str, Any]:
        made, checks = self._run(request, lambda what, done, total: None)
        names = {hash_of(path.name): path.name for path in request.sources}
        hashes: dict[str, str] = {plane.plane: plane.series_hash for plane in made.result.planes}
        for plane, (labels, _) in made.label_maps.items():
            np.save(request.out / f"{plane}.npy", labels)
        return {
            "planes": {plane: names[hashes[plane]] for plane in made.label_maps},
            "findings": [_sentence(finding) for finding in made.result.findings],
            "remarks": doubts(checks),
        }

    def _run(self, request: Request, tell: Callable[[str, int, int], None]) -> tuple[StudyRun, list[Check]]:
        """What it came to, as every output tells it, and the checks."""
        made, checks = self._infer(request, tell)
        return replace(made, result=made.result.with_indeterminate(self._results.indeterminate_within)), checks

    def _infer(self, request: Request, tell: Callable[[str, int, int], None]) -> tuple[StudyRun, list[Check]]:
        study = read_study(request.sources, self._results.planes)
        before = check_study(study, self._results.joint)
        stop_at(before)
        made = run(
            request.sources,
            study=study,
            model=self._model,
            planes=self._results.planes,
            preparation=self._results.preparation,
            joint=self._results.joint,
            seed=self._results.seed,
            progress=tell,
        )
        after = [*check_novelty(made, self._known), *check_result(made)]
        stop_at(after)
        return made, [*before, *after]

    def abstain(self, request: Request) -> None:
        objects = write_abstention(
            request.sources,
            request.out,
            request.reasons,
            joint=self._results.joint,
            model_digest=self._bundle.digest,
            configuration_digest=self._results.digest(),
            received=datetime.fromtimestamp(request.received),
            supersedes=request.supersedes,
        )
        keep_abstention(objects, request.out)


def stop_at(checks: Sequence[Check]) -> None:
    """Reject a study at a check that failed."""
    if reasons := failures(checks):
        raise Rejected(*(f"{reason}." for reason in reasons))


def _sentence(finding: Finding) -> str:
    if finding.probability is None:
        return f"{finding.name}: {finding.status} ({finding.reason})"
    return f"{finding.name}: {finding.status} (probability {finding.probability:.2f})"


if __name__ == "__main__":
    serve(PipelineEvaluator)
