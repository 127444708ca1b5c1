import csv
from pathlib import Path

import pytest
import torch

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.modules.bag_of_words import BagOfWords
from tests.small import changed, classifier, command, loader, trainer
from tests.tables import write_rows

WORDS = torch.tensor([[3, 5, 2, 0], [4, 0, 0, 0], [0, 0, 0, 0]])
MASK = WORDS > 0


def test_padding_and_the_order_of_words_tell_nothing():
    bag = BagOfWords(7, width=8).eval()
    features = bag(WORDS, MASK)
    assert features.shape == (3, 8)
    assert features.isfinite().all()
    torch.testing.assert_close(bag(WORDS[:, :3], MASK[:, :3]), features)
    torch.testing.assert_close(bag(WORDS.flip(1), MASK.flip(1)), features)
    torch.testing.assert_close(bag(WORDS[:1, :3]), features[:1])
    assert not torch.allclose(bag(WORDS[:1, :2]), features[:1])


@pytest.mark.parametrize("length", [1, 8, 100])
def test_features_begin_small_for_texts_of_any_length(length):
    torch.manual_seed(0)
    bag = BagOfWords(5000).eval()
    values = torch.randint(1, 5000, (40, length))
    assert 0.08 < float(bag(values).detach().std()) < 0.12


@pytest.mark.parametrize("options", [{"vocabulary": 0}, {"width": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_impossible_numbers_are_refused(options):
    with pytest.raises(ConfigError):
        BagOfWords(**{"vocabulary": 7, **options})


def test_one_telling_word_is_learned():
    draws = torch.Generator().manual_seed(0)
    values = torch.randint(5, 60, (90, 12), generator=draws)
    target = torch.arange(90) % 3
    values[torch.arange(90), torch.randint(12, (90,), generator=draws)] = 2 + target
    text = {"values": values, "mask": torch.ones_like(values, dtype=torch.bool)}
    data = loader({"x": text, "target": target}, batch_size=10)
    torch.manual_seed(0)
    model = classifier(parts={"x": {"module": "BagOfWords", "args": {"vocabulary": 60, "width": 16}}}, lr=1e-2)
    run = trainer(max_epochs=20)
    run.fit(model, data, data)
    assert float(run.callback_metrics["val/accuracy"]) > 0.9


def test_a_column_of_texts_needs_no_library_and_no_sizes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draws = torch.Generator().manual_seed(0)
    topics = (("sun", "beach"), ("snow", "ice"), ("rain", "fog"))
    rows = []
    for row in range(150):
        words = [f"w{int(word)}" for word in torch.randint(9, (8,), generator=draws)]
        words[row % 8] = topics[row % 3][row % 2]
        rows.append({"note": " ".join(words) if row % 30 else "", "number": row, "label": "abc"[row % 3]})
    write_rows("m.csv", rows)
    inputs = {"note": {"text": "note", "tokenizer": "words"}, "number": {"numeric": "number"}}
    config = changed(
        {
            "init.parts": {"note": {"module": "BagOfWords"}, "number": {"module": "MLP"}},
            "init.lr": 0.01,
            "data": {
                "class_path": "ManifestDataModule",
                "init_args": {"path": "m.csv", "inputs": inputs, "target": "label", "batch_size": 8, "workers": 0},
            },
            "trainer": {"max_epochs": 25, "enable_progress_bar": False, "accelerator": "cpu"},
        }
    )
    assert command("fit", "--name", "run", config=config) == 0
    [path] = Path("runs").glob("run/**/metrics.csv")
    scores = [
        float(row["val/accuracy"]) for row in csv.DictReader(path.read_text().splitlines()) if row["val/accuracy"]
    ]
    assert max(scores) > 0.65, scores
