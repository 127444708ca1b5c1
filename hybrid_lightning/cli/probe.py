"""``probe``: what each part knows about the target before any training, by closed-form fits on its features."""

import time
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from hybrid_lightning.cli.building import Setup
from hybrid_lightning.cli.preparation import build_from_data, load_checkpoint
from hybrid_lightning.cli.tables import write_table
from hybrid_lightning.data.loaders import first_batch
from hybrid_lightning.drift.reference_batch import batches_on_device
from hybrid_lightning.errors import format_table
from hybrid_lightning.network.batch import first_samples
from hybrid_lightning.network.builder import build
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.tasks.building import building, example_as_given, in_given_precision
from hybrid_lightning.tasks.features import (
    MOST_FOR_STATISTICS,
    MOST_SAMPLES,
    SplitFeatures,
    collect_features,
    settle_statistics,
    training_samples,
)
from hybrid_lightning.tasks.probing import Probe, fit_voters, probe_features

COLUMNS = ("part", "origin", "features", "score", "error", "random_weights", "random_weights_error", "blend")


def probe(setup: Setup, ckpt_path: str | None = None, output: str | None = None) -> None:
    """Prints a table of the parts: how well a closed-form fit on a part's features predicts the target.

    The fit is a ridge regression on standardized features of the training rows; its score is of rows that it has not
    seen (leave-one-out, or groups of ``data.split_by`` left out): plain accuracy, of several labels its mean over them,
    or R², whatever the classes' shares; ``class_weights`` weigh the rows in the fit alone. Validation and test rows are
    not read.

    Args:
        setup: The model and its data.
        ckpt_path: Checkpoint whose weights are probed: best, last (of the newest run of this name) or a path; null
            probes the weights with which training would start.
        output: The table as a file; null: probe.csv in the folder of the runs.
    """
    assert output is not None  # `build` has named it
    model, data = setup.model, setup.data
    started = time.perf_counter()
    network, loader = prepared_on_device(setup, ckpt_path)
    features = training_features(setup, network, loader)
    read = time.perf_counter()
    groups = getattr(data, "train_groups", None)
    found = probe_features(model.objective, features, groups)
    fitted = time.perf_counter()
    rows = _rows(network, features, found)
    twins = _random_scores(setup, loader, features)
    for row in rows:
        if row["part"] in twins:
            row["random_weights"], row["random_weights_error"] = twins[row["part"]]
    end = time.perf_counter()
    write_table({column: [row[column] for row in rows] for column in COLUMNS}, output)
    how = "groups left out" if groups is not None else "leave-one-out"
    print(_table(rows, found.blend.name, how))
    count = len(next(iter(features.parts.values())))
    seconds = f"features {read - started:.1f} s, fits {fitted - read:.1f} s, with random weights {end - fitted:.1f} s"
    print(f"{count:,} training rows; {seconds}\nprobe: {output}")


def prepared_on_device(setup: Setup, ckpt_path: str | None) -> tuple[HybridNetwork, Any]:
    """The network on the device of the Trainer, with what its parts take from training samples, and their loader.

    Its weights are those of a checkpoint, or those at which training would start.
    """
    loader = build_from_data(setup, load=ckpt_path is None)
    if ckpt_path is not None:
        load_checkpoint(setup.model, ckpt_path)
    device = setup.trainer.strategy.root_device
    network = setup.model.built().to(device)
    _begin(network, setup, loader, ("untrained", "random"))
    return network, loader


def _begin(
    network: HybridNetwork,
    setup: Setup,
    loader: Any,
    origins: Collection[str],
) -> None:
    """Prepares parts that read training data, and statistics of parts of these origins."""
    with training_samples(setup.trainer, lambda: loader, MOST_SAMPLES) as some:
        network.prepare(lambda: given(setup, some))
    with training_samples(setup.trainer, lambda: loader, MOST_FOR_STATISTICS) as few:
        settle_statistics(network, lambda: given(setup, few), origins)


def given(setup: Setup, loader: Any) -> Iterator[Any]:
    """Batches as the Trainer gives them to the module; they may lack a target."""
    return batches_on_device(setup.trainer, setup.model, loader, checked=False)


def training_features(
    setup: Setup, network: HybridNetwork, loader: Any, parts: Collection[str] | None = None
) -> SplitFeatures:
    """The features of all training samples, see `collect_features`."""
    with training_samples(setup.trainer, lambda: loader) as samples:
        return collect_features(network, given(setup, samples), parts)


def _rows(network: HybridNetwork, features: SplitFeatures, found: Probe) -> list[dict[str, Any]]:
    """A row per voter, and one of the blend."""
    rows = []
    for name, voter in found.voters.items():
        is_part = name in features.parts
        row = dict.fromkeys(COLUMNS, "") | {
            "part": name,
            "origin": network.options[name].origin if is_part else "",
            "features": voter.vote.weight.shape[0],
            "score": voter.score.value,
            "error": voter.score.error,
            "blend": found.weights.get(name, 0.0),
        }
        rows.append(row)
    of_blend = {"part": "blend", "score": found.blend.value, "error": found.blend.error}
    return [*rows, dict.fromkeys(COLUMNS, "") | of_blend]


def _random_scores(setup: Setup, loader: Any, features: SplitFeatures) -> dict[str, tuple[float, float]]:
    """Part → score and error of the same part with random weights, for parts with pretrained weights on their way."""
    model, data = setup.model, setup.data
    network = model.built()
    parts = []
    for name in features.parts:
        on_the_way = [network.options[other] for other in network.wiring.needed((), [name])]
        # the weights of a live module cannot be drawn anew
        is_live = any(isinstance(part.module, nn.Module) for part in on_the_way)
        if not is_live and any(part.origin == "pretrained" for part in on_the_way):
            parts.append(name)
    if not parts:
        return {}
    trainer = setup.trainer
    with torch.random.fork_rng(devices=[]):
        with building(trainer, model.all_options.values()):
            example = example_as_given(trainer, model, lambda: first_batch(loader))
            twin = build(
                model.parts,
                model.objective.outputs,
                first_samples(example),
                fusion=model.fusion,
                load=False,
                inferred=getattr(data, "inferred_arguments", None),
            )
        in_given_precision(trainer, twin)
        twin.to(trainer.strategy.root_device)
        _begin(twin, setup, loader, ("pretrained", "untrained", "random"))
        random = training_features(setup, twin, loader, parts)
    voters = fit_voters(model.objective, random, getattr(data, "train_groups", None))
    return {name: (voter.score.value, voter.score.error) for name, voter in voters.items()}


def _table(rows: list[dict[str, Any]], score_name: str, how: str) -> str:
    """The rows as text."""
    score_column = f"{score_name} ({how})"
    columns = ("part", "origin", "features", score_column, "with random weights", "share of the blend")
    shown = []
    for row in rows:
        features = row["features"]
        cells = {
            "part": row["part"],
            "origin": row["origin"],
            "features": f"{features:,}" if features else "",
            score_column: _with_error(row["score"], row["error"]),
            "with random weights": _with_error(row["random_weights"], row["random_weights_error"]),
            "share of the blend": f"{row['blend']:.2f}" if row["blend"] != "" else "",
        }
        shown.append(cells)
    return format_table(shown, columns, columns[2:])


def _with_error(value: Any, error: Any) -> str:
    return f"{value:.3f} ± {error:.3f}" if value != "" else ""
