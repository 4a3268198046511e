"""What the worker does with a study: checks, the bundle's pipeline, checks of what came of it, DICOM objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from orthokernels.edge.checks import Check, check_result, check_study, failures
from orthokernels.edge.completeness import examine
from orthokernels.edge.config import Config
from orthokernels.edge.objects import write_abstention, write_objects
from orthokernels.edge.runner import Rejected, Request, serve
from orthokernels.edge.store import Verdict

from orthokernels.bundle.golden import check_golden, golden_study
from orthokernels.bundle.verify import verify
from orthokernels.data.study import read_study
from orthokernels.errors import InputError
from orthokernels.pipeline import run


class PipelineEvaluator:
    """Runs a bundle, which is verified and tried on its golden case once, at the start.

    Raises:
        InputError: there is no bundle, it is not what its manifest says, or it gives something else than it should.
    """

    def __init__(self, config: Config) -> None:
        if config.work.bundle is None:
            raise InputError("work.bundle: names no bundle, so there is no model. Make one: orthokernels export")
        self._folder = config.work.bundle
        self._bundle = verify(self._folder)
        self._results = config.results
        self.verified = self._try_golden()

    def _try_golden(self) -> str | None:
        """Run the bundle's own study as any other, with the options that its record was made with."""
        joint = self._results.joint
        images = golden_study(self._bundle, joint)
        if not images:
            return None
        made = run(images, bundle=self._folder, planes=self._results.planes, joint=joint)
        labels = {plane: own for plane, (own, _) in made.label_maps.items()}
        probabilities = {finding.label: finding.probability for finding in made.result.findings}
        return check_golden(self._bundle, joint, labels, probabilities, made.result.model.form).told()

    def examine(self, sources: Sequence[Path]) -> tuple[Verdict, str]:
        return examine(sources, self._results.planes)

    def evaluate(self, request: Request, tell: Callable[[str, int, int], None], writing: Callable[[], None]) -> None:
        stop_at(check_study(read_study(request.sources, self._results.planes), self._results.joint))
        made = run(
            request.sources,
            bundle=self._folder,
            planes=self._results.planes,
            preparation=self._results.preparation,
            joint=self._results.joint,
            seed=self._results.seed,
            progress=tell,
        )
        stop_at(check_result(made))
        writing()
        write_objects(
            made,
            request.sources,
            request.out,
            model_digest=self._bundle.digest,
            configuration_digest=self._results.digest(),
            labelmap=self._results.label_map,
            supersedes=request.supersedes,
        )

    def abstain(self, request: Request) -> None:
        write_abstention(
            request.sources,
            request.out,
            request.reasons,
            joint=self._results.joint,
            model_digest=self._bundle.digest,
            configuration_digest=self._results.digest(),
            supersedes=request.supersedes,
        )


def stop_at(checks: Sequence[Check]) -> None:
    """Reject a study at a check that failed."""
    if reasons := failures(checks):
        raise Rejected(*(f"{reason}." for reason in reasons))


if __name__ == "__main__":
    serve(PipelineEvaluator)
