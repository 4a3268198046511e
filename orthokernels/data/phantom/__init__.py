"""A digital knee: a procedural three-plane MRI study to try things on, with its label maps.

Anatomy (``anatomy``, ``distance``, ``field``, ``parts``) says what lies at a point; ``sampling`` lays it on a series'
grid; ``signal`` and ``receiver`` make it an image; ``write`` puts it in files.
"""

from __future__ import annotations

from orthokernels.data.phantom.study import PhantomSeries, PhantomStudy, make_study
from orthokernels.data.phantom.write import write_dicom, write_nifti

__all__ = ["PhantomSeries", "PhantomStudy", "make_study", "write_dicom", "write_nifti"]
