"""What the worker does with a study by default: the bundle's pipeline, and its results as DICOM objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from orthokernels.edge.completeness import examine
from orthokernels.edge.config import Config
from orthokernels.edge.objects import write_abstention, write_objects
from orthokernels.edge.runner import Request, serve
from orthokernels.edge.store import Verdict

from orthokernels.bundle.verify import verify
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
        made = run(
            request.sources,
            bundle=self._folder,
            planes=self._results.planes,
            preparation=self._results.preparation,
            joint=self._results.joint,
            seed=self._results.seed,
            progress=tell,
        )
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


if __name__ == "__main__":
    serve(PipelineEvaluator)
