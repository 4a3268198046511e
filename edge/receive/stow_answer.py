"""The answer to a STOW-RS request: what was stored, what was not and why (PS3.18 section 10.5.3 and annex I.2)."""

from __future__ import annotations

from dataclasses import dataclass, field

from orthokernels.edge.receive.identity import is_uid
from orthokernels.edge.receive.intake import Status
from pydicom.dataset import Dataset

ALL, SOME, NONE, NO_ROOM = 200, 202, 409, 503


@dataclass
class Outcome:
    """What became of a request's parts."""

    stored: list[tuple[str, str]] = field(default_factory=list)  # SOP class and instance
    failed: list[tuple[str, str, Status]] = field(default_factory=list)
    nameless: list[Status] = field(default_factory=list)  # parts that name no instance

    def refused(self, sop_class: str, sop_uid: str, status: Status) -> None:
        """A part was not stored; what it says it is may be anything."""
        if is_uid(sop_class) and is_uid(sop_uid):
            self.failed.append((sop_class, sop_uid, status))
        else:
            self.nameless.append(status)

    @property
    def status(self) -> int:
        """The answer's HTTP status (PS3.18 table 10.5.3-1); without room for anything, the sender is to come back."""
        reasons = {*self.nameless, *(status for _, _, status in self.failed)}
        if not reasons:
            return ALL
        if self.stored:
            return SOME
        return NO_ROOM if reasons == {Status.OUT_OF_RESOURCES} else NONE

    def dataset(self) -> Dataset:
        """The answer's body. Without WADO-RS here, there is no Retrieve URL to give."""
        answer = Dataset()
        if self.stored:
            answer.ReferencedSOPSequence = [_reference(*stored) for stored in self.stored]
        if self.failed:
            answer.FailedSOPSequence = [_reference(*failed) for failed in self.failed]
        if self.nameless:
            answer.OtherFailuresSequence = [_failure(Dataset(), status) for status in self.nameless]
        return answer


def _reference(sop_class: str, sop_uid: str, status: Status | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_uid
    return item if status is None else _failure(item, status)


def _failure(item: Dataset, status: Status) -> Dataset:
    item.FailureReason = int(status)
    return item
