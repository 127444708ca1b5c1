"""Taking one part's weights out of a checkpoint."""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

from hybrid_lightning.errors import ConfigError, unknown
from hybrid_lightning.weights import read_file, save_weights


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
    try:
        save_weights({n.removeprefix(own): t for n, t in tensors.items() if n.startswith(own)}, options.output)
    except OSError as error:
        raise ConfigError(f"--output: {options.output!r} cannot be written: {error.strerror}.") from error
    digest = hashlib.sha256(Path(options.output).read_bytes()).hexdigest()
    print(f"{options.output}  sha256:{digest}")
