"""What several cases start from."""

import os
from pathlib import Path

import yaml

from tests.hostile.harness import material
from tests.small import changed


@material
def fitted() -> None:
    """``small.yaml`` and the folder of a run of two epochs of three steps, ``runs/small/version_0``."""
    from hybrid_lightning.cli import main

    os.environ["OMP_NUM_THREADS"] = "1"
    Path("small.yaml").write_text(yaml.safe_dump(changed({"trainer.enable_progress_bar": False})))
    assert main(["fit", "--config", "small.yaml", "--trainer.max_epochs", "2"]) == 0
