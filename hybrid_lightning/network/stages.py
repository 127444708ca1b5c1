"""Stages: cutting a part from input to output by the order in which its blocks run."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn

from hybrid_lightning.optim.groups import matches

Stages = dict[str, list[str]]
"""Stage name → anchored patterns of parameter names within the part, from input to output."""


@contextmanager
def recorded_calls(module: nn.Module, order: list[nn.Module] | None = None) -> Iterator[list[nn.Module]]:
    """Collects the submodules of `module` in the order in which they are first called, in `order` if it is given."""
    called: dict[nn.Module, None] = {}
    hooks = [m.register_forward_pre_hook(lambda m, _: called.setdefault(m)) for m in module.modules()]
    order = [] if order is None else order
    try:
        yield order
    finally:
        for hook in hooks:
            hook.remove()
        order.extend(called)


OPENED = ("blocks", "encoder", "features", "layer", "layers", "stages", "text_model", "transformer", "trunk_output")
"""Names under which the models of torchvision and transformers keep their blocks."""


def _blocks(module: nn.Module, prefix: str = "", opened_names: Collection[str] = ()) -> list[tuple[str, nn.Module]]:
    """The children with parameters; a lone wrapper, lists of blocks and children of these names are opened."""
    children = [
        (prefix + name, child) for name, child in module.named_children() if any(True for _ in child.parameters())
    ]
    direct = any(True for _ in module.parameters(recurse=False))
    if len(children) == 1 and not direct and any(True for _ in children[0][1].children()):
        return _blocks(children[0][1], children[0][0] + ".", opened_names) or children
    opened: list[tuple[str, nn.Module]] = []
    for name, child in children:
        is_list = isinstance(child, nn.ModuleList | nn.ModuleDict) and type(child).forward is nn.Module.forward
        is_list = is_list or name.split(".")[-1] in opened_names
        inside = _blocks(child, name + ".", opened_names) if is_list else []
        opened += inside or [(name, child)]
    return opened


def discover_stages(module: nn.Module, called: list[nn.Module], opened: Collection[str] = ()) -> Stages:
    """Cuts a module into stages by execution order.

    Blocks are the children that have parameters (a wrapper around one child, and lists of blocks, are opened first). A
    block that holds only 1-d parameters, such as a normalization, joins the stage before it; so does an embedding that
    follows an embedding. Parameters that belong to no block, such as a class token, join the first stage.

    Args:
        module: The part.
        called: Its submodules in the order of their first call, from `recorded_calls`.
        opened: Names of children that are opened although they are no lists, see `OPENED`.

    Returns:
        Stages from input to output; a module that cannot be cut is one stage named ``all``.
    """
    position = {m: index for index, m in enumerate(called)}

    def first_call(block: nn.Module) -> int:
        return min((position[m] for m in block.modules() if m in position), default=-1)

    blocks = sorted(_blocks(module, opened_names=opened), key=lambda item: first_call(item[1]))
    stages: Stages = {}
    early: list[str] = []
    embeddings_only = True
    for name, block in blocks:
        again = embeddings_only and bool(stages) and isinstance(block, nn.Embedding)
        embeddings_only = embeddings_only and isinstance(block, nn.Embedding)
        if again or all(p.ndim < 2 for p in block.parameters()):
            (stages[next(reversed(stages))] if stages else early).append(name)
        else:
            stages[name] = [*early, name]
            early = []
    if not stages:
        return {"all": ["*"]}
    _add_rest(module, stages)
    return stages


def _add_rest(module: nn.Module, stages: Stages) -> None:
    """Parameters outside every block join the first stage."""
    patterns = [pattern for of_stage in stages.values() for pattern in of_stage]
    names = [name for name, _ in module.named_parameters()]
    stages[next(iter(stages))] += [n for n in names if not any(matches(p, n) for p in patterns)]
