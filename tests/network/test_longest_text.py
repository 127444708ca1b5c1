import pytest
import torch
import transformers
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.builder import build
from hybrid_lightning.network.part import parse_parts


class Positions(nn.Module):
    """Reads tokens, or features of steps, with a vector for each of so many positions."""

    def __init__(self, positions: int, reads_tokens: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4) if reads_tokens else nn.Identity()
        self.positions = nn.Embedding(positions, 4)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.words(values) + self.positions(torch.arange(values.shape[1]))


def tokens(steps=3):
    return {"values": torch.randint(1, 9, (2, steps)), "mask": torch.ones(2, steps, dtype=torch.bool)}


def made(parts, most_steps, batch=None, **more):
    batch = {"note": tokens(), **more} if batch is None else batch
    return build(parse_parts(parts), 2, batch, inferred={"note": {"vocabulary": 9, "most_steps": most_steps}})


@pytest.mark.parametrize("most_steps", [9, 2000, 2**20])
def test_a_part_with_fewer_positions_than_texts_may_have_is_refused_before_the_fit(most_steps):
    message = (
        rf"^data\.inputs\.note: texts may have {most_steps} pieces, and 'note' fails on one of .*Write 'length: N'"
    )
    with pytest.raises(ConfigError, match=message):
        made({"note": {"module": Positions(8)}}, most_steps)


@pytest.mark.parametrize("most_steps", [2, 3, 8])
def test_one_with_as_many_is_not(most_steps):
    made({"note": {"module": Positions(8)}}, most_steps)


def test_a_part_behind_the_one_that_reads_the_text_is_tried_too():
    parts: dict = {"note": "SequenceTransformer", "body": {"module": Positions(8, False), "input": "note"}}
    parts["note"] = {"module": "SequenceTransformer", "args": {"width": 4, "heads": 1}}
    with pytest.raises(ConfigError, match=r"^data\.inputs\.note: .* 'note', 'body' fails on one of 9: "):
        made(parts, 9)


@pytest.mark.parametrize("module", ["SequenceTransformer", "BagOfWords"])
def test_ours_take_texts_of_any_length_also_where_samples_lack_them(module):
    present = torch.tensor([False, True])
    parts = {"note": {"module": module}, "other": {"module": "MLP"}}
    made(parts, 2**20, other=torch.zeros(2, 5), **{"present/note": present})


def test_positions_of_a_model_that_counts_them_after_the_padding_are_counted_as_it_does():
    def roberta(positions):
        config = transformers.RobertaConfig(
            vocab_size=9,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            max_position_embeddings=positions,
        )
        return transformers.RobertaModel(config, add_pooling_layer=False)

    pieces = {"input_ids": torch.tensor([[0, 4, 2], [0, 2, 1]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    made({"note": {"module": roberta(10)}}, 8, {"note": pieces})
    with pytest.raises(ConfigError, match=r"texts may have 9 pieces, and 'note' fails on one of 9"):
        made({"note": {"module": roberta(10)}}, 9, {"note": pieces})
