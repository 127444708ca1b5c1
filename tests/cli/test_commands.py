"""What the command line answers by itself, before it runs a command."""

import warnings
from pathlib import Path

import pytest

import hybrid_lightning
from hybrid_lightning import from_config
from hybrid_lightning.cli import main
from hybrid_lightning.cli.commands import COMMANDS, overview
from tests.processes import succeed
from tests.small import CONFIG, changed, command, write


def test_help_and_version_import_neither_torch_nor_lightning():
    code = (
        "import sys\n"
        "from hybrid_lightning.cli import main\n"
        "for words in ([], ['--help'], ['-h'], ['--version']):\n"
        "    main(words)\n"
        "assert not {'torch', 'numpy', 'lightning', 'yaml'} & sys.modules.keys()\n"
    )
    done = succeed("-c", code, fresh=True)
    assert done.stdout == f"{overview()}\n" * 3 + f"hybrid_lightning {hybrid_lightning.__version__}\n"


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


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--help"], 0), (["-h"], 0), (["--version"], 0)])
def test_only_a_missing_command_is_an_error(words, code, capsys):
    assert main(words) == code
    assert capsys.readouterr().out


def test_the_overview_names_every_command_in_a_line():
    lines = overview().splitlines()
    for name, row in COMMANDS.items():
        [line] = [line for line in lines if line.split()[:1] == [name]]
        assert line.endswith(row.description)
    assert max(map(len, lines)) <= 120


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


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_begins_with_its_line(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: hybrid_lightning {name} ")
    if COMMANDS[name].has_setup:
        assert COMMANDS[name].description in shown
        assert "--model" in shown


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


def test_the_options_of_a_part_are_listed(capsys):
    assert main(["fit", "--help", "part"]) == 0
    assert "unfreeze: ``always``" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--config", "x.yaml", "fit"], "error: the command comes first: write 'fit --config x.yaml'."),
        (["x.yaml"], "error: the command comes first: write 'COMMAND --config x.yaml'."),
        (["fitt"], "error: unknown command 'fitt'. Did you mean 'fit'?"),
    ],
)
def test_a_command_comes_first(words, says, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(says)
