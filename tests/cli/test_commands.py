"""What the command line answers by itself, before it runs a command."""

import pytest

import hybrid_lightning
from hybrid_lightning.cli import main
from hybrid_lightning.cli.commands import COMMANDS, overview
from tests.processes import succeed


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


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--help"], 0), (["-h"], 0), (["--version"], 0)])
def test_only_a_missing_command_is_an_error(words, code, capsys):
    assert main(words) == code
    assert capsys.readouterr().out


def test_the_overview_names_every_command_in_a_line():
    lines = overview().splitlines()
    for name, command in COMMANDS.items():
        [line] = [line for line in lines if line.split()[:1] == [name]]
        assert line.endswith(command.description)
    assert max(map(len, lines)) <= 120
