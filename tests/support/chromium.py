"""A headless Chromium with a log of its console and its requests."""

import json
import shutil

import pytest
from selenium import webdriver

from tests.support.system_packages import install


def open_chromium():
    """Return a driver; skip the test where Chromium cannot be installed."""
    reason = install({"chromium": "chromium", "chromedriver": "chromium-driver"})
    if reason:
        pytest.skip(f"a real browser: {reason}")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def show(browser, scheme: str, width_px: int) -> None:
    """Set the colour scheme and the width."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width_px, "height": 900, "deviceScaleFactor": 1, "mobile": width_px < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def requested_urls(browser) -> list[str]:
    """Return the addresses that were requested since the last call."""
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    return [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
