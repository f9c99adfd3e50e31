"""The page in Chromium: wide, narrow, by keyboard. Skipped without a browser, but a failure in CI."""

from typing import Any

from browsing import resize, shoot
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from hart.analysis.report import report

from .conftest import Write

OUTSIDE = """
return [...document.querySelectorAll("main *")]
  .filter(each => !each.closest(".scroll table") && each.getBoundingClientRect().right > innerWidth + 0.5)
  .map(each => each.outerHTML.slice(0, 80))
"""
UNREADABLE = """
const size = each => each.getBoundingClientRect().height;
return [...document.querySelectorAll("figure svg text")].filter(each => size(each) < 9).length
"""
CUT = """
return [...document.querySelectorAll("figure svg text")].filter(each => {
  const own = each.getBoundingClientRect(), whole = each.closest("svg").getBoundingClientRect();
  return own.left < whole.left - 1 || own.right > whole.right + 1 || own.bottom > whole.bottom + 1;
}).map(each => each.textContent)
"""


def test_wide_narrow_dark_and_by_keyboard(browser: Any, sweep_folder: Write) -> None:
    page = report(sweep_folder(collection="p3")).path
    for width, scheme in ((1600, "light"), (360, "light"), (360, "dark")):
        resize(browser, width)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(page.as_uri())
        for details in browser.find_elements("css selector", "details"):
            browser.execute_script("arguments[0].open = true", details)
        assert browser.execute_script(OUTSIDE) == []
        assert browser.execute_script(UNREADABLE) == 0
        assert browser.execute_script(CUT) == []
        assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
        shoot(browser, f"report_{width}_{scheme}.png", width)
    colour = "return getComputedStyle(document.body).backgroundColor"
    assert browser.execute_script(colour) != "rgb(255, 255, 255)", "dark where the system is"

    # The table that is wider than the window is reached and moved by keys alone.
    wide = "return document.activeElement.getAttribute('aria-label')"
    keys = webdriver.ActionChains(browser)
    for _ in range(60):
        keys.send_keys(Keys.TAB).perform()
        if browser.execute_script(wide) == "Table 4: T5-Large on P3":
            break
    else:
        raise AssertionError("the keyboard does not reach the table")
    keys.send_keys(*[Keys.ARROW_RIGHT] * 5).perform()
    moved = "return new Promise(done => setTimeout(() => done(document.activeElement.scrollLeft), 500))"
    assert browser.execute_script(moved) > 0
