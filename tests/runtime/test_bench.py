"""The bench of whole studies, on one engine of a small bundle."""

import json

import pytest
from orthokernels.bench.runtime import A_COMMAND, STAGES, THE_NEXT, main


def test_a_study_s_time_is_told_by_stage_and_adds_up(bundle, study, tmp_path):
    main(bundle, study, tmp_path, forms="native:fp32", rounds=1, threads=1)
    facts = json.loads((tmp_path / "runtime.json").read_text())
    assert [(row["engine"], row["form"], row["study"]) for row in facts["rows"]] == [
        ("native", "fp32", A_COMMAND),
        ("native", "fp32", THE_NEXT),
    ]
    table = (tmp_path / "runtime.md").read_text()
    for row in facts["rows"]:
        assert sum(row[stage] for stage in STAGES) == pytest.approx(row["seconds"], abs=0.01)  # each to a millisecond
        assert row["networks"] == pytest.approx(row["features"] + row["heads"])
        assert row["outside"] == pytest.approx(1 - row["networks"] / row["seconds"])
        assert 0 < row["networks"] < row["seconds"]
        assert 50 < row["peak_mb"] < 2_500
        assert f"| native | fp32 | {row['study']} | {row['seconds']:.2f} |" in table
    command, following = facts["rows"]
    assert following["start"] < command["start"] / 2  # nothing is imported for it
    assert following["weights"] == 0
    assert facts["versions"]["numpy"]
    assert (tmp_path / "runtime.png").stat().st_size > 0
