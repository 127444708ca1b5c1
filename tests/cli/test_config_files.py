import os
import re
from pathlib import Path

import pytest
import yaml

from hybrid_lightning.cli import main
from hybrid_lightning.cli.config_files import merge, merged_arguments, read_config, read_yaml
from hybrid_lightning.errors import ConfigError

LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'ha'] * 9)}]\n" for n in range(27)).encode()
"""Each line holds the one before nine times."""


@pytest.mark.parametrize(
    ("base", "overlay", "merged"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
        ({"a": {"b": {"c": {"d": 1}}}}, {"a": {"b": {"c": {"e": 2}}}}, {"a": {"b": {"c": {"d": 1, "e": 2}}}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({}, {"a": {"b": 2}}, {"a": {"b": 2}}),
    ],
)
def test_an_overlay_replaces_only_what_it_names(base, overlay, merged):
    assert merge(base, overlay) == merged


@pytest.mark.parametrize(("kind", "arguments"), [("class_path", "init_args"), ("module", "args")])
def test_another_class_drops_the_arguments_of_the_old_one(kind, arguments):
    base = {kind: "Old", arguments: {"depth": 3}, "kept": 1}
    assert merge(base, {kind: "New", arguments: {"width": 2}}) == {kind: "New", arguments: {"width": 2}, "kept": 1}
    assert merge(base, {kind: "Old", arguments: {"width": 2}})[arguments] == {"depth": 3, "width": 2}
    assert merge(base, {arguments: {"width": 2}})[arguments] == {"depth": 3, "width": 2}


def test_merging_changes_neither_of_its_arguments():
    base, overlay = {"module": "Old", "args": {"a": 1}}, {"module": "New", "args": {"b": 1}}
    merge(base, overlay)["args"]["c"] = 1
    merge({"x": base}, {"x": {"args": {"d": 1}}})
    assert base == {"module": "Old", "args": {"a": 1}}


def a_config(weights: str) -> str:
    return yaml.safe_dump({"model": {"init_args": {"parts": {"image": {"weights": weights}, "table": "MLP"}}}})


def test_a_path_of_weights_beside_the_file_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "w.safetensors").touch()
    (tmp_path / "configs" / "pretrained").touch()
    monkeypatch.chdir(tmp_path)
    for given, expected in {
        "w.safetensors": str(tmp_path / "configs" / "w.safetensors"),
        "absent.pt": "absent.pt",
        "pretrained": "pretrained",
    }.items():
        (tmp_path / "configs" / "c.yaml").write_text(a_config(given))
        assert read_config("configs/c.yaml")["model"]["init_args"]["parts"]["image"]["weights"] == expected


def test_paths_of_data_are_looked_for_here_and_then_beside_the_file(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    for name in ("here.csv", "configs/here.csv", "configs/there.csv"):
        (tmp_path / name).touch()
    data = {"path": "there.csv", "predict_path": "here.csv", "root": "absent", "statistics": "~/x.ckpt"}
    (tmp_path / "configs" / "c.yaml").write_text(yaml.safe_dump({"data": {"init_args": data}}))
    monkeypatch.chdir(tmp_path)
    assert read_config("configs/c.yaml")["data"]["init_args"] == {
        "path": str(tmp_path / "configs" / "there.csv"),
        "predict_path": "here.csv",
        "root": "absent",
        "statistics": str(Path.home() / "x.ckpt"),
    }


@pytest.mark.parametrize(
    "config", ["model: null", "model: {init_args: [1]}", "model: {init_args: {parts: [1]}}", "a: 1"]
)
def test_a_config_without_parts_is_read_as_it_is(config, tmp_path):
    (tmp_path / "c.yaml").write_text(config)
    assert read_config(tmp_path / "c.yaml") == yaml.safe_load(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not valid YAML"),
        (b"- 1", "holds no keys and values"),
        (b"", "holds no keys and values"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"!!python/object/apply:os.system ['true']", "is not valid YAML"),
        (b"a: 2020-02-30", "is not valid YAML"),
        (b"a: " + b"9" * 5000, "is not valid YAML"),
        (b"a: !!bool perhaps", "is not valid YAML"),
        (b"a: " + b"[" * 50_000, "is not valid YAML: it is nested too deeply"),
        (b"a: &a [*a]", "is not valid YAML: an alias stands within what it names"),
        (LAUGHS, "is not valid YAML: with its aliases it holds more than 100000 values"),
        (b"a" * (2**24 + 1), "is larger than 16 MiB"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(content, message, tmp_path):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^--config: '.*c\.yaml' {message}"):
        read_config(tmp_path / "c.yaml")


def test_what_is_no_file_is_never_opened(folder):
    os.mkfifo("pipe.yaml")
    os.mkfifo("pipe.csv")
    for name in ("pipe.yaml", "pipe.csv", "/dev/zero", "x" * 300 + ".yaml"):
        with pytest.raises(ConfigError, match=r"^--config: there is no file"):
            read_config(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("photos", "error: 'photos' is a folder, not a config. .* with: init photos --output mine.yaml"),
        ("rows.CSV", "error: 'rows.CSV' is a table, not a config. .* with: init rows.CSV --target COLUMN --output"),
    ],
)
def test_data_in_the_place_of_a_config_are_told_what_makes_one(name, says, folder, capsys):
    Path("photos").mkdir()
    Path("rows.CSV").write_text("a,b\n1,2\n")
    assert main(["plan", name]) == 2
    assert re.search(says, capsys.readouterr().err.replace("--config: ", ""))


def test_aliases_and_merge_keys_within_bounds_are_read(folder):
    Path("c.yaml").write_text("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n")
    assert read_config("c.yaml") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize("arguments", [["--config", "no.yaml"], ["--config=no.yaml"], ["-c", "no.yaml"]])
def test_a_config_that_is_missing_is_named(arguments):
    with pytest.raises(ConfigError, match=r"^--config: there is no file"):
        merged_arguments(arguments)


def test_a_flag_without_its_value_is_named():
    with pytest.raises(ConfigError, match=r"^--config: its value is missing, at the end of the command"):
        merged_arguments(["--config"])


def test_several_configs_become_one_before_the_flags(tmp_path):
    (tmp_path / "base.yaml").write_text("a: {b: 1, c: 2}")
    (tmp_path / "over.yaml").write_text("a: {c: 3}")
    arguments = ["--x=1", f"--config={tmp_path}/base.yaml", "--y", "2", "-c", f"{tmp_path}/over.yaml", "--z"]
    flag, config, *rest = merged_arguments(arguments)
    assert (flag, rest) == ("--config", ["--x=1", "--y", "2", "--z"])
    assert yaml.safe_load(config) == {"name": "base", "a": {"b": 1, "c": 3}}


@pytest.mark.parametrize("order", [1, -1])
def test_flags_of_one_command_are_one_statement_in_any_order(order, tmp_path):
    (tmp_path / "c.yaml").write_text("model: {class_path: X, init_args: {parts: {a: {module: M, weights: a.pt}}}}")
    flags = ["--model.init_args.parts.a.unfreeze=never", "--model.init_args.pretrained.unfreeze=always"]
    config = yaml.safe_load(merged_arguments(["-c", f"{tmp_path}/c.yaml", *flags[::order]])[1])
    assert config["model"]["init_args"]["parts"]["a"]["unfreeze"] == "never"


def test_flags_for_stages_add_up(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "model: {class_path: X, init_args: {pretrained: {unfreeze: {stages: {b: 5%, '*': always}}}}}"
    )
    place = "--model.init_args.pretrained.unfreeze.stages"
    flags = [f"{place}.a=10%", f"{place}.*=never"]
    config = yaml.safe_load(merged_arguments(["-c", f"{tmp_path}/c.yaml", *flags])[1])
    assert config["model"]["init_args"]["pretrained"]["unfreeze"]["stages"] == {"a": "10%", "*": "never"}


def test_arguments_without_a_config_stay_as_they_are():
    assert merged_arguments(["--trainer.max_epochs", "3"]) == ["--trainer.max_epochs", "3"]


def test_a_text_that_begins_as_a_number_is_a_text(tmp_path):
    (tmp_path / "c.yaml").write_text("a: 26241e91e6c345\nb: 1e3x\nc: 1e3\n")
    config = read_config(tmp_path / "c.yaml")
    assert {key: config[key] for key in "abc"} == {"a": "26241e91e6c345", "b": "1e3x", "c": 1000.0}


def test_a_text_that_looks_like_a_number_stays_a_text(tmp_path):
    (tmp_path / "c.yaml").write_text("a: '10'\nb: '1e-3'\nc: 'null'\nd: 10%")
    config = yaml.safe_load(merged_arguments(["-c", f"{tmp_path}/c.yaml"])[1])
    assert config == {"name": "c", "a": "10", "b": "1e-3", "c": "null", "d": "10%"}


@pytest.mark.parametrize(
    ("old", "new", "merged"),
    [
        ({"start": "10%", "freeze": "80%"}, {"plateau": "val/loss"}, {"plateau": "val/loss"}),
        ({"start": "10%", "every": "1 epochs"}, {"every": "2 epochs"}, {"start": "10%", "every": "2 epochs"}),
        ({"start": "10%"}, {"start": "20%", "freeze": "80%"}, {"start": "20%", "freeze": "80%"}),
        (
            {"stages": {"first": "always", "*": "never"}},
            {"stages": {"last": "always", "*": "never"}},
            {"stages": {"last": "always", "*": "never"}},
        ),
        ({"stages": {"a": "10%", "b": "5%"}}, {"stages": {"*": "never"}}, {"stages": {"*": "never"}}),
        ({"stages": {"a": "10%", "*": "never"}}, {"stages": {"a": "5%"}}, {"stages": {"a": "5%", "*": "never"}}),
    ],
)
def test_a_schedule_of_another_form_replaces_the_old_one(old, new, merged):
    assert merge({"unfreeze": old}, {"unfreeze": new}) == {"unfreeze": merged}


def test_a_limit_of_another_form_replaces_the_old_one_and_other_keys_of_that_name_do_not():
    assert merge({"clip": {"norm": 1.0}}, {"clip": {"value": 0.5}}) == {"clip": {"value": 0.5}}
    assert merge({"batch_norm": "frozen"}, {"stages": ["a"]}) == {"batch_norm": "frozen", "stages": ["a"]}


def test_a_text_that_is_read_as_yaml_once_more_may_not_become_endless():
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'ha'] * 9)}]" for n in range(9)]
    with pytest.raises(yaml.YAMLError, match="with its aliases it holds more than"):
        read_yaml(yaml.safe_dump({"trainer": {"devices": "{" + ", ".join(levels) + "}"}}))
    assert read_yaml("a: 'R&D * 2: ['") == {"a": "R&D * 2: ["}
    with pytest.raises(yaml.YAMLError, match="a number is too large"):
        read_yaml("a: 1" + "0" * 400)
