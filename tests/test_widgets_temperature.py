"""Tests of the widget that shows softmax at any temperature: its numbers are compared with the topic's functions."""

import json

import browser
import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

from experiments.lecture import softmax

LOGITS = np.array([[0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [3.0, 3, -2, 0, 0, 0, 0, 0, 0, 3.5], [-40.0] * 9 + [40]])


@pytest.fixture
def element(open_page, mnist5k):
    images, labels = mnist5k.splits["test"]
    data = softmax.widget(images, labels, {"indices": [0, 150, 990], "logits": LOGITS.tolist()})
    assert data["labels"] == [0, 1, 9]
    driver = open_page(browser.widget_page("softmax", {"temperature": data}))
    return driver.find_element("css selector", "[data-widget=temperature]")


def check(element, logits, temperature: float):
    """Compares the numbers and the text of the widget with those of the project."""
    read = {
        name: json.loads(element.get_attribute(f"data-{name}")) for name in ("temperature", "probabilities", "entropy")
    }
    expected = softmax.softmax(logits, temperature)
    assert read["temperature"] == pytest.approx(temperature)
    np.testing.assert_allclose(read["probabilities"], expected, atol=1e-4)
    assert read["entropy"] == pytest.approx(float(softmax.entropy(expected)), abs=1e-4)
    assert element.find_element("css selector", "[role=status]").text == (
        f"Entropy: {softmax.entropy(expected):.2f} nats; the largest possible is 2.30. "
        f"Prediction: {expected.argmax()}, with the probability {100 * expected.max():.1f} %."
    )
    spans = [span.text for span in element.find_elements("css selector", ".bars > span")]
    assert spans[::3] == [f"{k}: z = {z:.1f}" for k, z in enumerate(logits)]
    assert spans[2::3] == [f"{100 * share:.1f} %" for share in expected]


def test_probabilities_and_entropy_equal_the_projects(element):
    driver = element.parent
    digit, temperature = element.find_element("tag name", "select"), element.find_element("tag name", "input")
    for index, logits in enumerate(LOGITS):
        browser.set_control(driver, digit, index)
        for exponent in (-1, -0.5, 0, 1, 2):
            browser.set_control(driver, temperature, exponent)
            check(element, logits, 10**exponent)
    widths = [bar.size["width"] for bar in element.find_elements("css selector", ".bar")]
    np.testing.assert_allclose(np.array(widths) / sum(widths), softmax.softmax(LOGITS[2], 100), atol=0.01)


def test_the_keyboard_suffices(element):
    driver = element.parent
    check(element, LOGITS[0], 1)
    driver.execute_script("arguments[0].focus()", element.find_element("tag name", "select"))
    driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    check(element, LOGITS[1], 1)
    driver.switch_to.active_element.send_keys(Keys.TAB)
    driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    check(element, LOGITS[1], 10**0.04)
    driver.switch_to.active_element.send_keys(Keys.HOME)
    check(element, LOGITS[1], 0.1)


@pytest.mark.parametrize("width", [320, 1280])
def test_it_fits_the_window(open_page, width):
    data = {"digits": [np.zeros((28, 28)).tolist()], "labels": [3], "logits": [[-12.5] * 10]}
    driver = open_page(browser.widget_page("softmax", {"temperature": data}), width=width)
    assert driver.execute_script("return document.scrollingElement.scrollWidth") <= width
