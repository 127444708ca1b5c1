import pytest
import torch

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.resume.loop_counters import first_contradiction, first_damaged
from hybrid_lightning.resume.saved_fit import refuse_damaged_head, refuse_damaged_schedulers

HEAD = {"epoch": 1, "global_step": 3, "pytorch-lightning_version": "2.6.6", "state_dict": {}}


def loops(batches: int) -> dict:
    total = dict.fromkeys(("ready", "started", "processed", "completed"), batches)
    progress = {"total": total, "current": dict(total)}
    return {"epoch_progress": progress, "epoch_loop.batch_progress": progress}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", -1),
        ("global_step", "many"),
        ("pytorch-lightning_version", "new"),
        ("pytorch-lightning_version", "1.9.5"),
        ("state_dict", []),
    ],
)
def test_what_lightning_reads_of_any_checkpoint_is_checked_by_name(key, value):
    refuse_damaged_head(HEAD)
    with pytest.raises(ConfigError, match=rf"'checkpoint\.{key}' is missing, of another type or out of its range"):
        refuse_damaged_head({**HEAD, key: value})


def test_counters_come_in_order_and_below_their_total():
    assert first_contradiction(loops(3)) is None
    ahead = loops(3)
    ahead["epoch_progress"] = {**ahead["epoch_progress"], "current": {**ahead["epoch_progress"]["current"], "ready": 1}}
    assert first_contradiction(ahead) == "epoch_progress.current"
    beyond = loops(3)
    beyond["epoch_progress"] = {
        "total": loops(2)["epoch_progress"]["total"],
        "current": loops(3)["epoch_progress"]["total"],
    }
    assert first_contradiction(beyond) == "epoch_progress.current"


@pytest.mark.parametrize(
    "states",
    [
        None,
        [],
        [{}, {}],
        [{"last_epoch": -1}],
        [{"last_epoch": 30}],
        [{"last_epoch": 1, "clock": "hour"}],
        [{"last_epoch": 1, "step": 3}],
        [{"last_epoch": 1, "plateau": {"lr": 1e30}}],
    ],
)
def test_a_scheduler_takes_a_position_and_nothing_else(states):
    scheduler = rates()
    good = {"lr_schedulers": [scheduler.state_dict()], "loops": {"fit_loop": loops(3)}}
    refuse_damaged_schedulers(good, scheduler)
    with pytest.raises(ConfigError, match="'lr_schedulers"):
        refuse_damaged_schedulers({**good, "lr_schedulers": states}, scheduler)


def rates():
    from hybrid_lightning import named_param_groups
    from hybrid_lightning.optim.lr_schedules import GroupRates

    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)})
    return GroupRates(torch.optim.SGD(named_param_groups(module, {"a": "a"}, lr=0.1)))


def test_a_scheduler_of_torch_takes_no_attribute_that_it_does_not_have():
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1), 3)
    good = scheduler.state_dict()
    refuse_damaged_schedulers({"lr_schedulers": [good]}, scheduler)
    with pytest.raises(ConfigError, match=r"'lr_schedulers\[0\]\.step' is missing"):
        refuse_damaged_schedulers({"lr_schedulers": [{**good, "step": 3}]}, scheduler)


@pytest.mark.parametrize(
    ("saved", "form", "fits"),
    [
        (3, int, True),
        (-3, int, False),
        (float("nan"), float, False),
        (float("inf"), float, True),
        (-1, range(-1, 9), True),
        (2**70, range(2**63), False),
        ("a", frozenset("ab"), True),
        (["a"], frozenset("ab"), False),
        (torch.zeros(()), torch.zeros(()), True),
        (torch.zeros(3), torch.zeros(()), False),
    ],
)
def test_counts_ranges_choices_and_shapes_are_forms(saved, form, fits):
    assert (first_damaged(saved, form, "x") is None) == fits
