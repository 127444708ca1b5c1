"""Taking the plain network, or one part's weights, out of a checkpoint; and predicting with an exported program."""

import argparse
import copy
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from hybrid_lightning.errors import ConfigError, listing, unknown
from hybrid_lightning.files import whole_file
from hybrid_lightning.network.adapters import merge_adapters
from hybrid_lightning.network.hybrid_network import HybridNetwork, first_samples
from hybrid_lightning.network.missing import PREFIX
from hybrid_lightning.tasks import HybridTask
from hybrid_lightning.weights.loading import ADAPTED, MERGE
from hybrid_lightning.weights.safe_files import check_digest, read_file, save_weights

FORMATS = {"torch_export": ".pt2", "safetensors": ".safetensors"}
Batch = dict[str, Any]
_FACTS = "hybrid_lightning.json"
"""The entry of an exported program that names its inputs and counts its outputs."""


def export_network(
    network: HybridNetwork,
    batch: Mapping[str, Any],
    output: str,
    form: str,
    task_facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network without anything of this program's around it, and prints the file's sha256.

    Args:
        network: The trained network; it stays as it is. Adapters are merged in the copy that is written.
        batch: A real batch, on which the written program has to answer as the network does.
        output: The file to write.
        form: ``torch_export`` (a program of torch.export, which takes a dict batch of any number of samples) or
            ``safetensors`` (the tensors, by the names of the network).
        task_facts: What the task needs to make predictions of the outputs; the program holds and the command prints it.

    Raises:
        ConfigError: If the suffix is another one, torch cannot export a part, or the answers differ.
    """
    if not output.endswith(FORMATS[form]):
        raise ConfigError(f"output: {output!r} does not end in {FORMATS[form]}, as --format {form} does.")
    plain = plain_network(network)
    try:
        if form == "safetensors":
            save_weights(plain.state_dict(), output)
        else:
            inputs = entries_read(batch, plain.keys_read)
            program = exported_program(plain, inputs, task_facts)
            with whole_file(output) as temporary:
                temporary.write_bytes(program)
            print("inputs: " + ", ".join(described(key, value) for key, value in inputs.items()))
        if task_facts and "mean" in task_facts:
            print(f"outputs are standardized: number = output × {task_facts['std']} + {task_facts['mean']}")
    except OSError as error:
        raise ConfigError(f"output: {output!r} cannot be written: {error.strerror}.") from error
    _print_digest(output)


def plain_network(network: HybridNetwork) -> HybridNetwork:
    """A copy in eval mode on the CPU, with its adapters merged into the weights."""
    plain = copy.deepcopy(network).cpu().eval()
    for name, part in plain.facts.items():
        if part.adapter:
            merge_adapters(plain.parts[name])
    return plain.requires_grad_(False)


def exported_program(plain: HybridNetwork, inputs: Batch, task_facts: Mapping[str, Any] | None = None) -> bytes:
    """A network as a file of torch.export, checked against the network on several batch sizes.

    Args:
        plain: In eval mode on the CPU.
        inputs: A batch with the keys that the network reads.
        task_facts: See `export_network`.

    Raises:
        ConfigError: If torch cannot export it, or the program answers otherwise.
    """
    samples = torch.export.Dim("samples")
    shapes = {
        key: {name: {0: samples} for name in value} if isinstance(value, dict) else {0: samples}
        for key, value in inputs.items()
    }
    try:
        program = torch.export.export(plain, (first_samples(inputs),), dynamic_shapes=(shapes,))
        file = io.BytesIO()
        facts = {"inputs": list(inputs), "outputs": plain.outputs, "task": dict(task_facts or {})}
        torch.export.save(program, file, extra_files={_FACTS: json.dumps(facts)})
    except Exception as error:  # torch's exporter raises what it comes across
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ConfigError(
            f"export: torch cannot export this network: {first}. Export its tensors: --format safetensors."
        ) from error
    file.seek(0)
    written = torch.export.load(file).module()  # our own bytes, never a stranger's
    for count in (1, 3, len(next(_tensors(inputs)))):
        some = first_samples(inputs, count)
        with torch.no_grad():
            expected, found = plain(some), written(some)
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
            difference = (found - expected).abs().max().item()
            raise ConfigError(
                f"export: on {count} samples the exported program differs from the network by up to {difference:.2g}. "
                f"Export its tensors: --format safetensors."
            )
    return file.getvalue()


class ExportedProgram(pl.LightningModule):
    """A program that `export_network` wrote, in the place of the task's network; it runs on the CPU, for predicting.

    Loading such a file runs what its author wrote: torch evaluates text in it and unpickles some of its entries. So the
    digest of the file has to be given, which `export` prints.

    Args:
        task: Says what the outputs mean.
        path: The ``.pt2`` file.
        digest: Its SHA-256 digest, hexadecimal, ``sha256:`` before it or not.

    Raises:
        ConfigError: If the digest is missing or another one, or the program does not fit the task.
    """

    def __init__(self, task: HybridTask, path: str, digest: str | None) -> None:
        super().__init__()
        require_trust(path, digest)
        facts = {_FACTS: ""}
        try:
            # its call alone: an exported module refuses the eval() that a Trainer calls on submodules
            self.program = torch.export.load(path, extra_files=facts).module().__call__
            self.facts = json.loads(facts[_FACTS])
        except Exception as error:  # torch's reader raises what it comes across
            raise ConfigError(f"--ckpt_path: {path!r} is no program that 'export' wrote: {str(error)[:300]}") from error
        if self.facts["outputs"] != task.outputs:
            raise ConfigError(
                f"--ckpt_path: the program in {path!r} has {self.facts['outputs']} outputs, and the model of the "
                f"config {task.outputs}. Use the config of its run."
            )
        task.objective.use_program_facts(self.facts.get("task", {}))
        self.predictions = task.predictions

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Predictions for a batch, as those of the task."""
        return self.predictions(self.program(entries_read(batch, self.facts["inputs"])))


def entries_read(batch: Mapping[str, Any], keys: Sequence[str]) -> Batch:
    """The entries of a batch that a network reads, on the CPU; without ``present/<key>`` all samples have that key.

    Raises:
        ConfigError: If another entry is missing.
    """
    missing = [key for key in keys if key not in batch and not key.startswith(PREFIX)]
    if missing:
        raise ConfigError(f"data: the network reads {listing(missing)}; the batch has {listing(batch)}.")
    found = {key: on_cpu(batch[key]) for key in keys if key in batch}
    everybody = torch.ones(len(next(_tensors(found))), dtype=torch.bool)
    return {key: found.get(key, everybody) for key in keys}


def is_program(path: Any) -> bool:
    """Whether a path is that of an exported program, by its suffix."""
    return str(path).endswith(FORMATS["torch_export"])


def require_trust(path: str, digest: str | None) -> None:
    """Raises `ConfigError` unless an exported program is there and its digest is the given one."""
    if not Path(path).is_file():
        raise ConfigError(f"--ckpt_path: there is no file {path!r} (looked up from {str(Path.cwd())!r}).")
    if digest is None:
        raise ConfigError(
            f"--ckpt_path: loading {path!r} could run code, as any exported program. If you trust who made it, give "
            f"the digest that 'export' printed: --trust_program sha256:..."
        )
    check_digest(path, digest, "--trust_program")


def on_cpu(value: Any) -> Any:
    """An entry of a batch, a tensor or a dict of them, on the CPU."""
    return {name: on_cpu(entry) for name, entry in value.items()} if isinstance(value, Mapping) else value.cpu()


def described(key: str, value: Any) -> str:
    """``image (samples, 3, 64, 64) float32`` for an entry of a batch, also if it is a dict."""
    if isinstance(value, dict):
        return ", ".join(described(f"{key}.{name}", entry) for name, entry in value.items())
    return f"{key} ({', '.join(map(str, ('samples', *value.shape[1:])))}) {str(value.dtype).removeprefix('torch.')}"


def _tensors(inputs: Batch) -> Any:
    for value in inputs.values():
        yield from _tensors(value) if isinstance(value, dict) else [value]


def _print_digest(path: str) -> None:
    print(f"{path}  sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()}")


def export_part(arguments: Sequence[str]) -> None:
    """Runs ``export_part``: writes one part of a checkpoint as safetensors and prints its sha256."""
    parser = argparse.ArgumentParser("hybrid_lightning export_part", description=export_part.__doc__)
    parser.add_argument("--ckpt_path", required=True, help="Checkpoint of a fit.")
    parser.add_argument("--part", required=True, help="Name of the part, such as stem or head.")
    parser.add_argument("--output", required=True, help="The .safetensors file to write.")
    options = parser.parse_args(arguments)
    if not options.output.endswith(".safetensors"):
        raise ConfigError(f"--output: {options.output!r} does not end in .safetensors, the format that is written.")
    tensors = read_file(options.ckpt_path, "--ckpt_path").get("state_dict")
    if not isinstance(tensors, dict):
        raise ConfigError(f"--ckpt_path: {options.ckpt_path!r} holds no state_dict; give a checkpoint of a fit.")
    prefix = "network.parts."
    parts = dict.fromkeys(name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix))
    if options.part not in parts:
        raise unknown("--part", "part", options.part, parts)
    own = f"{prefix}{options.part}."
    found = {n.removeprefix(own): t for n, t in tensors.items() if n.startswith(own)}
    if any(ADAPTED in name for name in found):
        raise ConfigError(f"--part: {options.part!r} of {options.ckpt_path!r} cannot be loaded as it is.{MERGE}")
    try:
        save_weights(found, options.output)
    except OSError as error:
        raise ConfigError(f"--output: {options.output!r} cannot be written: {error.strerror}.") from error
    _print_digest(options.output)
