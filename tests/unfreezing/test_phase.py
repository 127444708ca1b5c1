import pytest

from hybrid_lightning.unfreezing.phase import phase
from hybrid_lightning.unfreezing.schedule import Span

GROUPS = [
    {"name": "image.a/decay", "part": "image"},
    {"name": "image.b/decay", "part": "image"},
    {"name": "text/decay", "part": "text"},
    {"name": "head/decay", "part": "head"},
]


def said(a, b, text, head, step=0, per_epoch=10, waiting=()):
    spans = dict(zip([group["name"] for group in GROUPS], [a, b, text, head], strict=True))
    return phase(GROUPS, spans, step, per_epoch, waiting)


ALWAYS, NEVER = Span(0), Span(None)


@pytest.mark.parametrize(
    ("spans", "text"),
    [
        ((ALWAYS, ALWAYS, ALWAYS, ALWAYS), "all parts train"),
        ((Span(20), Span(20), ALWAYS, ALWAYS), "image unfreezes in 2 epochs"),
        ((Span(20), Span(20), Span(20), ALWAYS), "image, text unfreeze in 2 epochs"),
        ((Span(30), Span(7), ALWAYS, ALWAYS), "image unfreezes in 7 steps"),
        ((Span(30), Span(1), ALWAYS, ALWAYS), "image unfreezes in 1 step"),
        ((Span(10), ALWAYS, ALWAYS, ALWAYS), "image unfreezes in 1 epoch"),
        ((Span(0, 40), Span(0, 40), ALWAYS, ALWAYS), "image freezes in 4 epochs"),
        ((NEVER, NEVER, ALWAYS, ALWAYS), "image stays frozen"),
        ((NEVER, NEVER, NEVER, ALWAYS), "image, text stay frozen"),
        ((NEVER, ALWAYS, ALWAYS, ALWAYS), "stages of image stay frozen"),
        ((NEVER, NEVER, NEVER, NEVER), "nothing trains"),
    ],
)
def test_what_changes_next_is_said_or_what_stays_as_it_is(spans, text):
    assert said(*spans) == text


def test_a_moment_that_is_over_is_not_said_and_without_epochs_steps_are():
    later = (Span(5), Span(5), ALWAYS, ALWAYS)
    assert said(*later, step=5) == "all parts train"
    assert said(Span(2000), ALWAYS, ALWAYS, ALWAYS, per_epoch=None) == "image unfreezes in 2,000 steps"


def test_parts_that_wait_for_a_metric_are_named():
    assert said(NEVER, NEVER, ALWAYS, ALWAYS, waiting=["image"]) == "image waits for a metric"
