"""Lets torchvision be imported beside a CPU build of torch: declares the two operators that it expects compiled.

Nothing here calls them. To be imported before lightning, which imports torchvision where it is installed.
"""

import importlib.util

import torch

LIBRARY = None
"""Kept alive, because the operators go with it."""

if importlib.util.find_spec("torchvision") and not hasattr(torch.ops.torchvision, "nms"):
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
