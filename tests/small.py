"""A small config and small data for the tests of tasks and of the command line."""

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from torch.utils.data import DataLoader

from hybrid_lightning import HybridClassifier, HybridRegressor
from hybrid_lightning.cli import main
from hybrid_lightning.data.in_memory import DictDataset, as_batch

PARTS = {
    "stem": {"module": "ConvExtractor", "args": {"channels": [4]}, "input": "image"},
    "body": {"module": "ConvExtractor", "args": {"channels": [6]}, "input": "stem"},
}
QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "log_every_n_steps": 1}
CONFIG = {
    "model": {"class_path": "HybridClassifier", "init_args": {"num_classes": 3, "parts": PARTS}},
    "data": {"class_path": "DigitsDataModule", "init_args": {"classes": [0, 1, 2], "size": 16}},
    "trainer": {"max_epochs": 1, "limit_train_batches": 3, **QUIET},
}
DELETE = object()


def changed(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """`CONFIG` with values at dotted paths; ``init.`` stands for ``model.init_args.``; `DELETE` removes."""
    config = copy.deepcopy(CONFIG)
    for path, value in (changes or {}).items():
        *sections, last = path.replace("init.", "model.init_args.", 1).split(".")
        place: Any = config
        for section in sections:
            place = place.setdefault(section, {})
        if value is DELETE:
            del place[last]
        else:
            place[last] = value
    return config


def table_config(data: dict[str, Any], parts: dict[str, Any], **trainer: Any) -> dict[str, Any]:
    """A config of a classifier of two classes on a table; `data` are the arguments of the manifest."""
    return {
        "model": {"class_path": "HybridClassifier", "init_args": {"num_classes": 2, "parts": parts}},
        "data": {"class_path": "ManifestDataModule", "init_args": data},
        "trainer": {"max_epochs": 1, **QUIET, **trainer},
    }


def write(config: Any, path: str | Path = "small.yaml") -> str:
    Path(path).write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return str(path)


def command(verb: str, *words: str, config: Any = None) -> int:
    return main([verb, "--config", write(CONFIG if config is None else config), *words])


def loader(entries: dict[str, Any], batch_size: int = 8, shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(DictDataset(entries), batch_size=batch_size, shuffle=shuffle, collate_fn=as_batch)


def table(samples: int = 27, features: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randn(samples, features, generator=torch.Generator().manual_seed(seed))


def classifier(**options: Any) -> HybridClassifier:
    return HybridClassifier(**{"num_classes": 3, "parts": {"x": {"module": "MLP", "args": {"hidden": [5]}}}, **options})


def regressor(**options: Any) -> HybridRegressor:
    return HybridRegressor(**{"parts": {"x": {"module": "MLP", "args": {"hidden": [5]}}}, **options})


def trainer(**options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(**{**quiet, "enable_checkpointing": False, "max_epochs": 1, **options})
