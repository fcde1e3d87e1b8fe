"""Opens pages in headless Chromium, for the tests of the lecture's widgets; conftest.py has the fixture `open_page`."""

import contextlib
import os
import shutil

import pytest

SWITCHES = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--force-device-scale-factor=1")


@contextlib.contextmanager
def started():
    """The selenium driver of a new Chromium or Chrome. If there is none, or no chromedriver, the test is skipped, or
    fails if the environment variable REQUIRE_CHROMIUM is set."""
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException

    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        (pytest.fail if "REQUIRE_CHROMIUM" in os.environ else pytest.skip)("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for switch in SWITCHES:
        options.add_argument(switch)
    for attempt in range(10):
        try:
            driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
            break
        except WebDriverException:  # Selenium waits half a minute for it, which a loaded machine may exceed.
            if attempt == 9:
                raise
    try:
        yield driver
    finally:
        driver.quit()


def open_page(driver, folder, html: str, *, width: int = 1280, height: int = 900, dark: bool = False):
    """Opens `html`, written to `folder`, in a window of that size in pixels, with the light or dark color scheme.
    Returns the driver, after checking that the page has logged no errors so far."""
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get(path.as_uri())
    check_console(driver)
    return driver


def check_console(driver) -> None:
    """Checks that the page has logged nothing since the last check: no exception, no violation of its content security
    policy, no warning."""
    messages = [entry["message"] for entry in driver.get_log("browser")]
    assert not messages, messages


def widget_page(lesson: str, widgets: dict) -> str:
    """The lecture page with that lesson only, with the data of its widgets by name, but without measurements."""
    from experiments.lecture import page

    return page.page("", (), [page.Section("", lesson, [], [], [], {}, "", widgets=widgets)])


def set_control(driver, control, value) -> None:
    """Sets a range input or a select to `value`, as a user does."""
    script = "arguments[0].value = arguments[1]; for (const name of ['input', 'change']) "
    script += "arguments[0].dispatchEvent(new Event(name, { bubbles: true }));"
    driver.execute_script(script, control, value)
