import csv
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
import yaml

from hybrid_lightning.cli.run_folder import Run, run_to_continue, versions
from hybrid_lightning.errors import ConfigError
from tests.small import changed, command

pytestmark = pytest.mark.usefixtures("folder")
RUN = Path("runs/small/version_0")
LAST, BEST = RUN / "checkpoints/last.ckpt", RUN / "checkpoints/best.ckpt"


@pytest.fixture
def copied(fitted, folder):
    """A copy of the run in the working folder."""
    shutil.copytree(fitted / "runs", folder / "runs")
    return folder


def resume(epochs: int = 4, *words: str, where: str = "auto", **changes) -> int:
    return command("fit", "--resume", where, "--trainer.max_epochs", str(epochs), *words, config=changed(changes))


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def rows(run: Path = RUN) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def files(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_run_continues_in_its_folder_and_appends_to_its_table(copied, capsys):
    before = rows()
    assert resume() == 0
    assert "resume: runs/small/version_0 continues from last.ckpt, step 6" in capsys.readouterr().out
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]
    assert rows()[: len(before)] == before
    assert [int(row["step"]) for row in rows() if row["train/loss"]] == list(range(12))
    assert [int(row["step"]) for row in rows() if row["val/loss"]] == [2, 5, 8, 11]
    assert load(LAST)["global_step"] == 12
    assert {path.name for path in LAST.parent.iterdir()} == {"last.ckpt", "best.ckpt"}


def test_what_a_killed_process_left_after_its_checkpoint_is_dropped(copied):
    before = rows()
    with (RUN / "metrics.csv").open("a", newline="") as file:
        writer = csv.DictWriter(file, before[0].keys())
        writer.writerows({**before[0], "step": step} for step in (6, 7))
        file.write("0.5,0.")
    for leftover in ("metrics.csv.part", "config.yaml.part", "checkpoints/last.ckpt.part", "checkpoints/old.ckpt.part"):
        (RUN / leftover).write_text("torn")
    foreign = RUN / "downloads/data.part"
    foreign.parent.mkdir()
    foreign.touch()
    assert resume(3) == 0
    assert rows()[: len(before)] == before
    assert [int(row["step"]) for row in rows() if row["train/loss"]] == list(range(9))
    assert list(RUN.rglob("*.part")) == [foreign]


def test_a_finished_run_is_left_alone(copied, capsys):
    before = files(copied)
    assert resume(2) == 0
    after = files(copied)
    del after[copied / "small.yaml"]
    assert after == before
    assert "finished: runs/small/version_0" in capsys.readouterr().out


def test_a_run_that_stopped_early_is_finished_until_its_limits_are_raised(folder):
    stopping = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 1, "min_delta": 99}}
    changes = {"trainer.callbacks": [stopping]}
    for epochs, steps in ((4, 6), (4, 6), (5, 9)):
        assert resume(epochs, **changes) == 0
        assert load(LAST)["global_step"] == steps


def test_a_run_that_was_stopped_by_the_clock_is_finished_until_it_gets_more_time(folder):
    for time, steps in (("00:00:00:00", 3), ("00:00:00:00", 3), ("00:01:00:00", 12)):
        assert resume(4, "--trainer.max_time", time, **{"trainer.min_epochs": 1}) == 0
        assert load(LAST)["global_step"] == steps


@pytest.mark.parametrize("where", ["auto", "renamed", "absolute"])
def test_the_best_checkpoint_stays_the_best(where, folder):
    first_is_best = {"checkpoint.monitor": "epoch", "checkpoint.mode": "min"}
    assert command("fit", config=changed(first_is_best)) == 0
    before, run = BEST.read_bytes(), RUN
    if where == "renamed":
        run = Path("runs/other/version_7")
        run.parent.mkdir()
        RUN.rename(run)
    place = {"auto": "auto", "renamed": str(run), "absolute": str(run.absolute())}[where]
    assert resume(3, where=place, **first_is_best) == 0
    assert (run / "checkpoints/best.ckpt").read_bytes() == before
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    [best] = [s for s in load(run / "checkpoints/last.ckpt")["callbacks"].values() if s.get("monitor")]
    assert best["best_model_score"] == 0
    assert Path(best["best_model_path"]).samefile(run / "checkpoints/best.ckpt")
    assert len(rows(run)) == 12


def test_a_better_checkpoint_takes_the_place_of_the_best(folder):
    last_is_best = {"checkpoint.monitor": "epoch", "checkpoint.mode": "max"}
    assert command("fit", config=changed(last_is_best)) == 0
    assert resume(3, **last_is_best) == 0
    assert load(BEST)["global_step"] == 9
    assert {path.name for path in LAST.parent.iterdir()} == {"last.ckpt", "best.ckpt"}


def test_the_checkpoint_with_the_most_steps_decides_and_not_its_name_or_age(copied, capsys):
    newer = LAST.with_name("a.ckpt")
    LAST.rename(newer)
    BEST.rename(LAST)
    torch.save({**load(LAST), "global_step": 3}, LAST)
    os.utime(newer, (0, 0))
    assert resume(2, "--trainer.max_steps", "7") == 0
    assert "continues from a.ckpt, step 6" in capsys.readouterr().out


def test_weights_alone_are_not_continued(copied, capsys):
    LAST.rename(LAST.with_name("weights.ckpt"))
    state = load(LAST.with_name("weights.ckpt"))
    torch.save({k: v for k, v in state.items() if k != "optimizer_states"}, LAST.with_name("weights.ckpt"))
    assert resume(3) == 0
    assert "continues from best.ckpt" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_skipped(copied, capsys):
    LAST.write_bytes(LAST.read_bytes()[:1000])
    assert resume(3) == 0
    out = capsys.readouterr().out
    assert "last.ckpt' is cut off or damaged" in out
    assert "continues from best.ckpt, step 6" in out
    assert load(LAST)["global_step"] == 9


def test_a_checkpoint_with_a_flipped_bit_is_skipped(copied, capsys):
    content = bytearray(LAST.read_bytes())
    weights = next(iter(load(LAST)["state_dict"].values()))
    content[content.index(weights.numpy().tobytes())] ^= 1
    LAST.write_bytes(content)
    assert resume(3) == 0
    out = capsys.readouterr().out
    assert "last.ckpt' is damaged: Bad CRC-32" in out
    assert "continues from best.ckpt, step 6" in out


def test_a_sharded_checkpoint_that_was_being_replaced_is_found(copied):
    old = LAST.with_name("last.ckpt.old")
    old.mkdir()
    LAST.rename(old / "meta.pt")
    BEST.unlink()
    assert run_to_continue("auto", RUN.parent, {}) == Run(RUN, old, 6)


def test_the_last_checkpoint_keeps_its_name_also_where_one_that_knows_nothing_of_it_continues(folder):
    assert command("fit") == 0
    LAST.write_bytes(b"torn")
    assert resume(2) == 0
    assert load(LAST)["global_step"] == 6
    assert {path.name for path in LAST.parent.iterdir()} == {"last.ckpt", "best.ckpt"}


def test_checkpoints_do_not_pass_through_the_folder_for_temporary_files(folder, monkeypatch):
    """It may be another file system, where a move is a copy that can be torn."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "nowhere"))
    assert command("fit") == 0
    assert load(LAST)["global_step"] == load(BEST)["global_step"] == 3


def test_a_run_without_a_whole_checkpoint_is_refused(copied, capsys):
    LAST.write_bytes(b"torn")
    BEST.unlink()
    BEST.mkdir()  # a sharded checkpoint without its shares
    before = files(copied / "runs")
    assert resume(3) == 2
    assert "none of the checkpoints in 'runs/small/version_0/checkpoints'" in capsys.readouterr().err
    assert files(copied / "runs") == before


def test_without_a_run_a_new_one_starts(folder, capsys):
    assert resume(1) == 0
    assert "there is no run below 'runs/small' yet; starting from scratch" in capsys.readouterr().out
    assert load(LAST)["global_step"] == 3


@pytest.mark.parametrize("left", ["nothing", "config", "table"])
def test_a_run_that_died_before_its_first_checkpoint_starts_again_in_its_folder(left, folder, capsys):
    (RUN / "checkpoints").mkdir(parents=True)
    if left == "nothing":
        (RUN / "checkpoints").rmdir()
    else:
        (RUN / "config.yaml").write_text("old")
    if left == "table":
        (RUN / "metrics.csv").write_text("a,step\r\n1,0\r\n")
    assert resume(1) == 0
    assert "ended before its first checkpoint; starting from scratch in it" in capsys.readouterr().out
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]
    assert len(rows()) == 4
    assert "a" not in rows()[0]
    old = [path.read_text() for path in RUN.glob("metrics.old_*.csv")]
    assert old == (["a,step\n1,0\n"] if left == "table" else [])


def test_the_newest_fit_is_continued_and_not_the_folder_of_a_test(copied):
    RUN.rename(RUN.with_name("version_9"))
    shutil.copytree(RUN.with_name("version_9"), RUN.with_name("version_10"))
    assert [path.name for path in versions(RUN.parent)] == ["version_10", "version_9"]
    assert command("test", "--ckpt_path", "last") == 0
    assert resume(3) == 0
    found = {path.name: load(path / "checkpoints/last.ckpt")["global_step"] for path in versions(RUN.parent)[1:]}
    assert found == {"version_10": 9, "version_9": 6}
    assert not (RUN.with_name("version_11") / "checkpoints").exists()


def test_the_saved_config_repeats_the_whole_run_as_it_was_continued(copied):
    assert resume(3, "--model.lr", "0.5") == 0
    saved = yaml.safe_load((RUN / "config.yaml").read_text())
    assert (saved["resume"], saved["ckpt_path"]) == (None, None)
    assert (saved["trainer"]["max_epochs"], saved["model"]["init_args"]["lr"]) == (3, 0.5)
    assert command("fit", "--config", str(RUN / "config.yaml")) == 0
    assert len(rows(RUN.with_name("version_1"))) == 12


def test_columns_that_appear_later_extend_the_table(copied):
    before = rows()
    monitor = [{"class_path": "LearningRateMonitor", "init_args": {"logging_interval": "step"}}]
    assert resume(3, **{"trainer.callbacks": monitor}) == 0
    new = rows()[0].keys() - before[0].keys()
    assert "lr-AdamW/stem" in new
    assert [{key: row[key] for key in before[0]} for row in rows()[: len(before)]] == before
    assert {int(row["step"]) for row in rows() if row["lr-AdamW/stem"]} == {6, 7, 8}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--resume", "auto", "--ckpt_path", "last"], "leave out --ckpt_path"),
        (["--resume", "auto", "--trainer.logger", "false"], "trainer.logger false"),
        (["--resume", "auto", "--on_group_change", "weights_only"], "weights_only starts a new fit"),
        (["--resume", "nowhere"], "no run's folder 'nowhere'"),
        (["--resume", str(LAST)], "no run's folder"),
        (["--resume", str(RUN.parent)], "no run's folder"),
        (["--resume", str(LAST.parent)], "no run's folder"),
        (["--resume", "data/version_2"], "no run's folder"),
    ],
)
def test_a_run_that_cannot_be_continued_is_told_in_short(words, reason, copied, capsys):
    (copied / "data/version_2").mkdir(parents=True)
    (copied / "data/version_2/metrics.csv").write_text("a,step\r\n1,0\r\n")
    before = files(copied)
    assert command("fit", *words) == 2
    assert reason in capsys.readouterr().err
    after = files(copied)
    del after[copied / "small.yaml"]
    assert after == before


@pytest.mark.parametrize("name", ["", "checkpoints"])
def test_a_run_that_is_a_link_to_another_place_is_not_continued(name, copied):
    place = RUN / name
    place.rename(copied / "elsewhere")
    place.symlink_to(copied / "elsewhere")
    before = files(copied / "elsewhere")
    with pytest.raises(ConfigError, match="is a link to"):
        run_to_continue("auto", RUN.parent, {})
    assert files(copied / "elsewhere") == before


@pytest.mark.parametrize("mark", [b"a: [", b"\xff", b"[" * 50_000])
def test_a_damaged_mark_of_the_end_counts_as_none(mark, copied, capsys):
    (RUN / "finished.yaml").write_bytes(mark)
    run = run_to_continue("auto", RUN.parent, {})
    run.lock.release()
    assert not run.finished
    assert "as if the run had not ended" in capsys.readouterr().out
