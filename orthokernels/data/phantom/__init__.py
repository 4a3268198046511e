"""A digital joint: procedural three-plane MRI studies with known findings, to train and to try things on.

Anatomy says what lies at a point: of the knee ``anatomy``, ``distance``, ``field``; of the ankle and the shoulder
``scene``, ``solids`` and the joints' own files; ``parts`` names what there is. ``sampling`` lays it on a series' grid,
which ``protocol`` and ``study`` plan; ``signal`` and ``receiver`` make it an image; ``write`` puts a study in files and
``dataset`` many studies with a table of findings. ``painted`` does the same with the label map of a real knee.
"""

from __future__ import annotations

from orthokernels.data.phantom.study import PhantomSeries, PhantomStudy, make_study
from orthokernels.data.phantom.write import write_dicom, write_labels, write_nifti

__all__ = ["PhantomSeries", "PhantomStudy", "make_study", "write_dicom", "write_labels", "write_nifti"]
