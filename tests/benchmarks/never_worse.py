"""Whether what a run leaves is as good as its best part, on all sets: those of ``configs/sets``, PLAID and solar cells.

For each set and seed, each a run of its own, measured by ``best.ckpt``:

- ``default``: the config as it is, what the checkpoint serves; ``joint network``: its joint network;
- ``<part> alone``: the config with one part;
- ``<part>, closed form``: ridge regression on the part's features before any training, as ``probe`` fits it;
  ``all parts, closed form``: the same on all features;
- ``concatenation``: the same parts without options that say how they train, `ConcatFusion`, heads that start at random,
  nothing selected. One that stands for a config with ``start: probe``, which trains for a few steps only, has 20 epochs
  at the default rate.

The best part is the one, alone or in closed form, with the highest accuracy on the validation rows, mean over seeds;
`all parts` is none. The default is compared with it on the test rows: a row counts with the share of the seeds that
have it right, and the standard error is that of 1,000 draws of rows, which belong to no groups in these sets. The best
part on the test rows is printed beside it, and chooses nothing.

Every finished run is a file of one line of JSON in ``--folder``, under a name that follows from set, seed, run and
config; what is there is not run again. After a change of the program take another folder.

RESULT never_worse: smallest over sets of (default - best part) / its standard error.
RESULT never_worse_<set>: the same for each set. RESULT never_worse_difference: mean of default - best part.
RESULT never_worse_concatenation: mean of default - concatenation.

    python tests/benchmarks/never_worse.py --folder never_worse --sets arrowhead mnist_number --seeds 0 1 --threads 1
"""

import argparse
import contextlib
import hashlib
import io
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from hybrid_lightning import HybridClassifier, from_config
from hybrid_lightning.cli.building import Setup
from hybrid_lightning.cli.from_config import Built
from hybrid_lightning.cli.probe import prepared_on_device, training_features
from hybrid_lightning.demo.films import write_films
from hybrid_lightning.tasks.features import collect_features
from hybrid_lightning.tasks.probing import TOGETHER, probe_features

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = [*sorted((CONFIGS / "sets").glob("*.yaml")), CONFIGS / "quickstart.yaml", CONFIGS / "elpv.yaml"]
SETS = {path.stem: path for path in FILES}
ARCHITECTURE = ("module", "args", "weights", "input", "pool", "share")
"""Options of a part that do not say how it trains."""
DRAWS = 1000
Right = dict[str, dict[str, str]]
"""Model → split (val, test) → a 1 for each row that it has right, and a 0 for the others."""


def runs_of(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Run → its config; that of the closed form is not fitted."""
    parts = config["model"]["init_args"]["parts"]
    runs = {"default": config, "closed form": config}
    for name, part in parts.items():
        alone = deepcopy(config)
        alone["model"]["init_args"]["parts"] = {name: part}
        alone["model"]["init_args"].pop("fusion", None)
        runs[f"{name} alone"] = alone
    plain = deepcopy(config)
    model = plain["model"]["init_args"]
    for part in model["parts"].values():
        for option in set(part) - set(ARCHITECTURE):
            del part[option]
    if model.pop("start", None) == "probe":
        model.pop("lr", None)
        plain["trainer"]["max_epochs"] = 20
    model |= {"fusion": {"module": "ConcatFusion"}, "selection": "none"}
    return runs | {"concatenation": plain}


def run(name: str, config: dict[str, Any], seed: int) -> Right:
    """Fits, or probes, a config and measures what comes of it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        trainer = {"default_root_dir": folder, "enable_progress_bar": False, "accelerator": "cpu"}
        built = from_config(path, seed_everything=seed, trainer=trainer)
        if name == "closed form":
            return closed_form(built)
        built.trainer.fit(built.model, built.data)
        best: Any = built.trainer.checkpoint_callback
        model = HybridClassifier.load_from_checkpoint(best.best_model_path)
    right = {name: of_splits(model, built)}
    if name == "default":
        model.built().selection = None
        right["joint network"] = of_splits(model, built)
    return right


@torch.no_grad()
def of_splits(model: HybridClassifier, built: Built) -> dict[str, str]:
    """Which rows a model has right."""
    found = {}
    for split, batches in loaders(built).items():
        rows = [model(batch).argmax(1) == batch["target"] for batch in batches]
        found[split] = as_text(torch.cat(rows))
    return found


@torch.no_grad()
def closed_form(built: Built) -> Right:
    """Which rows the fits of ``probe`` have right."""
    network, loader = prepared_on_device(Setup(*built), None)
    features = training_features(Setup(*built), network, loader)
    voters = probe_features(built.model.objective, features).voters
    right: Right = {f"{name}, closed form": {} for name in voters}
    for split, batches in loaders(built).items():
        unseen = collect_features(network, batches)
        inputs = {**unseen.parts, TOGETHER: torch.cat(list(unseen.parts.values()), dim=1)}
        for name, voter in voters.items():
            is_right = voter.vote(inputs[name]).argmax(1) == unseen.target
            right[f"{name}, closed form"][split] = as_text(is_right)
    return right


def loaders(built: Built) -> dict[str, Iterable[Any]]:
    built.data.setup("fit")
    built.data.setup("test")
    return {"val": built.data.val_dataloader(), "test": built.data.test_dataloader()}


def as_text(is_right: Tensor) -> str:
    return "".join(map(str, is_right.long().tolist()))


def as_rows(texts: Iterable[str]) -> Tensor:
    """A text per seed → for each row `(N,)` the share of the seeds that have it right."""
    rows = [[float(one) for one in text] for text in texts]
    return torch.tensor(rows, dtype=torch.float64).mean(0)


def finished(name: str, seeds: list[int], folder: Path) -> list[Right]:
    """What all runs of a set have right, for each seed; runs what is not in the folder."""
    config = yaml.safe_load(SETS[name].read_text())
    if name == "films":
        config["data"]["init_args"]["path"] = str(write_films(folder.resolve()))
    found = []
    for seed in seeds:
        right: Right = {}
        for title, one in runs_of(config).items():
            digest = hashlib.sha256(json.dumps(one).encode()).hexdigest()[:8]
            path = folder / f"{name}-{seed}-{title.replace(' ', '_')}-{digest}.json"
            if not path.is_file():
                started = time.perf_counter()
                line = json.dumps(run(title, one, seed))
                whole = path.with_suffix(".part")
                whole.write_text(line)
                whole.rename(path)
                print(f"{name}, seed {seed}, {title}: {time.perf_counter() - started:.0f} s", flush=True)
            right |= json.loads(path.read_text())
        found.append(right)
    return found


def compared(name: str, by_seed: list[Right]) -> tuple[float, float, float]:
    """Prints a set's table; (default - best part), that over its standard error, and (default - concatenation)."""
    val, test = {}, {}
    for model in by_seed[0]:
        val[model] = as_rows(right[model]["val"] for right in by_seed)
        test[model] = as_rows(right[model]["test"] for right in by_seed)
        print(f"{name}: {model}: validation {val[model].mean():.4f}, test {test[model].mean():.4f}")
    parts = [model for model in val if model.endswith((" alone", ", closed form")) and not model.startswith(TOGETHER)]
    best = max(parts, key=lambda part: val[part].mean())
    best_on_test = max(parts, key=lambda part: test[part].mean())
    difference = test["default"] - test[best]
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(difference), (DRAWS, len(difference)), generator=generator)
    error = float(difference[draws].mean(1).std())
    value = float(difference.mean())
    over_concatenation = float((test["default"] - test["concatenation"]).mean())
    print(
        f"{name}: default - {best} (the best part on validation rows): {value:+.4f} ± {error:.4f}; the best on test "
        f"rows is {best_on_test}; default - concatenation {over_concatenation:+.4f}",
        flush=True,
    )
    return value, value / error if error else 0.0, over_concatenation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="Where finished runs are kept.")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS), help="Names of configs.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="Seeds of the runs.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    options.folder.mkdir(parents=True, exist_ok=True)
    results = {name: compared(name, finished(name, options.seeds, options.folder)) for name in options.sets}
    print(f"RESULT never_worse {min(errors for _, errors, _ in results.values()):.2f} standard_errors")
    for name, (_, errors, _) in results.items():
        print(f"RESULT never_worse_{name} {errors:.2f} standard_errors")
    differences, _, over_concatenation = zip(*results.values(), strict=True)
    print(f"RESULT never_worse_difference {statistics.mean(differences):.4f} accuracy")
    print(f"RESULT never_worse_concatenation {statistics.mean(over_concatenation):.4f} accuracy")


if __name__ == "__main__":
    main()
