"""The OpenRecon label: checked against its schema, and true of the configuration that it is made from."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import pytest
from orthokernels.edge.config import Config
from orthokernels.edge.openrecon.label import SCHEMA, check, openrecon_label

from orthokernels.errors import InputError
from tests.edge.test_config import edge


def test_schema_is_one():
    jsonschema.Draft7Validator.check_schema(json.loads(SCHEMA.read_text()))


def test_label_tells_of_the_configuration():
    config = Config.model_validate(
        {"results": {"joint": "shoulder", "planes": ["axial"]}, "work": {"memory_bytes": 3 * 2**30, "workers": 2}}
    )
    label = openrecon_label(config, port=9010)
    shown = {parameter["id"]: parameter["default"] for parameter in label["parameters"]}
    assert shown == {"config": "orthokernels", "joint": "shoulder", "planes": "axial", "slices": "full", "seed": "0"}
    needs = label["reconstruction"]
    assert (needs["port"], needs["min_required_memory"], needs["can_use_gpu"]) == (9010, 6144, False)
    assert needs["content_qualification_type"] == "RESEARCH"


def test_nothing_can_be_set_at_the_console_that_the_server_would_not_heed():
    label = openrecon_label(Config())
    assert all(len(parameter["values"]) == 1 for parameter in label["parameters"])


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("general", "version"), "0.1", "general.version"),
        (("general", "vendor"), "under_score", "general.vendor"),
        (("general", "regulatory_information", "udi"), None, "regulatory_information"),
        (("reconstruction", "transfer_protocol", "version"), "2.0", "transfer_protocol.version"),
        (("reconstruction", "emitter"), "spectrum", "reconstruction.emitter"),
        (("parameters", 0, "id"), "with_underscore", "parameters.0"),
        (("parameters", 0, "default"), "another", "none of its values"),
        (("parameters", 0, "id"), "joint", "two parameters"),
    ],
)
def test_mistake_in_a_label_is_told_with_its_place(place, value, told):
    label = copy.deepcopy(openrecon_label(Config()))
    inner = label
    for step in place[:-1]:
        inner = inner[step]
    if value is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    with pytest.raises(InputError, match=told):
        check(label)


def test_label_of_fifteen_parameters_is_refused():
    label = openrecon_label(Config())
    parameter = label["parameters"][0]
    label["parameters"] = [{**parameter, "id": f"p{number}"} for number in range(15)]
    with pytest.raises(InputError, match="parameters"):
        check(label)


def test_command_writes_the_file_whole_and_says_what_is_wrong(tmp_path):
    (tmp_path / "a.toml").write_text(f'[appliance]\ndata = "{tmp_path}"\n')
    out = tmp_path / "label.json"
    done = edge("openrecon-label", "--config", tmp_path / "a.toml", "--out", out)
    assert done.returncode == 0, done.stderr
    check(json.loads(out.read_text()))
    refused = edge("openrecon-label", "--config", tmp_path / "a.toml", "--out", out, "--vendor", "a_b")
    assert refused.returncode == 2
    assert "general.vendor" in refused.stderr
    assert edge("openrecon-label", "--config", tmp_path / "a.toml", "--out", tmp_path / "no" / "x").returncode == 2


def test_label_that_can_not_be_written_there_is_told_in_one_sentence(tmp_path):
    (tmp_path / "appliance.toml").touch()
    for out in (tmp_path, Path("/proc/label.json")):
        answer = edge("openrecon-label", "--config", tmp_path / "appliance.toml", "--out", out)
        assert answer.returncode == 2
        assert f"--out {out}: can't be written" in answer.stderr
