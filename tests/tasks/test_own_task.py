"""The code of docs/own_task.md, run as it stands there."""

import ast
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.data import DataLoader

import hybrid_lightning
from hybrid_lightning import ConfigError, HybridTask
from tests.small import loader, table, trainer

PAGE = Path(hybrid_lightning.__file__).parents[1] / "docs" / "own_task.md"
CODE = "\n\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S))
NAME = "code_of_own_task"
PARTS = {"x": {"module": "MLP", "args": {"hidden": [5]}}, "y": {"module": "MLP", "input": "x"}}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory):
    """The code as a module that can be imported, as a user's would be."""
    folder = tmp_path_factory.mktemp("page")
    (folder / f"{NAME}.py").write_text(CODE, encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield importlib.import_module(NAME)
    sys.path.remove(str(folder))


def rebuilt(run, tmp_path: Path) -> HybridTask:
    run.save_checkpoint(tmp_path / "x.ckpt")
    return HybridTask.load_from_checkpoint(tmp_path / "x.ckpt", trust=[NAME])


def test_nothing_is_set_before_the_constructor_of_the_base_class():
    constructors = [node for node in ast.walk(ast.parse(CODE)) if getattr(node, "name", "") == "__init__"]
    assert len(constructors) == 5
    for constructor in constructors:
        assert ast.unparse(constructor.body[0]).startswith("super().__init__(")


def test_a_loss_of_ones_own_is_one_method(page: ModuleType, tmp_path: Path):
    target = torch.arange(27) % 3
    data, run = loader({"x": table(), "target": target}), trainer()
    model = page.PolyLoss(epsilon=0.5, num_classes=3, parts=PARTS)
    run.fit(model, data, data)
    again = rebuilt(run, tmp_path)
    assert (type(again), again.epsilon) == (page.PolyLoss, 0.5)
    with torch.no_grad():
        outputs = again({"x": table()})
    true = outputs.softmax(1)[range(27), target]
    expected = (0.5 * (1 - true) - true.log()).mean()
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_an_objective_of_ones_own_is_two_methods(page: ModuleType, tmp_path: Path):
    target = table(270, 1, seed=2)[:, 0]
    data, run = loader({"x": torch.zeros(270, 4), "target": target}), trainer(max_epochs=12)
    model = page.QuantileTask(quantile=0.8, lr=0.03, parts={"x": PARTS["x"]})
    run.fit(model, data, data)
    assert set(run.callback_metrics) >= {"train/loss", "val/loss"}
    below = (target < torch.cat(run.predict(model, data))).float().mean()
    assert float(below) == pytest.approx(0.8, abs=0.1)
    assert rebuilt(run, tmp_path).objective.quantile == 0.8


class Pairs(torch.utils.data.Dataset):
    """Two views of each sample, and no target."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index):
        x = table(64)[index]
        return {"image": torch.cat([x, x.flip(0)]), "text": 2 * x + 1}


def test_two_towers_learn_to_match_without_a_target(page: ModuleType, tmp_path: Path):
    tower = {"module": "MLP", "args": {"hidden": [16], "out_features": 8}}
    parts = {"image": tower, "text": tower}
    model = page.TwoTowers(temperature=0.2, lr=0.01, parts=parts, fusion={"module": page.SideBySide})
    data, run = DataLoader(Pairs(), 16), trainer(max_epochs=10, log_every_n_steps=4)
    model.build(next(iter(data)))
    before = trainer().validate(model, data, verbose=False)[0]["val/loss"]
    run.fit(model, data, data)
    assert set(run.callback_metrics) >= {"train/loss", "val/loss"}
    assert float(run.callback_metrics["val/loss"]) < 0.5 * before
    assert not [name for name in run.callback_metrics if name.startswith("val/loss-")], "no heads without a target"
    assert {group["part"] for group in run.optimizers[0].param_groups} == {"image", "text"}
    again = rebuilt(run, tmp_path)
    batch = next(iter(data))
    with torch.no_grad():
        one, other = again.predictions(again(batch)).unbind(1)
        assert torch.equal(again(batch), model.eval()(batch))
        towers = again.built().features(batch)
    torch.testing.assert_close(one, torch.nn.functional.normalize(towers["image"], dim=1))
    assert float(((one @ other.T).argmax(1) == torch.arange(16)).float().mean()) > 0.8


def test_a_task_that_reads_a_target_still_asks_for_one(page: ModuleType):
    model = page.QuantileTask(parts={"image": PARTS["x"]})
    with pytest.raises(ConfigError, match=r"data: the batch has no 'target'\. It has: 'image', 'text'"):
        trainer().fit(model, DataLoader(Pairs(), 16))
