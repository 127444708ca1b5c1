"""Rebuilds checkpoints without arguments and without a network: ``python -m tests.backbones.rebuild BATCH CKPT...``."""

import socket
import sys

from tests.backbones import operators  # noqa: F401  before lightning

import torch  # isort: skip


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a socket was opened")


if __name__ == "__main__":
    socket.socket.connect = refuse  # type: ignore[method-assign,assignment]
    socket.getaddrinfo = refuse  # type: ignore[assignment]
    from hybrid_lightning import HybridClassifier

    batch_path, *paths = sys.argv[1:]
    batch = torch.load(batch_path, weights_only=True)
    for path in paths:
        model = HybridClassifier.load_from_checkpoint(path)
        with torch.no_grad():
            torch.save(model(batch), path + ".outputs")
