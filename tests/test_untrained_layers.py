"""The rows of tests/benchmarks/untrained_layers.py are what their names say."""

import pytest

from tests.benchmarks.untrained_layers import NAIVE, OWN, SYSTEMS, rows_of

TABLES = [(system, block) for system in SYSTEMS for block in ("few", "all")]


@pytest.mark.parametrize(("system", "block"), TABLES)
def test_the_rows_of_a_table_have_the_same_data_and_the_same_steps(system, block):
    rows = rows_of(SYSTEMS[system], block)
    trainers = [{**config["trainer"], "gradient_clip_val": None} for config in rows.values()]
    assert all(config["data"] == rows[OWN]["data"] for config in rows.values())
    assert all(trainer == trainers[0] for trainer in trainers)


@pytest.mark.parametrize(("system", "block"), TABLES)
def test_no_two_rows_of_a_table_are_the_same(system, block):
    rows = list(rows_of(SYSTEMS[system], block).values())
    assert not any(one in rows[:number] for number, one in enumerate(rows))


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_naive_row_protects_nothing(system):
    naive = rows_of(SYSTEMS[system], "all")[NAIVE]
    parts = naive["model"]["init_args"]["parts"].values()
    pretrained = [part for part in parts if part.get("weights")]
    assert pretrained
    assert all((part["unfreeze"], part["lr_scale"]) == ("always", 1) for part in pretrained)
    assert naive["trainer"].get("gradient_clip_val") is None


def test_clipping_is_all_that_sets_two_systems_apart():
    stem, clipped = (rows_of(SYSTEMS[system], "few") for system in ("stem", "clipped"))
    assert stem["clipped to norm 1"] == clipped[OWN]
    assert clipped["not clipped"] == stem[OWN]
