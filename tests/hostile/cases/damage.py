"""Kind 2: what parses and is not what was written, or no numbers to compute with."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from tests.hostile.cases.checkpoints import CONTINUE, RUN, Content, continued, opened, rebuilt
from tests.hostile.harness import Box, case
from tests.small import changed

PREDICT = ("predict", "--config", "small.yaml", "--ckpt_path", "last")
STEM = "network.parts.stem."


def flipped(path: Path, place: int, bit: int = 6) -> None:
    """Turns one bit of a file around."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def place_of(path: Path, tensor: Tensor) -> int:
    """Where the values of a tensor lie in a file."""
    return path.read_bytes().index(tensor.contiguous().numpy().tobytes())


@case(2, "weights of a checkpoint", "a flipped bit, at predict")
def flipped_bit_of_a_weight(box: Box) -> None:
    weight = opened(box)["state_dict"][f"{STEM}block0.0.weight"]
    flipped(RUN / "last.ckpt", place_of(RUN / "last.ckpt", weight) + 3)
    box.refused(*PREDICT, says="damaged: Bad CRC-32")


@case(2, "weights of a checkpoint", "a flipped bit, at a resume that has another")
def flipped_bit_before_a_resume(box: Box) -> None:
    weight = opened(box)["state_dict"][f"{STEM}block0.0.weight"]
    flipped(RUN / "last.ckpt", place_of(RUN / "last.ckpt", weight) + 3)
    told = box.accepted("fit", "--config", "small.yaml", "--resume", "auto", "--trainer.max_epochs", "3")
    assert "It is skipped" in told.out
    assert "continues from best.ckpt" in told.out


@case(2, "plain values of a checkpoint", "a flipped bit")
def flipped_bit_of_a_setting(box: Box) -> None:
    opened(box)
    content = (RUN / "last.ckpt").read_bytes()
    flipped(RUN / "last.ckpt", content.index(b"hybrid_lightning") + 3)
    box.refused(*PREDICT, says="damaged: Bad CRC-32")


@case(2, "exported safetensors", "a flipped bit of a value")
def flipped_bit_of_an_export(box: Box) -> None:
    exported(box)
    flipped(Path("stem.safetensors"), -2)
    refused_weights(box, "not those that were written")


@case(2, "exported safetensors", "a name that was changed")
def renamed_tensor_of_an_export(box: Box) -> None:
    exported(box)
    content = Path("stem.safetensors").read_bytes()
    Path("stem.safetensors").write_bytes(content.replace(b"block0.0.bias", b"block0.0.vias"))
    refused_weights(box, "not those that were written")


@case(2, "foreign safetensors", "one name twice")
def one_name_twice(box: Box) -> None:
    box.start_from("fitted")
    entry = '"block0.0.bias":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
    header = ("{" + f"{entry},{entry}" + "}").encode()
    Path("stem.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    refused_weights(box, "twice")


def exported(box: Box) -> None:
    box.start_from("fitted")
    checkpoint = str(RUN / "last.ckpt")
    box.accepted("export_part", "--ckpt_path", checkpoint, "--part", "stem", "--output", "stem.safetensors")
    header = Path("stem.safetensors").read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])


def refused_weights(box: Box, says: str, **options: object) -> None:
    """Fits with the file ``stem.safetensors`` as the weights of a part."""
    stem = {f"init.parts.stem.{name}": value for name, value in options.items()}
    config = changed({"init.parts.stem.weights": "stem.safetensors", **stem})
    Path("weights.yaml").write_text(yaml.safe_dump(config))
    box.refused("fit", "--config", "weights.yaml", says=says)


def weights(mechanism: str, says: str, norm: bool = False) -> Callable[[Callable[[Content], None]], None]:
    """Registers an edit of the weights of a part, which a config then names."""

    def register(edit: Callable[[Content], None]) -> None:
        def run(box: Box) -> None:
            state: Content = {"block0.0.weight": torch.randn(4, 3, 3, 3), "block0.0.bias": torch.randn(4)}
            if norm:
                ones = {"weight": torch.ones(4), "running_var": torch.ones(4)}
                zeros = {"bias": torch.zeros(4), "running_mean": torch.zeros(4)}
                state |= {f"block0.1.{name}": value for name, value in {**ones, **zeros}.items()}
            edit(state)
            save_file(state, "stem.safetensors")
            args = {"channels": [4], "norm": norm}
            refused_weights(box, says, args=args)

        run.__name__ = edit.__name__
        case(2, "weights of a part", mechanism)(run)

    return register


@weights("nan", "block0.0.weight holds values that are not finite")
def weights_that_are_nan(state: Content) -> None:
    state["block0.0.weight"][0, 0] = math.nan


@weights("infinite in half precision", "block0.0.bias holds values that are not finite")
def weights_that_overflowed(state: Content) -> None:
    state["block0.0.bias"] = (state["block0.0.bias"] * 1e9).half()


@weights("whole numbers", "block0.0.weight holds torch.int64")
def weights_that_are_whole(state: Content) -> None:
    state["block0.0.weight"] = state["block0.0.weight"].long()


@weights("booleans", "block0.0.weight holds torch.bool")
def weights_that_are_booleans(state: Content) -> None:
    state["block0.0.weight"] = state["block0.0.weight"] > 0


@weights("complex numbers", "block0.0.weight holds torch.complex64")
def weights_that_are_complex(state: Content) -> None:
    state["block0.0.weight"] = state["block0.0.weight"] + 0j


@weights("variances below zero", "running_var holds negative variances", norm=True)
def variances_below_zero(state: Content) -> None:
    state["block0.1.running_var"] = -torch.ones(4)


def damaged_head(box: Box) -> None:
    content = opened(box)
    content["state_dict"]["network.parts.head.linear.weight"][0, 0] = math.nan
    torch.save(content, "e.ckpt")


@case(2, "predict", "nan in the head")
def predictions_of_nan(box: Box) -> None:
    damaged_head(box)
    box.refused(*PREDICT[:-1], "e.ckpt", says="head.linear.weight holds values that are not finite")


@case(2, "test", "nan in the head")
def test_of_nan(box: Box) -> None:
    damaged_head(box)
    box.refused("test", *PREDICT[1:-1], "e.ckpt", says="head.linear.weight holds values that are not finite")


@case(2, "export", "nan in the head")
def export_of_nan(box: Box) -> None:
    damaged_head(box)
    words = ("--format", "safetensors", "--output", "net.safetensors")
    box.refused("export", *PREDICT[1:-1], "e.ckpt", *words, says="head.linear.weight holds values that are not finite")
    assert not Path("net.safetensors").exists()


@case(2, "export_part", "nan in the head")
def export_part_of_nan(box: Box) -> None:
    damaged_head(box)
    box.refused(
        "export_part", "--ckpt_path", "e.ckpt", "--part", "head", "--output", "h.safetensors", says="not finite"
    )


@case(2, "fit --ckpt_path", "nan in the head")
def fit_from_nan(box: Box) -> None:
    damaged_head(box)
    box.refused(*CONTINUE, says="head.linear.weight holds values that are not finite")


@case(2, "init_from", "nan in the head")
def init_from_nan(box: Box) -> None:
    damaged_head(box)
    words = ("fit", "--config", "small.yaml", "--model.init_from", "e.ckpt")
    box.refused(*words, says="linear.weight holds values that are not finite")


@case(2, "predictions", "finite weights whose products are not")
def predictions_that_overflow(box: Box) -> None:
    content = opened(box)
    content["state_dict"]["network.parts.head.linear.weight"].fill_(3e38)
    content["state_dict"]["network.parts.stem.block0.0.weight"].fill_(3e38)
    torch.save(content, "e.ckpt")
    box.refused(*PREDICT[:-1], "e.ckpt", says=r"107 of 107 samples .* not finite")
    assert not list(Path("runs").rglob("predictions.csv"))


@continued("optimizer_states", "none", "no optimizer state", kind=2)
def no_optimizer(content: Content) -> None:
    content["optimizer_states"] = []


@continued("optimizer_states", "of other groups", "groups are not those", kind=2)
def optimizer_of_other_groups(content: Content) -> None:
    content["optimizer_states"][0]["param_groups"].pop()


@rebuilt("load_from_checkpoint", "nan in the head", "head.linear.weight holds values that are not finite", kind=2)
def rebuilt_from_nan(content: Content) -> None:
    content["state_dict"]["network.parts.head.linear.weight"].fill_(math.nan)


def no_checkpoint(name: str, content: bytes, says: str) -> None:
    """Registers a file that is no checkpoint any more, from which a run is to continue."""

    def run(box: Box) -> None:
        box.start_from("fitted")
        whole = (RUN / "last.ckpt").read_bytes()
        Path("e.ckpt").write_bytes(content or whole[: len(whole) // 2])
        for words in (CONTINUE, ("test", "--config", "small.yaml", "--ckpt_path", "e.ckpt")):
            told = box.refused(*words, says=f"--ckpt_path: 'e.ckpt' {says}.* fetch it again")
            assert len(told.err.strip()) < 300, told.err

    run.__name__ = f"checkpoint_of_{name}_bytes"
    case(2, "file of --ckpt_path", f"{name} bytes")(run)


no_checkpoint("half_its", b"", "is cut off or damaged: its")
no_checkpoint("no_true", bytes(range(7, 250)) * 9, "is neither safetensors nor a file of torch.save")
no_checkpoint("four", b"PK\x03\x04", "is cut off or damaged: its 4")
