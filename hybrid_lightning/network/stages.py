"""Stages: cutting a part from input to output by the order in which its blocks run."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn

from hybrid_lightning.optim.groups import matches

Stages = dict[str, list[str]]
"""Stage name → anchored patterns of parameter names within the part, from input to output."""


@contextmanager
def recorded_calls(module: nn.Module) -> Iterator[list[nn.Module]]:
    """Collects the submodules of `module` in the order in which they are first called, also if the call fails."""
    called: list[nn.Module] = []
    seen: set[nn.Module] = set()

    def note(layer: nn.Module, _: object) -> None:
        if layer not in seen:
            seen.add(layer)
            called.append(layer)

    hooks = [layer.register_forward_pre_hook(note) for layer in module.modules()]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


OPENED = ("blocks", "encoder", "features", "layer", "layers", "stages", "text_model", "transformer", "trunk_output")
"""Names under which the models of torchvision and transformers keep their blocks."""


def _blocks(module: nn.Module, prefix: str = "", opened_names: Collection[str] = ()) -> list[tuple[str, nn.Module]]:
    """The children with parameters; a lone wrapper, lists of blocks and children of these names are opened."""
    children = [(prefix + name, child) for name, child in module.named_children() if _has_parameters(child)]
    has_own = any(True for _ in module.parameters(recurse=False))
    if len(children) == 1 and not has_own:
        wrapper, inner = children[0]
        if any(True for _ in inner.children()):
            return _blocks(inner, wrapper + ".", opened_names) or children
    opened: list[tuple[str, nn.Module]] = []
    for name, child in children:
        is_list = isinstance(child, nn.ModuleList | nn.ModuleDict) and type(child).forward is nn.Module.forward
        inside = []
        if is_list or name.split(".")[-1] in opened_names:
            inside = _blocks(child, name + ".", opened_names)
        opened += inside or [(name, child)]
    return opened


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def discover_stages(module: nn.Module, called: list[nn.Module], opened: Collection[str] = ()) -> Stages:
    """Cuts a module into stages by execution order.

    Blocks are the children that have parameters (a wrapper around one child, and lists of blocks, are opened first). A
    block that holds only 1-d parameters, such as a normalization, joins the stage before it; so does an embedding that
    follows an embedding. Parameters that belong to no block, such as a class token, join the first stage.
    A module that cannot be cut is one stage named ``all``. For `opened` see `OPENED`.
    """
    position = {module: index for index, module in enumerate(called)}

    def first_call(named: tuple[str, nn.Module]) -> int:
        # a block that was not called comes first
        return min((position[m] for m in named[1].modules() if m in position), default=-1)

    stages: Stages = {}
    # blocks of 1-d parameters before the first stage, which they join
    early: list[str] = []
    last = ""
    embeddings_only = True
    for name, block in sorted(_blocks(module, opened_names=opened), key=first_call):
        is_embedding = isinstance(block, nn.Embedding)
        is_flat = all(parameter.ndim < 2 for parameter in block.parameters())
        follows = embeddings_only and is_embedding and bool(stages)
        joins = is_flat or follows
        embeddings_only = embeddings_only and is_embedding
        if not joins:
            stages[name] = [*early, name]
            early = []
            last = name
        elif stages:
            stages[last].append(name)
        else:
            early.append(name)
    if not stages:
        return {"all": ["*"]}
    _add_rest(module, stages)
    return stages


def _add_rest(module: nn.Module, stages: Stages) -> None:
    """Parameters outside every block join the first stage."""
    patterns: list[str] = []
    for of_stage in stages.values():
        patterns += of_stage
    first = next(iter(stages.values()))
    for name, _ in module.named_parameters():
        if not any(matches(pattern, name) for pattern in patterns):
            first.append(name)
