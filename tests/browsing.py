"""Pages as trees, and in a browser where there is one."""

import os
import re
import shutil
from xml.etree import ElementTree

import pytest


def tree_of(page) -> ElementTree.Element:
    """The page as a tree; but for its own script it is well-formed XML, too."""
    own, count = re.subn(r"<script>.*</script>", "", page, flags=re.DOTALL)
    assert count == 1
    return ElementTree.fromstring(own)


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium that keeps what its console says."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")
    binary = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("there is no Chromium, or no chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.add_argument("--headless=new")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium has none for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield running
    running.quit()


@pytest.fixture
def browser(chromium):
    """A tab of the test's own: sizes, media and scripts are set for a tab alone."""
    first = chromium.current_window_handle
    chromium.switch_to.new_window("tab")
    chromium.get_log("browser")  # what another test's tab said is told once
    yield chromium
    chromium.close()
    chromium.switch_to.window(first)


def shown_at(browser, width, scheme="light", height=844, opened=True):
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    if opened:
        script = "document.querySelectorAll('details').forEach(one => one.open = true)"
        browser.execute_script(script)


def press(browser, *keys):
    from selenium.webdriver.common.keys import Keys

    for key in keys:
        browser.switch_to.active_element.send_keys(getattr(Keys, key))


def focus(browser, selector):
    browser.execute_script("document.querySelector(arguments[0]).focus()", selector)


def serious(browser):
    """What axe-core calls serious or critical on the page that is shown: rule, places."""
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core is not installed")
    browser.set_script_timeout(120)
    found = axe.Axe().run(browser)
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
