"""The pages of the documentation: links lead somewhere, messages and configs are those of the program."""

import ast
import functools
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hybrid_lightning.cli import main
from tests.data.make_files import make_manifest
from tests.small import loader, table, trainer

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "configs/README.md"]
)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CONFIGS = sorted((ROOT / "configs/start").glob("*.yaml"))
QUICK = [
    *("--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"),
    *("--trainer.accelerator", "cpu"),
]
OF_A_MANIFEST = [*QUICK, "--data.workers", "0"]
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it; of several blanks the site leaves one."""
    words = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", heading)).strip().lower()
    return re.sub(r"\s", "-", words)


@functools.cache
def anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text_of(page)), re.MULTILINE)
    return {slug(heading) for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    for link in LINK.findall(FENCED.sub("", text_of(page))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target.relative_to(ROOT).as_posix()), f"{page}: {link}"


def test_each_page_stands_in_the_navigation_of_the_site() -> None:
    navigation = text_of("mkdocs.yml").partition("\nnav:\n")[2]
    for page in PAGES:
        if page.startswith("docs/"):
            assert f": {page.removeprefix('docs/')}\n" in navigation, page


def test_each_config_stands_in_the_table_of_configs() -> None:
    listed = text_of("configs/README.md")
    for path in [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "configs/recipes").glob("*.yaml")]:
        assert f"]({path.relative_to(ROOT / 'configs').as_posix()})" in listed, path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_page_of_a_notebook_has_its_code_and_outputs(path: Path) -> None:
    page = text_of(f"docs/notebooks/{path.stem}.md")
    rest = page
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        _, found, rest = rest.partition("".join(cell["source"]).strip())
        assert found, "the notebook has changed: python docs/_site/notebooks.py"
    assert re.search(r"^    \S", page, re.MULTILINE), "no outputs"


def texts_of_the_program() -> str:
    """All texts in the code; what is filled in is left out."""
    texts = []
    for path in sorted((ROOT / "hybrid_lightning").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                pieces = [piece.value if isinstance(piece, ast.Constant) else "…" for piece in node.values]
                texts.append("".join(map(str, pieces)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_troubleshooting_quotes_messages_of_the_program() -> None:
    program = texts_of_the_program()
    quoted = re.findall(r"^\| `(.+?)` \|", text_of("docs/troubleshooting.md"), re.MULTILINE)
    assert len(quoted) > 30
    for message in quoted:
        for piece in message.split("…"):
            assert piece.strip() in program, message


BASE = """
model: {class_path: HybridClassifier, init_args: {num_classes: 5, parts: {image: {module: ConvExtractor}}}}
data: {class_path: DigitsDataModule, init_args: {classes: [5, 6, 7, 8, 9], size: 16}}
trainer: {max_epochs: 2}
"""
"""What a block goes over that is no whole config."""


def configs_of(page: str) -> list[list[str]]:
    """The YAML blocks of a page: each whole config with the overlays that follow it."""
    configs: list[list[str]] = []
    for block in re.findall(r"^```yaml\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL):
        if {"model", "data"} <= set(yaml.safe_load(block)):
            configs.append([block])
        elif configs:
            configs[-1].append(block)
        else:
            configs.append([BASE, block])
    return configs


def own_modules(page: str) -> str:
    """The code of a page that its configs import as `my_nets`."""
    codes = re.findall(r"^```python\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
    return codes[0] if "my_nets" in text_of(page) else ""


@pytest.fixture
def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the generated table that the pages read."""
    make_manifest("made", 60, 0.1)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_the_configs_of_the_pages_plan(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = 0
    for page in PAGES:
        (made / "my_nets.py").write_text(own_modules(page), encoding="utf-8")
        for config in configs_of(page):
            files = [str(made / f"{number}.yaml") for number in range(len(config))]
            for path, text in zip(files, config, strict=True):
                Path(path).write_text(text, encoding="utf-8")
            assert main(["plan", *files]) == 0, f"{page}: {capsys.readouterr().err}"
            planned += 1
    assert planned > 5


def test_the_configs_to_start_from_plan(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_manifest("made", 60, 0.0)
    assert main(["shards", str(ROOT / "configs/start/images.yaml"), "--output", "made/shards"]) == 0
    for path in CONFIGS:
        assert main(["plan", str(path)]) == 0, f"{path.name}: {capsys.readouterr().err}"


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_to_start_from_trains(path: Path, folder: Path) -> None:
    make_manifest("made", 60, 0.4 if path.stem == "missing" else 0.0)
    if path.stem == "shards":
        assert main(["shards", str(ROOT / "configs/start/images.yaml"), "--output", "made/shards"]) == 0
    assert main(["fit", str(path), *OF_A_MANIFEST]) == 0
    assert (folder / f"runs/{path.stem}/version_0/checkpoints/best.ckpt").is_file()


def run_commands(page: str, of_fit: list[str]) -> list[str]:
    """Runs the commands of a page on fewer rows, and `fit` with further options; returns their verbs."""
    (Path.cwd() / "configs").symlink_to(ROOT / "configs")
    verbs = []
    for block in re.findall(r"^```bash\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            python, option, module, *words = shlex.split(line, comments=True)
            assert (python, option) == ("python", "-m"), line
            if module == "tests.data.make_files":
                target, rows, *missing_and_seed = words
                make_manifest(target, min(int(rows), 60), *map(float, missing_and_seed[:1]))
            else:
                assert module == "hybrid_lightning", line
                assert main([*words, *of_fit] if words[0] == "fit" else words) == 0, line
                verbs.append(words[0])
    return verbs


@pytest.mark.parametrize(
    ("page", "verbs"),
    [
        ("series_and_text", ["fit", "predict"]),
        pytest.param("image_and_table", ["plan", "fit", "evaluate"], marks=pytest.mark.exhaustive),
        pytest.param("own_csv", ["init", "check", "probe", "fit", "predict", "evaluate"], marks=pytest.mark.exhaustive),
    ],
)
def test_the_commands_of_a_tutorial_run(page: str, verbs: list[str], folder: Path) -> None:
    assert run_commands(f"docs/tutorials/{page}.md", OF_A_MANIFEST) == verbs


def test_a_module_of_ones_own_trains_as_the_tutorial_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "docs/tutorials/own_module.md"
    module, live, foreign = re.findall(r"^```python\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
    [[config]] = configs_of(page)
    (folder / "my_nets.py").write_text(module, encoding="utf-8")
    (folder / "mine.yaml").write_text(config, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    assert run_commands(page, QUICK) == ["plan", "fit"]

    names: dict[str, Any] = {}
    exec(live, names)
    trainer(max_epochs=2, limit_train_batches=2, limit_val_batches=1).fit(names["model"], names["data"])

    exec(foreign, names)
    names["trainer"].fit(names["Mine"](), loader({"x": table(24), "target": torch.arange(24) % 2}))
    groups = names["trainer"].optimizers[0].param_groups
    assert {group["name"]: group["unfrozen_at"] for group in groups if "no_decay" not in group["name"]} == {
        "backbone.0": 6,
        "backbone.2": 3,
        "head": 0,
    }
