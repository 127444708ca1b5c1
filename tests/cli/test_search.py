"""`compare --search`: values by Optuna, from validation rows alone; the trials are commands in this process."""

import sys

import pytest

from hybrid_lightning.cli import main
from hybrid_lightning.cli.comparison_run import read_result
from hybrid_lightning.cli.config_files import read_config
from hybrid_lightning.cli.search import Range, overlay_of
from hybrid_lightning.errors import ConfigError
from tests.cli.test_compare import HOME, commands, prepare  # noqa: F401  a fixture


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("lr=1e-4..1e-2", Range("lr", 1e-4, 1e-2)),
        ("pretrained.lr_scale=0.01..1", Range("pretrained.lr_scale", 0.01, 1)),
        ("fusion.args.width=8..64", Range("fusion.args.width", 8, 64)),
    ],
)
def test_a_range_is_a_key_and_two_numbers(text, meant):
    assert Range.parse(text) == meant


@pytest.mark.parametrize("text", ["lr", "lr=1e-4", "lr=1..1", "lr=2..1", "lr=a..b", "=1..2", "lr=true..2", "lr=nan..1"])
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigError, match=r"^--search: '.*' is not a range\. Write .* lr=1e-4\.\.1e-2"):
        Range.parse(text)


def test_keys_with_dots_reach_into_the_model():
    overlay = overlay_of({"lr": 0.1, "pretrained.lr_scale": 0.2, "pretrained.l2sp": 0.3})
    assert overlay == {"model": {"init_args": {"lr": 0.1, "pretrained": {"lr_scale": 0.2, "l2sp": 0.3}}}}


def test_without_optuna_the_error_names_the_extra(folder, commands, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["compare", "--config", prepare(), "--search", "lr=1e-4..1e-2"]) == 2
    assert "compare --search needs optuna" in (message := capsys.readouterr().err)
    assert "pip install 'hybrid_lightning[tune]'" in message
    assert commands.given == []


def test_a_search_takes_what_is_best_on_validation_and_goes_on(folder, commands, capsys):  # noqa: F811
    pytest.importorskip("optuna")
    words = ["compare", "--config", prepare(**{"init.selection": "none"}), "--recipes", "as_is", "--baselines", "false"]
    words += ["--search", "lr=1e-6..1e-1", "pretrained.lr_scale=0..1", "--seeds", "1", "--trials"]
    commands.killed.add("as_is_trial1_seed0")
    assert main([*words, "3"]) == 0
    assert [row for row, _ in commands.given] == ["as_is_trial0", "as_is_trial1", "as_is_trial2", "as_is"]
    tried = {}
    for number in (0, 2):
        arguments = read_config(HOME / f"configs/as_is_trial{number}.yaml")["model"]["init_args"]
        result = read_result(HOME / f"results/as_is_trial{number}_seed0.json")
        assert result.test == {}
        tried[arguments["lr"]] = result.validation["accuracy"]
    chosen = read_config(HOME / "configs/as_is.yaml")["model"]["init_args"]
    assert tried[chosen["lr"]] == max(tried.values())
    assert 0 <= chosen["pretrained"]["lr_scale"] <= 1
    assert len((HOME / "compare.csv").read_text().splitlines()) == 2
    commands.given.clear()
    assert main([*words, "3"]) == 0
    assert commands.given == []
    assert "as_is_seed0: finished before" in capsys.readouterr().out


def test_a_row_that_takes_no_such_values_is_told_once_and_not_searched(folder, commands, capsys):  # noqa: F811
    pytest.importorskip("optuna")
    words = ["--recipes", "as_is", "--seeds", "1", "--trials", "1", "--search", "parts.tower.lr_scale=0.5..1"]
    assert main(["compare", "--config", prepare(**{"init.selection": "none"}), *words]) == 0
    out = capsys.readouterr().out
    assert out.count("part_fresh: without a search, because it takes no such values: ") == 1
    rows = [row for row, _ in commands.given]
    assert [row for row in rows if "trial" in row] == ["as_is_trial0", "part_tower_trial0", "random_weights_trial0"]
    assert rows[-5:] == ["as_is", "part_fresh", "part_tower", "random_weights", "ridge"]


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("pretrained.lr_scal=0..1", "unknown key 'lr_scal'"),
        ("fusion.args.depht=1..2", "depht"),
        ("parts.tower.lr_scal=0..1", "unknown key 'lr_scal'"),
        ("fusion.args.dropout=0.5..2", "dropout"),
    ],
)
def test_a_nested_key_that_no_row_takes_is_refused_before_a_trial(key, says, folder, commands, capsys):  # noqa: F811
    pytest.importorskip("optuna")
    words = ["--config", prepare(), "--recipes", "as_is", "full", "--baselines", "false", "--search", key]
    assert main(["compare", *words]) == 2
    assert says in (message := capsys.readouterr().err)
    assert "--search: no row takes these values. as_is: " in message
    assert commands.given == []
