"""Imports only point down; no files import each other in a circle; plain torch needs no Lightning."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hybrid_lightning
from tests.processes import succeed

ROOT = Path(hybrid_lightning.__file__).parent
TOOL = "hybrid_lightning"
LAYERS = (
    {"errors", "files", "lightning_private"},
    {"importing", "weights", "duration", "direction"},
    {"optim", "distributed", "trainer", "probe"},
    {"data", "unfreezing", "resume"},
    {"demo", "gradients", "averaging"},
    {"network", "drift"},
    {"cache", "init"},
    {"callbacks"},
    {"tasks"},
    {"report"},
    {"cli"},
    {"__main__", "__init__"},
)
"""Rooms from the ground up. A file imports from its own room and from those below, not from one beside it."""
KNOW_LIGHTNING = {
    *("lightning_private", "trainer"),
    *("distributed.fsdp2", "distributed.ranks", "distributed.strategies"),
    *("unfreezing.gradual_unfreezing", "unfreezing.reestimate_statistics", "unfreezing.promises"),
    *(
        "resume.exact_resume",
        "resume.division",
        "resume.saved_fit",
        "resume.replay",
        "resume.last_checkpoint",
        "resume.atomic_checkpoint_io",
        "resume.own_files",
    ),
    *("gradients.step", "gradients.gradient_clipping", "gradients.gradient_norm_monitor"),
    *("cache.frozen_feature_cache", "cache.filling", "cache.splits", "cache.decision"),
    *("cache.boundaries", "cache.fingerprints", "cache.ranks", "cache.verification"),
    *("cache.serving", "cache.variation"),
    "averaging.average_weights",
    *("report.collect", "report.loggers", "report.summary"),
    *("gradients.skipping", "gradients.non_finite_gradients", "gradients.spike_guard"),
}
"""The files that import Lightning, beside those of whole rooms."""
ROOMS_WITH_LIGHTNING = {"data", "drift", "demo", "tasks", "cli"}
OF_LIGHTNING = ("lightning", "pytorch_lightning", "torchmetrics", "jsonargparse")


def module_of(file: Path) -> str:
    """``tasks.base`` for ``tasks/base.py``, ``tasks`` for ``tasks/__init__.py``."""
    names = file.relative_to(ROOT).with_suffix("").parts
    is_package = names[-1] == "__init__" and len(names) > 1
    return ".".join(names[:-1] if is_package else names)


MODULES = {module_of(file): file for file in sorted(ROOT.rglob("*.py"))}


def source_of(module: str) -> str:
    return MODULES[module].read_text(encoding="utf-8")


def room(module: str) -> str:
    """The first name below the package: ``tasks`` for ``tasks.base``."""
    return module.split(".")[0]


def layer(module: str) -> int:
    [level] = [level for level, rooms in enumerate(LAYERS) if room(module) in rooms]
    return level


def imports(source: str) -> list[str]:
    """All imported modules and names, also those within functions; of a relative import, dots first."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def imports_of_lightning(module: str) -> list[str]:
    """Imports of Lightning, and of the file that stands before its private names."""
    names = imports(source_of(module))
    return [name for name in names if name.split(".")[0] in OF_LIGHTNING or own_module(name) == "lightning_private"]


def own_module(name: str) -> str | None:
    """The module of ours that an import reads: the longest that exists; None for other packages.

    None, too, for the package itself, which every import of a module runs before; a public name of it counts.
    """
    names = name.split(".")
    if names[0] != TOOL or name == TOOL:
        return None
    for length in range(len(names), 1, -1):
        module = ".".join(names[1:length])
        if module in MODULES:
            return module
    return "__init__"


def graph() -> dict[str, set[str]]:
    """Module → the modules of ours that it imports anywhere."""
    found: dict[str, set[str]] = {}
    for module in MODULES:
        read = {own_module(name) for name in imports(source_of(module))}
        found[module] = {other for other in read if other is not None and other != module}
    return found


def upward(modules: dict[str, set[str]]) -> set[tuple[str, str]]:
    """The imports that leave a room for one that is not below it."""
    found = set()
    for module, others in modules.items():
        outside = {other for other in others if room(other) != room(module)}
        found |= {(module, other) for other in outside if layer(other) >= layer(module)}
    return found


def circle(modules: dict[str, set[str]]) -> list[str]:
    """A circle of modules; empty if there is none."""
    try:
        TopologicalSorter(modules).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_only_point_down():
    assert upward(graph()) == set()


def test_no_files_import_each_other_in_a_circle():
    assert circle(graph()) == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_absolute_and_only_named_files_import_lightning(module):
    assert not [name for name in imports(source_of(module)) if name.startswith(".")]
    named = module in KNOW_LIGHTNING or room(module) in ROOMS_WITH_LIGHTNING
    assert named or not imports_of_lightning(module)


def test_every_file_that_is_named_for_lightning_needs_it():
    assert [module for module in KNOW_LIGHTNING if not imports_of_lightning(module)] == []


def test_the_checks_see_every_kind_of_import():
    source = f"import a.b\ndef f():\n    from c.d import e\nfrom {TOOL} import tasks\nfrom . import g"
    assert sorted(imports(source)) == ["..g", "a.b", "c.d.e", f"{TOOL}.tasks"]
    assert own_module(f"{TOOL}.tasks.base.HybridTask") == "tasks.base"
    assert own_module(f"{TOOL}.tasks") == "tasks"
    assert own_module(f"{TOOL}.HybridTask") == "__init__"
    made_up = {"errors": {"cli"}, "cli.export": {"cli.predictions", "errors"}, "optim.groups": {"trainer"}}
    assert upward(made_up) == {("errors", "cli"), ("optim.groups", "trainer")}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_the_plain_torch_layer_works_without_lightning():
    code = (
        "import sys, hybrid_lightning as h, hybrid_lightning.network.hybrid_network\n"
        "h.named_param_groups, h.GroupRates, h.UnfreezingSchedule, h.Part, h.shard\n"
        "assert not {'lightning', 'pytorch_lightning', 'torchmetrics'} & sys.modules.keys()"
    )
    succeed("-c", code, fresh=True)


def test_every_public_name_is_there():
    assert hybrid_lightning.__all__ == list(hybrid_lightning._HOMES)
    for name in hybrid_lightning.__all__:
        assert getattr(hybrid_lightning, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        hybrid_lightning.nothing  # noqa: B018
