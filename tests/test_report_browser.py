"""`report.html` in headless Chromium: sorting, filters, sliders, keyboard, no error, nothing that axe finds.

Needs Debian's packages chromium and chromium-driver; `.ci/run` installs them.
"""

import json
from pathlib import Path

import pytest
from browser import NEEDS_CHROMIUM, chromium, resize
from PIL import Image
from test_compare import BITS, LINE, folder
from test_report import COVERAGE, HOSTILE, html_of, process_of, with_family

from trilemma.eval.report.pictures import Drawn, Frames
from trilemma.eval.studies.models import read_models

axe_core = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed (extra [test])")
from selenium.webdriver.common.keys import Keys  # noqa: E402 (only where it is installed)

pytestmark = NEEDS_CHROMIUM
LOOKS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
NAMES = "#results tbody th a"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page of four models of two data sets, one of them with a name that is HTML."""
    root = tmp_path_factory.mktemp("models")
    cover = {**COVERAGE, "seconds_per_image": 0.5, "nfe": 100}
    bits = {**LINE, **BITS, "metric": "bpd_test", "value": 2.0, "interval": [1.9, 2.1]}
    curve = [{**LINE, "step": s, "images_seen": 64 * s, "interval": None, "value": 200 / s} for s in (20, 50)]
    last = {**LINE, "nfe": 100, "seconds_per_image": 0.5, "interval": [2.9, 3.1]}
    lines = {
        "many": [*curve, last, cover, bits],
        "few": [{**LINE, "nfe": 4, "value": 5.0, "interval": [4.8, 5.2]}, {**COVERAGE, "value": 0.5}],
        "other": [{**LINE, "n": 500, "interval": None}],
        "nothing": [],
    }
    families = {"many": "unconditional", "few": "ddgan", "other": "vae", "nothing": "unconditional"}
    paths = [
        with_family(Path(folder(root, name, each)), family=families[name], eval_batch_size=4)
        for name, each in lines.items()
    ]
    figure, _ = process_of(rows=2, states=5)
    figure.savefig(root / "many" / "process.png", dpi=150)
    with_family(root / "nothing", dataset_name=HOSTILE)
    sheets = Frames(Image.new("L", (30, 10), 90), ("1 call", "4 calls", "100 calls"), (1, 4, 100))
    drawn = {"many": Drawn(sheets, "seeds 0 to 3, ddim")}
    drawn["few"] = Drawn(Frames(Image.new("L", (10, 10)), ("4 calls",), (4,)), "seeds 0 to 3, ddpm")
    page = root / "report.html"
    page.write_text(html_of(read_models(paths), drawn), encoding="utf-8")
    return page.as_uri()


@pytest.fixture(scope="module")
def driver():
    with chromium() as driver:
        driver.set_script_timeout(300)  # seconds; axe takes 2 on a free core
        yield driver


def look(driver, width, scheme="light"):
    """Width of the window in pixels, and the colours that its user prefers."""
    resize(driver, width)
    scheme = {"name": "prefers-color-scheme", "value": scheme}
    still = {"name": "prefers-reduced-motion", "value": "reduce"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})


@pytest.fixture
def page(driver, address):
    """The page, opened anew; at the end nothing may stand in the console."""
    look(driver, 1280)
    driver.get(address)
    yield driver
    assert driver.get_log("browser") == []


def texts(page, selector):
    """What the visible elements say."""
    found = "[...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility())"
    return page.execute_script(f"return {found}.map(e => e.innerText)", selector)


def one(page, selector):
    return page.find_element("css selector", selector)


def wait(page):
    """Until what the page does a moment later is done."""
    page.execute_async_script("setTimeout(arguments[0], 100)")


def test_columns_sort_both_ways_and_what_was_not_measured_is_last(page):
    heads = page.find_elements("css selector", "#results th[data-sort]")
    (calls,) = [head for head in heads if head.text.startswith("calls")]
    button = calls.find_element("tag name", "button")
    button.send_keys(Keys.ENTER)
    assert calls.get_attribute("aria-sort") == "ascending"
    assert texts(page, NAMES) == ["few", "other", "many", "nothing"]
    button.send_keys(Keys.SPACE)
    assert calls.get_attribute("aria-sort") == "descending"
    assert texts(page, NAMES) == ["many", "other", "few", "nothing"]
    heads[0].find_element("tag name", "button").send_keys(Keys.ENTER)
    assert texts(page, NAMES) == ["few", "many", "nothing", "other"]
    assert len(page.find_elements("css selector", "[aria-sort]")) == 1
    assert one(page, "#status").text == "sorted by model, ascending"


def test_chips_and_search_filter_table_charts_pictures_and_models(page):
    assert one(page, "#status").text == "4 of 4 rows shown"
    one(page, "input[value=ddgan]").send_keys(Keys.SPACE)
    assert texts(page, NAMES) == ["many", "other", "nothing"]
    assert "few" not in texts(page, "#samples figcaption b") + texts(page, "#models summary h3")
    (mark,) = page.find_elements("css selector", "#cost svg a")
    assert mark.get_attribute("aria-label").startswith("many")
    one(page, "#search").send_keys("OTHE")
    assert texts(page, NAMES) == ["other"]
    one(page, "button[type=reset]").send_keys(Keys.ENTER)
    wait(page)
    assert len(texts(page, NAMES)) == 4
    assert len(page.find_elements("css selector", "input[name=data]")) == 2  # one of them a name that is HTML
    one(page, "input[name=data][value=digits]").send_keys(Keys.SPACE)
    assert texts(page, NAMES) == ["nothing"]


def test_sliders_move_by_keys_and_say_where_they_are(page):
    process = one(page, "#process input[type=range]")
    assert process.get_attribute("aria-valuetext") == "state 5 of 5"
    process.send_keys(Keys.HOME)
    assert process.get_attribute("aria-valuetext") == "state 1 of 5"
    assert texts(page, "#process .state") == ["state 1 of 5"]
    assert one(page, "#process img").get_attribute("alt").endswith("state 1 of 5")
    shift = "return new DOMMatrix(getComputedStyle(document.querySelector('#process img')).transform).m41"
    assert page.execute_script(shift) == 0
    process.send_keys(Keys.ARROW_RIGHT)
    width = page.execute_script("return document.querySelector('#process .view').clientWidth")
    assert page.execute_script(shift) == pytest.approx(-width, abs=1)  # pixels: one frame
    calls = one(page, "#calls")
    assert texts(page, "#samples .state") == ["100 calls", "4 calls"]
    calls.send_keys(Keys.HOME)
    assert texts(page, "#samples .state") == ["1 call", "needs at least 4 calls"]
    calls.send_keys(Keys.ARROW_RIGHT)
    assert texts(page, "#samples .state") == ["4 calls", "4 calls"]
    assert one(page, "output[for=calls]").text == "4"


def test_charts_have_a_front_and_every_mark_is_a_link_with_a_text(page):
    front = one(page, "#cost polyline.front").get_attribute("points").split()
    assert len(front) == 3  # from the GAN with few calls, by a corner, to the better model with many
    mark = one(page, "#cost svg a")
    page.execute_script("arguments[0].focus()", mark)
    tip = one(page, "#tip")
    assert tip.is_displayed()
    assert tip.text.replace("\n", "; ") == mark.get_attribute("aria-label")
    assert "other (n 500, not 2,000)" in one(page, "#cost .panel p").text
    for value in ("time", "training", "images", "parameters"):
        page.execute_script(
            "const s = document.getElementById('cost-x'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('change'))",
            value,
        )
        assert page.find_elements("css selector", "#cost svg a"), value
    assert len(page.find_elements("css selector", "#axes svg a")) == 2
    assert page.find_elements("css selector", "#training polyline.path")
    (bits,) = page.find_elements("css selector", "#bits svg a")
    bits.send_keys(Keys.ENTER)
    wait(page)
    assert page.find_elements("css selector", "#models details[open]")


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(page, width, scheme):
    look(page, width, scheme)
    page.refresh()
    page.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    page.execute_script((Path(axe_core.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.execute_async_script("axe.run().then(arguments[0])")
    told = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]]
    assert not told, json.dumps(told, indent=1)
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_without_javascript_there_are_tables_pictures_and_commands(page):
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.refresh()
        assert not one(page, "#filters").is_displayed()
        assert not one(page, "#cost").is_displayed()
        assert one(page, "#results").is_displayed()
        assert one(page, "noscript p").is_displayed()
        assert one(page, "#process img").is_displayed()
        assert one(page, "#models summary").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
