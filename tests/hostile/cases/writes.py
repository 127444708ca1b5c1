"""Kind 9: files that cannot be written."""

from collections.abc import Callable
from pathlib import Path

import yaml

from tests.hostile.harness import Box, case
from tests.small import changed

RUN = Path("runs/small/version_0")
FIT = ("fit", "--config", "small.yaml", "--trainer.max_epochs", "3")
GO_ON = "go on with --resume auto"


def faulty(fault: str, batches: int = 4) -> None:
    callback = {"class_path": "tests.hostile.callbacks.Fault", "init_args": {"kind": fault, "batches": batches}}
    config = changed({"trainer.callbacks": [callback], "trainer.enable_progress_bar": False})
    Path("small.yaml").write_text(yaml.safe_dump(config))


def fails(fault: str, place: str, mechanism: str, says: str, continues: bool = True) -> None:
    """Registers a fault in the second epoch of a run; afterwards the run goes on where it was saved."""

    def run(box: Box) -> None:
        faulty(fault)
        box.refused(*FIT, says=f"cannot be written: .*{says}")
        if continues:
            Path("small.yaml").write_text(yaml.safe_dump(changed({"trainer.enable_progress_bar": False})))
            told = box.accepted(*FIT, "--resume", "auto")
            assert "continues from" in told.out, told.out

    run.__name__ = f"fault_{fault}"
    case(9, place, mechanism)(run)


fails("full_disk", "checkpoint", "no space left", f"No space left on device. The file of step 3 is whole.*{GO_ON}")
fails("input_output_error", "checkpoint", "the disk fails at the last step", f"Input/output error.*{GO_ON}")
fails("read_only", "metrics.csv", "the file system turns read-only", f"Read-only file system.*{GO_ON}")
fails("removed_folder", "run folder", "removed during the run", "removed", continues=False)
fails("removed_table", "metrics.csv", "removed during the run", f"removed.*{GO_ON}")
fails("folder_for_table", "metrics.csv", "a folder in its place", f"{GO_ON}", continues=False)
fails("file_for_folder", "checkpoint", "a file in the place of its folder", "", continues=False)


@case(9, "checkpoint", "a limit on the size of files")
def limited_file_size(box: Box) -> None:
    box.start_from("fitted")
    [told] = box.together([(*FIT, "--resume", "auto")], FILE_SIZE=["6000"])
    assert told.code == 2, told
    box.says(told, f"best.ckpt' cannot be written: .*The file of step 6 is whole.*{GO_ON}")
    box.accepted(*FIT, "--resume", "auto")


@case(9, "finished.yaml", "a folder in its place")
def mark_that_is_a_folder(box: Box) -> None:
    faulty("folder_for_mark")
    box.refused(*FIT, says="finished.yaml' cannot be written: ")


@case(9, "config.yaml", "a folder in its place")
def config_that_is_a_folder(box: Box) -> None:
    box.start_from("fitted")
    (RUN / "config.yaml").unlink()
    (RUN / "config.yaml" / "x").mkdir(parents=True)
    box.refused(*FIT, "--resume", "auto", says="config.yaml' cannot be written: ")


@case(9, "standard output", "a pipe that nobody reads")
def closed_pipe(box: Box) -> None:
    box.start_from("fitted")
    [told] = box.together([(*FIT, "--resume", "auto")], CLOSED_OUTPUT=["1"])
    assert told.code == 2, told
    box.says(told, f"standard output was closed.*{GO_ON}")
    box.accepted(*FIT, "--resume", "auto")


def outputs(command: str, *words: str) -> Callable[[Box], None]:
    """Registers a command whose ``--output`` lies below a file."""

    def run(box: Box) -> None:
        box.start_from("fitted")
        suffix = {"predict": "csv", "export": "safetensors", "export_part": "safetensors", "embed": "npz"}[command]
        place = ("--output", f"small.yaml/x.{suffix}")
        box.refused(command, *words, *place, says=f"small.yaml/x.{suffix}' cannot be written: ")
        assert Path("small.yaml").is_file()

    run.__name__ = f"{command}_below_a_file"
    return case(9, f"--output of {command}", "below a file")(run)


CONFIG = ("--config", "small.yaml")
LAST = ("--ckpt_path", str(RUN / "checkpoints" / "last.ckpt"))
outputs("predict", *CONFIG, *LAST)
outputs("embed", *CONFIG, *LAST)
outputs("export", *CONFIG, *LAST, "--format", "safetensors")
outputs("export_part", *LAST, "--part", "head")


@case(9, "runs", "a file in the place of the folder")
def runs_that_is_a_file(box: Box) -> None:
    box.start_from("fitted")
    Path("elsewhere").touch()
    box.refused(*FIT, "--trainer.default_root_dir", "elsewhere", says="no folder can be made at 'elsewhere/runs")
