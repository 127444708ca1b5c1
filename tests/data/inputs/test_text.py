import json
import pickle
import unicodedata

import pytest
import tokenizers
import torch
import transformers

from hybrid_lightning.data.inputs.text import words_of
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.modules.transformer import SequenceTransformer
from tests.data.inputs.bound import bound

NOTES = ["The cat, the DOG!", "the dog's cat", "a Bird", None, "...", "the cat sees 2 naïve birds"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of a tokenizer with a padding piece of number 1."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["<s>", "<pad>", "</s>", "<unk>", "the", "cat", "dog", "bird"]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=6,
    ).save_pretrained(folder)
    return str(folder)


def note(folder, **given):
    return bound(folder, {"note": NOTES, "row": range(6)}, fit_rows=[0, 1, 2, 3], text="note", **given)


def test_the_words_of_the_training_rows_are_numbered_by_frequency(tmp_path):
    entry = note(tmp_path)
    assert entry.statistics == {"words": ["the", "cat", "dog", "a", "bird", "s"], "length": 4}
    assert json.loads(json.dumps(entry.statistics)) == entry.statistics
    assert entry.inferred_arguments == {"vocabulary": 8, "most_steps": 4}
    assert entry.read(0, True)["values"].tolist() == [2, 3, 2, 4]
    assert note(tmp_path, length=9).read(5, True)["values"].tolist() == [2, 3, 1, 1, 1, 1]
    few = note(tmp_path, vocabulary=2)
    assert few.inferred_arguments == {"vocabulary": 4, "most_steps": 4}
    assert note(tmp_path, length=9).inferred_arguments["most_steps"] == 9
    assert few.read(1, True)["values"].tolist() == [2, 1, 1, 3]


def test_words_are_padded_to_the_longest_of_the_batch_as_a_transformer_takes_them(tmp_path):
    entry = note(tmp_path)
    batch = entry.collate([entry.read(0, True), None, entry.read(2, True), entry.read(4, True)], entry.read(0, True))
    assert batch["values"].tolist() == [[2, 3, 2, 4], [0] * 4, [5, 6, 0, 0], [0] * 4]
    assert batch["mask"].tolist() == [[True] * 4, [False] * 4, [True, True, False, False], [False] * 4]
    assert (batch["values"].dtype, batch["mask"].dtype) == (torch.int64, torch.bool)
    assert SequenceTransformer(vocabulary=entry.inferred_arguments["vocabulary"], width=8)(**batch).isfinite().all()


def test_a_batch_without_any_word_has_one_step_of_padding(tmp_path):
    entry = note(tmp_path)
    for values in ([entry.read(4, True)] * 2, [None] * 2):
        batch = entry.collate(values, entry.read(4, True))
        assert batch["values"].shape == batch["mask"].shape == (2, 1)
        assert SequenceTransformer(vocabulary=entry.inferred_arguments["vocabulary"], width=8)(**batch).isfinite().all()


def test_longer_texts_are_cut(tmp_path):
    assert note(tmp_path, length=3).read(5, True)["values"].tolist() == [2, 3, 1]


def test_texts_are_cut_by_default_where_few_training_texts_go_on(tmp_path, caplog):
    texts = ["word " * (count + 1) for count in range(40)] + ["long " * 100]
    caplog.set_level("INFO")
    entry = bound(tmp_path, {"note": texts}, fit_rows=range(40), text="note")
    assert entry.statistics["length"] == 39
    assert len(entry.read(40, False)["values"]) == 39
    assert "data.inputs.x: texts are read up to word 39; 2.5% of the training texts have more, the longest 40" in (
        caplog.text
    )
    caplog.clear()
    assert len(bound(tmp_path, {"note": texts}, text="note", length=60).read(40, False)["values"]) == 60
    assert not caplog.text
    del entry.statistics["length"]
    assert len(entry.read(40, False)["values"]) == 100, "an earlier version's checkpoint keeps what it was trained on"


def test_no_text_is_long_by_default(tmp_path):
    assert bound(tmp_path, {"note": ["word " * 2000] * 3}, text="note").statistics["length"] == 512


def test_training_rows_without_words_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^data\.inputs\.x: no training row has a word in column 'note'"):
        bound(tmp_path, {"note": NOTES, "row": range(6)}, fit_rows=[3, 4], text="note")


def test_a_tokenizers_pieces_are_those_of_transformers(tmp_path, tokenizer):
    entry = note(tmp_path, tokenizer=tokenizer)
    assert (entry.statistics, entry.inferred_arguments) == ({}, {"most_steps": 6})
    assert note(tmp_path, tokenizer=tokenizer, length=4).inferred_arguments == {"most_steps": 4}
    expected = transformers.AutoTokenizer.from_pretrained(tokenizer)(
        [NOTES[0], NOTES[2], NOTES[5]], padding=True, truncation=True, return_tensors="pt"
    )
    found = entry.collate([entry.read(row, True) for row in (0, 2, 5)], entry.read(0, True))
    assert list(found) == ["input_ids", "attention_mask"]
    for name, values in found.items():
        assert torch.equal(values, expected[name])
    assert found["input_ids"].shape == (3, 6)
    assert (found["input_ids"] == 1).any(), "the tokenizer's own padding, which models of RoBERTa's kind look for"
    assert note(tmp_path, tokenizer=tokenizer, length=4).read(5, True)["input_ids"].tolist() == [0, 4, 5, 2]


def test_without_a_limit_of_its_own_the_longest_text_counts(tmp_path, tokenizer):
    entry = note(tmp_path, tokenizer=tokenizer)
    entry._encoder.model_max_length = int(1e30)
    longest = max(len(entry.read(row, True)["input_ids"]) for row in range(6) if row != 3)
    assert entry.inferred_arguments == {"most_steps": longest}
    assert longest == 8


def test_absent_texts_are_zeros_and_give_a_model_finite_features(tmp_path, tokenizer):
    entry = note(tmp_path, tokenizer=tokenizer)
    batch = entry.collate([entry.read(0, True), None], entry.read(0, True))
    assert not batch["input_ids"][1].any()
    assert not batch["attention_mask"][1].any()
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    features = transformers.BertModel(config, add_pooling_layer=False).eval()(**batch).last_hidden_state
    features.sum().backward()
    assert features.isfinite().all()


def test_nothing_is_fetched_unless_asked_for(tmp_path, tokenizer, monkeypatch):
    calls = []
    real = transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        transformers.AutoTokenizer,
        "from_pretrained",
        lambda name, **given: (calls.append(given), real(name, **given))[1],
    )
    entry = note(tmp_path, tokenizer=tokenizer)
    assert entry.prefetch() == [f"x: the tokenizer {tokenizer!r} is here"]
    local = {"local_files_only": True, "trust_remote_code": False}
    assert calls == [local, {**local, "local_files_only": False}]
    assert note(tmp_path).prefetch() == []


def test_a_tokenizer_that_is_not_here_is_told_with_the_way_to_it(tmp_path):
    with pytest.raises(ConfigError) as caught:
        note(tmp_path, tokenizer="nobody/no-tokenizer")
    message = str(caught.value)
    assert message.startswith("data.inputs.x.tokenizer: 'nobody/no-tokenizer' is neither 'words' nor a tokenizer that")
    assert "prefetch" in message
    assert len(message.splitlines()) <= 12


def test_a_tokenizer_whose_code_lies_in_its_folder_is_refused(tmp_path, capsys):
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Trap", "auto_map": {"AutoTokenizer": ["trap.Trap", None]}})
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "trap"}))
    (tmp_path / "trap.py").write_text("print('a file ran code')\nclass Trap: pass\n")
    with pytest.raises(ConfigError, match=r"^data\.inputs\.x\.tokenizer"):
        note(tmp_path, tokenizer=str(tmp_path))
    assert "ran code" not in capsys.readouterr().out


def test_an_entry_can_be_sent_to_another_process(tmp_path, tokenizer):
    for given in ({}, {"tokenizer": tokenizer}):
        entry = note(tmp_path, **given)
        sent = pickle.loads(pickle.dumps(entry))
        for name, values in entry.read(0, True).items():
            assert torch.equal(sent.read(0, True)[name], values)


def test_a_missing_library_is_named_with_its_installation(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"tokenizer: 'bert', unlike 'words', needs transformers: .*\[transformers\]"):
        note(tmp_path, tokenizer="bert")


def test_words_keep_their_marks_and_are_composed():
    assert words_of("यह फिल्म अच्छी है") == ["यह", "फिल्म", "अच्छी", "है"]
    assert words_of(unicodedata.normalize("NFD", "naïve café")) == ["naïve", "café"]
    assert words_of("مَدرَسة ❤️ می‌خواهم") == ["مَدرَسة", "می‌خواهم"]
    assert words_of("don't_x 3") == ["don", "t_x", "3"]
