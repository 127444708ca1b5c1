"""Kind 1: what a stranger's checkpoint reaches when a run continues from it, or when a model is rebuilt."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.hostile.harness import Box, case

RUN = Path("runs/small/version_0/checkpoints")
CONTINUE = ("fit", "--config", "small.yaml", "--trainer.max_epochs", "3", "--ckpt_path", "e.ckpt")
HUGE = torch.tensor(1e9)
Content = dict[str, Any]
Edit = Callable[[Content], None]


def opened(box: Box) -> Content:
    """The content of a good checkpoint."""
    box.start_from("fitted")
    content: Content = torch.load(RUN / "last.ckpt", weights_only=True)
    return content


def of_callback(content: Content, name: str) -> Content:
    """The state of the callback whose key begins so; of several the one with a monitor."""
    found = [state for key, state in content["callbacks"].items() if key.startswith(name)]
    return next((state for state in found if state.get("monitor")), found[0])


def continued(place: str, mechanism: str, says: str, kind: int = 1) -> Callable[[Edit], Edit]:
    """Registers an edit of a good checkpoint with which ``fit --ckpt_path`` has to be refused."""

    def register(edit: Edit) -> Edit:
        def run(box: Box) -> None:
            content = opened(box)
            edit(content)
            torch.save(content, "e.ckpt")
            box.refused(*CONTINUE, says=says)

        run.__name__ = edit.__name__
        case(kind, place, mechanism)(run)
        return edit

    return register


def rebuilt(place: str, mechanism: str, says: str, kind: int = 1) -> Callable[[Edit], Edit]:
    """Registers an edit with which ``load_from_checkpoint`` and what follows has to be refused."""

    def register(edit: Edit) -> Edit:
        def run(box: Box) -> None:
            content = opened(box)
            edit(content)
            torch.save(content, "e.ckpt")
            box.refused("load_from_checkpoint", "e.ckpt", says=says)

        run.__name__ = edit.__name__
        case(kind, place, mechanism)(run)
        return edit

    return register


@case(1, "state of ModelCheckpoint", "a path through .. that is removed later")
def best_file_elsewhere(box: Box) -> None:
    content = opened(box)
    target = f"runs/small/version_1/checkpoints/{'../' * 5}outside/victim"
    state = of_callback(content, "ModelCheckpoint")
    state |= dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), target)
    state |= {"dirpath": "runs/small/version_1/checkpoints", "best_k_models": {target: HUGE}}
    state |= {"kth_value": HUGE, "best_model_score": HUGE}
    torch.save(content, "e.ckpt")
    box.accepted(*CONTINUE)


# Optimizer


def states(content: Content) -> list[Content]:
    return list(content["optimizer_states"][0]["state"].values())


def groups(content: Content) -> list[Content]:
    found: list[Content] = content["optimizer_states"][0]["param_groups"]
    return found


@continued("optimizer_states", "a shape that compiled code trusts", "exp_avg.*shape")
def short_moments(content: Content) -> None:
    for state in states(content):
        state["exp_avg"] = torch.zeros(7)


@continued("optimizer_states", "memory beyond the storage", "exp_avg")
def overlapping_moments(content: Content) -> None:
    for state in states(content):
        state["exp_avg"] = torch.zeros(1).expand(state["exp_avg"].shape)


@continued("optimizer_states", "values that are not finite", "finite")
def infinite_moments(content: Content) -> None:
    states(content)[0]["exp_avg_sq"].fill_(math.inf)


@continued("optimizer_states", "squares below zero", "negative")
def negative_squares(content: Content) -> None:
    states(content)[0]["exp_avg_sq"].fill_(-1.0)


@continued("options of a group", "a number that is not finite", "betas")
def nan_betas(content: Content) -> None:
    for group in groups(content):
        group["betas"] = (math.nan, 0.999)


@continued("options of a group", "a choice that nobody made", "maximize")
def maximized(content: Content) -> None:
    for group in groups(content):
        group["maximize"] = True


@continued("options of a group", "out of the range that torch checks in a constructor", "beta")
def large_betas(content: Content) -> None:
    for group in groups(content):
        group["betas"] = (1.5, 3.0)


@continued("options of a group", "a step before the first", "unfrozen_at")
def unfrozen_before_the_start(content: Content) -> None:
    for group in groups(content):
        group["unfrozen_at"] = -(10**9)


# Schedulers


@continued("lr_schedulers", "another type", "lr_schedulers")
def schedulers_are_text(content: Content) -> None:
    content["lr_schedulers"] = "none"


@continued("lr_schedulers", "fewer than there are", "lr_schedulers")
def no_schedulers(content: Content) -> None:
    content["lr_schedulers"] = []


@continued("lr_schedulers", "a position that is no count", "last_epoch")
def schedule_before_the_start(content: Content) -> None:
    content["lr_schedulers"][0]["last_epoch"] = -5


@continued("lr_schedulers", "an entry in the place of a method", "lr_schedulers")
def schedule_without_step(content: Content) -> None:
    content["lr_schedulers"][0]["step"] = 3


# Loops


def fit_loop(content: Content) -> Content:
    found: Content = content["loops"]["fit_loop"]
    return found


@continued("loops", "counters below zero", "loops")
def negative_counters(content: Content) -> None:
    for counter in fit_loop(content)["epoch_progress"].values():
        counter.update(dict.fromkeys(counter, -5))


@continued("loops", "counters that contradict each other", "loops")
def contradicting_counters(content: Content) -> None:
    fit_loop(content)["epoch_loop.batch_progress"]["current"]["ready"] = 10**12


@continued("loops", "missing", "loops")
def no_loops(content: Content) -> None:
    del content["loops"]


@continued("global_step", "another type", "global_step")
def step_is_text(content: Content) -> None:
    content["global_step"] = "many"


@continued("version of Lightning", "another type", "version")
def version_is_a_list(content: Content) -> None:
    content["pytorch-lightning_version"] = ["9"]


@continued("version of Lightning", "a text that is no version", "version")
def version_is_words(content: Content) -> None:
    content["pytorch-lightning_version"] = "newest of all"


# Exact resume


def window(content: Content) -> Content:
    found: Content = content["exact_resume"]
    name = next(iter(content["state_dict"]))
    found["window"] = {"gradients": {name: content["state_dict"][name][None].clone()}, "buffers": {}}
    return found["window"]["gradients"]


@continued("window of exact_resume", "a shape that the optimizer trusts", "exact_resume")
def gradients_of_another_shape(content: Content) -> None:
    gradients = window(content)
    for name in gradients:
        gradients[name] = torch.zeros(1, 3)


@continued("window of exact_resume", "values that are not finite", "exact_resume")
def gradients_that_are_nan(content: Content) -> None:
    for gradient in window(content).values():
        gradient.fill_(math.nan)


@continued("window of exact_resume", "fewer ranks than there are", "exact_resume")
def gradients_of_no_rank(content: Content) -> None:
    gradients = window(content)
    for name in gradients:
        gradients[name] = gradients[name][:0]


@continued("window of exact_resume", "names of nothing", "exact_resume")
def gradients_of_nothing(content: Content) -> None:
    window(content)["network.parts.nothing"] = torch.zeros(1, 3)


@continued("seed of exact_resume", "a number that no generator takes", "exact_resume")
def seed_of_no_generator(content: Content) -> None:
    content["exact_resume"]["seed"] = -(2**70)


@continued("metrics of exact_resume", "a tensor of many values", "exact_resume")
def metrics_of_many_values(content: Content) -> None:
    content["exact_resume"]["metrics"] = {"val/loss": torch.zeros(3)}


@continued("division of exact_resume", "a number of samples below 0", "exact_resume.division")
def division_below_zero(content: Content) -> None:
    content["exact_resume"]["division"] = {"samples": -4, "accumulate": 1}


@continued("batches of exact_resume", "a number below 0", "exact_resume.batches")
def batches_below_zero(content: Content) -> None:
    content["exact_resume"]["batches"] = -5


@continued("order of exact_resume", "characters that steer a terminal", "exact_resume.order")
def order_that_steers(content: Content) -> None:
    content["exact_resume"]["order"] = "\x1b[2J"


# Callbacks


@continued("state of GradualUnfreezing", "weights of another shape", "callbacks")
def best_weights_of_another_shape(content: Content) -> None:
    name = next(iter(content["state_dict"]))
    best = {"val/loss": {"value": 0.0, "weights": {name: torch.zeros(2)}}}
    of_callback(content, "GradualUnfreezing")["best"] = best


@continued("state of GradualUnfreezing", "weights that are not finite", "callbacks")
def best_weights_that_are_nan(content: Content) -> None:
    name, tensor = next(iter(content["state_dict"].items()))
    weights = {name: tensor * math.nan}
    of_callback(content, "GradualUnfreezing")["best"] = {"val/loss": {"value": 0.0, "weights": weights}}


@continued("state of GradualUnfreezing", "a best value that nothing beats", "callbacks")
def best_value_is_nan(content: Content) -> None:
    of_callback(content, "GradualUnfreezing")["best"] = {"val/loss": {"value": math.nan, "weights": {}}}


@continued("state of GradualUnfreezing", "a moment before the start", "callbacks")
def recorded_before_the_start(content: Content) -> None:
    of_callback(content, "GradualUnfreezing")["recorded"] = {"stem": -7}


@continued("state of NonFiniteGradients", "statistics of another shape", "callbacks")
def statistics_of_another_shape(content: Content) -> None:
    of_callback(content, "NonFiniteGradients")["statistics"] = {next(iter(content["state_dict"])): torch.zeros(7)}


# Rebuilding


def ours(content: Content) -> Content:
    found: Content = content["hybrid_lightning"]
    return found


@rebuilt("options of a part", "a compiler to run", "compile")
def compiler_of_the_file(content: Content) -> None:
    ours(content)["parts"]["stem"]["compile"] = {"options": {"cpp.cxx": [None, "./evil.sh"]}}


@rebuilt("options of a part", "a module of Python to import", "adapter")
def module_of_an_adapter(content: Content) -> None:
    ours(content)["parts"]["stem"]["adapter"] = {"kind": "lora", "megatron_core": "victim"}


@rebuilt("options of a part", "a name to fetch", "adapter")
def model_of_an_adapter(content: Content) -> None:
    adapter = {"kind": "lora", "r": 2, "base_model_name_or_path": "a/b", "auto_mapping": {"parent_library": "os"}}
    ours(content)["parts"]["stem"]["adapter"] = adapter


@rebuilt("options of a part", "a number that fills memory", "adapter")
def adapter_of_any_size(content: Content) -> None:
    ours(content)["parts"]["stem"]["adapter"] = {"kind": "lora", "r": 10**10}


@rebuilt("arguments of a part", "a number that fills memory", "memory|state_dict|tensors")
def channels_of_any_size(content: Content) -> None:
    ours(content)["parts"]["stem"]["args"] = {"channels": [10**10]}


@rebuilt("module of a part", "a class outside of the allowed places", "outside the allowed places")
def module_of_the_system(content: Content) -> None:
    ours(content)["parts"]["stem"]["module"] = "os.system"


@rebuilt("config of transformers", "code that was published with a model", "refused in a checkpoint")
def code_of_a_model(content: Content) -> None:
    config = {"model_type": "bert", "auto_map": {"AutoModel": "evil--x.Y"}, "trust_remote_code": True}
    config |= {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    ours(content)["parts"]["stem"] |= {"module": "transformers.AutoModel", "args": {"config": config}}


@rebuilt("settings of the task", "a number that fills memory", "damaged: .*memory")
def classes_without_end(content: Content) -> None:
    ours(content)["settings"]["num_classes"] = 10**12


@rebuilt("settings of the task", "an argument that is not there", "damaged")
def argument_of_nothing(content: Content) -> None:
    ours(content)["settings"]["run"] = "rm"


@rebuilt("record of the network", "a scale that divides by zero", "scale")
def scale_of_zero(content: Content) -> None:
    ours(content)["parts"]["stem"]["normalize"] = True
    ours(content)["network"]["scales"] = {"stem": {"mean": [0.0, 0.0, 0.0], "std": [0.0, 0.0, 0.0]}}


@rebuilt("record of the network", "an output that is not there", "stem")
def output_of_nothing(content: Content) -> None:
    ours(content)["network"]["outputs"] = {"stem": "nothing"}


@rebuilt("record of a calibration", "a number to divide by that is zero", "calibration.temperature")
def temperature_of_zero(content: Content) -> None:
    ours(content)["calibration"] = {"temperature": 0.0}


@rebuilt("record of a calibration", "a number that is none", "calibration.quantiles")
def quantile_of_nan(content: Content) -> None:
    ours(content)["calibration"] = {"temperature": 1.0, "coverage": 0.9, "quantiles": [math.nan]}


@rebuilt("record of a calibration", "a list of another length", "calibration.thresholds")
def thresholds_without_end(content: Content) -> None:
    ours(content)["calibration"] = {"temperature": 1.0, "metric": "f1", "thresholds": [0.5] * 10**6}


@rebuilt("record of a calibration", "a name that nobody knows", "calibration: the record")
def entry_of_nothing(content: Content) -> None:
    ours(content)["calibration"] = {"temperature": 1.0, "__class__": "os.system"}


@case(2, "record of a calibration", "a promise of less than nothing")
def coverage_of_a_stranger(box: Box) -> None:
    content = opened(box)
    ours(content)["calibration"] = {"temperature": 1.0, "coverage": -0.5, "quantiles": [0.5]}
    torch.save(content, "e.ckpt")
    for command in ("predict", "test", "validate"):
        box.refused(command, "--config", "small.yaml", "--ckpt_path", "e.ckpt", says="calibration.coverage")


@rebuilt("state_dict", "a tensor of one value that claims billions", "state_dict|memory|tensor|shape")
def expanded_weights(content: Content) -> None:
    for name, tensor in content["state_dict"].items():
        content["state_dict"][name] = torch.zeros(1).expand(10**12) if tensor.ndim else tensor


@rebuilt("state_dict", "tensors without memory", "plain|tensor")
def weights_without_memory(content: Content) -> None:
    for name, tensor in content["state_dict"].items():
        content["state_dict"][name] = tensor.to("meta")


@rebuilt("state_dict", "sparse tensors", "plain|tensor")
def sparse_weights(content: Content) -> None:
    for name, tensor in content["state_dict"].items():
        content["state_dict"][name] = tensor.to_sparse() if tensor.ndim else tensor


@rebuilt("state_dict", "what is no tensor", "damaged|tensor")
def weights_are_words(content: Content) -> None:
    content["state_dict"] = dict.fromkeys(content["state_dict"], "w")
