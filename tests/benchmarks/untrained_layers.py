"""Can a model with untrained feature extraction layers be trained? Four systems, one factor changed at a time.

- ``head``: an untrained extractor before a pretrained, frozen head (``configs/simple_cnn_pretrained_head.yaml``);
- ``stem``: a pretrained stem before untrained stages, Adam at 1e-4 and 1e-3, the stem frozen for the first 40 % of the
  fit (``configs/deep_cnn_gradual.yaml``, not clipped);
- ``clipped``: the same with gradients clipped to a global norm of 1, norms logged at every step;
- ``modalities``: the pretrained encoder of PLAID beside an untrained convolution net on the same traces and an
  untrained MLP on statistics (``configs/bad_tower.yaml``, well initialized, the usual fusion, the joint network alone).

The first three see digits of 32 pixels. Each system has a block ``few``, with 90 rows to train (digits) or 109 (PLAID),
and a block ``all``, with 538 or 455; the rows of a table make the same number of steps. The seed is that of the split,
of the pretraining on the digits 0 to 4, of weights and batches; PLAID's test rows and its encoder are given. A run is
measured by ``best.ckpt``, which the validation rows choose. Tables have mean ± standard deviation over the seeds, and
the mean difference of test accuracy to the system's own config, paired by seed, ± its standard error.

A finished run is a file of one line of JSON in ``--folder``, under a name that follows from config and seed; what is
there is not run again, and systems share the runs that they have in common. After a change of the program take another
folder.

RESULT untrained_layers: mean over tables of (own config - naive), test accuracy. Naive: one rate, everything trains
from the start, no clipping.
RESULT untrained_layers_<system>_<block>: the same difference divided by its standard error.

    python tests/benchmarks/untrained_layers.py --folder untrained_layers --seeds 0 1 2 3 4 --threads 1
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import logging
import math
import shutil
import statistics
import tempfile
import time
import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from hybrid_lightning import HybridClassifier, from_config
from hybrid_lightning.cli.config_files import merge, read_config

CONFIGS = Path(__file__).parents[2] / "configs"
Config = dict[str, Any]
OWN, NAIVE = "own config", "naive: one rate, all at once, not clipped"
PRETRAINING = ("pretrain_head", "pretrain_deep_cnn")
"""Configs whose ``best.ckpt``, of the same seed, a path of weights may name."""


def model(**options: Any) -> Config:
    return {"model": {"init_args": options}}


def part(name: str, **options: Any) -> Config:
    return model(parts={name: options})


def both(*overlays: Config) -> Config:
    merged: Config = {}
    for overlay in overlays:
        merged = merge(merged, overlay)
    return merged


def clip(norm: float | None) -> Config:
    return {"trainer": {"gradient_clip_val": norm}}


def few_digits(epochs: int, every: int) -> Config:
    """10 % of the digits to train, 30 % to validate, 60 % to test; 3 steps an epoch."""
    splits = {"val_fraction": 0.3, "test_fraction": 0.6}
    return {"data": {"init_args": splits}, "trainer": {"max_epochs": epochs, "check_val_every_n_epoch": every}}


@dataclass(frozen=True)
class System:
    """A config and its variations, each an overlay over `own`."""

    config: str
    own: Config
    few: Config
    rows: dict[str, Config]


RANDOM = {"weights": None, "origin": "random", "unfreeze": None, "lr_scale": None}
NEW = {"weights": None, "unfreeze": "always", "lr_scale": 1.0}
AT_ONCE = {"unfreeze": "always"}
ONE_RATE = {"lr_scale": 1.0}
AS_HEAD = {"path": "pretrain_head", "part": "head"}
AS_EXTRACTOR = {"path": "pretrain_head", "part": "extractor"}
AS_STEM = {"path": "pretrain_deep_cnn", "part": "stem"}
AS_BODY = {"path": "pretrain_deep_cnn", "part": "body"}

HEAD_ROWS = {
    "clipped to norm 1": clip(1.0),
    "head at a tenth, gradual": part("head", unfreeze="40%"),
    "head at a tenth, all at once": part("head", unfreeze="always"),
    "head at one rate, gradual": part("head", unfreeze="40%", lr_scale=1.0),
    NAIVE: part("head", **AT_ONCE, **ONE_RATE),
    "extractor random, head trains at one rate": both(part("extractor", **RANDOM), part("head", **AT_ONCE, **ONE_RATE)),
    "extractor pretrained, trains; head frozen": part("extractor", weights=AS_EXTRACTOR, **AT_ONCE, **ONE_RATE),
    "all pretrained, extractor frozen, head trains": both(
        part("extractor", weights=AS_EXTRACTOR, unfreeze="never"), part("head", **AT_ONCE, **ONE_RATE)
    ),
    "nothing pretrained": part("head", **NEW),
}
STEM_ROWS = {
    "one rate, gradual": part("stem", lr_scale=1.0),
    "one rate of 1e-4, gradual": both(part("stem", lr_scale=1.0), model(lr=1.0e-4)),
    "stem frozen throughout": part("stem", unfreeze="never"),
    "stem at a tenth, all at once": part("stem", **AT_ONCE),
    NAIVE: both(part("stem", **AT_ONCE, **ONE_RATE), clip(None)),
    "stem random": both(part("stem", **RANDOM), model(pretrained=None)),
    "stem untrained (nothing pretrained)": both(part("stem", **NEW), model(pretrained=None)),
    "stages random": part("body", origin="random"),
    "stages pretrained, one rate": part("body", weights=AS_BODY, **AT_ONCE, **ONE_RATE),
}
MODALITY_ROWS = {
    "not clipped": clip(None),
    "one rate, gradual": part("encoder", lr_scale=1.0),
    "encoder frozen throughout": part("encoder", unfreeze="never"),
    "encoder at a tenth, all at once": part("encoder", **AT_ONCE),
    NAIVE: both(part("encoder", **AT_ONCE, **ONE_RATE), clip(None)),
    "encoder random": part("encoder", **RANDOM),
    "encoder untrained (nothing pretrained)": part("encoder", **NEW),
    "towers random": both(part("wave", origin="random"), part("stats", origin="random")),
    "towers alone": model(parts={"encoder": None}),
}
SMALL = {"data": {"init_args": {"size": 32}}}
HEAD = both(part("head", weights=AS_HEAD), SMALL)
STEM = both(part("stem", weights=AS_STEM), SMALL)
WAVE = {"module": "ResidualConv1d", "args": {"channels": [16, 32]}}
MODALITIES = both(
    model(parts={"stats": {"args": {"init_gain": 1}}, "wave": WAVE}, fusion=None, selection="none"),
    {"trainer": {"max_epochs": 6}},
)
FEW_TRACES = {
    "data": {"init_args": {"val_fraction": 0.8, "batch_size": 8}},
    "trainer": {"max_epochs": 8, "check_val_every_n_epoch": 8},
}
SYSTEMS = {
    "head": System("simple_cnn_pretrained_head", HEAD, few_digits(60, 6), HEAD_ROWS),
    "stem": System(
        "deep_cnn_gradual", both(STEM, clip(None)), few_digits(28, 4), {"clipped to norm 1": clip(1.0), **STEM_ROWS}
    ),
    "clipped": System("deep_cnn_gradual", STEM, few_digits(28, 4), {"not clipped": clip(None), **STEM_ROWS}),
    "modalities": System("bad_tower", MODALITIES, FEW_TRACES, MODALITY_ROWS),
}


def rows_of(system: System, block: str) -> dict[str, Config]:
    """Row → its config; paths of weights name a config of `PRETRAINING`."""
    base = merge(read_config(CONFIGS / f"{system.config}.yaml"), system.own)
    base = both(base, system.few if block == "few" else {}, {"trainer": {"log_every_n_steps": 1}})
    base.pop("test_after_fit")
    rows = {OWN: base}
    for name, overlay in system.rows.items():
        changed = merge(base, overlay)
        parts = changed["model"]["init_args"]["parts"]
        for gone in [part for part, options in parts.items() if options is None]:
            del parts[gone]
        rows[name] = changed
    return rows


def fit(config: Config, seed: int, folder: Path) -> tuple[HybridClassifier, Any, Path]:
    """The best model of a run, its data, and its checkpoint in a run folder below `folder`."""
    config = both(config, {"data": {"init_args": {"seed": seed}}})
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    trainer = {"default_root_dir": str(folder), "enable_progress_bar": False, "accelerator": "cpu"}
    with contextlib.redirect_stdout(io.StringIO()):
        built = from_config(path, seed_everything=seed, trainer=trainer)
        built.trainer.fit(built.model, built.data)
    callback: Any = built.trainer.checkpoint_callback
    best = Path(callback.best_model_path)
    return HybridClassifier.load_from_checkpoint(best), built.data, best


def run(config: Config, seed: int) -> dict[str, Any]:
    """Fits a config; accuracies by split, seconds, and the norms of gradients."""
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        best_model, data, best = fit(config, seed, Path(folder))
        found = {"norms": norms_in(best.parents[1] / "metrics.csv")}
    data.setup("fit")
    data.setup("test")
    for split, batches in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        found[split] = accuracy(best_model, batches)
    return found | {"seconds": time.process_time() - started}


@torch.no_grad()
def accuracy(best_model: HybridClassifier, batches: Any) -> float:
    rows = [best_model(batch).argmax(1) == batch["target"] for batch in batches]
    return float(torch.cat(rows).double().mean())


def norms_in(table: Path) -> dict[str, dict[str, float]]:
    """Part → largest and median norm before clipping over the steps that trained it, and the share of steps clipped."""
    rows = list(csv.DictReader(table.read_text().splitlines()))
    found = {}
    for column in rows[0]:
        if not column.startswith("grad_norm/"):
            continue
        name = column.removeprefix("grad_norm/")
        norms = [float(row[column]) for row in rows if row[column]]
        trained = [norm for norm in norms if norm > 0]
        clipped = [float(row[f"clip_rate/{name}"]) for row in rows if row[f"clip_rate/{name}"]]
        if trained:
            found[name] = {
                "largest": max(trained),
                "median": statistics.median(trained),
                "clipped": statistics.mean(clipped),
                "steps": len(norms),
            }
    return found


def with_weights(config: Config, seed: int, folder: Path) -> Config:
    """The config with the checkpoints that its paths of weights name; trains the ones that are not there."""
    changed = deepcopy(config)
    parts = changed["model"]["init_args"]["parts"]
    for options in parts.values():
        weights = options.get("weights")
        if isinstance(weights, dict):
            weights["path"] = str(pretrained(weights["path"], seed, folder))
    return changed


def pretrained(name: str, seed: int, folder: Path) -> Path:
    """The best checkpoint of a config of `PRETRAINING`."""
    kept = folder.resolve() / f"{name}-{seed}.ckpt"
    if not kept.is_file():
        with tempfile.TemporaryDirectory() as work:
            *_, best = fit(both(read_config(CONFIGS / f"{name}.yaml"), SMALL), seed, Path(work))
            shutil.copy(best, kept.with_suffix(".part"))
        kept.with_suffix(".part").rename(kept)
    return kept


def finished(title: str, config: Config, seed: int, folder: Path) -> dict[str, Any]:
    """What a run found; runs it if that is not in the folder."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"{digest}-{seed}.json"
    if not path.is_file():
        found = run(with_weights(config, seed, folder), seed)
        whole = path.with_suffix(".part")
        whole.write_text(json.dumps({"row": title, "seed": seed, **found}))
        whole.rename(path)
        print(f"{title}, seed {seed}: {found['seconds']:.0f} s", flush=True)
    kept: dict[str, Any] = json.loads(path.read_text())
    return kept


def paired(rows: list[float], own: list[float]) -> tuple[float, float]:
    """Mean difference of scores of the same seeds, and its standard error; 0 for one seed."""
    differences = [row - one for row, one in zip(rows, own, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return statistics.mean(differences), error


def print_scores(title: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    """A table in Markdown: each row's accuracies, and its test accuracy minus that of the own config."""
    print(f"\n| {title} | validation | test | minus own config |\n|---|---|---|---|")
    own = [run["test"] for run in runs[OWN]]
    for row, found in runs.items():
        cells = [row]
        for split in ("val", "test"):
            scores = [run[split] for run in found]
            deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
            cells.append(f"{statistics.mean(scores):.3f} ± {deviation:.3f}")
        value, error = paired([run["test"] for run in found], own)
        cells.append("" if row == OWN else f"{value:+.3f} ± {error:.3f}")
        print("| " + " | ".join(cells) + " |")


def print_norms(title: str, found: list[dict[str, Any]]) -> None:
    """Of each part: means over the seeds of the norms in `norms_in`."""
    for name in found[0]["norms"]:
        norms = [run["norms"][name] for run in found]
        largest, median, clipped = (
            statistics.mean(one[key] for one in norms) for key in ("largest", "median", "clipped")
        )
        print(
            f"norms, {title}, {name}: largest {largest:.2f}, median {median:.2f}, clipped in {clipped:.0%} of the steps"
        )


def all_runs(options: argparse.Namespace) -> dict[tuple[str, str], dict[str, list[dict[str, Any]]]]:
    """(System, block) → row → its runs, one per seed."""
    found = {}
    for block in options.blocks:
        for name in options.systems:
            rows = rows_of(SYSTEMS[name], block)
            runs: dict[str, list[dict[str, Any]]] = {row: [] for row in rows}
            for seed in options.seeds:  # seed by seed, so that what an interrupted run has is paired
                for row, config in rows.items():
                    title = f"{name}, {block}, {row}"
                    runs[row].append(finished(title, config, seed, options.folder))
            found[name, block] = runs
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="Where finished runs are kept.")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS), help="What is run.")
    parser.add_argument("--blocks", nargs="+", default=["few", "all"], choices=["all", "few"], help="Training rows.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="Seeds of the runs.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    options.folder.mkdir(parents=True, exist_ok=True)
    found = all_runs(options)
    differences = {}
    for (name, block), runs in found.items():
        print_scores(f"{name}, {block}", runs)
        for row in (OWN, NAIVE):
            print_norms(f"{name}, {block}, {row}", runs[row])
        own, naive = ([run["test"] for run in runs[row]] for row in (OWN, NAIVE))
        differences[f"{name}_{block}"] = paired(own, naive)
    print(f"RESULT untrained_layers {statistics.mean(value for value, _ in differences.values()):.4f} accuracy")
    for name, (value, error) in differences.items():
        print(f"RESULT untrained_layers_{name} {value / error if error else 0.0:.2f} standard_errors")


if __name__ == "__main__":
    main()
