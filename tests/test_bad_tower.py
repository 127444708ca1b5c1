"""The two configs of tests/benchmarks/bad_tower.py are one experiment."""

from pathlib import Path

import pytest

from hybrid_lightning.cli import main
from hybrid_lightning.cli.config_files import read_config

CONFIGS = Path(__file__).parents[1] / "configs"
OURS, ONE_RATE = CONFIGS / "bad_tower.yaml", CONFIGS / "bad_tower_one_rate.yaml"


def test_they_differ_only_in_how_the_pretrained_part_trains():
    ours, one_rate = read_config(OURS), read_config(ONE_RATE)
    encoders = [config["model"]["init_args"]["parts"].pop("encoder") for config in (ours, one_rate)]
    assert ours == one_rate
    protection = [(encoder.pop("lr_scale"), encoder.pop("unfreeze")) for encoder in encoders]
    assert encoders[0] == encoders[1]
    assert protection[0][0] < 1
    assert protection[1] == (1, "always")


@pytest.mark.parametrize("config", [OURS, ONE_RATE], ids=lambda path: path.stem)
def test_the_plan_shows_the_protection(config, capsys):
    assert main(["plan", "--config", str(config), "--trainer.accelerator", "cpu"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    encoder, stats = ([row for row in rows if row[:1] == [part]] for part in ("encoder", "stats"))
    rates = {row[4] for row in encoder} | {row[4] for row in stats}
    assert (len(rates) == 1) == (config == ONE_RATE)
    assert all(("start" in row) == (config == ONE_RATE) for row in encoder)
    assert all("start" in row for row in stats)
