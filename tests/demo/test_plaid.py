import pytest
import torch

from hybrid_lightning.data.in_memory import stratified_mask
from hybrid_lightning.demo.plaid import PlaidDataModule, describe, pad_left, pad_right


@pytest.fixture(scope="module")
def plaid() -> PlaidDataModule:
    data = PlaidDataModule(batch_size=32, context=256, wave_length=64)
    data.setup()
    return data


def test_the_data_are_the_537_and_537_traces_of_the_archive(plaid):
    sizes = {name: len(split) for name, split in plaid.splits.items()}
    assert sizes["test"] == sizes["train"] + sizes["val"] == 537
    for split in plaid.splits.values():
        assert sorted(set(split.targets.tolist())) == list(range(11)), "every class is in every split"


def test_a_batch_has_the_promised_shapes(plaid):
    batch = next(iter(plaid.train_dataloader()))
    assert (batch["trace"]["values"].shape, batch["trace"]["values"].dtype) == ((32, 256), torch.float32)
    assert (batch["trace"]["mask"].shape, batch["trace"]["mask"].dtype) == ((32, 256), torch.bool)
    assert (batch["wave"].shape, batch["stats"].shape, batch["target"].shape) == ((32, 1, 64), (32, 4), (32,))
    assert all(torch.isfinite(x).all() for x in (batch["trace"]["values"], batch["wave"], batch["stats"]))


def test_statistics_are_standardized_with_the_training_split_alone(plaid):
    std, mean = torch.std_mean(plaid.splits["train"].entries["stats"], dim=0)
    torch.testing.assert_close((std, mean), (torch.ones(4), torch.zeros(4)), atol=1e-4, rtol=1e-4)
    assert plaid.splits["test"].entries["stats"].mean(0).abs().max() > 1e-3


def test_traces_are_scaled_and_their_ends_aligned():
    values, mask = pad_left([torch.tensor([2.0, 4.0]), torch.tensor([9.0, 0.0, 1.0, 2.0]), torch.tensor([5.0])], 3)
    assert values.tolist() == [[0, 0, 1], [0, 0.5, 1], [0, 0, 0]]
    assert mask.tolist() == [[False, True, True], [True, True, True], [False, False, True]]


def test_waves_are_relative_to_their_mean_magnitude_with_their_starts_aligned():
    waves = pad_right([torch.tensor([-1.0, 3.0]), torch.tensor([8.0, -2.0, 2.0, 4.0]), torch.zeros(1)], 3)
    expected = torch.tensor([[[-0.5, 1.5, 0.0]], [[2.0, -0.5, 0.5]], [[0.0, 0.0, 0.0]]])
    torch.testing.assert_close(waves.sinh(), expected)


def test_statistics_equal_their_formulas():
    trace = torch.tensor([1.0, -3.0, 5.0, 0.0])
    expected = torch.stack([torch.tensor(4.0).log(), trace.std().log(), torch.tensor(5.0).log(), trace.mean()])
    torch.testing.assert_close(describe([trace])[0], expected)


def test_a_stratified_share_of_each_class_is_chosen_by_the_seed():
    targets = torch.tensor([0] * 10 + [1] * 20 + [2])
    chosen = stratified_mask(targets, 0.3, seed=5)
    assert [int(chosen[targets == label].sum()) for label in range(3)] == [3, 6, 1]
    assert torch.equal(chosen, stratified_mask(targets, 0.3, seed=5))
    assert not torch.equal(chosen, stratified_mask(targets, 0.3, seed=6))
