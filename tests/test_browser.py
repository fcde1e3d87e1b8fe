"""Tests of the fixture that opens pages in a browser, and of the lecture page's script."""

import browser
import pytest
from selenium.webdriver.common.keys import Keys

from experiments.lecture import page
from experiments.reporting import figures


def test_errors_of_a_page_are_reported(open_page):
    driver = open_page("<p>text</p>", width=390)
    assert driver.execute_script("return innerWidth") == 390
    for script in ("throw Error('x')", "console.warn('x')"):
        with pytest.raises(AssertionError, match="x"):
            open_page(f"<script>{script}</script>")
    blocked = "<meta http-equiv='Content-Security-Policy' content=\"script-src 'none'\"><script>1</script>"
    with pytest.raises(AssertionError, match="Content Security Policy"):
        open_page(blocked)


@pytest.mark.parametrize("dark", [False, True])
def test_the_color_scheme_is_the_chosen_one(open_page, dark):
    driver = open_page(page.page("Title", (), []), dark=dark)
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(22, 24, 27)" if dark else "rgb(251, 251, 250)")


def test_a_guess_hides_its_figure(open_page, tmp_path):
    figures.save_figure(figures.new_figure(), tmp_path / "x.png")
    guesses = [page.Guess("x", f"How many {unit}?", unit, 0, 10, 2.5) for unit in ("apples", "pears")]
    shown = [(name, "Title", "", tmp_path / "x.png") for name in "xy"]  # No question is asked for y.
    driver = open_page(page.page("", (), [page.Section("", "", [], shown, [], {}, "", guesses)]))
    figure, other = driver.find_elements("tag name", "figure")
    forms, results = driver.find_elements("tag name", "form"), driver.find_element("class name", "measured")
    assert not any(each.is_displayed() for each in (figure, other, results))
    browser.set_control(driver, forms[0].find_element("tag name", "input"), 4)
    forms[0].find_element("tag name", "button").send_keys(Keys.ENTER)
    assert forms[0].find_element("class name", "truth").text == "Your guess: 4 apples. Result: 2.5 apples."
    assert not any(each.is_displayed() for each in (figure, other, results))
    forms[1].find_element("tag name", "button").send_keys(Keys.SPACE)
    assert all(each.is_displayed() for each in (figure, other, results))
    driver.refresh()
    driver.find_element("id", "show-all").send_keys(Keys.ENTER)
    found = [*driver.find_elements("tag name", "figure"), driver.find_element("class name", "measured")]
    assert len(found) == 3 and all(each.is_displayed() for each in found)
    assert not any(form.is_displayed() for form in driver.find_elements("tag name", "form"))
