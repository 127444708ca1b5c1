"""Kinds 1, 2 and 10: folders of models of a library, and sharded checkpoints, that somebody else has made."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.hostile.cases.data import config as write_config
from tests.hostile.cases.data import table
from tests.hostile.harness import Box, case, material

EVIL = "from pathlib import Path\nPath('../outside/victim/ran').touch()\n"


@material
def published() -> None:
    """``model``, a folder of transformers with weights and a tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=9, **sizes)).save_pretrained("model")
    Path("vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d"]))
    BertTokenizerFast("vocab.txt").save_pretrained("model")
    table(note=lambda row: "abcd"[row % 4])
    write_config({"t": {"text": "note", "tokenizer": "model"}})
    content = yaml.safe_load(Path("x.yaml").read_text())
    part = {"module": "transformers.AutoModel", "args": {"name": "model"}, "weights": "pretrained", "unfreeze": "never"}
    content["model"]["init_args"]["parts"]["t"] = part
    Path("x.yaml").write_text(yaml.safe_dump(content))


def in_folder(kind: int, mechanism: str, says: str = "model") -> Callable[[Callable[[], None]], None]:
    """Registers a change of the folder with which a run has to be refused."""

    def register(change: Callable[[], None]) -> None:
        def run(box: Box) -> None:
            box.start_from("published")
            change()
            box.refused("fit", "--config", "x.yaml", says=says)

        run.__name__ = change.__name__
        case(kind, "folder of transformers", mechanism, seconds=60, runs_programs=True)(run)

    return register


def changed_json(name: str, **entries: Any) -> None:
    path = Path("model", name)
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **entries}))


@case(1, "folder of transformers", "nothing odd", runs_programs=True)
def a_folder_as_it_should_be(box: Box) -> None:
    box.start_from("published")
    box.accepted("fit", "--config", "x.yaml")


@in_folder(1, "code beside a config")
def code_beside_a_config() -> None:
    Path("model/evil.py").write_text(EVIL + "class Model: pass\n")
    changed_json("config.json", auto_map={"AutoConfig": "evil.Model", "AutoModel": "evil.Model"}, model_type="new")


@in_folder(1, "code beside a tokenizer")
def code_beside_a_tokenizer() -> None:
    Path("model/evil.py").write_text(EVIL + "class Model: pass\n")
    for name in ("tokenizer_config.json",):
        changed_json(name, auto_map={"AutoTokenizer": ["evil.Model", "evil.Model"]}, tokenizer_class="Model")
    changed_json("config.json", model_type="new")


@in_folder(1, "an adapter that imports a module", "adapter")
def an_adapter_that_imports() -> None:
    Path("evil.py").write_text(EVIL)
    options = {"peft_type": "LORA", "base_model_name_or_path": "model", "target_modules": ["query"], "r": 2}
    changed_json("adapter_config.json", **options, megatron_config={"a": 1}, megatron_core="evil")


@in_folder(1, "an adapter for a model elsewhere", "adapter|model")
def an_adapter_for_another_model() -> None:
    Path("model/config.json").rename("config.json")
    options = {"peft_type": "LORA", "base_model_name_or_path": "../outside/victim", "target_modules": ["query"]}
    changed_json("adapter_config.json", **options)


@in_folder(1, "weights in a pickle that runs something", "model|safetensors")
def weights_in_a_pickle() -> None:
    Path("model/model.safetensors").unlink()
    Path("model/pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch ../outside/victim/x'\ntR.")


@in_folder(10, "a config that is a pipe")
def a_config_of_a_pipe() -> None:
    Path("model/config.json").unlink()
    os.mkfifo("model/config.json")


@in_folder(10, "a tokenizer that is a pipe")
def a_tokenizer_of_a_pipe() -> None:
    Path("model/tokenizer.json").unlink()
    os.mkfifo("model/tokenizer.json")


@in_folder(10, "a config of brackets")
def a_config_of_brackets() -> None:
    Path("model/config.json").write_text("[" * 100_000)


@in_folder(10, "a config that is a list")
def a_config_of_a_list() -> None:
    Path("model/config.json").write_text("[1]")


@in_folder(10, "sizes that fill memory")
def a_model_without_end() -> None:
    changed_json("config.json", hidden_size=10**9, intermediate_size=10**9)


@in_folder(10, "an index that names files elsewhere", "model")
def an_index_of_files_elsewhere() -> None:
    Path("model/model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": "../../outside/y.safetensors"}}
    Path("model/model.safetensors.index.json").write_text(json.dumps(index))


@in_folder(2, "weights that are nan", "finite")
def weights_of_a_folder_that_are_nan() -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file("model/model.safetensors")
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, "model/model.safetensors", {"format": "pt"})


@in_folder(2, "weights of another model", "model")
def weights_of_another_model() -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, "model/model.safetensors", {"format": "pt"})


# Sharded checkpoints


@material
def shards() -> None:
    """``x.ckpt``, a folder of shards as ranks write it."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from hybrid_lightning.weights.sharded_files import write_folder

    dist.init_process_group("gloo", init_method=f"file://{Path().absolute()}/rendezvous", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    weight = distribute_tensor(torch.randn(4, 3), mesh, [Shard(0)])
    write_folder({"state_dict": {"network.parts.a.weight": weight}, "global_step": 3}, Path("x.ckpt"))
    torch.save(weight.full_tensor(), "w.pt")
    dist.destroy_process_group()
    Path("rendezvous").unlink(missing_ok=True)


def in_shards(kind: int, mechanism: str, says: str) -> Callable[[Callable[[Any], None]], None]:
    """Registers a change of the records of shards with which the weights have to be refused."""

    def register(change: Callable[[Any], None]) -> None:
        def run(box: Box) -> None:
            box.start_from("shards")
            path = Path("x.ckpt/.metadata")
            metadata = pickle.loads(path.read_bytes())
            change(metadata)
            path.write_bytes(pickle.dumps(metadata))
            words = ("--part", "a", "--output", "a.safetensors")
            box.refused("export_part", "--ckpt_path", "x.ckpt", *words, says=says)

        run.__name__ = change.__name__
        case(kind, "records of shards", mechanism, seconds=30)(run)

    return register


def record(metadata: Any) -> Any:
    [found] = metadata.state_dict_metadata.values()
    return found


def replaced(metadata: Any, **values: Any) -> None:
    import dataclasses

    for key, one in metadata.storage_data.items():
        metadata.storage_data[key] = dataclasses.replace(one, **values)


@case(1, "records of shards", "nothing odd")
def shards_as_they_should_be(box: Box) -> None:
    box.start_from("shards")
    box.accepted("export_part", "--ckpt_path", "x.ckpt", "--part", "a", "--output", "a.safetensors")


@in_shards(2, "without a shard, whose place keeps what was in memory", "damaged|cannot be read")
def shards_with_a_gap(metadata: Any) -> None:
    record(metadata).chunks.clear()


@in_shards(2, "a shard that covers a part of its tensor", "damaged|cannot be read")
def shards_of_half(metadata: Any) -> None:
    [chunk] = record(metadata).chunks
    chunk.sizes = torch.Size([2, 3])


@in_shards(10, "a tensor of a terabyte", "damaged|cannot be read")
def shards_of_a_terabyte(metadata: Any) -> None:
    record(metadata).size = torch.Size([10**12, 3])


@in_shards(10, "a place before the file", "damaged|cannot be read")
def shards_before_the_file(metadata: Any) -> None:
    replaced(metadata, offset=-5)


@in_shards(10, "a length without end", "damaged|cannot be read|read safely")
def shards_without_end(metadata: Any) -> None:
    replaced(metadata, length=2**62)


@in_shards(1, "a file elsewhere", "damaged|cannot be read|refused")
def shards_elsewhere(metadata: Any) -> None:
    replaced(metadata, relative_path="../../outside/victim/keep.txt")


@case(10, "records of shards", "a pipe", seconds=30)
def shards_of_a_pipe(box: Box) -> None:
    box.start_from("shards")
    Path("x.ckpt/.metadata").unlink()
    os.mkfifo("x.ckpt/.metadata")
    box.refused("export_part", "--ckpt_path", "x.ckpt", "--part", "a", "--output", "a.safetensors")


@case(10, "shard", "a pipe", seconds=30)
def a_shard_that_is_a_pipe(box: Box) -> None:
    box.start_from("shards")
    [shard] = Path("x.ckpt").glob("*.distcp")
    shard.unlink()
    os.mkfifo(shard)
    box.refused("export_part", "--ckpt_path", "x.ckpt", "--part", "a", "--output", "a.safetensors")


@case(2, "shard", "a flipped bit", seconds=30)
def a_shard_with_a_flipped_bit(box: Box) -> None:
    box.start_from("shards")
    [shard] = Path("x.ckpt").glob("*.distcp")
    content = bytearray(shard.read_bytes())
    content[content.index(torch.load("w.pt", weights_only=True).numpy().tobytes()) + 3] ^= 64
    shard.write_bytes(content)
    box.refused("export_part", "--ckpt_path", "x.ckpt", "--part", "a", "--output", "a.safetensors")
