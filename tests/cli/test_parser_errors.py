import pytest

from hybrid_lightning.cli import main
from hybrid_lightning.cli.parser_errors import parser_error
from tests.small import DELETE, changed, command

KNOWN = ("config", "name", "model", "trainer", "trainer.max_epochs", "trainer.min_epochs")


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("Option 'modle.parts.x.module' is not accepted", "config: unknown key 'modle'. Did you mean 'model'?"),
        (
            "Option 'trainer.max_epoch.a' is not accepted",
            "trainer: unknown key 'max_epoch'. Did you mean 'max_epochs'?",
        ),
        (
            "Group 'trainer' does not accept option 'mx'",
            "trainer: unknown key 'mx'. Possible: 'max_epochs', 'min_epochs'",
        ),
        ("unrecognized arguments: --confg x.yaml", "config: unknown key 'confg'. Did you mean 'config'?"),
        ("unrecognized arguments: x.yaml", "'x.yaml' belongs to no option."),
        ("unrecognized arguments: -name a", "unknown option '-name'. Write options with two dashes: --name VALUE."),
        ("unrecognized arguments: validate", "'validate' is a second command."),
        ("unrecognized arguments: 5", "'5' belongs to no option."),
        ("argument --trainer.max_epochs: expected one argument", "--trainer.max_epochs: its value is missing."),
        ("argument -c/--config: expected one argument", "--config: its value is missing."),
        ("argument --seeds: invalid int value: 'x'", "--seeds: write a whole number, not 'x'."),
        (
            "argument --baselines: invalid choice: 'ture' (choose from 'true', 'false')",
            "--baselines: unknown value 'ture'. Did you mean 'true'? Possible: 'true', 'false'.",
        ),
        ("Parser key \"trainer\":\nUnable to load config '3'\n  - Parser", "trainer: write keys and values, not '3'."),
    ],
)
def test_the_first_wrong_word_is_named(message: str, says: str) -> None:
    assert str(parser_error(message, KNOWN)).startswith(says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--trainer.max_epochs abc", "trainer.max_epochs: write a whole number, not 'abc'."),
        ("--trainer.limit_val_batches x", "trainer.limit_val_batches: write a number, not 'x'."),
        ("--trainer.deterministic x", "trainer.deterministic: write true or false or 'warn', not 'x'."),
        ("--trainer.precision bf16-mixd", "trainer.precision: unknown value 'bf16-mixd'. Did you mean 'bf16-mixed'?"),
        ("--trainer.callbacks [EarlyStoping]", "trainer.callbacks.class_path: unknown class 'EarlyStoping'. Did you"),
        ("--trainer 3", "trainer: write keys and values, not '3'."),
        ("--model.lr abc", "model.lr: write a number, not 'abc'."),
        ("--model.parts 3", "model.parts: write keys and values, not '3'."),
        ("--model.metrics 3", "model.metrics: write a list, not '3'."),
        ("--test_after_fit worst", "test_after_fit: unknown value 'worst'. Possible: 'best', 'last'."),
        ("--model.parts.stm.lr_scale 3", "model.parts: unknown part 'stm'. Did you mean 'stem'?"),
        ("--trainr.max_epochs.x 3", "plan: unknown option '--trainr'. Did you mean '--trainer'?"),
        ("--modle.lr=1", "plan: unknown option '--modle'. Did you mean '--model'?"),
        ("--seed 1", "plan: unknown option '--seed'. Did you mean '--seed_everything'?"),
        ("--lr 1", "plan: unknown option '--lr'. Did you mean '--model.lr'?"),
        (
            "--parts.stem.lr_scale 1",
            "plan: unknown option '--parts.stem.lr_scale'. Did you mean '--model.parts.stem.lr",
        ),
        ("--max_epochs 1", "plan: unknown option '--max_epochs'. Did you mean '--trainer.max_epochs'?"),
        ("--model.prts.stem.lr_scle 3", "model: unknown key 'prts'. Did you mean 'parts'?"),
        ("--trainer.max_epoch 3", "trainer: unknown key 'max_epoch'. Did you mean 'max_epochs'?"),
    ],
)
def test_what_could_be_written_is_told_in_plain_words(words, says, folder, capsys) -> None:
    assert command("plan", *words.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {says}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("evaluate --grops x", "evaluate: unknown option '--grops'. Did you mean '--groups'? Possible: '--ckpt_path',"),
        ("init t.csv --target=a --kidn=b", "init: unknown option '--kidn'. Did you mean '--kind'?"),
        ("export_part --ckpt x", "export_part: unknown option '--ckpt'. Did you mean '--ckpt_path'?"),
        ("cross_validate m.yaml --fold 3", "cross_validate: unknown option '--fold'. Did you mean '--folds'?"),
        ("compare m.yaml --recipe full", "compare: unknown option '--recipe'. Did you mean '--recipes'?"),
        ("compare m.yaml --trainr.max_epochs 1", "compare: unknown option '--trainr'. Did you mean '--trainer'?"),
    ],
)
def test_an_unknown_option_is_told_before_what_is_missing(words, says, capsys) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {says}")


def test_a_new_part_may_come_from_flags(folder) -> None:
    new = (
        "--model.parts.more.module",
        "MLP",
        "--model.parts.more.input",
        "body",
        "--model.parts.more.args.hidden",
        "[4]",
    )
    assert command("plan", *new) == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.class_path": DELETE}, "error: model: 'class_path' is missing. Write 'class_path: ...', of 'Hybrid"),
        ({"data.class_path": DELETE}, "error: data: 'class_path' is missing."),
        ({"model.class_path": "HybridTask"}, "error: model: 'HybridTask' is abstract. Write one of these: 'Hybrid"),
        ({"model.init_args": 3}, "error: model.init_args: write keys and values, not 3."),
        ({"trainer": [1]}, "error: trainer: write keys and values, not [1]."),
        ({"model.init_arg": {}}, "error: model: unknown key 'init_arg'. Did you mean 'init_args'?"),
    ],
)
def test_a_section_has_to_name_a_class(changes, says, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("fit", config=changed(changes)) == 2
    assert capsys.readouterr().err.startswith(says)


def test_a_class_may_be_named_by_a_flag(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("plan", "--model.class_path", "HybridTask", config=changed({"model.class_path": DELETE})) == 2
    assert "'class_path' is missing" not in capsys.readouterr().err
