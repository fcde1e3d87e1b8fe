"""Tests of the widget that classifies a drawn digit: its logits and feature maps equal those of the network."""

import json

import browser
import jax
import numpy as np
import pytest
from scipy import ndimage
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

import models
from experiments.lecture import abstraction
from models.layers import relu

MODEL = models.create("cnn", 10)


@pytest.fixture(scope="module")
def variables():
    """Variables of the network in which no batch norm is the identity and no bias is zero."""
    random = np.random.default_rng(0)
    made = jax.jit(MODEL.init)(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))

    def drawn(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return np.asarray(leaf)
        low, high = (0.5, 2) if name in ("scale", "var") else (-0.5, 0.5)
        return random.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(drawn, made)


@pytest.fixture(scope="module")
def network(variables):
    """The logits [10] of an image [28, 28] with values from 0 to 1."""
    apply = jax.jit(lambda images: MODEL.apply(variables, images))
    return lambda image: np.asarray(apply(np.asarray(image, np.float32)[None, :, :, None])[0])


@pytest.fixture
def make(open_page, variables, mnist5k):
    """make(digits) opens the page with these images [10, 28, 28]; None for the project's."""

    def opened(digits=None, **options):
        found = {"layers": abstraction.folded(variables), "accuracy": 0.9876}
        data = abstraction.widget(*mnist5k.splits["test"], found)
        data["digits"] = data["digits"] if digits is None else np.asarray(digits).tolist()
        driver = open_page(browser.widget_page("abstraction", {"draw": data}), **options)
        return driver.find_element("css selector", "[data-widget=draw]"), np.array(data["digits"])

    return opened


def centered(image):
    """The image [28, 28] with its longer side scaled to 20 pixels and its center of mass moved to pixel (14, 14)."""
    sides = [np.ptp(np.flatnonzero(image.any(axis))) + 1 for axis in (0, 1)]
    scale = 20 / max(sides)
    middle = np.floor(np.array(ndimage.center_of_mass(image)) + 0.5)
    return ndimage.affine_transform(image, [1 / scale] * 2, middle - 14 / scale, order=1, mode="grid-constant")


def painted(image, begin, end):
    """The image with a line between two pixels (x, y): the maximum of the old value and 1.6 - distance."""
    begin, end = np.array(begin, float), np.array(end, float)
    points = np.stack(np.meshgrid(np.arange(28), np.arange(28)), -1)
    steps = begin + np.linspace(0, 1, 2001)[:, None, None, None] * (end - begin)
    distance = np.sqrt(((points - steps) ** 2).sum(-1)).min(0)
    return np.maximum(image, np.clip(1.6 - distance, 0, 1))


def logits(element):
    return np.array(json.loads(element.get_attribute("data-logits")))


def choose(element, digit):
    browser.set_control(element.parent, element.find_element("tag name", "select"), digit)


def test_logits_equal_the_projects_on_ten_test_digits(make, network):
    element, digits = make()
    unchanged = []
    for digit, image in enumerate(digits / 255):
        choose(element, digit)
        np.testing.assert_allclose(logits(element), network(centered(image)), atol=1e-4)
        unchanged.append(np.array_equal(centered(image), image))
        expected = jax.nn.softmax(network(centered(image)))
        status = element.find_element("css selector", "[role=status]").text
        assert status == f"Prediction: {expected.argmax()}, with the probability {100 * expected.max():.1f} %."
    assert all(unchanged)  # MNIST's digits are centered and scaled like this already.
    assert "The network classifies 98.8 % of the test digits correctly." in element.text


def test_drawings_are_centered_and_scaled(make, network, mnist5k):
    images = mnist5k.splits["test"][0][::100, :, :, 0]
    moved = np.stack([np.roll(image, (k % 5 - 2, 2 - k % 4), (0, 1)) for k, image in enumerate(images)])
    moved[5:] = 0
    moved[5:, 2:16, 11:25] = images[5:, ::2, ::2]
    element, _ = make(moved)
    for digit, image in enumerate(moved / 255):
        choose(element, digit)
        np.testing.assert_allclose(logits(element), network(centered(image)), atol=1e-4)
        if digit < 5:
            np.testing.assert_allclose(logits(element), network(centered(images[digit] / 255)), atol=1e-4)


def test_feature_maps_equal_the_projects(make, variables):
    element, digits = make()
    choose(element, 4)
    image = centered(digits[4] / 255).astype(np.float32)[None, :, :, None]
    _, captured = MODEL.apply(variables, image, capture_intermediates=True)
    script = """const canvas = arguments[0], { width, height } = canvas;
    const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
    return [height, width, [...data].filter((_, i) => i % 4 === 0)];"""
    for i, canvas in enumerate(element.find_elements("css selector", "canvas.maps"), 1):
        height, width, pixels = element.parent.execute_script(script, canvas)
        maps = np.asarray(relu(captured["intermediates"][f"bn{i}"]["__call__"][0][0]))
        side, _, channels = maps.shape
        rows = np.pad(maps, ((0, 1), (0, 1), (0, 0))).reshape(side + 1, side + 1, channels // 8, 8)
        grid = rows.transpose(2, 0, 3, 1).reshape(channels // 8 * (side + 1), 8 * (side + 1))[:-1, :-1]
        assert (height, width) == grid.shape and grid.max() > 0
        np.testing.assert_allclose(np.reshape(pixels, grid.shape), 255 * grid / grid.max(), atol=0.51)
    assert i == 3


def test_the_keyboard_suffices(make, network):
    element, _ = make()
    driver = element.parent

    def press(*keys):
        driver.switch_to.active_element.send_keys(*keys)

    driver.execute_script("arguments[0].focus()", element.find_element("tag name", "select"))
    press(Keys.TAB)
    press(Keys.TAB)
    press(Keys.ENTER)  # Clear
    np.testing.assert_allclose(logits(element), network(np.zeros((28, 28))), atol=1e-4)
    assert "The canvas is empty" in element.find_element("css selector", "[role=status]").text
    press(Keys.TAB)
    assert driver.switch_to.active_element.tag_name == "canvas"
    scrolled = driver.execute_script("return scrollY")
    press(*[Keys.ARROW_UP] * 6, *[Keys.ARROW_LEFT] * 4)
    np.testing.assert_allclose(logits(element), network(np.zeros((28, 28))), atol=1e-4)
    press(Keys.SPACE)
    image = painted(np.zeros((28, 28)), (10, 8), (10, 8))
    np.testing.assert_allclose(logits(element), network(centered(image)), atol=1e-4)
    press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    ActionChains(driver).key_down(Keys.SHIFT).send_keys(*[Keys.ARROW_RIGHT] * 5, *[Keys.ARROW_DOWN] * 12).perform()
    ActionChains(driver).key_up(Keys.SHIFT).perform()
    image = painted(painted(image, (12, 8), (17, 8)), (17, 8), (17, 20))
    np.testing.assert_allclose(logits(element), network(centered(image)), atol=1e-4)
    assert driver.execute_script("return scrollY") == scrolled  # The keys do not move the page.
    press(*[Keys.ARROW_RIGHT] * 30, *[Keys.ARROW_DOWN] * 30, Keys.SPACE)  # The cursor stays on the canvas.
    image = painted(image, (27, 27), (27, 27))
    np.testing.assert_allclose(logits(element), network(centered(image)), atol=1e-4)


def test_the_pointer_draws_and_erases(make, network):
    element, _ = make(width=320)
    driver = element.parent
    tool, canvas = element.find_elements("tag name", "select")[1], element.find_element("tag name", "canvas")
    element.find_element("tag name", "button").click()

    def drag(begin, end):
        """Moves the pressed pointer between two places, in window pixels from the center of the canvas. Returns both in
        pixels of the drawing."""
        move = ActionChains(driver, duration=50).move_to_element_with_offset(canvas, *begin).click_and_hold()
        move.move_to_element_with_offset(canvas, *end).release().perform()
        place = driver.execute_script("const box = arguments[0].getBoundingClientRect(); return [box.x, box.y]", canvas)
        box = driver.execute_script("return [arguments[0].clientWidth, arguments[0].clientHeight]", canvas)
        assert min(box) > 200
        middle = np.floor(np.array(place) + (np.array(box) + 2) / 2)
        return [(middle + shift - place - 1) / box * 28 - 0.5 for shift in (begin, end)]

    image = painted(np.zeros((28, 28)), *drag((-60, -80), (50, -80)))
    image = painted(image, *drag((50, -80), (-20, 90)))
    np.testing.assert_allclose(logits(element), network(centered(image)), atol=1e-3)
    browser.set_control(driver, tool, "eraser")
    ink = painted(np.zeros((28, 28)), *drag((-60, -80), (0, -80)))
    image = np.minimum(image, 1 - ink)
    np.testing.assert_allclose(logits(element), network(centered(image)), atol=1e-3)


@pytest.mark.parametrize("width", [320, 1280])
def test_it_fits_the_window(make, width):
    element, _ = make(width=width)
    assert element.parent.execute_script("return document.scrollingElement.scrollWidth") <= width
