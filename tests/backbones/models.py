"""The parts of the matrix, by the family of their backbone."""

from typing import Any

_SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
_TEXT = {**_SMALL, "vocab_size": 50, "max_position_embeddings": 32}


def _transformers(model_type: str, **config: Any) -> dict[str, Any]:
    return {"module": "transformers.AutoModel", "args": {"config": {"model_type": model_type, **config}}}


def _timm(name: str, **args: Any) -> dict[str, Any]:
    return {"module": "timm.create_model", "args": {"model_name": name, **args}}


_VIT = {"img_size": 64, "depth": 3}
_IMAGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "timm-resnet": (_timm("resnet10t"), ["stem", "layer1", "layer2", "layer3", "layer4"]),
    "timm-vit": (_timm("vit_tiny_patch16_224", **_VIT), ["stem", "blocks.0", "blocks.1", "blocks.2"]),
    "timm-convnext": (
        _timm("convnext_atto", depths=[1, 1, 1, 1], dims=[8, 16, 24, 32]),
        ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"],
    ),
    "timm-mobilenet": (_timm("mobilenetv3_small_050"), ["stem", *(f"blocks.{i}" for i in range(6)), "conv_head"]),
    "torchvision-resnet": (
        {"module": "torchvision.models.resnet18"},
        ["conv1", "layer1", "layer2", "layer3", "layer4"],
    ),
    "torchvision-densenet": (
        {
            "module": "torchvision.models.DenseNet",
            "args": {"block_config": [2, 2], "num_init_features": 8, "growth_rate": 4},
        },
        ["features.conv0", "features.denseblock1", "features.transition1", "features.denseblock2"],
    ),
    "torchvision-convnext": (
        {"module": "torchvision.models.convnext_tiny"},
        [f"features.{index}" for index in range(8)],
    ),
    "torchvision-vit": (
        {
            "module": "torchvision.models.VisionTransformer",
            "args": {
                "image_size": 64,
                "patch_size": 16,
                "num_layers": 3,
                "num_heads": 2,
                "hidden_dim": 16,
                "mlp_dim": 32,
            },
        },
        ["conv_proj", *(f"encoder.layers.encoder_layer_{index}" for index in range(3))],
    ),
    "torchvision-squeezenet": (
        {"module": "torchvision.models.squeezenet1_1"},
        ["features.0", *(f"features.{index}" for index in (3, 4, 6, 7, 9, 10, 11, 12))],
    ),
    "transformers-vit": (
        _transformers("vit", **_SMALL, image_size=64, patch_size=16),
        ["embeddings", "layers.0", "layers.1", "layers.2"],
    ),
    "transformers-resnet": (
        _transformers("resnet", hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8),
        ["embedder", "encoder.stages.0", "encoder.stages.1"],
    ),
    "built-in": ({"module": "ConvExtractor", "args": {"channels": [4, 6, 8]}}, ["block0", "block1", "block2"]),
}
_TEXTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "transformers-bert": (
        _transformers("bert", **_TEXT),
        ["embeddings", "encoder.layer.0", "encoder.layer.1", "encoder.layer.2"],
    ),
    "transformers-gpt2": (
        _transformers("gpt2", n_embd=16, n_layer=2, n_head=2, vocab_size=50, bos_token_id=1, eos_token_id=2),
        ["wte", "h.0", "h.1"],
    ),
    "transformers-llama": (
        _transformers("llama", **_TEXT),
        ["embed_tokens", "layers.0", "layers.1", "layers.2"],
    ),
}
BACKBONES = {name: ("image", *entry) for name, entry in _IMAGES.items()} | {
    name: ("text", *entry) for name, entry in _TEXTS.items()
}
"""Name → input key, facts of the part, and the stages it should have, from input to output."""
