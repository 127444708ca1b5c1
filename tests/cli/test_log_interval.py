import pytest

from hybrid_lightning.cli.log_interval import log_interval
from hybrid_lightning.cli.metrics_table import read_rows
from hybrid_lightning.duration import FitLength
from tests.small import DELETE, changed, command

UNSET = {"trainer.log_every_n_steps": DELETE}


def logged_steps(folder, version=0):
    [run] = folder.glob(f"runs/*/version_{version}")
    return [int(row["step"]) for row in read_rows(run / "metrics.csv") if row.get("train/loss")]


@pytest.mark.parametrize(
    ("steps", "total", "every"),
    [(3, 30, 1), (15, 300, 3), (17, 34, 3), (50, 5000, 10), (10_000, 10**6, 10), (10_000, 12, 2), (None, None, 10)],
)
def test_an_epoch_or_a_short_fit_has_several_rows(steps, total, every):
    assert log_interval(FitLength(steps, total)) == every


def test_a_continued_fit_logs_as_often_and_the_saved_config_leaves_it_open(folder):
    config = changed({**UNSET, "trainer.limit_train_batches": 10})
    assert command("fit", config=config) == 0
    assert logged_steps(folder) == [1, 3, 5, 7, 9]
    assert command("fit", "--resume", "auto", "--trainer.max_epochs", "2", config=config) == 0
    assert logged_steps(folder) == [*range(1, 20, 2)]
    [saved] = folder.glob("runs/*/version_0/config.yaml")
    assert "log_every_n_steps: null" in saved.read_text()


def test_a_users_own_interval_stays(folder):
    config = changed({"trainer.log_every_n_steps": 3, "trainer.limit_train_batches": 10})
    assert command("fit", config=config) == 0
    assert logged_steps(folder) == [2, 5, 8]
