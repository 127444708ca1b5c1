"""The report in a Chromium: wherever one is on the path, and plotly is installed."""

from pathlib import Path

import pytest

from hybrid_lightning.report.page import write_page
from tests.browser.chromium import NAMES, Browser, found
from tests.report.runs import EVIL, run, write_folder

pytestmark = [
    pytest.mark.skipif(found() is None, reason=f"no Chromium is on the path ({', '.join(NAMES)})"),
]
PHONE = (390, 844)
DESK = (1200, 900)
LIGHTNESS = (
    "(() => { const [r, g, b] = getComputedStyle({0}).{1}.match(/[0-9.]+/g).map(Number); "
    "return 0.2126 * r + 0.7152 * g + 0.0722 * b; })()"
)


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("plotly", reason="plotly is not installed (extra 'report')")
    with Browser(found()) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    runs = {kind: run(write_folder(folder / "r" / kind, kind)) for kind in ("multiclass", "multilabel", "regression")}
    for kind, one in runs.items():
        write_page([one], folder / f"{kind}.html")
    write_page([*runs.values()], folder / "several.html")
    return folder


def lightness(browser: Browser, element: str, color: str) -> float:
    return browser.run(LIGHTNESS.replace("{0}", element).replace("{1}", color))


def widths(browser: Browser) -> tuple[int, int]:
    return tuple(browser.run("[document.documentElement.scrollWidth, innerWidth]"))


@pytest.mark.parametrize("name", ["multiclass", "multilabel", "regression", "several"])
def test_every_figure_is_drawn_and_nothing_is_complained_about_or_fetched(browser, pages, name):
    browser.open(pages / f"{name}.html", *DESK, "light")
    wanted, drawn = browser.run(
        "[document.querySelectorAll('[data-figure]').length, "
        "[...document.querySelectorAll('[data-figure]')].filter(place => place.querySelector('.main-svg')).length]"
    )
    assert wanted == drawn > 2
    assert browser.problems() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE])
def test_text_is_told_from_its_ground_and_nothing_is_wider_than_the_window(browser, pages, size, scheme):
    browser.open(pages / "multiclass.html", *size, scheme)
    page, window = widths(browser)
    assert page <= window == size[0]
    ground = lightness(browser, "document.querySelector('section')", "backgroundColor")
    for words in ("h2", ".caption", "td", "nav a", "dd"):
        ink = lightness(browser, f"document.querySelector('{words}')", "color")
        assert abs(ink - ground) > 70, words
        assert (ink > ground) == (scheme == "dark")
    ink = lightness(browser, "document.querySelector('.xtick text')", "fill")
    assert abs(ink - ground) > 70
    sizes = "['p', 'td', 'dd', '.xtick text'].map(one => getComputedStyle(document.querySelector(one)).fontSize)"
    smallest = min(float(size.removesuffix("px")) for size in browser.run(sizes))
    assert smallest >= 11  # pixels


def test_figures_follow_the_system_from_light_to_dark(browser, pages):
    browser.open(pages / "multiclass.html", *DESK, "light")
    before = lightness(browser, "document.querySelector('.xtick text')", "fill")
    browser.prefer("dark")
    browser.run("new Promise(done => setTimeout(done, 500))")
    assert lightness(browser, "document.querySelector('.xtick text')", "fill") > before + 70
    assert browser.problems() == []


def test_a_click_on_a_name_hides_its_line_and_another_one_shows_it(browser, pages):
    browser.open(pages / "multiclass.html", *DESK, "light")
    browser.run("document.querySelector('#curves').scrollIntoView()")
    place = (
        "(() => { const box = document.querySelector('#curves .legendtoggle').getBoundingClientRect(); "
        "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    shown = "document.querySelector('#curves [data-figure]')._fullData.map(trace => trace.visible)"
    assert browser.run(shown) == [True, True]
    for expected in (["legendonly", True], [True, True]):
        browser.click(*browser.run(place))
        browser.run("new Promise(done => setTimeout(done, 900))")  # longer than a double click
        assert browser.run(shown) == expected


def test_a_class_named_like_a_script_is_text_and_runs_nothing(browser, pages):
    browser.open(pages / "multiclass.html", *DESK, "light")
    assert browser.run("document.querySelectorAll('script').length") == 3
    texts = "[...document.querySelectorAll('{}')].map(one => one.textContent)"
    assert any(EVIL in text for text in browser.run(texts.format("dd")))
    assert any(EVIL in text for text in browser.run(texts.format("#ranking .legendtext")))
    added = (
        "const own = document.createElement('script'); own.textContent = 'window.ran = 1'; document.body.append(own)"
    )
    assert browser.run(f"(() => {{ {added}; return window.ran; }})()") is None  # the policy of the page


def test_the_picture_of_the_docs_is_small():
    picture = Path(__file__).parents[2] / "docs" / "report.png"
    assert picture.stat().st_size <= 300_000
