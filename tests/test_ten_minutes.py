"""A newcomer's road from a table to predictions, one command after the other in an empty folder, and the same again."""

from importlib.util import find_spec
from pathlib import Path

from hybrid_lightning.cli import main
from tests.ten_minutes import AGAIN, COMMANDS, FIT, timed, write_tables

SHORT = [*FIT, "--trainer.max_epochs", "3"]  # of the newcomer's twenty and more, which have the same road


def test_every_command_works_in_its_turn_and_again(folder, capsys):
    write_tables(rows=60)
    words_of_all = [SHORT if words == FIT else words for words in [*COMMANDS, *AGAIN]]
    commands = [words for words in words_of_all if words[:1] != ["report"] or find_spec("plotly")]
    times = dict(timed(commands, main))
    said = capsys.readouterr().out
    print(*(f"{seconds:5.1f} s  {command}" for command, seconds in times.items()), sep="\n")
    assert "init samples.csv --target label" in said  # what to type next, without a command
    assert "check: nothing is wrong" in said
    assert "'photo' of the batch" not in said  # both readers of the photos read the photos
    for voter in ("photo_tower", "photo_patches", "table"):
        assert said.count(f"\n{voter} ") >= 3  # in the plan, by `probe`, and where shares are found
    assert said.count("best.ckpt serves:") == 2
    assert said.count("intervals: 1,000 bootstrap draws") == 2
    predictions = sorted(Path("runs/mine").glob("version_*/predictions.csv"))
    assert [path.parent.name for path in predictions] == ["version_1", "version_3"]
    assert predictions[0].read_text() == predictions[1].read_text()  # an equal second training
    assert len(list(Path("runs/mine").glob("version_*/checkpoints/best.ckpt"))) == 2
