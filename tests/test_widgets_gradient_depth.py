"""Tests of the widget that plots gradient norms by layer: its numbers are compared with those of a run."""

import itertools
import json

import browser
import numpy as np
import pytest
from commands import LIMIT
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from experiments.lecture import topic, vanishing_gradient
from experiments.lecture.deep_nets import INITS

NETS = list(itertools.product(vanishing_gradient.LINES, INITS))
WHEN = ("start", "after")
WIDER = {"width": 800, "height": 900, "deviceScaleFactor": 1, "mobile": False}


def drawn_norms():
    """Norms of two seeds in four layers, from 1e-12 to 1, in the form of `vanishing_gradient.norms`."""
    random = np.random.default_rng(0)
    return {
        net: [{when: (10 ** random.uniform(-12, 0, 4)).tolist() for when in WHEN} for _ in range(2)] for net in NETS
    }


NORMS = drawn_norms()
DATA = vanishing_gradient.widget(NORMS)


def values(norms, name: str, init: str, when: str) -> np.ndarray:
    """The norms [seeds, layers]."""
    return np.array([seed[when] for seed in norms[name, init]])


class GradientDepth:
    """The widget on an open page."""

    def __init__(self, driver):
        self.driver = driver
        self.element = driver.find_element("css selector", "[data-widget=gradient_depth]")
        self.selects = self.element.find_elements("tag name", "select")
        self.slider = self.element.find_element("css selector", "input[type=range]")

    def choose(self, *values):
        for select, value in zip(self.selects, values, strict=True):
            Select(select).select_by_value(value)

    def read(self):
        """The numbers in element.dataset, and the text."""
        names = ("layer", "norm", "low", "high", "ratio", "factor")
        found = [self.element.get_attribute(f"data-{name}") for name in names]
        return [None if each == "null" else float(each) for each in found], self.status()

    def status(self):
        return self.element.find_element("css selector", "[role=status]").text


@pytest.fixture
def widget(open_page):
    return GradientDepth(open_page(browser.widget_page("vanishing_gradient", {"gradient_depth": DATA})))


def check_numbers(widget, norms, steps: int):
    for (name, init), when in itertools.product(NETS, WHEN):
        widget.choose(name, init, when)
        found = values(norms, name, init, when)
        for layer in (1, 3, 4):
            browser.set_control(widget.driver, widget.slider, layer)
            (shown, *numbers, factor), text = widget.read()
            here, ratio = found[:, layer - 1], np.mean(found[:, layer - 1] / found[:, -1])
            np.testing.assert_allclose(numbers, [here.mean(), here.min(), here.max(), ratio], rtol=1e-4)
            assert shown == layer
            if layer < 4:
                assert factor == pytest.approx(ratio ** (1 / (4 - layer)), rel=1e-4)
            else:
                assert factor is None and "times that of" not in text
        place = {"start": "before training", "after": f"after {steps} steps"}[when]
        label = vanishing_gradient.LINES[name][0]
        assert text.startswith(f"{label}, {init.title()} initialization, {place}: the gradient norm of layer 4 is")


def test_numbers_equal_the_norms(widget):
    check_numbers(widget, NORMS, vanishing_gradient.AFTER)


@pytest.mark.slow
def test_numbers_equal_those_of_a_run(tmp_path, monkeypatch, open_page):
    monkeypatch.setattr(topic, "start_cache", lambda: None)
    monkeypatch.setattr(vanishing_gradient, "AFTER", 2)
    monkeypatch.setattr(vanishing_gradient, "RATES", (1.0,))
    options = {"seeds": 2, "steps": 1, "hidden_layers": 3}
    assert topic.run("vanishing_gradient", vanishing_gradient.experiment, workdir=str(tmp_path), options=options) == 0
    lesson, summary = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("lesson", "summary"))
    pieces = {net: [tmp_path / "pieces" / f"norms_{'_'.join(net)}_seed{seed}.json" for seed in (0, 1)] for net in NETS}
    norms = {net: [json.loads(piece.read_text())["found"] for piece in found] for net, found in pieces.items()}
    widget = GradientDepth(open_page(browser.widget_page("vanishing_gradient", lesson["widgets"])))
    check_numbers(widget, norms, 2)
    for (name, init), (when, key) in itertools.product(NETS, zip(WHEN, vanishing_gradient.MEASURED, strict=False)):
        widget.choose(name, init, when)
        browser.set_control(widget.driver, widget.slider, 1)
        assert widget.read()[0][4] == pytest.approx(summary[key][f"{name}_{init}"]["mean"], rel=1e-4)


def test_curves_are_drawn_on_a_log_scale(widget):
    everything = np.array([values(NORMS, *net, when) for net in NETS for when in WHEN])
    lowest, highest = np.floor(np.log10(everything.min())), np.ceil(np.log10(everything.max()))
    widget.choose("tanh", "kaiming", "after")
    lines = widget.element.find_elements("css selector", "polyline")
    assert [line.get_attribute("data-activation") for line in lines][-1] == "tanh" and len(lines) == 4
    for line in lines:
        x, y = np.array([point.split(",") for point in line.get_attribute("points").split()], float).T
        mean = values(NORMS, line.get_attribute("data-activation"), "kaiming", "after").mean(0)
        np.testing.assert_allclose(y, 296 - 264 * (np.log10(mean) - lowest) / (highest - lowest), atol=0.1)
        np.testing.assert_allclose(np.diff(x), (x[-1] - x[0]) / 3, atol=0.1)


def test_keyboard_operation(widget):
    norms = values(NORMS, "sigmoid", "glorot", "start").mean(0)
    widget.slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    (layer, norm, *_), _ = widget.read()
    assert layer == 3 and norm == pytest.approx(norms[2], rel=1e-4)
    widget.slider.send_keys(Keys.END, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert widget.read()[0][:2] == [1, pytest.approx(norms[0], rel=1e-4)]
    widget.selects[0].send_keys("t")  # The first choice that begins with this letter.
    assert widget.status().startswith("tanh, Glorot")
    widget.selects[1].send_keys(Keys.ARROW_DOWN)
    assert widget.status().startswith("tanh, Kaiming")
    assert widget.read()[0][1] == pytest.approx(values(NORMS, "tanh", "kaiming", "start").mean(0)[0], rel=1e-4)


def test_numbers_that_vanish_or_overflow(open_page):
    """A norm of 0 has no place on a log scale, and JSON has no infinity."""
    seeds = [{"start": [0.0, 2e-7, 250.0], "after": [float("inf"), 1.0, 0.0]}] * 2
    data = vanishing_gradient.widget({(name, init): seeds for name in vanishing_gradient.LINES for init in INITS})
    json.dumps(data, allow_nan=False)
    widget = GradientDepth(open_page(browser.widget_page("vanishing_gradient", {"gradient_depth": data})))
    assert "layer 1 is 0 (mean over 2 seeds; from 0 to 0), 0 times that of layer 3" in widget.status()
    line = widget.element.find_elements("css selector", "polyline")[-1]
    assert len(line.get_attribute("points").split()) == 2
    browser.set_control(widget.driver, widget.slider, 2)
    assert "layer 2 is 2.0·10⁻⁷ (" in widget.status() and "8.0·10⁻¹⁰ times" in widget.status()
    widget.choose("sigmoid", "glorot", "after")
    browser.set_control(widget.driver, widget.slider, 1)
    assert "layer 1 is not finite" in widget.status()


def test_narrow_page(open_page):
    driver = open_page(browser.widget_page("vanishing_gradient", {"gradient_depth": DATA}), width=390)
    script = "return document.querySelector('.widget svg[role=img]').getBoundingClientRect().width"
    assert 260 <= driver.execute_script(script) <= 360
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", WIDER)
    WebDriverWait(driver, LIMIT).until(lambda driver: driver.execute_script(script) > 500)  # Drawn again.
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", WIDER | {"width": 390})
    WebDriverWait(driver, LIMIT).until(lambda driver: driver.execute_script(script) < 360)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
