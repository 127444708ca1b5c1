import re

import pytest
import torch

from hybrid_lightning.resume.division import Division, Move, moved
from tests.small import changed, command

TWO_OF_SIX = Division(ranks=2, samples=12, accumulate=1)


@pytest.mark.parametrize(
    ("batches", "before", "now", "move"),
    [
        (3, TWO_OF_SIX, Division(1, 6, 2), Move(6, within_step=False, repeated=0)),
        (6, Division(1, 6, 2), TWO_OF_SIX, Move(3, within_step=False, repeated=0)),
        (3, TWO_OF_SIX, Division(3, 12, 1), Move(3, within_step=False, repeated=0)),
        (3, Division(1, 6, 4), Division(2, 6, 4), Move(3, within_step=True, repeated=0)),
        (2, Division(1, 6, 4), Division(2, 12, 2), Move(1, within_step=True, repeated=0)),
    ],
)
def test_an_epoch_goes_on_after_as_many_samples_as_were_read(
    batches: int, before: Division, now: Division, move: Move
) -> None:
    assert moved(batches, before, now) == move


def test_a_step_that_cannot_go_on_where_it_stood_begins_again_and_trains_nothing_twice() -> None:
    assert moved(5, Division(1, 6, 2), TWO_OF_SIX) == Move(2, within_step=False, repeated=0)
    assert moved(2, Division(1, 6, 4), Division(2, 12, 2), has_gradients=False) == Move(0, False, 0)


def test_with_another_global_batch_no_sample_is_left_out_and_those_trained_twice_are_counted() -> None:
    assert moved(3, TWO_OF_SIX, Division(3, 24, 1)) == Move(1, within_step=False, repeated=12)
    assert moved(4, TWO_OF_SIX, Division(3, 24, 1)) == Move(2, within_step=False, repeated=0)


@pytest.mark.usefixtures("folder")
def test_a_run_with_a_total_goes_on_with_smaller_batches_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    parts = {"image": {"module": "MLP", "args": {"hidden": [5]}}}
    fusion = {"args": {"standardize": "features"}}  # without batch statistics, which differ in smaller batches
    config = changed({"init.parts": parts, "init.fusion": fusion, "trainer.limit_train_batches": 1.0})
    total = ("fit", "--batch_size_total", "48", "--trainer.max_epochs", "2")
    end = ("--trainer.max_steps", "13")  # the last step of an epoch has fewer samples
    assert command(*total, "--data.batch_size", "48", "--name", "whole", *end, config=config) == 0
    words = (*total, "--resume", "auto", "--data.batch_size")
    assert command(*words, "48", "--trainer.max_steps", "9", config=config) == 0
    assert command(*words, "12", "--trainer.max_steps", "11", config=config) == 0
    assert "the epoch goes on after 8 of" in caplog.text
    assert command(*words, "6", *end, config=config) == 0
    whole, found = (torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("whole", "small"))
    assert whole["global_step"] == found["global_step"] == 13
    torch.testing.assert_close(found["state_dict"], whole["state_dict"], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("folder")
def test_an_epoch_whose_number_of_steps_changes_is_told() -> None:
    config = changed({"data.init_args.batch_size": 12})
    words = ("fit", "--trainer.max_epochs", "2")
    assert command(*words, "--trainer.max_steps", "4", config=config) == 0
    other = ("--data.batch_size", "6", "--trainer.accumulate_grad_batches", "2", "--ckpt_path", "last")
    with pytest.warns(UserWarning, match="an epoch has 2 steps, and 3 in the checkpoint"):
        assert command(*words, *other, config=config) == 0


@pytest.mark.usefixtures("folder")
def test_another_global_batch_from_an_epochs_end_on_is_told_with_its_steps_and_its_schedule() -> None:
    config = changed({"data.init_args.batch_size": 12, "trainer.limit_train_batches": 0.25})
    assert command("fit", config=config) == 0
    words = ("fit", "--trainer.max_epochs", "3", "--ckpt_path", "last", "--data.batch_size")
    told = (
        "a step takes 24 samples, and 12 in the checkpoint; keep ranks × batch size × "
        "trainer.accumulate_grad_batches at 12; an epoch has 3 steps, and 6 in the checkpoint; rates, and unfreezings "
        "in epochs or percent, are those of a run of 9 steps, which now stands at step 6."
    )
    with pytest.warns(UserWarning, match=re.escape(told)):
        assert command(*words, "24", config=config) == 0
    assert torch.load("runs/small/version_1/checkpoints/last.ckpt")["global_step"] == 12


@pytest.mark.usefixtures("folder")
def test_the_same_global_batch_from_an_epochs_end_on_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    config = changed({"data.init_args.batch_size": 12, "trainer.limit_train_batches": 0.25})
    assert command("fit", config=config) == 0
    halves = ("--data.batch_size", "6", "--trainer.accumulate_grad_batches", "2")
    assert command("fit", "--trainer.max_epochs", "2", "--ckpt_path", "last", *halves, config=config) == 0
    assert "Exact resume" not in caplog.text  # a warning would be an error
