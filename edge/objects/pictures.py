"""All pictures of a result, in a form that another process can be given: they need neither segmentations nor report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from highdicom import SOPClass
from orthokernels.edge.objects.page import result_page
from orthokernels.edge.objects.picture import page_picture, plane_picture
from orthokernels.edge.objects.saving import discreet, save
from orthokernels.edge.objects.setting import Setting

from orthokernels.result import PlaneArrays, StudyResult

PAGE = "page.dcm"


@dataclass(frozen=True)
class Pictures:
    """What the pictures of a result are made from.

    Attributes:
        setting: the study.
        result: what is told on the page, and beside each plane's pictures.
        arrays: what the planes' pictures show.
        answers: of each finding, as the structured report gives it.
        remarks: sentences below the page's tables.
        out: folder to write to.
    """

    setting: Setting
    result: StudyResult
    arrays: Mapping[str, PlaneArrays]
    answers: tuple[str, ...]
    remarks: tuple[str, ...]
    out: Path

    @discreet()
    def write(self) -> list[Path]:
        """Write a picture of each plane, and the page; each file whole or not at all."""
        made: dict[str, SOPClass] = {}
        for number, plane in enumerate(self.result.planes, start=1):
            made[f"picture_{plane.plane}.dcm"] = plane_picture(
                self.setting, plane, self.arrays[plane.plane], number=number, untrained=bool(self.result.untrained)
            )
        page = result_page(self.result, self.answers, self.remarks)
        made[PAGE] = page_picture(self.setting, page, kind="picture page", number=len(self.result.planes) + 1)
        return save(made, self.out)
