import pytest
import torch

from hybrid_lightning import ConfigError
from tests.small import loader, regressor, table, trainer

OUTPUT, TARGET = torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([1.5, 2.0, 1.0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mse", (0.25 + 0 + 16) / 3),
        ("mae", (0.5 + 0 + 4) / 3),
        ("huber", (0.5 * 0.25 + 0 + 1 * (4 - 0.5)) / 3),
    ],
)
def test_losses_equal_hand_arithmetic(name, expected):
    assert float(regressor(loss_function=name).loss(OUTPUT, TARGET)) == pytest.approx(expected)


@pytest.mark.parametrize(("outputs", "shape"), [(1, (27,)), (2, (27, 2))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_it_trains_and_logs_the_metrics_of_all_samples(outputs, shape, dtype):
    target = (table(27, outputs, seed=2).reshape(shape) * 3).to(dtype)
    data, model, run = loader({"x": table(), "target": target}), regressor(num_outputs=outputs), trainer()
    run.fit(model, data, data)
    [logged] = run.test(model, data, verbose=False)
    with torch.no_grad():
        errors = model.predictions(model.eval()({"x": table()})) - target
    expected = {"mae": errors.abs().mean(), "rmse": errors.square().mean().sqrt(), "loss": errors.square().mean()}
    for name, value in expected.items():
        assert logged[f"test/{name}"] == pytest.approx(float(value), rel=1e-4)
    assert "test/r2" in logged


@pytest.mark.parametrize(
    ("options", "match"),
    [({"num_outputs": 0}, "num_outputs: 0 is less than 1"), ({"loss_function": "mes"}, "Did you mean 'mse'")],
)
def test_an_impossible_argument_is_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        regressor(**options)


@pytest.mark.parametrize(
    ("outputs", "target", "match"),
    [
        (1, torch.zeros(4, 1), r"the shape is \(4, 1\); num_outputs 1 needs \(B,\)"),
        (2, torch.zeros(4), r"the shape is \(4,\); num_outputs 2 needs \(B, 2\)"),
        (1, torch.tensor([1.0, float("nan")]), "not finite"),
        (1, torch.tensor([1.0, float("inf")]), "not finite"),
    ],
)
def test_a_target_that_does_not_fit_is_told(outputs, target, match):
    with pytest.raises(ConfigError, match=match):
        regressor(num_outputs=outputs).check_target(target, "data: target")
