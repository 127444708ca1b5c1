"""The folders of runs, ``runs/<name>/version_<number>``: which one to continue, and from which checkpoint."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.utilities import rank_zero_only

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.files import whole_file
from hybrid_lightning.tasks.checkpoint import CHECKPOINT_KEY
from hybrid_lightning.weights.safe_files import read_file
from hybrid_lightning.weights.sharded_files import OLD

_FINISHED = "finished.yaml"
_VERSION = r"version_(\d+)"
say = rank_zero_only(print)


@dataclass(frozen=True)
class Run:
    """A run that is continued.

    Args:
        folder: Its folder.
        checkpoint: The checkpoint to continue from; None starts from scratch in the folder.
        step: Optimizer steps that the checkpoint has seen.
        finished: Whether the run ended as it was meant to, so that nothing is left to do.
    """

    folder: Path
    checkpoint: Path | None = None
    step: int = 0
    finished: bool = False


def versions(folder: Path) -> list[Path]:
    """The run folders below the folder of a name, the newest first."""
    numbers = {path: re.fullmatch(_VERSION, path.name) for path in folder.glob("version_*")}
    found = [(int(match[1]), path) for path, match in numbers.items() if match and path.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


def newest_checkpoint(folder: Path, name: str) -> Path:
    """The checkpoint of this name in the newest run that has one.

    Raises:
        ConfigError: If there is none.
    """
    for version in versions(folder):
        if (version / "checkpoints" / name).exists():
            return version / "checkpoints" / name
    raise ConfigError(f"--ckpt_path: there is no {name} below {str(folder)!r}. Run fit first, or give a path.")


def run_to_continue(resume: str, runs: Path, limits: dict[str, Any]) -> Run | None:
    """The run that ``--resume`` means; a function of the files alone, so that all ranks find the same.

    Args:
        resume: ``auto``, or the folder of a run.
        runs: Folder of the runs of one name; ``auto`` is the newest fit in it.
        limits: Where the fit ends; a run that has ended at these is finished.

    Returns:
        None if ``auto`` finds no fit to continue.

    Raises:
        ConfigError: If the folder is not that of a run, or has checkpoints of which none can be continued.
    """
    if resume == "auto":
        # a fit makes the folder of its checkpoints before it writes its config
        fits = [v for v in versions(runs) if (v / "checkpoints").is_dir() or not (v / "config.yaml").is_file()]
        if not fits:
            say(f"resume: there is no run below {str(runs)!r} yet; starting from scratch")
            return None
        folder = fits[0]
    else:
        folder = Path(resume).absolute()
        is_run = (folder / "checkpoints").is_dir() or (folder / "config.yaml").is_file()
        if not (is_run and re.fullmatch(_VERSION, folder.name)):
            raise ConfigError(
                f"--resume: there is no run's folder {resume!r}, named version_<number> and with a config.yaml. Give "
                f"'auto' or a folder such as {str(runs / 'version_0')!r}; --ckpt_path continues from a file, in a new "
                f"folder."
            )
    if _limits_reached(folder) == limits:
        return Run(folder, finished=True)
    found = last_whole_checkpoint(folder / "checkpoints")
    if found is None:
        say(f"resume: {folder} ended before its first checkpoint; starting from scratch in it")
        return Run(folder)
    say(f"resume: {folder} continues from {found[0].name}, step {found[1]}")
    return Run(folder, *found)


def last_whole_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The checkpoint with the most steps and its steps; of several the one written last. None if there is none at all.

    Raises:
        ConfigError: If there are checkpoints, but none to continue from.
    """
    # a sharded one is a folder, whose old version is found if the process was killed while the new one took its place
    saved = sorted([*folder.glob("*.ckpt"), *folder.glob(f"*.ckpt{OLD}")], key=lambda path: path.lstat().st_mtime_ns)
    found: dict[Path, int] = {}
    for path in saved:
        try:
            content = read_file(path, "resume", tensors=False)
        except ConfigError as error:
            say(f"{error} It is skipped.")
            continue
        if CHECKPOINT_KEY in content and "optimizer_states" in content:  # others hold weights only
            found[path] = content["global_step"]
    if saved and not found:
        raise ConfigError(
            f"--resume: none of the checkpoints in {str(folder)!r} can be continued. Leave out --resume to start a new "
            f"run, or remove them to start from scratch in this folder."
        )
    return max(reversed(found.items()), key=lambda item: item[1], default=None)


def mark_finished(folder: Path, limits: dict[str, Any]) -> None:
    """Notes in a run's folder that its fit has ended at these limits."""
    with whole_file(folder / _FINISHED) as temporary:
        temporary.write_text(yaml.safe_dump(limits), encoding="utf-8")


def _limits_reached(folder: Path) -> Any:
    path = folder / _FINISHED
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


class RunConfig(pl.Callback):
    """Writes ``config.yaml`` into the run's folder.

    Args:
        text: The config as YAML.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._is_written = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Writes the file once, on the first rank."""
        folder = Path(trainer.log_dir or ".")  # a collective call: the answer is broadcast
        if self._is_written or not trainer.is_global_zero:
            return
        if stage == "fit" and trainer.checkpoint_callbacks:
            # the sign of a fit, by which run_to_continue finds it
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        with whole_file(folder / "config.yaml") as temporary:
            temporary.write_text(self.text, encoding="utf-8")
        self._is_written = True
