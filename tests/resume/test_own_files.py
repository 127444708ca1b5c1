import math
import os
import shutil
from dataclasses import asdict
from pathlib import Path, PureWindowsPath

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from hybrid_lightning.callbacks import (
    FrozenFeatureCache,
    GradientClipping,
    GradualUnfreezing,
    LastCheckpoint,
    NonFiniteGradients,
    PretrainedDrift,
    ReestimateStatistics,
    SpikeGuard,
)
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.gradients.spike_history import HISTORY_FORM, NormHistory, Sensitivity
from hybrid_lightning.resume import own_files
from hybrid_lightning.resume.loop_counters import first_damaged
from hybrid_lightning.resume.own_files import rebuild_paths
from hybrid_lightning.unfreezing.plateau import WATCH_FORM, PlateauWatch
from tests.small import changed, classifier, command, loader, table, trainer
from tests.tiny import Foreign, batches

pytestmark = pytest.mark.usefixtures("folder")
RUN = Path("runs/small/version_0/checkpoints")
SCORE = torch.tensor(1e9)


@pytest.fixture
def copied(fitted, folder):
    """A copy of a run in the working folder, beside a folder that is nobody's business."""
    shutil.copytree(fitted / "runs", folder / "runs")
    return folder


@pytest.fixture
def victim(folder):
    path = folder / "victim.ckpt"
    path.mkdir()
    for name in ("meta.pt", "x.ckpt"):
        (path / name).touch()
    yield path
    assert {file.name for file in path.iterdir()} == {"meta.pt", "x.ckpt"}


def monitored(checkpoint: dict) -> dict:
    [state] = [state for state in checkpoint["callbacks"].values() if state.get("monitor")]
    return state


def forged(path: Path, to: Path, **changes) -> Path:
    """A checkpoint whose `ModelCheckpoint` remembers something else."""
    content = torch.load(path, weights_only=True)
    for state in content["callbacks"].values():
        if "dirpath" in state:
            state["dirpath"] = "/elsewhere"
    monitored(content).update(changes)
    torch.save(content, to)
    return to


def pointing_at(target: str, folder: Path | str) -> dict:
    """The state of a `ModelCheckpoint` that removes its worst file as soon as there is a better one."""
    scores = {"kth_value": SCORE, "best_model_score": SCORE, "best_k_models": {target: SCORE}}
    paths = dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), target)
    return {**scores, **paths, "dirpath": str(folder)}


@pytest.mark.parametrize("way", ["resume", "ckpt_path"])
def test_a_checkpoint_removes_nothing_outside_of_its_run(way, copied, victim):
    run = RUN if way == "resume" else Path("runs/small/version_1/checkpoints")
    state = pointing_at(f"{run}/../../../../victim.ckpt", run)
    words = ["--resume", "auto"]
    if way == "resume":
        forged(RUN / "last.ckpt", RUN / "last.ckpt", **state)
    else:
        words = ["--ckpt_path", str(forged(RUN / "last.ckpt", Path("e.ckpt"), **state))]
    assert command("fit", "--trainer.max_epochs", "3", *words) == 0
    name = "best-v1.ckpt" if way == "resume" else "best.ckpt"  # an old best.ckpt of which nothing is known stays
    assert monitored(torch.load(run / "last.ckpt", weights_only=True))["best_k_models"].keys() == {f"{run}/{name}"}


def test_of_a_checkpoint_only_names_of_files_are_taken_that_are_there(copied, victim):
    (RUN / "linked.ckpt").symlink_to(victim)
    (RUN / "circle.ckpt").symlink_to("circle.ckpt")
    (RUN / "below").symlink_to(victim)
    (RUN / "folder.ckpt").mkdir()
    (RUN / "notes.txt").touch()
    (RUN / "a\\b.ckpt").touch()
    (RUN / "inner.ckpt").symlink_to("best.ckpt")
    (RUN / "shards.ckpt").mkdir()
    (RUN / "shards.ckpt/meta.pt").touch()
    texts = ["gone.ckpt", "linked.ckpt", "circle.ckpt", "below/x.ckpt", "folder.ckpt", "notes.txt", "a\\b.ckpt", "."]
    texts += ["..", "", "..ckpt", ".ckpt", "../checkpoints/last.ckpt", "x\0.ckpt", "\ud800.ckpt", "n" * 5000 + ".ckpt"]
    scores: dict = {f"{RUN}/{text}": SCORE for text in texts}
    scores |= {3: SCORE, ("best.ckpt",): SCORE, None: SCORE, b"best.ckpt": SCORE, str(victim): SCORE}
    scores |= {f"{RUN}/last.ckpt": value for value in (None, "1", [1], torch.tensor(math.nan), torch.ones(2))}
    scores |= {f"/elsewhere/{name}.ckpt": torch.tensor(2.0) for name in ("best", "inner", "shards")}
    forged(RUN / "last.ckpt", RUN / "last.ckpt", **{**pointing_at(str(victim), RUN), "best_k_models": scores})
    assert (
        command("fit", "--resume", "auto", config=changed({"trainer.max_epochs": 3, "checkpoint.save_top_k": -1})) == 0
    )
    found = monitored(torch.load(RUN / "last.ckpt", weights_only=True))["best_k_models"]
    kept = [path for path, score in found.items() if score == 2]
    assert kept == [f"{RUN}/{name}.ckpt" for name in ("best", "inner", "shards")]
    assert [path for path, score in found.items() if score != 2] == [f"{RUN}/best-v1.ckpt"]


@pytest.mark.parametrize(
    "changes",
    [
        {"dirpath": 5, "best_k_models": [1], "best_model_path": 7, "last_model_path": ["x"]},
        {"best_k_models": {f"/{number}.ckpt": SCORE for number in range(10_000)}, "best_model_path": None},
        dict.fromkeys(("best_k_models", "kth_best_model_path", "best_model_score", "kth_value")),
    ],
    ids=["types", "many", "none"],
)
def test_a_damaged_memory_of_best_files_starts_anew(changes, copied):
    forged(RUN / "last.ckpt", RUN / "last.ckpt", **changes)
    assert command("fit", "--resume", "auto", "--trainer.max_epochs", "3") == 0
    state = monitored(torch.load(RUN / "last.ckpt", weights_only=True))
    assert state["best_k_models"] == {f"{RUN}/best-v1.ckpt": state["best_model_score"]}


@pytest.mark.parametrize("of_all", [True, False])
def test_states_that_are_no_dicts_are_refused(of_all, copied, capsys):
    content = torch.load(RUN / "last.ckpt", weights_only=True)
    states = [] if of_all else dict.fromkeys(content["callbacks"], 3)
    torch.save({**content, "callbacks": states}, "e.ckpt")
    assert command("fit", "--ckpt_path", "e.ckpt", "--trainer.max_epochs", "3") == 2
    assert "should be a dict" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "entry", "junk", "place"),
    [
        ("GradualUnfreezing", "recorded", [1], "recorded"),
        ("GradualUnfreezing", "recorded", {"stem": "x"}, "recorded.stem"),
        ("GradualUnfreezing", "watches", {"stem": [1]}, "watches.stem"),
        ("GradualUnfreezing", "best", {"val/loss": {"value": 1.0, "weights": [1]}}, "best.val/loss.weights"),
        ("GradualUnfreezing", "training", [["stem"]], "training[0]"),
        ("NonFiniteGradients", "in_a_row", {}, "in_a_row"),
        ("NonFiniteGradients", "statistics", {"stem": [1]}, "statistics"),
        ("EarlyStopping", "wait_count", [1], "wait_count"),
        ("EarlyStopping", "stopping_reason", "x", "stopping_reason"),
    ],
)
@pytest.mark.parametrize("way", ["resume", "ckpt_path"])
def test_junk_in_the_state_of_a_callback_is_told_by_its_place(way, key, entry, junk, place, copied, capsys):
    path = RUN / "last.ckpt"
    content = torch.load(path, weights_only=True)
    stopping = EarlyStopping("val/loss")
    states = {**content["callbacks"], stopping.state_key: stopping.state_dict()}
    [name] = [name for name in states if name.startswith(key)]
    states[name] = {**states[name], entry: junk}
    torch.save({**content, "callbacks": states}, path)
    words = ["--resume", "auto"] if way == "resume" else ["--ckpt_path", str(path)]
    stops = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}
    config = changed({"trainer.max_epochs": 3, "trainer.callbacks": [stops]})
    assert command("fit", *words, config=config) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --ckpt_path: the checkpoint is damaged: ")
    assert f"callbacks.{name}.{place}" in error.replace("\\'", "'")


@pytest.mark.parametrize(("mode", "best"), [("min", -math.inf), ("max", math.inf), ("min", math.nan)])
def test_a_best_score_that_nothing_beats_is_refused_and_patience_is_that_of_today(mode, best):
    stopping = EarlyStopping("val/loss", mode=mode, patience=5)
    run = trainer(callbacks=[stopping])
    state = {**stopping.state_dict(), "patience": 10**6}
    checkpoint = {"callbacks": {stopping.state_key: state}}
    rebuild_paths(run, checkpoint)
    assert checkpoint["callbacks"][stopping.state_key]["patience"] == 5
    with pytest.raises(ConfigError, match="which nothing is better than"):
        rebuild_paths(run, {"callbacks": {stopping.state_key: {**state, "best_score": torch.tensor(best)}}})


# In Python


def data():
    return loader({"x": table(), "target": torch.arange(27) % 3})


def fit(callbacks: list[pl.Callback], model: pl.LightningModule, path: Path | None = None, epochs: int = 1) -> None:
    run = trainer(callbacks=callbacks, enable_checkpointing=True, max_epochs=epochs)
    loaders = (data(), data()) if path is None or not isinstance(model, Foreign) else ()
    if isinstance(model, Foreign):
        loaders = (batches(),)
    run.fit(model, *loaders, ckpt_path=path, weights_only=True)


def best_of(folder: Path, **options) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=folder, **{"monitor": "val/loss", "filename": "{epoch}", **options})


def test_a_checkpoint_of_a_plain_trainer_removes_nothing_elsewhere(folder, victim):
    fit([best_of(folder / "own")], classifier())
    [path] = (folder / "own").iterdir()
    forged(path, path, **pointing_at(f"{folder}/own/../victim.ckpt", folder / "own"))
    fit([again := best_of(folder / "own")], classifier(), path, epochs=2)
    assert Path(again.best_model_path) == folder / "own/epoch=1.ckpt"


def test_a_checkpoint_of_somebody_elses_module_removes_nothing_elsewhere(folder, victim):
    def callbacks() -> list[pl.Callback]:
        return [LastCheckpoint(dirpath=folder / "own"), best_of(folder / "own", monitor="epoch", mode="max")]

    fit(callbacks(), Foreign())
    path = forged(folder / "own/last.ckpt", folder / "own/last.ckpt", **pointing_at("../victim.ckpt", folder / "own"))
    fit(callbacks(), Foreign(), path, epochs=2)
    assert "epoch=1.ckpt" in os.listdir(folder / "own")  # noqa: PTH208


def test_files_in_folders_that_a_name_makes_stay_known(folder):
    """A metric with a slash makes a folder."""
    options = {"filename": "{epoch}-{val/loss:.3f}", "save_top_k": 2, "save_last": "link"}
    fit([before := best_of(folder, **options)], classifier(), epochs=2)
    fit([after := best_of(folder, **options)], classifier(), Path(before.last_model_path), epochs=2)
    assert before.best_k_models.keys() == after.best_k_models.keys()
    assert len(after.best_k_models) == 2
    for name in ("best_model_path", "best_model_score", "kth_best_model_path", "kth_value", "last_model_path"):
        assert getattr(before, name) == getattr(after, name), name


class Writer(pl.Callback):
    """A callback of somebody else that remembers where it writes."""

    def __init__(self) -> None:
        self.output_dir, self.best_path, self.count = "own", "", 0

    def state_dict(self):
        plain = {"output_dir": "/elsewhere", "best_path": "/elsewhere/a.ckpt", "count": 3, "names": ["a", ("b", {"c"})]}
        by_name = {"best": "/elsewhere/a.ckpt", "others": ({"/etc"}, {"why": "/etc"})}
        return {**plain, "more": {"files": ["/etc"]}, "paths": by_name, "history": [{"count": 3, "path": "/etc"}]}

    def load_state_dict(self, state):
        self.state = state


def test_no_callback_takes_a_folder_from_a_checkpoint(folder):
    fit([Writer(), best_of(folder, filename="a")], classifier())
    fit([writer := Writer(), best_of(folder, filename="a")], classifier(), folder / "a.ckpt", epochs=2)
    best = str(folder / "a.ckpt")
    plain = {"output_dir": "own", "best_path": best, "count": 3, "names": ["a", ("b", {"c"})]}
    by_name = {"best": best, "others": ({""}, {"why": ""})}
    nested = {"more": {"files": [""]}, "paths": by_name, "history": [{"count": 3, "path": ""}]}
    assert writer.state == {**plain, **nested}


def test_paths_are_rebuilt_once_where_a_task_and_a_callback_do_it(folder, monkeypatch):
    fit([LastCheckpoint(dirpath=folder / "own")], classifier())
    looked_for = []
    monkeypatch.setattr("hybrid_lightning.resume.own_files._is_there", lambda folder, name: looked_for.append(name))
    fit([LastCheckpoint(dirpath=folder / "own")], classifier(), folder / "own/last.ckpt", epochs=2)
    assert looked_for == ["last.ckpt"]


@pytest.mark.parametrize(
    "callback",
    [
        GradualUnfreezing({"x": "10%"}),
        NonFiniteGradients(),
        SpikeGuard(),
        GradientClipping({"x": "zclip"}),
        ReestimateStatistics(),
        PretrainedDrift(),
        FrozenFeatureCache(),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_what_a_callback_saves_has_the_form_that_it_states(callback):
    state = callback.state_dict()
    assert state.keys() == callback.state_form.keys()
    assert first_damaged(state, callback.state_form, "state") is None


def test_watches_and_histories_are_saved_in_the_form_that_is_asked_for():
    watch = PlateauWatch("val/loss", "min", 1.0)
    assert first_damaged(asdict(watch), WATCH_FORM, "watch") is None
    history = NormHistory(Sensitivity(5.0, 2.5, 20, 0.95), trains=3)
    assert first_damaged(history.state_dict(), HISTORY_FORM, "history") is None


def test_a_state_that_holds_itself_is_refused(copied, capsys):
    content = torch.load(RUN / "last.ckpt", weights_only=True)
    for state in content["callbacks"].values():
        state["self"] = state
    torch.save(content, "e.ckpt")
    assert command("fit", "--ckpt_path", "e.ckpt", "--trainer.max_epochs", "3") == 2
    assert "--ckpt_path: 'e.ckpt' cannot be read: something in it holds itself." in capsys.readouterr().err


def test_a_name_below_the_folder_is_kept_on_windows(monkeypatch):
    monkeypatch.setattr(own_files, "PurePath", PureWindowsPath)
    assert own_files._own_name(r"C:\runs\ck\fine\a.ckpt", r"C:\runs\ck") == r"fine\a.ckpt"
    assert own_files._own_name(r"C:\runs\ck\..\a.ckpt", r"C:\runs\ck") is None
