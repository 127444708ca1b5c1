import torch
from torch import nn

from hybrid_lightning import FitLength, UnfreezingSchedule, named_param_groups
from hybrid_lightning.errors import format_table
from hybrid_lightning.unfreezing.plan import COLUMNS, plan_rows, plan_table, with_sharing


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        self.table = nn.Embedding(2, 2)
        self.head = nn.Linear(1, 1, bias=False)


def groups(*fixed: str):
    return named_param_groups(
        Net(),
        {"tower": "tower", "table": "table", "head": "head"},
        lr=0.01,
        weight_decay=0.1,
        rates={"tower": {"lr_scale": 0.1, "layer_decay": 0.5}},
        stages={"tower": ["tower.0", "tower.1"]},
        fixed=["table.weight", *fixed],
    )


SCHEDULES = {"tower": UnfreezingSchedule.parse({"start": "10%", "every": "1 epochs"})}
LENGTH = FitLength(steps_per_epoch=20, total_steps=100)


def rows(schedules=SCHEDULES, length=LENGTH):
    return plan_rows(groups(), schedules, {"tower": "pretrained"}, length)


def test_each_part_and_stage_has_one_row():
    first, second, table, head = rows()
    assert first == {
        "part": "tower",
        "origin": "pretrained",
        "stage": "0",
        "parameters": "9",
        "lr": "0.0005",
        "weight decay": "0.1, 0",
        "unfreezes at": "10% + 1 × 1 epoch (step 30)",
        "mode": "eval, then train",
    }
    assert [second[name] for name in ("stage", "parameters", "lr")] == ["1", "4", "0.001"]
    assert second["unfreezes at"] == "10% (step 10)"
    assert [head[name] for name in COLUMNS[1:]] == ["untrained", "all", "1", "0.01", "0.1", "start", "train"]
    assert [table["unfreezes at"], table["mode"]] == ["never (arrived frozen)", "eval"]


def test_a_stage_that_can_train_in_part_only_says_how_much_of_it():
    first, second, *_ = plan_rows(groups("tower.0.weight"), SCHEDULES, {}, LENGTH)
    assert [first["parameters"], first["weight decay"]] == ["3 of 9", "0"]
    assert [second["parameters"], second["weight decay"]] == ["4", "0.1, 0"]


def test_what_never_trains_says_so():
    row = rows({"tower": UnfreezingSchedule.parse("never")})[0]
    assert [row["unfreezes at"], row["mode"]] == ["never", "eval"]


def test_moments_that_a_metric_decides_are_shown_once_they_are_known():
    plateau = {"plateau": "val/loss", "patience": "2 validations"}
    schedules = {"tower": UnfreezingSchedule.parse({"start": plateau, "every": "1 epochs", "freeze": "80%"})}
    text = "val/loss no better for 2 validations, until 80%"
    assert [row["unfreezes at"] for row in rows(schedules)[1:2]] == [f"{text} (to step 80)"]
    assert rows(schedules)[1]["mode"] == "eval, then train, then eval"
    known = plan_rows(groups(), schedules, {}, LENGTH, {"tower.1": 7})
    assert [row["unfreezes at"].partition("(")[2] for row in known[:2]] == ["step 27 to 80)", "step 7 to 80)"]


def test_the_rate_is_the_configured_one_also_while_a_scheduler_changes_it():
    made = groups()
    optimizer = torch.optim.SGD(made)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.param_groups[0]["lr"] = 123.0
    assert plan_rows(optimizer.param_groups, {}, {}, LENGTH)[0]["lr"] == "0.0005"


def test_a_table_is_aligned_and_tells_the_length_of_the_fit():
    lines = plan_table(plan_rows(groups(), SCHEDULES, {}, LENGTH), LENGTH).splitlines()
    assert lines[-1] == "length of the run: 100 steps; of an epoch: 20 steps"
    start = lines[0].index("unfreezes at")
    assert all(line[start - 2 : start] == "  " for line in lines[2:-1])
    assert set(lines[1]) == {"-", " "}
    assert not any(line.endswith(" ") for line in lines)


def test_a_fit_without_an_end_has_a_table_too():
    length = FitLength(None, None)
    assert "no end; of an epoch: unknown" in plan_table(plan_rows(groups(), {}, {}, length), length)


def test_numbers_stand_on_the_right():
    table = format_table([{"a": "x", "n": "1"}, {"a": "long", "n": "1,000"}], ("a", "n"), right=("n",))
    assert table.splitlines() == ["a         n", "----  -----", "x         1", "long  1,000"]


def test_a_part_with_the_module_of_another_stands_behind_it():
    rows = with_sharing(plan_rows(groups(), SCHEDULES, {}, LENGTH), {"back": "tower", "side": "elsewhere"})
    names = [row["part"] for row in rows]
    assert names[names.index("back") - 1] == "tower"
    assert names[names.index("back") + 1] != "tower"
    assert names[-1] == "side", "its owner has no parameters"
    [shared] = [row for row in rows if row["part"] == "back"]
    assert (shared["parameters"], shared["unfreezes at"]) == ("0", "with tower, whose module it has")
