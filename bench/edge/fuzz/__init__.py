"""Damaged input by the thousand: files, DIMSE PDUs, MRD messages, DICOMweb requests and configurations, each mutated
from good ones, none at random.

Input ``index`` of a run is a function of the run's seed and the index alone, so that any of them can be made again. A
target says what may become of one; anything else is a finding.
"""

from __future__ import annotations

from orthokernels.bench.edge.fuzz.configurations import Configurations
from orthokernels.bench.edge.fuzz.files import Files
from orthokernels.bench.edge.fuzz.messages import Messages
from orthokernels.bench.edge.fuzz.multiparts import Multiparts
from orthokernels.bench.edge.fuzz.pdus import Pdus
from orthokernels.bench.edge.fuzz.target import Target

# What a run can be of. A further kind of input is one more class, and a line here.
TARGETS: dict[str, type[Target]] = {
    "files": Files,
    "pdus": Pdus,
    "messages": Messages,
    "multiparts": Multiparts,
    "configurations": Configurations,
}
