from typing import Any

import pytest
import torch
from torch import nn

from hybrid_lightning import ConfigError, named_param_groups
from hybrid_lightning.unfreezing.schedule import UnfreezingSchedule
from hybrid_lightning.unfreezing.timeline import restoring, training_at_start

PARTS = ("body", "head")


def training(never: tuple[str, ...], lr: float = 0.1) -> set[str]:
    """The parts that train at the start of a model, of which some never do."""
    model = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in PARTS})
    groups: list[dict[str, Any]] = named_param_groups(model, {name: name for name in PARTS}, lr=lr)
    return training_at_start(groups, {name: UnfreezingSchedule.parse("never") for name in never})


def test_something_trains_from_the_start() -> None:
    with pytest.raises(ConfigError, match=r"everything is frozen at step 0.*at least one of: 'body', 'head'\.$"):
        training(("body", "head"))
    assert training(("body",)) == {"head"}


def test_a_rate_of_0_is_no_training() -> None:
    with pytest.raises(ConfigError, match="all that trains from step 0 on has the rate 0"):
        training((), lr=0.0)


def test_a_warm_up_from_0_is_training() -> None:
    model = nn.ModuleDict({"head": nn.Linear(1, 1, bias=False)})
    groups = named_param_groups(model, {"head": "head"}, lr=0.1)
    optimizer = torch.optim.SGD(groups)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert optimizer.param_groups[0]["lr"] == 0
    assert training_at_start(optimizer.param_groups, {}) == {"head"}


def test_what_is_restored_goes_by_all_stages_of_a_part() -> None:
    module = nn.ModuleDict({"tower": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))})
    stages = {"tower": ["tower.0", "tower.1", "tower.2"]}
    groups = named_param_groups(module, {"tower": "tower"}, lr=0.1, stages=stages)
    waits = {"plateau": "val/loss", "patience": "1 validations", "restore_best": True}
    schedules = {"tower": UnfreezingSchedule.parse({"stages": {"first": waits, "*": "always"}})}
    of_last = [group for group in groups if group["stage"] == 2]
    assert list(restoring(groups, schedules, groups)) == ["val/loss"]
    assert not restoring(of_last, schedules, groups)
