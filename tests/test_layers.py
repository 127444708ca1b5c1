import ast
from pathlib import Path

import pytest

import hybrid_lightning
from tests.processes import succeed

ROOT = Path(hybrid_lightning.__file__).parent
TOOL = "hybrid_lightning"
PLAIN_TORCH = {
    "errors",
    "clipping",
    "durations",
    "files",
    "schedules",
    "phases",
    "rates",
    "freezing",
    "norms",
    "gradients",
    "param_groups",
    "sampling",
    "spikes",
    "loading",
    "losses",
    "weights",
    "configs",
    "sharding",
    "sharded_files",
    "similarity",
}
LAYERS = [
    PLAIN_TORCH | {"network"},
    {"tasks", "data", "callbacks", "report", "strategies", "checkpoint_io", "run_folder", "run_logger", "predictions"}
    | {"lightning_private"},
    {"building", "cli", "cross_validation", "__main__", "export", "parser_errors"},
]
FILES = [file for file in sorted(ROOT.rglob("*.py")) if file != ROOT / "__init__.py"]


def home(file: Path) -> str:
    """The first name below the package: ``tasks`` for ``tasks/base.py``."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    [level] = [level for level, names in enumerate(LAYERS, 1) if name in names]
    return level


def imports(source: str) -> list[str]:
    """All imported modules, also those within functions; of a relative import, dots first."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found += [f"{base}.{alias.name}" for alias in node.names] if base == TOOL else [base]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_only_point_down(file):
    own = layer(home(file))
    for name in imports(file.read_text(encoding="utf-8")):
        assert not name.startswith("."), "imports are absolute"
        package, *rest = name.split(".")
        if package == TOOL:
            assert layer(rest[0]) <= own, name
            assert not (home(file) == "callbacks" and rest[0] == "tasks"), name
        if own == 1:
            assert package not in ("lightning", "pytorch_lightning", "torchmetrics", "jsonargparse"), name


def test_the_check_sees_every_kind_of_import():
    source = f"import a.b\ndef f():\n    from c.d import e\nfrom {TOOL} import tasks\nfrom . import g"
    assert sorted(imports(source)) == [".", "a.b", "c.d", f"{TOOL}.tasks"]


def test_the_plain_torch_layer_works_without_lightning():
    code = (
        "import sys, hybrid_lightning as h, hybrid_lightning.network.hybrid_network\n"
        "h.named_param_groups, h.GroupRates, h.UnfreezingSchedule, h.Part\n"
        "assert not {'lightning', 'pytorch_lightning', 'torchmetrics'} & sys.modules.keys()"
    )
    succeed("-c", code, fresh=True)


def test_every_public_name_is_there():
    assert hybrid_lightning.__all__ == list(hybrid_lightning._HOMES)
    for name in hybrid_lightning.__all__:
        assert getattr(hybrid_lightning, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        hybrid_lightning.nothing  # noqa: B018
