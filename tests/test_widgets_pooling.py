"""Tests of widgets/pooling.js in headless Chromium: its relative change equals that of the experiment."""

import jax.numpy as jnp
import numpy as np
import pytest
from browser import check_console, set_control, widget_page
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from experiments.lecture import pooling


@pytest.fixture(scope="module")
def content(mnist5k):
    images, labels = mnist5k.splits["test"]
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0))) / np.float32(255)
    return pooling.widget(padded, labels)


def expected(content, digit: int, shift: tuple[int, int], pool: str) -> float:
    image = jnp.array(content["digits"][digit])[None, :, :, None]
    bank = jnp.array(content["filters"]).transpose(1, 2, 0)[:, :, None]
    moved = pooling.moved(image, np.array(shift, np.float32), 0.0)
    return float(pooling.changes(image, moved, bank)[pool][0])


def test_the_change_equals_that_of_the_experiment(open_page, content):
    page = open_page(widget_page("pooling", {"pooling": content}))
    widget = page.find_element(By.CSS_SELECTOR, ".widget")
    digit, kind = widget.find_elements(By.TAG_NAME, "select")
    assert digit.text.split() == list("0123456789")  # The classes of the digits.
    _, right, down = widget.find_elements(By.CSS_SELECTOR, "input[type=range]")
    for which, shift, pool, option in (
        (0, (0, 1), "max_4", "maximum 4"),
        (7, (2, -3), "none", "none"),
        (3, (-4, 4), "average_2", "average 2"),
    ):
        for control, value in ((digit, which), (down, shift[0]), (right, shift[1]), (kind, option)):
            set_control(page, control, value)
        change = float(widget.get_attribute("data-change"))
        assert change == pytest.approx(expected(content, which, shift, pool), abs=1e-4)
        assert f"{100 * change:.1f} %" in widget.text
    check_console(page)


def test_the_keyboard_moves_the_digit(open_page, content):
    page = open_page(widget_page("pooling", {"pooling": content}), width=360)
    widget = page.find_element(By.CSS_SELECTOR, ".widget")
    widget.find_elements(By.CSS_SELECTOR, "input[type=range]")[1].send_keys(Keys.ARROW_LEFT)
    assert float(widget.get_attribute("data-change")) == 0  # From a shift of 1 pixel to none.
    assert page.execute_script("return document.documentElement.scrollWidth") <= 360
    check_console(page)
