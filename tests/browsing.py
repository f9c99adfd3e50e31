"""Pages in Chromium: the browser, its width, and optional screenshots."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SHOTS = os.environ.get("HART_SHOTS")
"""A folder for screenshots, where they are wanted."""


@contextmanager
def chromium(downloads: Path) -> Iterator[Any]:
    """A browser without a window; what its console complains of at the end, an answer 401 excepted, is a failure.

    Without a browser the test is skipped, in the CI it fails.
    """
    if BROWSER is None or DRIVER is None:
        missing = "needs chromium and chromedriver, for example: apt-get install chromium chromium-driver"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    complaints = [line for line in driver.get_log("browser") if "status of 401" not in line["message"]]
    driver.quit()
    assert complaints == []  # among them whatever the content policy forbade


def resize(browser: Any, width: int, height: int = 900) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def shoot(browser: Any, name: str, width: int) -> None:
    """Take a picture of the whole page, if a folder for it is given."""
    if SHOTS:
        height = browser.execute_script("return document.documentElement.scrollHeight")
        resize(browser, width, height)
        time.sleep(0.3)
        browser.save_screenshot(str(Path(SHOTS) / name))
