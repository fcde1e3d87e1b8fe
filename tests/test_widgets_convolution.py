"""Tests of the widget that moves a kernel over a digit: its numbers are compared with the project's convolution."""

import json

import browser
import jax
import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from experiments.lecture import convolution
from models.layers import Conv, relu

SIDE = 24


@pytest.fixture(scope="module")
def layer():
    random = np.random.default_rng(0)
    return {"kernel": random.normal(0, 0.3, (5, 5, 1, 8)).astype(np.float32), "bias": np.linspace(-0.4, 0.3, 8)}


class Widget:
    def __init__(self, driver):
        self.driver, self.element = driver, driver.find_element("css selector", "[data-widget=convolution]")
        self.image, self.map = self.element.find_elements("tag name", "canvas")
        self.digit, self.filter = (self.element.find_element("tag name", name) for name in ("select", "input"))

    def read(self, name: str):
        return json.loads(self.element.get_attribute(f"data-{name}"))

    def position(self):
        return self.read("row"), self.read("column")

    def tables(self):
        """The numbers in the three tables [3, 5, 5]: pixels, weights and products, rounded to two digits."""
        cells = [cell.text.replace("−", "-") for cell in self.element.find_elements("tag name", "td")]
        return np.array(cells, float).reshape(3, 5, 5)


@pytest.fixture
def widget(open_page, mnist5k, layer):
    data = convolution.widget(*mnist5k.splits["test"], layer)
    return Widget(open_page(browser.widget_page("convolution", {"convolution": data})))


def test_the_feature_map_equals_the_convolution(widget, mnist5k, layer):
    images, labels = mnist5k.splits["test"]
    shown = [images[np.flatnonzero(labels == label)[0]] / np.float32(255) for label in range(10)]
    conv = jax.jit(Conv(8, (5, 5), padding="VALID").apply)
    sums = np.asarray(conv({"params": jax.tree.map(np.float32, layer)}, np.stack(shown)))
    maps = np.asarray(relu(sums))
    for digit, number in ((0, 1), (4, 3), (9, 8)):
        browser.set_control(widget.driver, widget.digit, digit)
        browser.set_control(widget.driver, widget.filter, number)
        expected = maps[digit, :, :, number - 1]
        assert expected.shape == (SIDE, SIDE) and 0 < (expected > 0.01).mean() < 1
        np.testing.assert_allclose(widget.read("map"), expected, atol=1e-4)
        row, column = widget.position()
        z, bias = sums[digit, row, column, number - 1], layer["bias"][number - 1]
        assert widget.read("z") == pytest.approx(z, abs=1e-4)
        assert widget.read("value") == pytest.approx(max(z, 0), abs=1e-4)
        assert widget.read("sum") == pytest.approx(z - bias, abs=1e-4)
        patch, kernel = shown[digit][row : row + 5, column : column + 5, 0], layer["kernel"][:, :, 0, number - 1]
        np.testing.assert_allclose(widget.tables(), [patch, kernel, patch * kernel], atol=0.00501)
        text = widget.element.find_element("css selector", "[role=status]").text.replace("−", "-")
        assert text == (
            f"Row {row}, column {column}: sum of the products {widget.read('sum'):.3f}, bias {bias:.3f}, together "
            f"z = {widget.read('z'):.3f}; after the ReLU, a = {widget.read('value'):.3f}"
        )


def test_arrow_keys_move_the_kernel(widget):
    widget.driver.execute_script("arguments[0].focus()", widget.filter)
    widget.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert widget.driver.switch_to.active_element == widget.image
    feature_map = widget.read("map")
    row, column = widget.position()
    assert feature_map[row][column] == max(map(max, feature_map))  # It starts at the strongest response.
    assert 2 <= row < SIDE - 1 and 1 <= column < SIDE - 1
    widget.image.send_keys(Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_LEFT)
    assert widget.position() == (row - 2, column - 1)
    widget.image.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert widget.position() == (row - 1, column + 1)
    assert widget.read("value") == feature_map[row - 1][column + 1]
    widget.image.send_keys(*[Keys.ARROW_DOWN] * SIDE, *[Keys.ARROW_RIGHT] * SIDE)
    assert widget.position() == (SIDE - 1, SIDE - 1)  # The kernel stays inside the image.


def test_the_kernel_follows_the_pointer(widget):
    """The offsets are pixels from the middle of a canvas; a pixel of the digit is eight wide."""
    ActionChains(widget.driver).move_to_element_with_offset(widget.image, -36, 20).perform()
    assert widget.position() == (14, 7)  # The kernel's middle is in row 16 and column 9 of the digit.
    ActionChains(widget.driver).move_to_element_with_offset(widget.map, 4, -92).perform()
    assert widget.position() == (0, 12)


@pytest.mark.parametrize("width", [320, 1280])
def test_it_fits_the_window(open_page, mnist5k, layer, width):
    data = convolution.widget(*mnist5k.splits["test"], layer)
    driver = open_page(browser.widget_page("convolution", {"convolution": data}), width=width)
    assert driver.execute_script("return document.scrollingElement.scrollWidth") <= width
