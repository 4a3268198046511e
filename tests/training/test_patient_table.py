"""Patient data: how rows become columns, and what is refused."""

from __future__ import annotations

import pytest
import torch

from orthokernels.errors import InputError
from orthokernels.training.config_heads import HeadConfig
from orthokernels.training.fusion_training import Vectors
from orthokernels.training.patient_table import columns_of, encoding_of, read_patient_table, train_late_fusion

HEADER = "study,age,height,weight,sex,patient_type,event\n"


def row(**cells) -> dict[str, str]:
    return {"age": "", "height": "", "weight": "", "sex": "", "patient_type": "", "event": "", **cells}


def test_numbers_are_standardised_by_the_training_rows_and_missing_ones_are_zero():
    encoding = encoding_of([row(age="20"), row(age="40"), row()])
    numbers, *_ = encoding.encode([row(age="40"), row(), row(age="50", height="180")])
    # Mean 30, deviation 10 of the known ages; no height was known, so it is left as it is.
    assert numbers.tolist() == [[1, 0, 0], [0, 0, 0], [2, 180, 0]]


def test_unknown_classes_have_a_place_of_their_own():
    encoding = encoding_of([row(event="fall"), row(event="sport")])
    assert encoding.events == ("fall", "sport", "UNK")
    _, sex, kind, event = encoding.encode([row(sex="1", patient_type="0", event="sport"), row(sex="x", event="war")])
    assert sex.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert kind.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert event.tolist() == [1, 2]


def test_late_fusion_learns_from_the_table_what_the_images_lack():
    draw = torch.Generator().manual_seed(0)
    truth = (torch.rand(60, 2, generator=draw) < 0.5).float()
    planes = tuple(torch.randn(60, 4, generator=draw) for _ in range(3))
    own = Vectors(planes, truth, torch.ones(60), tuple(str(n) for n in range(60)))
    rows = [row(sex=str(int(a)), patient_type=str(int(b))) for a, b in truth]
    config = HeadConfig(epochs=30, batch=10, learning_rate=3e-2)
    fusion, encoding = train_late_fusion(own, rows, config, seed=0)
    with torch.no_grad():
        out = fusion(torch.cat(planes, dim=1), *columns_of(encoding, rows))
    assert bool(((out["fused"] > 0) == truth.bool()).all())
    assert float(out["alpha"].max()) < 0.5  # the images' share fell from a half


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study,age\na,3\n", "has no column height, weight, sex, patient_type, event"),
        ("name" + HEADER[5:] + "a,1,1,1,0,0,\n", "has no column study"),
        (HEADER + "a,1,1,1,0,0,\na,1,1,1,0,0,\n", "lists study a twice"),
        (HEADER + "a,old,1,1,0,0,\n", "study a: age is 'old'; leave it empty where unknown"),
    ],
)
def test_wrong_tables_are_refused_in_one_sentence(tmp_path, text, message):
    (tmp_path / "patients.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_patient_table(tmp_path / "patients.csv")
