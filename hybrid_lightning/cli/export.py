"""``export`` and ``export_part``: the plain network, or the weights of one part, out of a checkpoint."""

import copy
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities import move_data_to_device

from hybrid_lightning.cli.building import Select, Setup
from hybrid_lightning.cli.preparation import build_from_data, load_checkpoint
from hybrid_lightning.cli.tables import ELSEWHERE
from hybrid_lightning.cli.word_parser import WordParser
from hybrid_lightning.errors import ConfigError, at, listing, printable, reason, unknown, writing
from hybrid_lightning.files import whole_file
from hybrid_lightning.network.adapters import merge_adapters
from hybrid_lightning.network.batch import first_samples, tensors_in
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.missing import PREFIX
from hybrid_lightning.weights.loading import ADAPTED, MERGE, parts_of
from hybrid_lightning.weights.safe_files import read_file, save_weights
from hybrid_lightning.weights.tensor_values import is_plain, unfit

FORMATS = {"torch_export": ".pt2", "safetensors": ".safetensors"}
Batch = dict[str, Any]


def export(
    setup: Setup,
    output: str,
    format: Literal["torch_export", "safetensors"] = "torch_export",
    ckpt_path: str | None = None,
    select: Select = "best",
) -> None:
    """Writes the plain network of a checkpoint, with adapters merged, and prints the file's sha256.

    Args:
        setup: The model, and data of which a training batch checks the exported program.
        output: The file to write: .pt2 for torch_export, .safetensors for safetensors.
        format: A program of torch.export for a batch of any number of samples, or the tensors alone.
        ckpt_path: best, last (of the newest run of this name) or a path.
        select: best is what the run has selected for its best checkpoint; joint is the joint network in any case.
    """
    model = setup.model
    model.serves_selection = select == "best"
    loader = build_from_data(setup, load=False)
    model.built().float()  # whatever the precision of the run
    assert ckpt_path is not None  # the command needs one
    load_checkpoint(model, ckpt_path)
    export_network(model.built(), next(iter(loader)), output, format)
    note = model.objective.export_note()
    if note:
        print(note)
    if format == "safetensors" and model.built().temperature != 1:
        print(f"a temperature is no tensor: divide the outputs by {model.built().temperature}")
    _print_digest(output)


def export_network(
    network: HybridNetwork,
    batch: Mapping[str, Any],
    output: str,
    form: str,
) -> None:
    """Writes a network without the task around it; a real batch checks the program that is written."""
    if not output.endswith(FORMATS[form]):
        raise ConfigError(f"{output!r} does not end in {FORMATS[form]}, as --format {form} does.", "output")
    plain = plain_network(network)
    if form == "safetensors":
        with at("output"), writing(output, ELSEWHERE):
            save_weights(plain.state_dict(), output)
        return
    inputs = entries_read(batch, plain.keys_read)
    program = exported_program(plain, inputs)
    with at("output"), writing(output, ELSEWHERE), whole_file(output) as temporary:
        temporary.write_bytes(program)
    shapes = [described(key, value) for key, value in inputs.items()]
    print(f"inputs: {', '.join(shapes)}")


def plain_network(network: HybridNetwork) -> HybridNetwork:
    """A copy in eval mode on the CPU, with its adapters merged into the weights."""
    plain = copy.deepcopy(network).cpu().eval()
    for name, part in plain.options.items():
        if part.adapter:
            merge_adapters(plain.parts[name])
    return plain.requires_grad_(False)


def exported_program(plain: HybridNetwork, inputs: Batch) -> bytes:
    """A network in eval mode on the CPU as a file of torch.export, checked against it on several batch sizes."""
    samples = torch.export.Dim("samples")
    shapes: dict[str, Any] = {}
    for key, value in inputs.items():
        # dimension 0 of every tensor may have any size
        any_size = {0: samples}
        shapes[key] = dict.fromkeys(value, any_size) if isinstance(value, dict) else any_size
    file = io.BytesIO()
    try:
        program = torch.export.export(plain, (first_samples(inputs),), dynamic_shapes=(shapes,))
        torch.export.save(program, file)
    except Exception as error:  # torch's exporter may raise any exception
        first_line = reason(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"export: torch cannot export this network: {first_line}. Export its tensors: --format safetensors."
        ) from error
    file.seek(0)
    written = torch.export.load(file).module()  # our own bytes; a file of others could run code
    for count in (1, 3, _batch_size(inputs)):
        some = first_samples(inputs, count)
        with torch.no_grad():
            expected = plain(some)
            found = written(some)
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
            difference = (found - expected).abs().max().item()
            raise ConfigError(
                f"export: on {count} samples the exported program differs from the network by up to {difference:.2g}. "
                f"Export its tensors: --format safetensors."
            )
    return file.getvalue()


def entries_read(batch: Mapping[str, Any], keys: Sequence[str]) -> Batch:
    """The entries of a batch that a network reads, on the CPU; without ``present/<key>`` all samples have that key."""
    missing = [key for key in keys if key not in batch and not key.startswith(PREFIX)]
    if missing:
        raise ConfigError(f"data: the network reads {listing(missing)}; the batch has {listing(batch)}.")
    found = move_data_to_device({key: batch[key] for key in keys if key in batch}, torch.device("cpu"))
    everybody = torch.ones(_batch_size(found), dtype=torch.bool)
    return {key: found.get(key, everybody) for key in keys}


def described(key: str, value: Any) -> str:
    """``image (samples, 3, 64, 64) float32`` for an entry of a batch, also if it is a dict."""
    if isinstance(value, dict):
        return ", ".join(described(f"{key}.{name}", entry) for name, entry in value.items())
    sizes = ["samples", *map(str, value.shape[1:])]
    return f"{key} ({', '.join(sizes)}) {str(value.dtype).removeprefix('torch.')}"


def _batch_size(inputs: Batch) -> int:
    return len(next(tensors_in(inputs.values())))


def _print_digest(path: str) -> None:
    print(f"{printable(path)}  sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()}")


def export_part(words: Sequence[str]) -> None:
    """Writes one part of a checkpoint as safetensors and prints its sha256."""
    parser = WordParser("hybrid_lightning export_part", description=export_part.__doc__)
    parser.add_argument("--ckpt_path", required=True, help="Checkpoint of a run.")
    parser.add_argument("--part", required=True, help="Name of the part, such as stem or head.")
    parser.add_argument("--output", required=True, help="The .safetensors file to write.")
    options = parser.parse_args(words)
    if not options.output.endswith(".safetensors"):
        raise ConfigError(f"{options.output!r} does not end in .safetensors, the format that is written.", "--output")
    tensors = read_file(options.ckpt_path, "--ckpt_path").get("state_dict")
    if not isinstance(tensors, dict):
        raise ConfigError(f"{options.ckpt_path!r} holds no state_dict; give a checkpoint of a run.", "--ckpt_path")
    by_part = parts_of(tensors)
    if options.part not in by_part:
        raise unknown("--part", "part", options.part, by_part)
    found = by_part[options.part]
    for name, tensor in found.items():
        # a tensor may claim more values than the file has
        like = torch.zeros((), dtype=tensor.dtype)
        problem = unfit(name, tensor, like) if is_plain(tensor) else "is not a plain tensor"
        if problem:
            raise ConfigError(f"{options.ckpt_path!r} is damaged: {name} {problem}. Use another one.", "--ckpt_path")
    if any(ADAPTED in name for name in found):
        raise ConfigError(f"{options.part!r} of {options.ckpt_path!r} cannot be loaded as it is.{MERGE}", "--part")
    with at("--output"), writing(options.output, ELSEWHERE):
        save_weights(found, options.output)
    _print_digest(options.output)
