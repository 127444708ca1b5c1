import pytest
import torch
from torch.nn import functional

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.modules.tabular_mlp import ColumnEmbedding, TabularMLP

NAN = float("nan")


def test_a_table_of_numbers_and_categories_becomes_features():
    net = TabularMLP(2, categories=[3, 4], hidden=[6])
    assert net(torch.randn(5, 2), torch.zeros(5, 2, dtype=torch.long)).shape == (5, 6)
    assert TabularMLP(2)(torch.randn(5, 2)).shape == (5, 64)
    assert TabularMLP(categories=[3])(categorical=torch.zeros(5, 1)).shape == (5, 64)


def test_each_column_is_embedded_as_the_paper_says():
    embedding = ColumnEmbedding(2, [3], width=4)
    numeric, codes = torch.tensor([[0.5, -2.0]]), torch.tensor([[2]])
    by_hand = [
        (0.5 * embedding.slope[0] + embedding.offset[0]).relu(),
        (-2.0 * embedding.slope[1] + embedding.offset[1]).relu(),
        embedding.categories.weight[3],  # the first row stands for a missing category
    ]
    torch.testing.assert_close(embedding(numeric, codes)[0], torch.cat(by_hand))


def test_categories_of_two_columns_share_no_row():
    embedding = ColumnEmbedding(0, [3, 2], width=1)
    codes = torch.tensor([[0, 0], [1, 1], [2, -1], [-1, 0]])
    rows = [[1, 5], [2, 6], [3, 4], [0, 5]]
    torch.testing.assert_close(embedding(None, codes), embedding.categories.weight[torch.tensor(rows)].squeeze(-1))


@pytest.mark.parametrize("missing", [NAN, float("inf")])
def test_a_missing_number_has_its_own_vector_and_finite_gradients(missing):
    embedding = ColumnEmbedding(2, [], width=3)
    output = embedding(torch.tensor([[1.0, missing], [2.0, 0.0]]), None)
    torch.testing.assert_close(output[0, 3:], embedding.missing[1])
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in embedding.parameters())
    assert embedding.missing.grad.tolist() == [[0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize("code", [-1, 3, 99])
def test_an_unknown_category_counts_as_missing(code):
    embedding = ColumnEmbedding(0, [3, 2], width=3)
    expected = embedding(None, torch.tensor([[-1, 1]]))
    torch.testing.assert_close(embedding(None, torch.tensor([[code, 1]])), expected)


def test_what_is_missing_can_be_learnt_from():
    torch.manual_seed(0)
    numeric, codes = torch.randn(400, 2), torch.randint(0, 3, (400, 1))
    numeric[torch.rand(400) < 0.5, 1] = NAN
    target = (numeric[:, 1].isnan() ^ (codes[:, 0] == 2)).long()
    net = TabularMLP(2, categories=[3], hidden=[16, 2])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(100):
        loss = functional.cross_entropy(net(numeric, codes), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (net(numeric, codes).argmax(1) == target).float().mean() > 0.98


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: TabularMLP(), r"categories: \[\] beside 0 numeric columns"),
        (lambda: TabularMLP(1, categories=[3, 0]), r"at least one category"),
        (lambda: TabularMLP(2)(torch.randn(4, 3)), "3 numeric columns came, and in_features says 2"),
        (lambda: TabularMLP(2, [3])(torch.randn(4, 2)), "0 categorical columns came, and categories says 1"),
        (lambda: TabularMLP(2)(torch.randn(4, 2), torch.zeros(4, 1)), "1 categorical columns came"),
    ],
)
def test_columns_that_do_not_fit_are_refused(run, message):
    with pytest.raises(ConfigError, match=message):
        run()
