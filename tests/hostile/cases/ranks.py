"""Kind 7: ranks that differ in more than their weights."""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.hostile.harness import Box, Told, case
from tests.small import changed

BASE = {
    "trainer.devices": 2,
    "trainer.strategy": "ddp",
    "trainer.max_epochs": 2,
    "trainer.limit_train_batches": 4,
    "data.init_args.batch_size": 8,
}


def on_two_ranks(box: Box, configs: Sequence[dict[str, Any]]) -> list[Told]:
    """A run whose two ranks are given a config each."""
    for rank, config in enumerate(configs):
        (box.folder / f"rank_{rank}.yaml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {name: [value, value] for name, value in shared.items()}
    commands = [("fit", "--config", f"rank_{rank}.yaml", "--name", "small") for rank in range(2)]
    return box.together(commands, RANK=["0", "1"], LOCAL_RANK=["0", "1"], **environment)


def differs(key: str, first: Any, second: Any, says: str) -> None:
    """Registers a run in which an entry of the config differs between its ranks."""

    def run(box: Box) -> None:
        tolds = on_two_ranks(box, [changed({**BASE, key: value}) for value in (first, second)])
        assert [told.code for told in tolds] == [2, 2], tolds
        for told in tolds:
            box.says(told, f"the ranks were started differently.*{says}: .* on rank 0, .* on rank 1")

    run.__name__ = "ranks_differ_in_" + key.replace(".", "_")
    case(7, key, "another value on one rank", seconds=90)(run)


differs("trainer.accumulate_grad_batches", 3, 2, "trainer.accumulate_grad_batches")
differs("trainer.val_check_interval", 2, 1.0, "trainer.val_check_interval")
differs("trainer.max_epochs", 3, 2, "trainer.max_epochs")
differs("trainer.limit_train_batches", 4, 3, "trainer.limit_train_batches")
differs("trainer.log_every_n_steps", 1, 2, "trainer.log_every_n_steps")
differs("trainer.gradient_clip_val", 1.0, None, "trainer.gradient_clip_val")
differs("init.lr", 0.1, 0.01, "model.init_args.lr")
differs("init.parts.body.unfreeze", "1 steps", "2 steps", "model.init_args.parts")
differs("data.init_args.batch_size", 8, 16, "data.init_args.batch_size")
differs("data.init_args.classes", [0, 1, 2], [0, 1, 3], "data.init_args.classes")
differs("save_every", "1 steps", "2 steps", "save_every")
differs("trainer.callbacks", [{"class_path": "LearningRateMonitor"}], None, "trainer.callbacks")


@case(7, "data", "tables of other sizes under one config", seconds=90)
def tables_of_other_sizes(box: Box) -> None:
    configs = []
    for rank, rows in enumerate((60, 50)):
        folder = box.folder / f"machine_{rank}"
        folder.mkdir()
        lines = ["x,label", *[f"{row % 7},{'ab'[row % 2]}" for row in range(rows)]]
        (folder / "m.csv").write_text("\n".join(lines) + "\n")
        data = {"path": str(folder / "m.csv"), "inputs": {"x": {"numeric": ["x"]}}, "target": "label", "batch_size": 4}
        model = {"num_classes": 2, "parts": {"x": {"module": "MLP"}}}
        config = changed({key: value for key, value in BASE.items() if not key.startswith("data.")})
        config["model"]["init_args"] = model
        config["data"] = {"class_path": "ManifestDataModule", "init_args": data}
        configs.append(config)
    tolds = on_two_ranks(box, configs)
    assert [told.code for told in tolds] == [2, 2], tolds
    box.says(tolds[0], "started differently")


@case(7, "config", "the same on all ranks, in other files", seconds=90)
def same_on_all_ranks(box: Box) -> None:
    tolds = on_two_ranks(box, [changed(BASE)] * 2)
    assert [told.code for told in tolds] == [0, 0], tolds
    assert Path("runs/small/version_0/metrics.csv").is_file()
