from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from hybrid_lightning.cli import main
from hybrid_lightning.cli.lr_find import suggested
from tests.small import CONFIG, command, write


def test_a_rate_is_found_drawn_and_written(folder, capsys):
    assert command("lr_find", "--steps", "30", "--write", "out/lr.yaml") == 0
    told = capsys.readouterr().out
    [line] = [line for line in told.splitlines() if line.startswith("lr: ")]
    rate = float(line.split()[1])
    assert 1e-6 <= rate <= 1
    assert told.count("#") > 20
    assert yaml.safe_load(Path("out/lr.yaml").read_text()) == {"model": {"init_args": {"lr": rate}}}
    assert sorted(path.name for path in folder.iterdir()) == ["out", "small.yaml"]  # no run, no checkpoint
    assert main(["plan", "small.yaml", "out/lr.yaml"]) == 0
    assert f"{rate:.3g}" in capsys.readouterr().out


def test_the_rate_is_where_the_loss_falls_fastest_per_decade():
    rates = [10 ** (-6 + step / 10) for step in range(60)]
    losses = [1 / (1 + (rate / 1e-2) ** 2) for rate in rates]
    assert suggested(rates, losses) == pytest.approx(1e-2, rel=0.3)
    assert suggested(rates, [*losses[:-1], float("nan")]) == suggested(rates, losses)
    assert suggested(rates, [float(step) for step in range(60)]) is None
    assert suggested(rates[:12], losses[:12]) is None


@pytest.mark.skipif(not find_spec("matplotlib"), reason="matplotlib is not installed")
def test_a_plot_is_an_image(folder):
    assert command("lr_find", "--steps", "60", "--plot", "lr.png") == 0
    assert Path("lr.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--low 0", "low: 0.0 is not a number above 0"),
        ("--low 1 --high 0.1", "high: 0.1 is not a number above 1.0"),
        ("--steps 5", "steps: 5 is not a number at least 20"),
        ("--write lr.txt", "write: 'lr.txt' does not end in .yaml or .yml."),
        ("--write small.yaml", "write: 'small.yaml' is there already, and holds more than a rate."),
        ("--plot lr.xyz", "plot: 'lr.xyz' does not end in .png"),
        ("--trainer.fast_dev_run true", "trainer.fast_dev_run"),
    ],
)
def test_wrong_words_are_told(words, says, folder, capsys):
    write(CONFIG)
    assert main(["lr_find", "small.yaml", *words.split()]) == 2
    assert says in capsys.readouterr().err
