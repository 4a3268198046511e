"""What a bundle knows of studies: one like them passes, one unlike them is told of, one far off is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from orthokernels.edge.checks import check_novelty
from orthokernels.export.bundle import finish
from orthokernels.export.known import know

from orthokernels.bundle.novelty_tables import read_tables
from orthokernels.bundle.verify import _stamp, verify
from orthokernels.errors import InputError
from orthokernels.pipeline import run
from orthokernels.tasks import PLANES


@pytest.fixture(scope="module")
def vectors(weights, study):
    return run(study, weights=str(weights)).vectors


def bundle_that_knows(drafted, out, middle):
    """60 studies of each plane around given vectors."""
    rng = np.random.default_rng(0)
    known = {}
    for plane, vector in middle.items():
        spread = 0.05 * np.abs(vector) + 0.01
        rows = (vector + spread * rng.standard_normal((60, len(vector)))).astype(np.float32)
        known["knee", plane] = {f"study {n}": row for n, row in enumerate(rows)}
    made = replace(drafted, folder=shutil.copytree(drafted.folder, out), known={})
    know(made, known, "own studies")
    finish(made)
    return out


def test_a_study_like_the_known_ones_passes_on_every_engine(drafted, vectors, study, tmp_path):
    bundle = bundle_that_knows(drafted, tmp_path / "bundle", vectors)
    found = verify(bundle)
    assert found.manifest.joints["knee"].planes["axial"].known.studies == 60
    assert "known studies, knee" in (bundle / "MODEL_CARD.md").read_text()
    for engine in ("native", "onnxruntime"):
        made = run(study, bundle=bundle, engine=engine)
        assert not [own for own in made.result.warnings if "unlike" in own]
        checks = check_novelty(made, read_tables(found, "knee"))
        assert [(own.plane, own.verdict) for own in checks] == [(plane, "passed") for plane in made.vectors]


def test_a_study_unlike_the_known_ones_is_told_of_and_one_far_off_is_refused(drafted, vectors, study, tmp_path):
    strange = {
        plane: vector + (1 if plane == "axial" else 100) * (np.abs(vector) + 1) for plane, vector in vectors.items()
    }
    bundle = bundle_that_knows(drafted, tmp_path / "bundle", strange)
    made = run(study, bundle=bundle)
    warnings = [own for own in made.result.warnings if "unlike the studies that the model is known to read" in own]
    assert len(warnings) == len(PLANES)
    checks = {own.plane: own for own in check_novelty(made, read_tables(verify(bundle), "knee"))}
    assert checks["sagittal"].verdict == "failed"
    assert "times as unlike the known studies" in checks["sagittal"].reason


def test_a_table_that_is_missing_or_none_is_refused(drafted, vectors, tmp_path):
    bundle = bundle_that_knows(drafted, tmp_path / "bundle", vectors)
    found = verify(bundle)
    table = bundle / "novelty" / "knee.axial.safetensors"
    table.write_bytes(b"\0" * table.stat().st_size)
    with pytest.raises(InputError, match="content does not match its digest"):
        verify(bundle)
    with pytest.raises(InputError, match="content does not match its digest"):
        read_tables(found, "knee")
    stamps = {name: _stamp((bundle / name).stat()) for name in found.stamps}  # as if it had been signed like this
    with pytest.raises(InputError, match="is no table of known studies"):
        read_tables(replace(found, stamps=stamps), "knee")
    record = json.loads((bundle / "manifest.json").read_text())
    del record["files"]["novelty/knee.axial.safetensors"]
    (bundle / "manifest.json").write_text(json.dumps(record))
    table.unlink()
    with pytest.raises(InputError, match=r"the knee reads novelty/knee.axial.safetensors, which is not listed"):
        verify(bundle)
