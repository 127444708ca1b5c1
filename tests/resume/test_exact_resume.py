import json
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from hybrid_lightning import ConfigError, ExactResume
from tests.processes import succeed_on
from tests.resume.resuming import (
    LOADERS,
    MODELS,
    SAMPLES,
    Augmented,
    Dropping,
    Run,
    checkpoints,
    differences,
    first_difference,
    plain,
)
from tests.small import changed, command
from tests.tiny import batches, hybrid, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),  # continued runs save nothing
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*This process .* is multi-threaded"),
    pytest.mark.filterwarnings("ignore:.*use of fork"),
]


EVERY = [9, pytest.param(1, marks=pytest.mark.exhaustive)]
"""Continues from each so many-th checkpoint; 9 meets the first, the last and one or two within a later epoch."""


def assert_exact(model: str, loader: str, folder: Path, every: int, **options: Any) -> None:
    number, found = differences(MODELS[model], loader, folder, every=every, **options)
    assert number >= (15 if every == 1 else 2)
    assert not found


@pytest.mark.parametrize(
    ("model", "loader", "options"),
    [
        ("task", "batches", {}),
        ("foreign", "samples", {"val_check_interval": 2, "accumulate_grad_batches": 3}),
        ("reads_length", "persistent", {"every": 5}),
    ],
    ids=str,
)
def test_a_fit_continues_exactly_from_any_checkpoint(
    model: str, loader: str, options: dict[str, Any], tmp_path: Path
) -> None:
    assert_exact(model, loader, tmp_path, **{"every": 2, **options})


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("loader", [name for name in LOADERS if name not in ("spawned", "from_server")])
def test_it_does_with_any_loader(loader: str, every: int, tmp_path: Path) -> None:
    short = every > 1 and loader != "shortest"  # whose two epochs would end before the last unfreezing
    assert_exact("foreign", loader, tmp_path, every, max_epochs=2 if short else 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("loader", ["from_server", "spawned"])
def test_it_does_with_workers_that_share_nothing_with_their_parent(loader: str, tmp_path: Path) -> None:
    torch.multiprocessing.set_forkserver_preload(["tests.resume.resuming"])  # imported once, for all workers
    assert_exact("foreign", loader, tmp_path, every=9, max_epochs=2)


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("loader", ["samples", pytest.param("persistent", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"val_check_interval": 3},
        {"val_check_interval": 3, "accumulate_grad_batches": 2},
        {"val_check_interval": 5, "check_val_every_n_epoch": None},
        {"check_val_every_n_epoch": 2},
        {"limit_train_batches": 5},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
    ids=str,
)
def test_it_does_with_any_validation_schedule_and_length(
    options: dict[str, Any], loader: str, every: int, tmp_path: Path
) -> None:
    assert_exact("foreign", loader, tmp_path, every, **options)


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("model", [name for name in MODELS if name != "foreign"])
@pytest.mark.parametrize("options", [{}, {"val_check_interval": 3, "accumulate_grad_batches": 2}], ids=str)
def test_it_does_with_any_scheduler(model: str, options: dict[str, Any], every: int, tmp_path: Path) -> None:
    assert_exact(model, "samples", tmp_path, every, **options)


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
@pytest.mark.parametrize("loader", ["samples", "workers"])
def test_it_does_with_random_validation_data(loader: str, every: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"val_check_interval": 3, "validation": loader, "max_epochs": 2 if every > 1 else 3}
    assert_exact("plateau", "samples", tmp_path, every, **options)


def test_it_does_with_a_number_of_steps_except_for_the_hooks_after_the_last(tmp_path: Path) -> None:
    number, found = differences(Dropping, "samples", tmp_path, max_steps=20, max_epochs=-1)
    assert number > 20
    assert found == {"batch-2-5.ckpt": "events.length: 1 / 0 (of 0 events)"}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_without_it_a_fit_continues_exactly_from_no_checkpoint(tmp_path: Path) -> None:
    """The negative control: the comparison sees what goes wrong."""
    number, found = differences(Dropping, "samples", tmp_path, exact=False, every=3)
    assert number >= 9
    within = {path.name for path in tmp_path.glob("batch-*.ckpt")} & found.keys()
    assert len(within) >= 6
    assert len(found) == number


@pytest.mark.parametrize("how", ["exception", "sigterm"])
@pytest.mark.parametrize("batch", [1, 5, 6, 9])
def test_an_interrupted_fit_continues_exactly(how: str, batch: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"val_check_interval": 3, "accumulate_grad_batches": 2}
    whole = Run(Dropping, "samples", **options)
    path = tmp_path / "interrupted.ckpt"
    with pytest.raises((InterruptedError, SystemExit)):
        Run(Dropping, "samples", callbacks=[Interrupt(how, batch, path)], **options)
    again = Run(Dropping, "samples", path, **options)
    events = torch.load(path, weights_only=True)["events"]
    events -= 2 if how == "exception" else 0  # the batch had been announced, with its rates
    assert first_difference(whole.recorder.events[events:], again.recorder.events, "events") is None
    assert first_difference(whole.state(), again.state(), "state") is None


class Interrupt(pl.Callback):
    """Ends a run before a batch trains, or, as Lightning's handler of SIGTERM does, after one; saves what there is."""

    def __init__(self, how: str, batch: int, path: Path) -> None:
        self.how, self.batch, self.path = how, batch, path

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            if self.how == "exception":
                raise InterruptedError
            trainer._signal_connector.received_sigterm = True

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        trainer.save_checkpoint(self.path)


def test_a_continued_fit_continues_exactly(tmp_path: Path) -> None:
    whole = Run(Dropping, "samples", folder=tmp_path / "first", val_check_interval=3)
    Run(Dropping, "samples", tmp_path / "first/batch-0-2.ckpt", folder=tmp_path / "second", val_check_interval=3)
    names = {path.name for path in (tmp_path / "second").glob("*.ckpt")}
    assert len(names) > 20
    for name in sorted(names)[::4]:
        once, twice = (torch.load(tmp_path / folder / name, weights_only=True) for folder in ("first", "second"))
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "exact_resume", "global_step", "epoch"):
            assert first_difference(once[key], twice[key], key) is None, name
        again = Run(Dropping, "samples", tmp_path / "second" / name, val_check_interval=3)
        assert first_difference(whole.state(), again.state(), "state") is None, name


def test_batches_that_were_read_before_are_not_loaded_again(tmp_path: Path) -> None:
    Run(Dropping, "samples", folder=tmp_path, max_epochs=2)
    dataset = Counting()
    Run(Dropping, lambda: plain(dataset), tmp_path / "batch-1-4.ckpt", max_epochs=2)
    assert dataset.loaded == SAMPLES - 5 * 4


class Counting(Augmented):
    loaded = 0

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.loaded += 1
        return super().__getitem__(index)


def test_the_loader_is_the_users_during_and_after_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)  # Lightning would set worker_init_fn
    loader = plain(num_workers=2, persistent_workers=True)
    before = dict(vars(loader))

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            assert trainer.train_dataloader is loader
            assert all(vars(loader)[name] is before[name] for name in ("dataset", "sampler", "batch_sampler"))

    runner = trainer(callbacks=[ExactResume(), Look()], max_epochs=2)
    model = Dropping()
    runner.fit(model, loader, batches(12))
    assert vars(loader).keys() == before.keys()
    assert all(vars(loader)[name] is value for name, value in before.items())
    assert {key: value.shape for key, value in next(iter(loader)).items()} == {
        "old": (4, 4),
        "new": (4, 4),
        "target": (4,),
    }
    runner.validate(model, batches(12), verbose=False)
    runner.fit_loop.max_epochs = 4
    runner.fit(model, loader, batches(12))
    assert runner.current_epoch == 4


def test_an_epoch_differs_from_the_next_and_one_seed_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def orders(seed: str) -> list[Any]:
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        events = Run(Dropping, "samples", max_epochs=2).recorder.events
        return [event[-1]["old"] for event in events if event[0] == "batch"]

    one, again, other = orders("1"), orders("1"), orders("2")
    assert one == again
    assert len(set(one + other)) == 2 * len(one)  # the augmentation too is new each time


def test_a_seed_that_is_not_given_is_the_checkpoints_and_one_that_is_given_is_said_to_beat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    whole = Run(Dropping, "samples", folder=tmp_path, max_epochs=2)
    monkeypatch.delenv("PL_GLOBAL_SEED")
    again = Run(Dropping, "samples", tmp_path / "batch-0-2.ckpt", max_epochs=2)
    assert first_difference(whole.state(), again.state(), "state") is None
    assert "seed 1 →" not in caplog.text
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    other = Run(Dropping, "samples", tmp_path / "batch-0-6.ckpt", max_epochs=2)
    assert first_difference(whole.state(), other.state(), "state") is not None
    assert "seed 1 → 2, applied from epoch" in caplog.text


def test_a_task_brings_it_unless_the_user_does() -> None:
    def present(*own: pl.Callback) -> list[pl.Callback]:
        runner = trainer(callbacks=list(own), max_epochs=1)
        runner.fit(hybrid("always"), batches())
        return [callback for callback in runner.callbacks if isinstance(callback, ExactResume)]

    [default] = present()
    assert isinstance(default, ExactResume)
    assert default.enabled
    own = ExactResume(enabled=False)
    assert present(own) == [own]
    assert own.seed is None


def test_a_checkpoint_without_it_or_of_other_batches_is_continued_with_a_warning(tmp_path: Path) -> None:
    Run(Dropping, "samples", folder=tmp_path / "without", exact=False, max_epochs=2)
    with pytest.warns(UserWarning, match="not exactly as it would have: it was saved without ExactResume"):
        Run(Dropping, "samples", tmp_path / "without/batch-0-2.ckpt", max_epochs=2)
    Run(Dropping, "samples", folder=tmp_path / "with", max_epochs=2)
    with pytest.warns(UserWarning, match="a step takes 2 samples, and 4 in the checkpoint; keep ranks × batch size"):
        Run(Dropping, lambda: plain(batch_size=2), tmp_path / "with/batch-0-2.ckpt", max_epochs=2)
    with pytest.warns(UserWarning, match="takes 8 samples, and 4 in.* 4 samples of the epoch are trained a second"):
        Run(Dropping, lambda: plain(batch_size=8), tmp_path / "with/batch-0-2.ckpt", max_epochs=2)
    with pytest.warns(UserWarning, match=r"divided otherwise than in the checkpoint \(batches: 7 → 5\)"):
        Run(Dropping, "samples", tmp_path / "with/batch-0-2.ckpt", max_epochs=2, limit_train_batches=5)


def test_a_checkpoint_of_an_earlier_version_says_that_samples_were_drawn_otherwise(tmp_path: Path) -> None:
    Run(Dropping, "samples", folder=tmp_path, max_epochs=2)
    content = torch.load(tmp_path / "batch-0-2.ckpt", weights_only=True)
    for name in ("division", "order"):
        del content["exact_resume"][name]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.warns(UserWarning, match="it was saved by an earlier version, which drew the samples otherwise"):
        Run(Dropping, "samples", tmp_path / "old.ckpt", max_epochs=2)


def test_a_fit_that_continues_leaves_the_filters_of_warnings_as_they_were(tmp_path: Path) -> None:
    Run(Dropping, "samples", folder=tmp_path, max_epochs=2)
    before = list(warnings.filters)
    Run(Dropping, "samples", tmp_path / "batch-0-2.ckpt", max_epochs=2)
    assert list(warnings.filters) == before


@pytest.mark.parametrize("stride", [0, 1])
def test_gradients_of_a_checkpoint_that_share_memory_are_refused(
    stride: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compiled steps read as many values as the parameter has, whatever lies behind those that the file holds."""
    changes = {"accumulate_grad_batches": 3, "limit_train_batches": 8, "val_check_interval": 0.5}
    config = changed({f"trainer.{name}": value for name, value in changes.items()} | {"checkpoint.save_top_k": -1})
    assert command("fit", config=config) == 0
    content = torch.load(folder / "runs/small/version_0/checkpoints/best.ckpt", weights_only=True)
    gradients = content["exact_resume"]["window"]["gradients"]
    assert gradients
    for code, is_whole in ((0, True), (2, False)):
        for name, gradient in gradients.items():
            steps = [stride] * gradient.ndim
            held = 1 + stride * sum(size - 1 for size in gradient.shape)
            overlapping = torch.zeros(held).as_strided(gradient.shape, steps)
            gradients[name] = torch.zeros(gradient.shape) if is_whole else overlapping
        torch.save(content, "e.ckpt")
        assert command("fit", "--ckpt_path", "e.ckpt", config=config) == code
    assert "the checkpoint is damaged: 'exact_resume.window.gradients." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"loops": {}}, "loops.fit_loop"),
        ({"loops": {"fit_loop": {}}}, "loops.fit_loop.state_dict"),
        (
            {"loops": {"fit_loop": {"state_dict": {}, "epoch_loop.state_dict": 3}}},
            "loops.fit_loop.epoch_loop.state_dict",
        ),
        ({"exact_resume": [1]}, "exact_resume"),
        ({"exact_resume": {"seed": "x"}}, "exact_resume.seed"),
    ],
)
def test_a_checkpoint_with_damaged_counters_is_refused(
    changes: dict[str, Any], path: str, fitted: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(fitted / "runs/small/version_0/checkpoints/last.ckpt", weights_only=True)
    torch.save({**content, **changes}, "e.ckpt")
    assert command("fit", "--ckpt_path", "e.ckpt", "--trainer.max_epochs", "3") == 2
    error = capsys.readouterr().err
    assert (
        f"--ckpt_path: the checkpoint is damaged: {path!r} is missing, of another type or out of its range. Use another"
        in error
    )


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
def test_a_module_that_reads_its_batches_itself_cannot_continue_within_an_epoch(tmp_path: Path) -> None:
    class Reading(Dropping):
        def training_step(self, dataloader_iter: Any) -> torch.Tensor:  # type: ignore[override]
            batch, _, _ = next(dataloader_iter)
            return self.head(self.backbone(batch["old"])).square().mean()

    checkpoint = checkpoints(tmp_path)[0]
    runner = trainer(callbacks=[ExactResume(), checkpoint], enable_checkpointing=True, max_epochs=1)
    runner.fit(Reading(), plain())
    again = trainer(callbacks=[ExactResume()], max_epochs=1)
    with pytest.raises(ConfigError, match="after batch 3 of an epoch"):
        again.fit(Reading(), plain(), ckpt_path=tmp_path / "batch-0-2.ckpt", weights_only=True)


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    ("model", "loader", "options"),
    [
        ("task", "samples", {"accumulate_grad_batches": 2, "max_epochs": 5}),
        ("foreign", "weighted", {"accumulate_grad_batches": 3, "max_epochs": 5, "val_check_interval": 2}),
        ("plateau", "persistent", {}),
        ("ema", "samples", {"val_check_interval": 3}),
        ("soup", "samples", {"accumulate_grad_batches": 2, "max_epochs": 6}),
        ("task", "samples", {"strategy": "fsdp2"}),
    ],
    ids=["task", "foreign", "workers", "ema", "soup", "fsdp2"],
)
def test_two_ranks_continue_exactly(
    model: str, loader: str, options: dict[str, Any], every: int, tmp_path: Path
) -> None:
    words = ["-m", "tests.resume.worker", model, loader, str(tmp_path), json.dumps({**options, "every": every})]
    succeed_on(2, *words)
    for rank in range(2):
        number, found = json.loads((tmp_path / f"{rank}.json").read_text())
        print(f"rank {rank}: {number - len(found)} of {number} bit-equal")
        assert number >= 12 // every
        assert not found
