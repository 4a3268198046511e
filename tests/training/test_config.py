"""Settings from files and the command line, and what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from orthokernels.errors import InputError
from orthokernels.training import settings_file
from orthokernels.training.config import PretrainConfig, load_config, named
from orthokernels.training.config_heads import DiagnoseConfig, LabelsConfig, SegmentConfig, SweepConfig
from orthokernels.training.demo import DemoConfig


def test_defaults_are_the_published_settings():
    config = load_config(PretrainConfig)
    assert (config.loop.steps, config.loop.batch, config.loop.accumulate) == (21_500, 10, 1)
    assert (config.optimiser.rate, config.optimiser.schedule, config.optimiser.weight_decay) == (1e-4, "constant", 0)
    assert (config.ema.decay, config.ema.start, config.ema.every) == (0.995, 2000, 10)
    assert (config.loss, config.min_snr_gamma, config.loop.clip_norm, config.loop.precision) == (
        "l2",
        None,
        None,
        "fp32",
    )
    assert (config.data.preparation, config.data.size) == ("published", 256)
    assert not any(config.augment.model_dump().values())


def test_network_defaults_are_the_published_network():
    from orthokernels.models.orthodiffusion import UNet

    network = UNet(**load_config(PretrainConfig).network.arguments())
    assert sum(p.numel() for p in network.parameters()) == 34_524_545


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "loop: {steps: 7}\noptimiser:\n  rate: 3.0e-4\nplanes: [axial]\n"),
        ("a.toml", 'planes = ["axial"]\n[loop]\nsteps = 7\n[optimiser]\nrate = 3e-4\n'),
    ],
)
def test_a_file_is_read_and_an_override_goes_before_it(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    config = load_config(PretrainConfig, tmp_path / name, ["loop.steps=9", "network.patch=[1,2,2]"])
    assert (config.loop.steps, config.optimiser.rate, config.planes) == (9, 3e-4, ("axial",))
    assert config.network.patch == (1, 2, 2)


def test_numbers_may_be_written_as_python_writes_them():
    assert load_config(PretrainConfig, None, ["optimiser.rate=3e-4"]).optimiser.rate == 3e-4
    assert load_config(PretrainConfig, None, ["loop.clip_norm=null"]).loop.clip_norm is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.step=3", r"no setting loop\.step \(did you mean steps\?\)"),
        ("lop.steps=3", r"no setting lop \(did you mean loop\?\)"),
        ("loop.xyz=3", r"no setting loop\.xyz \(there are steps, batch"),
        ("loop.steps=0", r"loop\.steps = 0: input should be greater than or equal to 1"),
        ("loop.precision=fp16", r"loop\.precision = 'fp16': input should be 'fp32' or 'bf16'"),
        ("network.patch=[1,2]", r"network\.patch"),
        ("optimiser.betas=[0.9,1]", r"optimiser\.betas\.1 = 1: input should be less than 1"),
        ("planes=[]", r"planes = \[\]: tuple should have at least 1 item"),
        ("validate_timesteps=[]", r"validate_timesteps = \[\]: tuple should have at least 1 item"),
        ("loop.steps", r"--set loop\.steps: is not of the form name=value"),
        ("loop.steps=[1", r"--set loop\.steps=\[1: '\[1' is no value"),
    ],
)
def test_a_wrong_setting_is_named(override, message):
    with pytest.raises(InputError, match=message):
        load_config(PretrainConfig, None, [override])


@pytest.mark.parametrize(
    ("model", "override", "message"),
    [
        (
            DemoConfig,
            "diagnose.knee.probe.epoch=3",
            r"no setting diagnose\.knee\.probe\.epoch \(did you mean epochs\?\)",
        ),
        (
            DiagnoseConfig,
            "points.sagittal.timestp=10",
            r"no setting points\.sagittal\.timestp \(did you mean timestep\?\)",
        ),
        (LabelsConfig, "point.xyz=1", r"no setting point\.xyz \(there are timestep, block\)"),
        (
            DiagnoseConfig,
            "points.frontal.timestep=10",
            r"points\.frontal.*input should be 'sagittal', 'coronal' or 'axial'",
        ),
    ],
)
def test_a_wrong_setting_below_a_name_of_the_user_s_is_named(model, override, message):
    with pytest.raises(InputError, match=message):
        load_config(model, None, [override])


@pytest.mark.parametrize("model", [SegmentConfig, DiagnoseConfig, SweepConfig, LabelsConfig])
def test_a_list_that_leaves_nothing_to_do_is_refused(model):
    for name in {"planes", "timesteps", "shares", "seeds", "methods"} & set(model.model_fields):
        with pytest.raises(InputError, match=rf"{name} = \[\]: tuple should have at least 1 item"):
            load_config(model, None, [f"{name}=[]"])


def test_steps_that_are_given_count_in_place_of_the_usual_passes():
    assert load_config(SegmentConfig).epochs == 30
    own = load_config(SegmentConfig, overrides=["loop.steps=2"])
    assert (own.epochs, own.loop.steps) == (None, 2)
    assert load_config(SegmentConfig, overrides=["epochs=1", "loop.steps=2"]).epochs == 1
    assert SegmentConfig.model_validate(SegmentConfig().model_dump()).epochs == 30  # as a run's settings are kept


@pytest.mark.parametrize(
    ("model", "override"),
    [
        (SegmentConfig, "optimiser.warmup=5"),
        (LabelsConfig, "loop.save_every=7"),
        (LabelsConfig, "data.workers=0"),
        (DiagnoseConfig, "finetune.batch=3"),
        (DiagnoseConfig, "fusion.gate.epochs=3"),
        (DiagnoseConfig, "fusion.head.standardise=true"),
        (DemoConfig, "segment.optimiser.warmup=5"),
    ],
)
def test_one_setting_of_a_group_changes_no_other(model, override):
    before, after = named(model()), named(load_config(model, None, [override]))
    assert [name for name in before if after[name] != before[name]] == [override.partition("=")[0]]


def test_a_group_is_not_a_value():
    with pytest.raises(InputError, match="loop is a value, not a group"):
        load_config(PretrainConfig, None, ["loop=3", "loop.steps=3"])


def test_all_wrong_settings_are_told_at_once():
    with pytest.raises(InputError, match=r"optimiser\.rate.*; loop\.steps"):
        load_config(PretrainConfig, None, ["loop.steps=0", "optimiser.rate=-1"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "loop: [", "not valid YAML"),
        ("a.toml", "loop = ", "not valid TOML"),
        ("a.yaml", "- 1\n- 2\n", "holds a list, not settings by name"),
        ("a.yaml", "loop: {steps: many}", r"a\.yaml: loop\.steps = 'many'"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(PretrainConfig, tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--config .*nowhere\.yaml: can't be read \(No such file"):
        load_config(PretrainConfig, tmp_path / "nowhere.yaml")


def _groups(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for own in (field.annotation, *get_args(field.annotation)):
            if isinstance(own, type) and issubclass(own, BaseModel):
                yield from _groups(own)


@pytest.mark.parametrize("command", settings_file.COMMANDS)
def test_every_setting_of_a_command_says_what_it_means(command):
    for model in _groups(settings_file.model_of(command)):
        groups = {name for name, field in model.model_fields.items() if isinstance(field.default, BaseModel)}
        told = settings_file.meanings(model).keys()
        assert model.model_fields.keys() - groups <= told <= model.model_fields.keys(), model


@pytest.mark.parametrize("command", settings_file.COMMANDS)
def test_settings_that_were_printed_are_read_again_as_they_were(tmp_path, command):
    model = settings_file.model_of(command)
    changed = {
        "pretrain": ["loop.steps=7", "network.patch=[1,2,2]", "optimiser.rate=3e-7"],
        "segment": ["loop.steps=7", "data.cache='a: b #c'", "points.axial.timestep=30"],
        "diagnose": ["points.axial.block=in_3", "fusion.gate.batch=8"],
        "labels": ["point.timestep=20", "shares=[0.5, 1.0]"],
        "demo": ["diagnose.knee.half=true", "studies.knee=3"],
    }
    config = load_config(model, None, changed.get(command, []))
    (tmp_path / "settings.yaml").write_text(settings_file.written(config))
    assert load_config(model, tmp_path / "settings.yaml") == config


def test_settings_are_printed_with_what_was_changed(capsys):
    from orthokernels.training.commands import settings_command

    settings_command("segment", None, ["loop.batch=3"])
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["loop"]["batch"] == 3
    assert "\n# Weight of the cross-entropy beside soft Dice.\ncross_entropy: 0.2\n" in printed
    assert "at 1/16. One of\n# multiscale, published.\nhead: multiscale\n" in printed


def test_settings_of_no_command_are_refused():
    from orthokernels.training.commands import settings_command

    with pytest.raises(InputError, match=r"no settings of 'pretran'; choose from pretrain, segment"):
        settings_command("pretran")
