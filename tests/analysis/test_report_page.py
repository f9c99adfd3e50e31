"""The page in Chromium: wide, narrow, by keyboard. Skipped without a browser, in the CI a failure."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from hart.analysis.report import report

from .conftest import Write

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SHOTS = os.environ.get("HART_SHOTS")
"""A folder for screenshots, where they are wanted."""

OUTSIDE = """
return [...document.querySelectorAll("main *")]
  .filter(each => !each.closest(".scroll table") && each.getBoundingClientRect().right > innerWidth + 0.5)
  .map(each => each.outerHTML.slice(0, 80))
"""
UNREADABLE = """
const size = each => each.getBoundingClientRect().height;
return [...document.querySelectorAll("figure svg text")].filter(each => size(each) < 7).length
"""


@pytest.fixture
def browser() -> Iterator[Any]:
    if BROWSER is None or DRIVER is None:
        missing = "needs chromium and chromedriver, for example: apt-get install chromium chromium-driver"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    complaints = driver.get_log("browser")
    driver.quit()
    assert complaints == []


def test_wide_narrow_dark_and_by_keyboard(browser: Any, sweep_folder: Write) -> None:
    page = report(sweep_folder(collection="p3")).path
    for width, scheme in ((1600, "light"), (360, "light"), (360, "dark")):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(page.as_uri())
        for details in browser.find_elements("css selector", "details"):
            browser.execute_script("arguments[0].open = true", details)
        assert browser.execute_script(OUTSIDE) == []
        assert browser.execute_script(UNREADABLE) == 0
        assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
        if SHOTS:
            height = browser.execute_script("return document.documentElement.scrollHeight")
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**metrics, "height": height})
            browser.save_screenshot(str(Path(SHOTS) / f"report_{width}_{scheme}.png"))
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
