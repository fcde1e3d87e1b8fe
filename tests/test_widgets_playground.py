"""Tests of the widget that trains a small network on points: its numbers are compared with JAX's."""

import json

import browser
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import LIMIT
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

import models
from experiments.lecture import perceptron, points
from train.tasks import losses

DATA = perceptron.widget(200)
ONE_STEP, RESET = 1, 2  # The places of the buttons; the first starts and pauses.


class Playground:
    """The widget on an open page."""

    def __init__(self, driver):
        self.driver = driver
        self.element = driver.find_element("css selector", "[data-widget=playground]")
        names = ("data", "hidden", "activation", "rate", "seed")
        self.selects = dict(zip(names, self.element.find_elements("tag name", "select"), strict=True))
        self.buttons = self.element.find_elements("tag name", "button")

    def choose(self, **values):
        for name, value in values.items():
            Select(self.selects[name]).select_by_value(str(value))

    def read(self, name: str):
        """A value of element.dataset; arrays for parameters and gradients."""
        value = json.loads(self.element.get_attribute(f"data-{name}"))
        return {key: np.array(entry) for key, entry in value.items()} if isinstance(value, dict) else value

    def steps(self, count: int):
        script = "for (let i = 0; i < arguments[1]; i++) arguments[0].click()"
        self.driver.execute_script(script, self.buttons[ONE_STEP], count)


@pytest.fixture
def playground(open_page):
    return Playground(open_page(browser.widget_page("perceptron", {"playground": DATA})))


def scored(params, x, activation: str):
    """The logits [N] of points x [N, 2], by the project's mlp."""
    if not len(params["W1"]):
        return x @ params["W2"] + params["b2"]
    network = models.create("mlp", 1, hidden=(len(params["b1"]),), activation=activation)
    tree = {
        "dense1": {"kernel": params["W1"].T, "bias": params["b1"]},
        "logits": {"kernel": params["W2"][:, None], "bias": params["b2"][None]},
    }
    return network.apply({"params": tree}, x)[:, 0]


@pytest.mark.parametrize(
    "data, hidden, activation, rate",
    [
        ("xor", 8, "tanh", 0.3),
        ("moons", 6, "relu", 0.1),
        ("xor", 3, "sigmoid", 3),
        ("moons", 4, "rectified_tanh", 0.3),
        ("separable", 0, "tanh", 1),
    ],
)
def test_gradients_and_loss_equal_those_of_jax(playground, data, hidden, activation, rate):
    playground.choose(data=data, hidden=hidden, activation=activation, rate=rate, seed=2)
    params = {key: jnp.asarray(value, jnp.float32) for key, value in playground.read("params").items()}
    x, y = (np.array(DATA[data][key], np.float32) for key in "xy")

    @jax.jit
    @jax.value_and_grad
    def cost(params):
        return losses.cross_entropy(scored(params, x, activation)[:, None], y.astype(np.int32)).mean()

    def check():
        loss, gradients = cost(params)
        shown = playground.read("gradients")
        for name in gradients.keys() if hidden else ("W2", "b2"):
            np.testing.assert_allclose(shown[name], gradients[name], atol=1e-5, rtol=1e-4, err_msg=name)
            assert np.abs(shown[name]).max() > 1e-3
        assert playground.read("loss") == pytest.approx(float(loss), abs=1e-4)
        accuracy = float(((scored(params, x, activation) > 0) == (y > 0.5)).mean())
        assert playground.read("accuracy") == pytest.approx(accuracy, abs=1e-4)
        return float(loss)

    first = check()
    playground.steps(20)
    for _ in range(20):
        params = jax.tree.map(lambda p, g: p - rate * g, params, cost(params)[1])
    assert playground.read("step") == 20 and check() < first - 0.01
    status = playground.element.find_element("css selector", "[role=status]").text
    assert status.startswith(f"Step 20: cost {playground.read('loss'):.4f}, accuracy ") and "200 points" in status


def test_eight_units_learn_xor_as_well_as_the_project(playground):
    x, y = (np.array(DATA["xor"][key], np.float32) for key in "xy")
    fitted = points.fit(jax.random.key(0), x, y, method="mlp", steps=300, hidden=8)
    expected = float(((points.score(fitted, x) > 0) == (y > 0.5)).mean())
    assert expected > 0.99
    playground.buttons[0].click()
    waiting = WebDriverWait(playground.driver, LIMIT, poll_frequency=0.2)
    waiting.until(lambda _: playground.read("accuracy") >= expected - 1e-9)
    playground.buttons[0].click()
    playground.choose(hidden=0, rate=1)
    assert playground.read("step") == 0 and not playground.read("running")
    playground.steps(100)
    assert playground.read("accuracy") < 0.8


def test_the_regions_show_the_prediction(playground):
    playground.choose(data="moons", hidden=0, rate=3)
    playground.steps(50)
    params = playground.read("params")
    script = """const canvas = arguments[0], side = canvas.width, pixels = [];
    const all = canvas.getContext('2d').getImageData(0, 0, side, side).data;
    for (let i = 0; i < 20; i++) for (let j = 0; j < 20; j++) {
      const at = 4 * (Math.round((i + 0.5) * side / 20) * side + Math.round((j + 0.5) * side / 20));
      pixels.push([all[at], all[at + 2]]);
    }
    return pixels;"""
    canvas = playground.element.find_element("tag name", "canvas")
    red, blue = np.array(playground.driver.execute_script(script, canvas)).T
    x = np.array(DATA["moons"]["x"])
    low, high = x.min(0), x.max(0)
    side = np.linspace(-0.95, 0.95, 20) * ((high - low).max() / 2 + 0.3)
    down, right = np.meshgrid(-side, side, indexing="ij")
    grid = np.stack([right, down], -1).reshape(-1, 2) + (low + high) / 2
    orange = scored(params, grid, "tanh") > 0
    assert 0.2 < orange.mean() < 0.8
    assert ((red > blue) == orange).mean() > 0.95  # Some pixels show a point or the dashed line.


def test_the_keyboard_suffices(playground):
    def press(*keys):
        playground.driver.switch_to.active_element.send_keys(*keys)

    start = playground.buttons[0]
    playground.driver.execute_script("arguments[0].focus()", playground.selects["data"])
    press(Keys.TAB)
    press(Keys.ARROW_DOWN)  # 16 hidden units
    before = playground.read("params")
    assert before["W1"].shape == (16, 2)
    for _ in range(4):
        press(Keys.TAB)
    assert start.text == "Start"
    press(Keys.ENTER)
    assert playground.read("running") and start.text == "Pause"
    WebDriverWait(playground.driver, LIMIT).until(lambda _: playground.read("step") > 3)
    press(Keys.SPACE)
    step = playground.read("step")
    assert not playground.read("running") and start.text == "Start"
    press(Keys.TAB)
    press(Keys.SPACE)
    assert playground.read("step") == step + 1
    press(Keys.TAB)
    press(Keys.ENTER)
    after = playground.read("params")
    assert playground.read("step") == 0 and all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize("width", [320, 1280])
def test_it_fits_the_window(open_page, width):
    driver = open_page(browser.widget_page("perceptron", {"playground": DATA}), width=width)
    assert driver.execute_script("return document.scrollingElement.scrollWidth") <= width
    canvas = driver.find_element("css selector", "[data-widget=playground] canvas")
    assert canvas.size["width"] == canvas.size["height"] >= 200
