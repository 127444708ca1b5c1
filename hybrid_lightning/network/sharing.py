"""Parts with the module of another part: they read something else, and learn nothing apart from it."""

from collections.abc import Mapping

from torch import nn

from hybrid_lightning.network.part import Part


class Modules(nn.ModuleDict):
    """The modules of the parts, each once, so that weights are saved, counted and trained once.

    A part that shares the module of another one is not among the entries; its module is found by its name all the same.

    Args:
        modules: Part → module, also of those that share.
        options: Part → its options.
    """

    def __init__(self, modules: Mapping[str, nn.Module], options: Mapping[str, Part]) -> None:
        owned = {name: module for name, module in modules.items() if options[name].share is None}
        super().__init__(owned)
        self._owners = {name: part.share or name for name, part in options.items()}

    def __getitem__(self, name: str) -> nn.Module:
        return super().__getitem__(self._owners.get(name, name))
