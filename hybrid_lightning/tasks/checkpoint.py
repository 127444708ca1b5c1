"""What a task adds to a checkpoint, and how it is read back without running anything from the file."""

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from hybrid_lightning.data import ManifestDataModule
from hybrid_lightning.errors import ConfigError, at, check_keys, listing, reason
from hybrid_lightning.lightning_private import average_of
from hybrid_lightning.network.fusion import follow_shrinking
from hybrid_lightning.network.record import NetworkRecord
from hybrid_lightning.network.selection import serve
from hybrid_lightning.tasks.calibration import CALIBRATION, Calibration
from hybrid_lightning.tasks.formats import CHECKPOINT_KEY, CHECKPOINT_VERSION, READABLE, is_ours, translated
from hybrid_lightning.tasks.init_from import made_with
from hybrid_lightning.weights.safe_files import peek, read_file
from hybrid_lightning.weights.tensor_values import refuse_unfit

SELECTION = "network.selection."
"""How the names of tensors of a `Selection` begin."""
_PACKAGE = __name__.partition(".")[0]
_WANTED = {"version", "task", "settings", "parts", "fusion", "network"}
Task = TypeVar("Task")
Saved = dict[str, Any]
Tensors = Mapping[str, Tensor]


def read_checkpoint(path: Any, place: str = "checkpoint_path", tensors: bool = True) -> tuple[Saved, Saved]:
    """What a task added to a checkpoint, or to a sharded one's folder, and the weights, for use only if `tensors`.

    Raises `ConfigError` if the file is broken, holds code, or was not written by a task of this version.
    """
    checkpoint = _read(path, place, tensors)
    return checkpoint[CHECKPOINT_KEY], checkpoint["state_dict"]


def _read(path: Any, place: str, tensors: bool) -> Saved:
    """All of a checkpoint but the states of optimizers; for the rest see `read_checkpoint`."""
    checkpoint = read_file(path, place, without=("optimizer_states",)) if tensors else peek(path, place)
    foreign = ConfigError(f"{str(path)!r} was not written by a task of this program.", place)
    if not is_ours(checkpoint):
        raise foreign
    version = checkpoint[CHECKPOINT_KEY]["version"]
    if version not in READABLE:
        is_old = version in (1, 2)
        remedy = "It is of before the first release; train anew." if is_old else "Install a newer hybrid_lightning."
        raise ConfigError(
            f"{str(path)!r} has format {version}; this program reads {CHECKPOINT_VERSION}. {remedy}", place
        )
    checkpoint = translated(checkpoint)
    if not checkpoint[CHECKPOINT_KEY].keys() >= _WANTED or "state_dict" not in checkpoint:
        raise foreign
    return checkpoint


def network_record(saved: Mapping[str, Any]) -> NetworkRecord:
    """What a dry run found out about the network, in what a task added to a checkpoint."""
    with at("checkpoint.network"):
        return NetworkRecord.parse(saved["network"])


def serve_selection(task: Any, checkpoint: dict[str, Any], is_wanted: bool) -> None:
    """Lets a task serve what a checkpoint has selected, calibrated, by a network that shrinks wide parts as its own.

    If that is not wanted, both have the joint network alone, as it was trained.
    """
    selection: dict[str, int] = {}
    saved: Mapping[str, Any] = {}
    follow_shrinking(task.built(), made_with(checkpoint.get(CHECKPOINT_KEY)).get("fusion"))
    if not is_wanted:
        checkpoint.update(without_selection(checkpoint))
    elif is_ours(checkpoint):
        saved = checkpoint[CHECKPOINT_KEY]
        selection = network_record(saved).selection
    serve(task.built(), selection, task.objective.closed_form)
    calibrate(task, saved)


def calibrate(task: Any, saved: Mapping[str, Any]) -> None:
    """Lets a task serve calibrated outputs, by what was added to a checkpoint; without a record as it was trained."""
    objective = task.objective
    found = None
    if CALIBRATION in saved:
        with at(f"checkpoint.{CALIBRATION}"):
            found = Calibration.parse(saved[CALIBRATION], objective)
    objective.calibration = found
    task.built().temperature = 1.0 if found is None else found.temperature
    task.evaluator.follow(objective)
    task.evaluator.to(task.device)


def without_selection(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint whose network serves its joint outputs."""
    found = dict(checkpoint)
    saved, state = checkpoint.get(CHECKPOINT_KEY), checkpoint.get("state_dict")
    if isinstance(saved, Mapping) and isinstance(saved.get("network"), Mapping):
        network = {name: value for name, value in saved["network"].items() if name != "selection"}
        found[CHECKPOINT_KEY] = {**saved, "network": network}
        found[CHECKPOINT_KEY].pop(CALIBRATION, None)  # of what was selected
    if isinstance(state, Mapping):
        found["state_dict"] = {name: value for name, value in state.items() if not str(name).startswith(SELECTION)}
    return found


def measure_average(trainer: Trainer, checkpoint: dict[str, Any], is_wanted: bool) -> None:
    """Keeps an average of weights in the model, where Lightning would replace it by the weights beside it.

    For the rest see `serve_selection`.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        average = average_of(callback) if isinstance(callback, WeightAveraging) else None
        if average is not None:  # of a run that came before; it takes the same tensors as the model
            serve_selection(average, checkpoint, is_wanted)
    if "current_model_state" in checkpoint:
        checkpoint["current_model_state"] = checkpoint["state_dict"]


def is_same_network(saved: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether the plain options of a network, `own`, are those in what a task added to a checkpoint."""
    known = {**own, **{key: saved[key] for key in own if key in saved}}  # the oldest files do not state their outputs
    known["fusion"] = _as_stated(known["fusion"], own["fusion"])
    parts = known["parts"]
    if isinstance(parts, Mapping):
        known["parts"] = {name: _as_stated(options, own["parts"].get(name, {})) for name, options in parts.items()}
    return known == own


def _as_stated(saved: Any, own: Mapping[str, Any]) -> Any:
    """The options of a part without ``normalize: false``, the former default, where the part of today leaves it out."""
    if not isinstance(saved, Mapping) or saved.get("normalize") is not False or "normalize" in own:
        return saved
    return {key: value for key, value in saved.items() if key != "normalize"}


def task_name(task: type) -> str:
    """How a checkpoint names a task: a class of this package by its name, any other by its dotted path."""
    if task.__module__.partition(".")[0] == _PACKAGE:
        return task.__name__
    return f"{task.__module__}.{task.__qualname__}"


def refuse_other_model(own: Tensors, saved: Tensors, place: str = "--ckpt_path") -> None:
    """Raises `ConfigError` if the names or shapes of a model's tensors differ from those of a checkpoint."""
    refuse_unfit(saved, own, "the checkpoint", place)
    sentences = other_tensors(own, saved)
    if sentences:
        raise ConfigError(
            f"the checkpoint is of another model. {' '.join(sentences)} Use the config of its run (config.yaml in its "
            f"folder), or modules of the same architecture.",
            place,
        )


def other_tensors(own: Tensors, saved: Tensors) -> list[str]:
    """Sentences that say how the names and shapes of two models' tensors differ; none if they are equal."""
    reshaped = []
    for name, tensor in own.items():
        if name in saved and saved[name].shape != tensor.shape:
            reshaped.append(f"{name} {tuple(tensor.shape)}")
    kinds = {
        "Missing in it": sorted(own.keys() - saved.keys()),
        "Only in it": sorted(saved.keys() - own.keys()),
        "Of another shape here": reshaped,
    }
    return [f"{kind}: {listing(names, 4)}." for kind, names in kinds.items() if names]


def group_names(module: nn.Module, groups: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Group name → names of its parameters in `module`."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = {}
    for group in groups:
        found[group["name"]] = [names[id(parameter)] for parameter in group["params"]]
    return found


def concrete_subclasses(cls: type[Task]) -> list[type[Task]]:
    """The class and its subclasses that exist already, without abstract ones: nothing is imported for a file."""
    found = [] if inspect.isabstract(cls) else [cls]
    for child in cls.__subclasses__():
        found += concrete_subclasses(child)
    return found


def rebuilt(
    base: type[Task],
    wanted: type,
    path: Any,
    trust: tuple[str, ...],
    live: Mapping[str, nn.Module],
) -> Task:
    """The task of a checkpoint, with its weights: a subclass of `base` that is imported, and a `wanted`."""
    checkpoint = _read(path, "checkpoint_path", tensors=True)
    saved, state = checkpoint[CHECKPOINT_KEY], checkpoint["state_dict"]
    known = {task_name(task): task for task in concrete_subclasses(base)}
    try:
        parts = with_live_modules(saved["parts"], live)
        if "head" not in parts:  # a constructor would import the fusion's class to find out about one
            raise KeyError("there is no head")
        name = str(saved["task"])
        if name not in known:
            remedy = f"not among the classes imported here: {listing(known)}. Import it first."
            raise ConfigError(f"the file was written by {name!r}, which is {remedy}", "checkpoint_path")
        task: Any = known[name]
        if not issubclass(task, wanted):
            remedy = f"not a {wanted.__name__}. Call load_from_checkpoint of that class, or of HybridTask."
            raise ConfigError(f"the file was written by {name!r}, which is {remedy}", "checkpoint_path")
        model = task(parts=parts, fusion=saved["fusion"], **saved["settings"])
        model.rebuild(network_record(saved), trust)  # the file's names are resolved under this trust alone
        refuse_other_model(model.state_dict(), state, "checkpoint_path")
        model.load_state_dict(state)
        calibrate(model, saved)
        of_data = checkpoint.get(ManifestDataModule.__name__)
        model.data_state = of_data if isinstance(of_data, Mapping) else None
    except ConfigError:
        raise
    except Exception as error:  # what a file says reaches constructors of torch and others
        raise ConfigError(f"the settings in {str(path)!r} are damaged: {reason(error)}", "checkpoint_path") from error
    return model  # type: ignore[no-any-return]


def with_live_modules(parts: Mapping[str, Any], live: Mapping[str, nn.Module]) -> Saved:
    """The saved options of parts, completed by the modules that could not be saved as options."""
    check_keys(live, parts, "parts", "part")
    missing = [name for name, options in parts.items() if not {"module", "share"} & set(options) and name not in live]
    if missing:
        example = ", ".join(f"{name!r}: module" for name in missing)
        raise ConfigError(
            f"{listing(missing)} were live modules when the model was made, so it cannot rebuild them. Pass modules of "
            f"the same architecture: load_from_checkpoint(path, parts={{{example}}}).",
            "checkpoint_path",
        )
    complete = {name: dict(options) for name, options in parts.items()}
    for name, module in live.items():
        complete[name]["module"] = module
    return complete
