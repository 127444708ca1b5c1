import pytest

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
        ("unrecognized arguments: x.yaml", "'x.yaml' stands alone. Write --config x.yaml."),
        ("unrecognized arguments: -name a", "unknown option '-name'. Write options with two dashes: --name VALUE."),
        ("unrecognized arguments: validate", "'validate' is a second command."),
        ("unrecognized arguments: 5", "'5' belongs to no option."),
    ],
)
def test_the_first_wrong_word_is_named(message: str, says: str) -> None:
    assert str(parser_error(message, KNOWN)).startswith(says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.class_path": DELETE}, "error: model: 'class_path' is missing. Write 'class_path: ...', of 'Hybrid"),
        ({"data.class_path": DELETE}, "error: data: 'class_path' is missing."),
        ({"model.class_path": "HybridTask"}, "error: model: 'HybridTask' is abstract. Write one of these: 'Hybrid"),
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
