import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from hybrid_lightning import ConfigError, HybridClassifier, HybridRegressor
from hybrid_lightning.cli import main
from hybrid_lightning.network.selection import JOINT
from hybrid_lightning.probe.score import Score
from hybrid_lightning.probe.vote import Vote
from hybrid_lightning.resume.atomic_checkpoint_io import AtomicCheckpointIO
from hybrid_lightning.tasks.best_checkpoint import BestCheckpoint
from hybrid_lightning.tasks.features import SplitFeatures
from hybrid_lightning.tasks.probing import Voter
from hybrid_lightning.tasks.selection import (
    BLEND,
    Candidate,
    Rows,
    _crossed,
    best_checkpoint,
    candidates,
    choose,
    described,
    most_validation_rows,
)
from tests.small import loader, trainer, write

ROWS = 160
PARTS = {"photo": {"module": "torch.nn.Identity"}, "table": {"module": "MLP"}}
OVERFITTING = {"args": {"shrink_above": None}}


class Houses(pl.LightningDataModule):
    """Four numbers that tell the value, beside 300 frozen ones that tell next to nothing of it."""

    def __init__(self, kind="values"):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        table = torch.randn(400, 4, generator=generator)
        value = table @ torch.tensor([1.0, 0.6, -0.4, 0.2]) + 0.3 * torch.randn(400, generator=generator)
        photo = torch.randn(400, 300, generator=generator)
        border = {"classes": 0.0, "rare": 2.0}
        target = (value > border[kind]).long() if kind in border else value
        self.entries = {"photo": photo, "table": table, "target": target}

    def _loader(self, first, last, shuffle=False):
        return loader({name: tensor[first:last] for name, tensor in self.entries.items()}, 32, shuffle)

    def train_dataloader(self):
        return self._loader(0, ROWS, shuffle=True)

    def val_dataloader(self):
        return self._loader(ROWS, 260)

    def test_dataloader(self):
        return self._loader(260, 400)

    predict_dataloader = test_dataloader


def fitted(folder, data=None, epochs=12, ckpt_path=None, **options):
    """A run that keeps the best epoch; the model, the Trainer and the file. The joint network overfits the photos."""
    torch.manual_seed(0)
    model = HybridRegressor(parts=PARTS, lr=3e-3, fusion=OVERFITTING, **options)
    best = ModelCheckpoint(folder, "best", monitor="val/loss", enable_version_counter=False)
    runner = trainer(max_epochs=epochs, callbacks=[best], enable_checkpointing=True)
    runner.fit(model, data or Houses(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return model, runner, folder / "best.ckpt"


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("houses"))


class OneRow(Houses):
    def val_dataloader(self):
        return self._loader(ROWS, ROWS + 1)


class OneValue(Houses):
    def __init__(self):
        super().__init__()
        self.entries["target"][ROWS:260] = 1


class NotFinite(Houses):
    def __init__(self):
        super().__init__()
        self.entries["photo"][ROWS] = torch.nan


class Passing(Houses):
    def train_dataloader(self):
        return iter(list(super().train_dataloader()))


def scores(model, path):
    best = ModelCheckpoint(path.parent, "best", monitor="val/loss")
    runner = trainer(callbacks=[best], enable_checkpointing=True)
    [values] = runner.test(model, Houses(), ckpt_path=path, weights_only=True, verbose=False)
    return values["test/r2"]


def test_a_part_that_is_better_alone_is_served(houses):
    model, _, path = houses
    served = scores(model, path)
    model.serves_selection = False
    joint = scores(model, path)
    model.serves_selection = True
    assert served > 0.85 > joint + 0.03


def test_a_model_from_the_file_serves_the_same(houses):
    model, _, path = houses
    loaded = HybridRegressor.load_from_checkpoint(path)
    batch = next(iter(Houses().test_dataloader()))
    scores(model, path)
    assert torch.equal(loaded(batch), model.eval()(batch))
    assert loaded.built().selection is not None
    assert "table" in loaded.built().record.selection


def test_what_was_selected_changes_nothing_in_a_fit_that_goes_on(houses, tmp_path):
    _, _, path = houses
    plain = fitted(tmp_path / "plain", selection="none", epochs=12)
    saved, without = torch.load(path, weights_only=True), torch.load(plain[2], weights_only=True)
    for name, tensor in without["state_dict"].items():
        assert torch.equal(saved["state_dict"][name], tensor), name
    states = []
    for source in (path, plain[2]):
        model, *_ = fitted(tmp_path / source.parent.name, epochs=13, ckpt_path=source, selection="none")
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_later_end_of_the_fit_selects_anew(houses, tmp_path):
    _, _, path = houses
    again, _, later = fitted(tmp_path, epochs=14, ckpt_path=path)
    names = [name for name in torch.load(later, weights_only=True)["state_dict"] if "selection" in name]
    assert names
    assert again.built().selection is None


def test_parts_that_say_nothing_alone_have_hardly_a_share():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(100, 1, generator=generator)
    outputs = {JOINT: target + 0.2 * torch.randn(100, 1, generator=generator), "a": 0.0 * target}
    _, shares = _crossed(outputs, target, "values", None, torch.ones(100))
    assert shares[JOINT] > 0.95


@pytest.mark.parametrize(("kind", "metric"), [("classes", "accuracy"), ("rare", "average_precision")])
def test_classes_are_selected_by_the_main_metric(tmp_path, capsys, kind, metric):
    torch.manual_seed(0)
    model = HybridClassifier(num_classes=2, parts=PARTS, lr=3e-3)
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss", enable_version_counter=False)
    trainer(max_epochs=6, callbacks=[best], enable_checkpointing=True).fit(model, Houses(kind))
    printed = capsys.readouterr().out
    assert f"{metric} on validation rows" in printed
    assert "best.ckpt serves:" in printed


def test_of_logarithms_the_joint_network_has_the_score_that_its_metric_has(tmp_path, capsys):
    class Prices(Houses):
        target_transform = "log"

        def __init__(self):
            super().__init__()
            self.entries["target"] = self.entries["target"].exp()

    model, runner, _ = fitted(tmp_path, Prices(), epochs=1)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith(JOINT)]
    r2 = float(runner.callback_metrics["val/r2"])
    assert line.split()[2] == f"{r2:.3f}"
    assert model.objective.scale.transform == "log"


def test_what_is_served_is_told_beside_the_score_of_the_joint_network():
    blend = Candidate(Score("r2", 0.8, 0.1), Score("r2", 0.0, 0.0), {JOINT: 0.7, "a": 0.3})
    found = {JOINT: candidate(0.8, 0.0, 0.0), "a": candidate(0.9, 0.1, 0.09), BLEND: blend}
    *table, said = described(found, "a", "best.ckpt").splitlines()
    assert said.startswith("best.ckpt serves: a alone, by ridge regression")
    assert "--select joint" in said
    assert table[2].split() == ["joint", "network", "0.800", "±", "0.100", "+0.000", "±", "0.000", "0.70"]


@pytest.mark.parametrize(
    "options",
    [
        {"parts": {"table": {"module": "MLP"}}},
        {"parts": PARTS, "selection": "none"},
    ],
)
def test_one_part_or_none_wanted_selects_nothing(tmp_path, capsys, options):
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss")
    runner = trainer(max_epochs=1, callbacks=[best], enable_checkpointing=True)
    runner.fit(HybridRegressor(**options), Houses())
    assert "serves" not in capsys.readouterr().out


def test_another_word_is_refused():
    with pytest.raises(
        ConfigError, match=r"^model.selection: unknown selection 'best'\. Possible: 'validation', 'none'"
    ):
        HybridRegressor(parts=PARTS, selection="best")


def candidate(value, difference, error, loss=0.0):
    return Candidate(Score("r2", value, 0.1), Score("r2", difference, error), {}, loss)


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ({"a": candidate(0.9, 0.1, 0.11)}, BLEND),
        ({"a": candidate(0.9, 0.1, 0.09)}, "a"),
        ({"a": candidate(0.9, 0.1, 0.09), JOINT: candidate(0.95, 0.15, 0.05)}, JOINT),
        ({"a": candidate(0.9, 0.1, 0.09), JOINT: candidate(0.95, 0.15, 0.2)}, "a"),
        ({"a": candidate(0.9, 0.1, torch.nan)}, BLEND),
        ({"a": candidate(0.8, 0.0, 0.0)}, BLEND),
        ({"a": candidate(0.9, 0.1, 0.09, loss=0.1)}, BLEND),
    ],
)
def test_within_one_standard_error_the_blend_is_served(others, chosen):
    assert choose({BLEND: candidate(0.8, 0.0, 0.0), **others}) == chosen


def test_rows_of_a_group_are_scored_by_shares_that_saw_none_of_them():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(60, 1, generator=generator)
    groups = torch.arange(60) // 6
    noise = torch.randn(10, 1, generator=generator)[groups]  # of a group, which shares could learn
    outputs = {JOINT: 0.0 * target, "a": target + noise}
    ones = torch.ones(60)
    blend, shares = _crossed(outputs, target, "values", groups, ones)
    for group in range(10):
        inside = groups % 5 == group % 5
        others = {name: tensor[~inside] for name, tensor in outputs.items()}
        _, of_others = _crossed(others, target[~inside], "values", groups[~inside], ones[~inside])
        expected = of_others["a"] * outputs["a"][inside]
        torch.testing.assert_close(blend[inside], expected)
    assert 0 < shares["a"] < 1


def test_the_command_line_serves_what_was_selected_or_the_joint_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = {
        "model": {"class_path": "HybridRegressor", "init_args": {"parts": PARTS, "lr": 3e-3}},
        "data": {"class_path": "tests.tasks.test_selection.Houses"},
        "trainer": {"max_epochs": 12, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 5},
        "seed_everything": 0,
    }
    path = write(config)
    assert main(["fit", "--config", path]) == 0
    out = capsys.readouterr().out
    assert "best.ckpt serves: table alone" in out
    [best] = [line for line in out.splitlines() if line.startswith("best: ")]
    assert "of the joint network" in best
    assert (tmp_path / best.rpartition("; ")[2]).is_file()
    found = []
    for select in ("best", "joint"):
        words = ["--config", path, "--ckpt_path", "best", "--select", select]
        assert main(["test", *words]) == 0
        out = capsys.readouterr().out
        found.append(float(out.split("test/r2")[1].split()[0]))
        assert main(["predict", *words, "--output", f"{select}.csv"]) == 0
        assert main(["export", *words, "--output", f"{select}.pt2"]) == 0
    assert found[0] > found[1] + 0.03
    assert (tmp_path / "best.csv").read_text() != (tmp_path / "joint.csv").read_text()
    assert main(["test", "--config", path, "--ckpt_path", "best", "--select", "other"]) == 2


def test_a_part_of_another_network_starts_from_the_file(houses, tmp_path):
    _, _, path = houses
    source = {"path": str(path), "parts": {"table": "table"}, "coverage": 0.0}
    model = HybridRegressor(parts=PARTS, init_from=source, selection="none")
    trainer(max_epochs=0).fit(model, Houses())
    saved = torch.load(path, weights_only=True)["state_dict"]
    own = model.state_dict()
    names = [name for name in own if name.startswith("network.parts.table")]
    assert names
    assert all(torch.equal(own[name], saved[name]) for name in names)


def test_a_network_of_live_parts_is_served_too(tmp_path):
    parts = {"photo": {"module": nn.Identity()}, "table": {"module": nn.Linear(4, 8)}}
    torch.manual_seed(0)
    model = HybridRegressor(parts=parts, lr=3e-3)
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss", enable_version_counter=False)
    trainer(max_epochs=8, callbacks=[best], enable_checkpointing=True).fit(model, Houses())
    live = {"photo": nn.Identity(), "table": nn.Linear(4, 8)}
    loaded = HybridRegressor.load_from_checkpoint(tmp_path / "best.ckpt", parts=live)
    assert loaded.built().selection is not None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (OneRow, "one validation row"),
        (OneValue, "all values of the target are the same"),
        (NotFinite, "not finite"),
        (Passing, "the loader is an iterator"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_fit_whose_outputs_cannot_be_compared_ends_well(tmp_path, capsys, data, reason):
    fitted(tmp_path, data(), epochs=1)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("selection: ")]
    assert "best.ckpt stays as it is" in line
    assert reason in line


def test_the_checkpoint_of_another_model_is_left_alone(houses, tmp_path, capsys):
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss")
    # as after a run of another model whose loss was lower
    best.best_model_path = best.kth_best_model_path = str(houses[2])
    best.best_k_models = {best.best_model_path: torch.tensor(-torch.inf)}
    before = houses[2].read_bytes()
    parts = {"a": {"module": "MLP", "input": "table"}, "b": {"module": "MLP", "input": "table"}}
    trainer(max_epochs=1, callbacks=[best], enable_checkpointing=True).fit(HybridRegressor(parts=parts), Houses())
    assert "selection: best.ckpt stays as it is" in capsys.readouterr().out
    assert houses[2].read_bytes() == before


def test_a_disk_that_takes_nothing_more_says_so_and_leaves_the_model(tmp_path, monkeypatch):
    def full(*_):
        raise ConfigError("the disk is full")

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", full)
    torch.manual_seed(0)
    model = HybridRegressor(parts=PARTS, lr=3e-3)
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss", enable_version_counter=False)
    runner = trainer(max_epochs=12, callbacks=[best], enable_checkpointing=True)
    with pytest.raises(ConfigError, match="the disk is full"):
        runner.fit(model, Houses())
    assert model.built().selection is None


def test_rows_are_read_on_the_device_of_the_trainer(tmp_path):
    class Moved(HybridRegressor):
        def to(self, device):
            places.append(device)
            return super().to(device)

    places = []
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss", enable_version_counter=False)
    runner = trainer(max_epochs=1, callbacks=[best], enable_checkpointing=True)
    runner.fit(Moved(parts=PARTS), Houses())
    # Lightning has moved the model to the CPU when a run ends
    assert places[-2:] == [runner.strategy.root_device, torch.device("cpu")]


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging", "ignore:Be aware")
def test_an_average_of_weights_is_served_with_what_was_selected(tmp_path):
    torch.manual_seed(0)
    model = HybridRegressor(parts=PARTS, lr=3e-3)
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss", enable_version_counter=False)
    average = EMAWeightAveraging(decay=0.5)
    runner = trainer(max_epochs=6, callbacks=[average, best], enable_checkpointing=True)
    runner.fit(model, Houses())
    path = tmp_path / "best.ckpt"
    [values] = runner.test(model, Houses(), ckpt_path=path, weights_only=True, verbose=False)
    assert values["test/r2"] == pytest.approx(scores(HybridRegressor.load_from_checkpoint(path), path))
    assert values["test/r2"] > 0.85
    again = trainer()
    [alone] = again.validate(model, Houses(), ckpt_path=path, weights_only=True, verbose=False)
    [beside] = runner.validate(model, Houses(), ckpt_path=path, weights_only=True, verbose=False)
    assert beside["val/r2"] == pytest.approx(alone["val/r2"])


@pytest.mark.filterwarnings("ignore:Be aware")
@pytest.mark.parametrize("average", ["ema", "soup"])
def test_what_is_selected_is_served_with_the_average(tmp_path, capsys, average):
    torch.manual_seed(0)
    model = HybridRegressor(parts=PARTS, lr=3e-3, average=average)
    best = BestCheckpoint(tmp_path, "best", monitor="main", enable_version_counter=False)
    runner = trainer(max_epochs=6, callbacks=[best], enable_checkpointing=True)
    runner.fit(model, Houses())
    out = capsys.readouterr().out
    assert "best.ckpt serves: " in out
    path = tmp_path / "best.ckpt"
    [values] = runner.test(model, Houses(), ckpt_path=path, weights_only=True, verbose=False)
    assert values["test/r2"] == pytest.approx(scores(HybridRegressor.load_from_checkpoint(path), path))
    assert values["test/r2"] > 0.85


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging")
def test_an_average_of_a_model_that_serves_a_selection_is_of_its_joint_network(houses, tmp_path):
    model = HybridRegressor.load_from_checkpoint(houses[2])
    last = ModelCheckpoint(tmp_path, "last", monitor=None, enable_version_counter=False)
    runner = trainer(max_epochs=1, callbacks=[EMAWeightAveraging(), last], enable_checkpointing=True)
    runner.fit(model, Houses())
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert not [name for name in state if "selection" in name]


def test_the_checkpoint_of_the_main_metric_comes_before_others(tmp_path):
    other = ModelCheckpoint(tmp_path, "other", monitor="val/loss")
    best = BestCheckpoint(tmp_path, "best", monitor="main")
    runner = trainer(max_epochs=1, callbacks=[other, best], enable_checkpointing=True)
    runner.fit(HybridRegressor(parts=PARTS, selection="none"), Houses())
    assert best_checkpoint(runner).name == "best.ckpt"


def test_of_a_stream_with_groups_rows_are_drawn_alone(tmp_path, capsys):
    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            for row in range(ROWS, 260):
                yield {name: tensor[row] for name, tensor in data.entries.items()}

    data = Houses()
    data.val_groups = torch.arange(100)
    data.val_dataloader = lambda: torch.utils.data.DataLoader(Rows(), 32)
    fitted(tmp_path, data, epochs=1)
    assert "best.ckpt serves: " in capsys.readouterr().out


def test_the_validation_rows_are_those_of_all_ranks():
    class TwoRanks:
        num_val_batches = 3
        enable_validation = True
        val_dataloaders = Houses().val_dataloader()
        world_size = 2

    assert most_validation_rows(TwoRanks()) == 2 * 3 * 32


def test_a_part_may_be_called_blend(tmp_path, capsys):
    parts = {"blend": {"module": "MLP", "input": "table"}, "photo": PARTS["photo"]}
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss")
    runner = trainer(max_epochs=1, callbacks=[best], enable_checkpointing=True)
    runner.fit(HybridRegressor(parts=parts), Houses())
    outputs = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"blend", BLEND} <= set(outputs)


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"other": 4}, "other"),
        ({"a.b": 4}, "a.b"),
        ({"training": 4}, "training"),
        ({"table": 5}, "table"),
        ({"table": 2**30}, "table"),
    ],
)
def test_a_strangers_record_of_a_selection_is_refused(houses, tmp_path, selection, words):
    saved = torch.load(houses[2], weights_only=True)
    saved["hybrid_lightning"]["network"]["selection"] = selection
    torch.save(saved, tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match=rf"network\.selection: .*{words}"):
        HybridRegressor.load_from_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match=rf"network\.selection: .*{words}"):
        scores(HybridRegressor(parts=PARTS), tmp_path / "x.ckpt")


def test_negative_shares_of_a_strangers_file_are_refused(houses, tmp_path):
    saved = torch.load(houses[2], weights_only=True)
    saved["state_dict"]["network.selection.shares"].fill_(-1)
    torch.save(saved, tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match=r"selection\.shares holds negative shares"):
        HybridRegressor.load_from_checkpoint(tmp_path / "x.ckpt")


def test_where_a_class_is_rare_a_constant_does_not_win_by_accuracy():
    generator = torch.Generator().manual_seed(0)
    target = (torch.arange(1000) < 70).long()
    noise = torch.randn(1000, generator=generator)
    told = torch.stack([torch.zeros(1000), 3 * target - 1 + noise], 1)  # many of the others are taken for it
    constant = torch.tensor([[0.93, 0.07]]).log().repeat(1000, 1)
    model = HybridClassifier(num_classes=2, parts=PARTS, class_weights=[1.0, 13.0])
    absent = SplitFeatures({}, {}, target, None)
    rows = Rows(absent, SplitFeatures({"a": constant}, {}, target, None), told, None, None)
    vote = Vote(torch.eye(2), torch.zeros(2), 1.0, constant)
    found = candidates(model, rows, {"a": Voter(vote, constant, Score("accuracy", 0.0, 0.0))})
    assert found["a"].difference.value > found["a"].difference.error
    assert choose(found) == BLEND
    assert found[BLEND].shares["a"] < 0.1
