"""What the command line answers by itself, before it runs a command."""

import warnings
from pathlib import Path

import pytest

import hybrid_lightning
from hybrid_lightning import from_config
from hybrid_lightning.cli import main
from hybrid_lightning.cli.commands import COMMANDS
from hybrid_lightning.cli.help import overview
from hybrid_lightning.cli.parser import with_flags
from tests.processes import succeed
from tests.small import CONFIG, changed, command, write


def test_plan_probe_and_embed_import_no_library_that_the_config_does_not_need(folder):
    write(CONFIG)
    code = (
        "import sys\n"
        "from hybrid_lightning.cli import main\n"
        "for words in (['plan'], ['probe'], ['embed', '--output', 'x.npz']):\n"
        "    assert main([*words, '--config', 'small.yaml']) == 0\n"
        # not pandas and pyarrow, which scikit-learn's data sets import
        "libraries = {'torchvision', 'timm', 'peft', 'kornia', 'sktime', 'tensorboard'}\n"
        "assert not libraries & sys.modules.keys(), libraries & sys.modules.keys()\n"
    )
    succeed("-c", code, cwd=folder)


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--help"], 0), (["-h"], 0), (["help"], 0), (["--version"], 0)])
def test_only_a_missing_command_is_an_error(words, code, capsys):
    assert main(words) == code
    shown = capsys.readouterr()
    assert shown.out == f"{overview()}\n" or words == ["--version"]
    assert not shown.err


def test_the_page_of_commands_has_the_rows_of_the_table():
    page = (Path(hybrid_lightning.__file__).parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")
    assert "".join(f"| `{name}` | {row.description} |\n" for name, row in COMMANDS.items()) in page


@pytest.mark.parametrize(
    ("given", "meant"), [("fitt", "fit"), ("cross_validation", "cross_validate"), ("exprt", "export")]
)
def test_an_unknown_command_suggests_the_closest(given, meant, capsys):
    assert main([given, "--config", "x.yaml"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: unknown command '{given}'. Did you mean '{meant}'?")
    assert all(repr(name) in message for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "full"),
    [
        ("x.yaml", "--config x.yaml"),
        ("x.yaml y.yml head_first --name a", "--config x.yaml --config y.yml --config head_first --name a"),
        ("--name a x.yaml", "--name a --config x.yaml"),
        ("--name=a x.yaml --resume b.yaml", "--name=a --config x.yaml --resume b.yaml"),
        ("-c x.yaml y.yaml", "-c x.yaml --config y.yaml"),
        ("--print_config x.yaml", "--print_config --config x.yaml"),
        ("--data.x -1 y.yaml", "--data.x -1 --config y.yaml"),
        ("x.yaml validate", "--config x.yaml validate"),
        ("--name a b", "--name a b"),
    ],
)
def test_configs_may_stand_alone(words, full):
    assert with_flags(words.split()) == full.split()


def test_a_config_behind_a_checkpoint_is_no_second_checkpoint(folder, capsys):
    write(CONFIG)
    assert main(["predict", "--ckpt_path", "best", "small.yaml"]) == 2
    assert "there is no best.ckpt below 'runs/small'" in capsys.readouterr().err


def test_configs_that_stand_alone_stack(folder, capsys):
    write(CONFIG)
    write({"trainer": {"max_epochs": 7}}, "more.yaml")
    words = (
        ["plan", "small.yaml", "more.yaml", "random_features"],
        ["plan", "--config", "small.yaml", "-c", "more.yaml", "-c", "random_features"],
    )
    printed = []
    for form in words:
        assert main(form) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert main(["fit", "small.yaml", "ful"]) == 2
    assert "there is no file 'ful'. Recipes: 'discriminative'" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{}, {"init.num_classes": 1}])
@pytest.mark.parametrize("verb", ["fit", "plan", "cross_validate"])
def test_a_command_leaves_the_warning_filters_as_they_were(verb, changes, folder, capsys):
    before = list(warnings.filters)
    command(verb, config=changed(changes))
    assert warnings.filters == before


def test_a_continued_run_and_an_evaluation_leave_the_warning_filters_as_they_were(folder):
    before = list(warnings.filters)
    assert command("fit") == 0
    assert command("fit", "--resume", "auto", "--trainer.max_epochs", "2") == 0
    assert command("test", "--ckpt_path", "last") == 0
    assert warnings.filters == before


def test_from_config_leaves_the_warning_filters_as_they_were(folder):
    before = list(warnings.filters)
    from_config(write(CONFIG))
    assert warnings.filters == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--config", "x.yaml", "fit"], "error: the command comes first: write 'fit --config x.yaml'."),
        (["x.yaml"], "error: the command comes first: write 'fit x.yaml'."),
        (["fitt"], "error: unknown command 'fitt'. Did you mean 'fit'?"),
        (["train", "x.yaml"], "error: unknown command 'train'. Here it is 'fit': write 'fit x.yaml'."),
    ],
)
def test_a_command_comes_first(words, says, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(says)
