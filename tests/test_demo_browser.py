"""The page of `model_cards/demo.py` in headless Chromium: a model of the zoo is drawn, asked again, refused.

Needs Gradio (`pip install 'trilemma[demo]'`), selenium, and Debian's packages chromium and chromium-driver.
"""

import subprocess
import sys
import time

import pytest
from entry import ROOT, environment

pytest.importorskip("gradio", reason="Gradio is not installed (extra [demo])")
from browser import NEEDS_CHROMIUM, chromium, resize
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = NEEDS_CHROMIUM
PATIENCE = 300
"""Seconds, on a machine that others use too."""


@pytest.fixture(scope="module")
def address():
    """The page of the zoo's MNIST model, served by the entry point."""
    model = "model_cards/zoo/mnist"
    command = [sys.executable, "-u", "-m", "trilemma.model_cards.demo", model, "--no_browser"]
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lines = []
    for line in server.stdout:
        lines.append(line)
        if "http://" in line:
            break
    else:
        pytest.fail("".join(lines))
    yield line.split()[-1]
    server.terminate()
    server.communicate()


@pytest.fixture(scope="module")
def page(address):
    with chromium() as driver:
        driver.get(address)
        yield driver


def until(question, what):
    """The first answer of `question()` that is true."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        if answer := question():
            return answer
        time.sleep(0.2)
    raise AssertionError(f"waited in vain for {what}")


def texts(page, selector):
    return [part.text for part in page.find_elements(By.CSS_SELECTOR, selector)]


def sources(page):
    script = "return [...document.querySelectorAll('#images img')].map(image => image.src)"
    return page.execute_script(script)


def drawn(page, images):
    """Wait for the line on so many images."""
    script = "return document.querySelector('#summary')?.innerText ?? ''"
    until(lambda: page.execute_script(script).startswith(f"{images} image"), f"{images} images")
    until(lambda: len(sources(page)) == images, f"{images} pictures")


def field(page, label):
    return page.find_element(
        By.XPATH, f"//label[.//span[normalize-space()='{label}']]//*[self::input or self::textarea]"
    )


def fill(page, label, text):
    one = field(page, label)
    one.send_keys(Keys.CONTROL, "a")
    one.send_keys(text)


def press(page, name):
    page.find_element(By.XPATH, f"//button[normalize-space()='{name}']").click()


def test_a_visitor_draws_follows_the_process_and_is_corrected(page):
    drawn(page, 16)
    labels = " ".join(texts(page, "label span, span[data-testid]"))
    assert "Seeds" in labels
    assert "Steps" in labels
    assert "Guidance" not in page.find_element(By.TAG_NAME, "body").text
    assert "Class" not in labels

    fill(page, "Seeds", "3, 5")
    press(page, "Draw")
    drawn(page, 2)
    assert texts(page, "#images .caption-label") == ["seed 3", "seed 5"]
    images = sources(page)

    number = page.find_element(By.CSS_SELECTOR, "#process input[type=number]")
    last = number.get_attribute("value")
    handle = page.find_element(By.CSS_SELECTOR, "#process input[type=range]")
    assert last == handle.get_attribute("max")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys("0", Keys.TAB)
    until(lambda: len(sources(page)) == 2 and not set(sources(page)) & set(images), "the noise")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys(last, Keys.TAB)
    until(lambda: sources(page) == images, "the images again")

    fill(page, "Seeds", "five")
    press(page, "Draw")
    until(lambda: "Seeds must be whole numbers" in page.find_element(By.TAG_NAME, "body").text, "the error")
    assert sources(page) == images

    fill(page, "Seeds", "3, 5")
    press(page, "Other seeds")
    until(lambda: field(page, "Seeds").get_attribute("value") == "6-7", "other seeds")
    until(lambda: texts(page, "#images .caption-label") == ["seed 6", "seed 7"], "their images")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window_and_nothing_failed(page, width):
    resize(page, width)
    script = "return [document.documentElement, ...document.querySelectorAll('#images .grid-wrap')].every("
    script += "part => part.scrollWidth <= part.clientWidth + 1)"
    assert until(lambda: page.execute_script(script), "a page as wide as the window")
    assert [line for line in page.get_log("browser") if line["level"] == "SEVERE"] == []
