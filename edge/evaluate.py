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
from orthokernels.edge.viewing import keep_objects, keep_result

from orthokernels.bundle.verify import verify
from orthokernels.data.study import read_study
from orthokernels.errors import InputError
from orthokernels.pipeline import run


class PipelineEvaluator:
    """Runs a bundle, which is verified once, at the start.

    Raises:
        InputError: there is no bundle, or it is not what its manifest says.
    """

    def __init__(self, config: Config) -> None:
        if config.work.bundle is None:
            raise InputError("work.bundle: names no bundle, so there is no model. Make one: orthokernels export")
        self._folder = config.work.bundle
        self._bundle = verify(self._folder)
        self._results = config.results

    def examine(self, sources: Sequence[Path]) -> tuple[Verdict, str]:
        return examine(sources, self._results.planes)

    def evaluate(self, request: Request, tell: Callable[[str, int, int], None], writing: Callable[[], None]) -> None:
        before = check_study(read_study(request.sources, self._results.planes), self._results.joint)
        stop_at(before)
        made = run(
            request.sources,
            bundle=self._folder,
            planes=self._results.planes,
            preparation=self._results.preparation,
            joint=self._results.joint,
            seed=self._results.seed,
            progress=tell,
        )
        after = check_result(made)
        stop_at(after)
        writing()
        objects = write_objects(
            made,
            request.sources,
            request.out,
            model_digest=self._bundle.digest,
            configuration_digest=self._results.digest(),
            labelmap=self._results.label_map,
            supersedes=request.supersedes,
        )
        keep_result(made, [*before, *after], objects, request.out)

    def abstain(self, request: Request) -> None:
        objects = write_abstention(
            request.sources,
            request.out,
            request.reasons,
            joint=self._results.joint,
            model_digest=self._bundle.digest,
            configuration_digest=self._results.digest(),
            supersedes=request.supersedes,
        )
        keep_objects(objects, request.out)


def stop_at(checks: Sequence[Check]) -> None:
    """Reject a study at a check that failed."""
    if reasons := failures(checks):
        raise Rejected(*(f"{reason}." for reason in reasons))


if __name__ == "__main__":
    serve(PipelineEvaluator)
