"""The threshold worker with the real one's abstentions: structured reports as archives get them."""

from __future__ import annotations

from types import SimpleNamespace

from orthokernels.edge.config import Config
from orthokernels.edge.evaluate import PipelineEvaluator
from orthokernels.edge.runner import Request, serve

from tests.edge.results import DIGESTS
from tests.edge.threshold import Threshold


class Abstaining(Threshold):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._results = config.results
        self._bundle = SimpleNamespace(digest=DIGESTS["model_digest"])

    def abstain(self, request: Request) -> None:
        PipelineEvaluator.abstain(self, request)


if __name__ == "__main__":
    serve(Abstaining)
