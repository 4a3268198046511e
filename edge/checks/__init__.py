"""Whether a study may be read, and whether what came of it may be given: checks with reasons."""

from orthokernels.edge.checks.after import check_novelty, check_result
from orthokernels.edge.checks.before import check_study
from orthokernels.edge.checks.check import Check, doubts, failures

__all__ = ["Check", "check_novelty", "check_result", "check_study", "doubts", "failures"]
