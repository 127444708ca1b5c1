from pathlib import Path

import pytest
import yaml

from hybrid_lightning.cli import main
from tests.processes import succeed
from tests.shards import write_splits
from tests.tables import write_rows

ROWS = [{"name": f"s{row}", "age": row * 7 % 41, "label": "ab"[row % 2]} for row in range(40)]


@pytest.fixture
def table(folder):
    write_rows("rows.csv", ROWS)
    return "rows.csv"


def test_the_config_goes_to_standard_output_and_what_was_seen_to_standard_error(table, capsys):
    assert main(["init", table]) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["data"]["init_args"]["target"] == "label"
    assert "40 rows; 'label' is the target" in err
    assert "next: python -m hybrid_lightning check --config" in err


def test_a_file_is_written_and_never_replaced(table, capsys):
    assert main(["init", table, "--output", "sub/mine.yaml"]) == 0
    assert capsys.readouterr().out == ""
    before = Path("sub/mine.yaml").read_text()
    assert main(["init", table, "--output", "sub/mine.yaml"]) == 2
    assert "'sub/mine.yaml' is there already" in capsys.readouterr().err
    assert Path("sub/mine.yaml").read_text() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "init: TABLE must be given."),
        (["gone.csv"], "init: there is no file 'gone.csv'"),
        (["rows.csv", "--target", "lable"], "--target: unknown column of 'rows.csv' 'lable'. Did you mean 'label'?"),
        (["rows.csv", "--kind", "regresion"], "--kind: unknown kind 'regresion'. Did you mean 'regression'?"),
        (["rows.csv", "--part", "image"], "--part: 'image' is not an input and its module, such as image=timm:resnet"),
        (["rows.csv", "--part", "image=MLP"], "--part: unknown part 'image'. Possible: 'table'"),
        (["rows.csv", "--config", "x.yaml"], "init: unknown option '--config'."),
    ],
)
def test_wrong_words_are_told(table, capsys, words, message):
    assert main(["init", *words]) == 2
    assert message in capsys.readouterr().err


def test_lightning_is_not_imported(table, folder):
    code = (
        "import sys\n"
        "from hybrid_lightning.cli import main\n"
        "assert main(['init', 'rows.csv']) == 0\n"
        "assert main(['init', 'gone.csv']) == 2\n"
        "assert not {'lightning', 'torchmetrics', 'jsonargparse'} & sys.modules.keys()\n"
    )
    succeed("-c", code, cwd=folder, fresh=True)


def test_shards_are_a_table_of_which_members_are_looked_at(folder, capsys):
    write_splits("shards")
    assert main(["init", "shards/*.tar", "--target", "cls", "--output", "mine.yaml"]) == 0
    config = yaml.safe_load(Path("mine.yaml").read_text())["data"]["init_args"]
    assert config["path"] == "shards/*.tar"
    assert "images" in capsys.readouterr().err
    columns = str(config["inputs"])
    assert "png" in columns
    assert "json.age" in columns
    assert "shard" not in columns
    assert main(["plan", "mine.yaml"]) == 0
