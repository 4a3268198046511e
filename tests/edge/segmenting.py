"""The threshold worker with real segmentations and reports, in the forms that the configuration asks for."""

from __future__ import annotations

from datetime import datetime

from orthokernels.edge.config import Config
from orthokernels.edge.objects import write_objects
from orthokernels.edge.runner import Request, serve

from tests.edge.results import true_run
from tests.edge.stripes import stripes
from tests.edge.threshold import Threshold


class Segmenting(Threshold):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._forms = config.forms()

    def evaluate(self, request: Request, tell, writing) -> None:
        writing()
        write_objects(
            true_run(list(request.sources), stripes),
            request.sources,
            request.out,
            model_digest="a" * 64,
            configuration_digest=self._configuration,
            forms=self._forms,
            received=datetime.fromtimestamp(request.received),
            supersedes=request.supersedes,
        )


if __name__ == "__main__":
    serve(Segmenting)
