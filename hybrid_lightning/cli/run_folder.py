"""The folders of runs, ``runs/<name>/version_<number>``: which one to continue, and from which checkpoint."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from hybrid_lightning.cli.config_files import read_yaml_file
from hybrid_lightning.cli.metrics_table import GO_ON, RunLogger
from hybrid_lightning.cli.run_lock import RunLock
from hybrid_lightning.errors import ConfigError, printable, writing
from hybrid_lightning.files import is_regular_file, whole_file
from hybrid_lightning.tasks.formats import CHECKPOINT_KEY
from hybrid_lightning.weights.safe_files import peek, verify
from hybrid_lightning.weights.sharded_files import OLD

_FINISHED = "finished.yaml"
_ROWS = "metrics_rows"
_VERSION = r"version_([0-9]+)"


@rank_zero_only
def say(text: str) -> None:
    """Prints a line on the first rank alone."""
    print(printable(text))


@dataclass(frozen=True)
class Run:
    """A run that is continued."""

    folder: Path  # its folder
    checkpoint: Path | None = None  # the checkpoint to continue from; None starts from scratch in the folder
    step: int = 0  # optimizer steps that the checkpoint has seen
    rows: int = field(default=0, compare=False)  # of metrics.csv at the moment of the checkpoint
    lock: RunLock | None = field(default=None, compare=False)  # that this process holds on the folder
    finished: bool = False  # whether the run ended as it was meant to, so that nothing is left to do


def versions(folder: Path) -> list[Path]:
    """The run folders below the folder of a name, the newest first."""
    found = []
    for path in folder.glob("version_*"):
        match = re.fullmatch(_VERSION, path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    found.sort(reverse=True)
    return [path for _, path in found]


def newest_checkpoint(folder: Path, name: str) -> Path:
    """The checkpoint of this name in the newest run below `folder` that has one."""
    for version in versions(folder):
        path = version / "checkpoints" / name
        if path.exists():
            return path
    raise ConfigError(f"there is no {name} below {str(folder)!r}. Run fit first, or give a path.", "--ckpt_path")


def run_to_continue(resume: str, runs: Path, limits: dict[str, Any]) -> Run | None:
    """The run that ``--resume`` means; a function of the files alone, so that all ranks find the same."""
    folder = _newest_fit(runs) if resume == "auto" else _given_run(resume, runs)
    if folder is None:
        say(f"resume: there is no run below {str(runs)!r} yet; starting from scratch")
        return None
    _refuse_links(folder)
    lock = RunLock(folder)
    try:
        return _found(folder, limits, lock)
    except BaseException:
        lock.release()
        raise


def _found(folder: Path, limits: dict[str, Any], lock: RunLock) -> Run:
    """The run of a folder that this process holds, and where it stands."""
    if _ended_at(folder / _FINISHED) == limits:
        return Run(folder, finished=True, lock=lock)
    found = last_whole_checkpoint(folder / "checkpoints")
    if found is None:
        say(f"resume: {folder} ended before its first checkpoint; starting from scratch in it")
        return Run(folder, lock=lock)
    checkpoint, step = found
    say(f"resume: {folder} continues from {checkpoint.name}, step {step}")
    rows = peek(checkpoint, "resume").get(_ROWS)
    return Run(folder, checkpoint, step, rows if isinstance(rows, int) else 0, lock)


def _refuse_links(folder: Path) -> None:
    """Raises `ConfigError` if what is written to a run would be written to a folder elsewhere."""
    for path in (folder, *folder.iterdir()):
        if path.is_symlink() and path.is_dir():
            raise ConfigError(
                f"{str(path)!r} is a link to {str(path.resolve())!r}, in which files would be replaced and removed. "
                f"Put the folder itself in its place, or give its checkpoint as --ckpt_path, which makes a new run.",
                "--resume",
            )


def _ended_at(mark: Path) -> Any:
    """The limits at which a run has ended; None if it has not, or its mark is damaged."""
    try:
        return read_yaml_file(mark, "resume") if is_regular_file(mark) else None
    except ConfigError as error:
        say(f"{error} It is as if the run had not ended.")
        return None


def _newest_fit(runs: Path) -> Path | None:
    for version in versions(runs):
        # a run makes the folder of its checkpoints before it writes its config; an evaluation makes none
        if (version / "checkpoints").is_dir() or not (version / "config.yaml").is_file():
            return version
    return None


def _given_run(resume: str, runs: Path) -> Path:
    folder = Path(resume).absolute()
    is_run = (folder / "checkpoints").is_dir() or (folder / "config.yaml").is_file()
    if not is_run or not re.fullmatch(_VERSION, folder.name):
        raise ConfigError(
            f"there is no run's folder {resume!r}, named version_<number> and with a config.yaml. Give 'auto' or a "
            f"folder such as {str(runs / 'version_0')!r}; --ckpt_path continues from a file, in a new folder.",
            "--resume",
        )
    return folder


def last_whole_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The checkpoint with the most steps and its steps; of several the last written; None if there is none."""
    # a sharded one is a folder, whose old version is found if the process was killed while the new one took its place
    saved = [*folder.glob("*.ckpt"), *folder.glob(f"*.ckpt{OLD}")]
    saved.sort(key=lambda path: path.lstat().st_mtime_ns)
    found: list[tuple[int, Path]] = []
    for path in saved:
        try:
            content = peek(path, "resume")
        except ConfigError as error:
            say(f"{error} It is skipped.")
            continue
        step = content.get("global_step")
        if CHECKPOINT_KEY in content and "optimizer_states" in content and isinstance(step, int):
            found.append((step, path))  # others hold weights alone
    found.sort(key=lambda pair: pair[0])  # of equal ones the one written last stays last
    for step, path in reversed(found):
        try:
            verify(path, "resume")  # of the one to continue alone, because this reads all of the file
        except ConfigError as error:
            say(f"{error} It is skipped.")
            continue
        return path, step
    if saved:
        raise ConfigError(
            f"none of the checkpoints in {str(folder)!r} can be continued. Leave out --resume to start a new run, or "
            f"remove them to start from scratch in this folder.",
            "--resume",
        )
    return None


def mark_finished(folder: Path, limits: dict[str, Any]) -> None:
    """Notes in a run's folder that its fit has ended at these limits."""
    with writing(folder / _FINISHED, GO_ON), whole_file(folder / _FINISHED) as temporary:
        temporary.write_text(yaml.safe_dump(limits), encoding="utf-8")


class RunConfig(Callback):
    """Writes ``config.yaml`` into the run's folder."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._is_written = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file once, on the first rank."""
        folder = Path(trainer.log_dir or ".")  # a collective call: the answer is broadcast
        if self._is_written or not trainer.is_global_zero:
            return
        with writing(folder / "config.yaml", GO_ON):
            if stage == "fit" and trainer.checkpoint_callbacks:
                # the sign of a run, by which run_to_continue finds it
                (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            with whole_file(folder / "config.yaml") as temporary:
                temporary.write_text(self.text, encoding="utf-8")
        self._is_written = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes how many rows the table has: a validation within an accumulation window has the step that is next."""
        if isinstance(trainer.logger, RunLogger):
            checkpoint[_ROWS] = trainer.logger.rows()
