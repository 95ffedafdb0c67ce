"""Flower, and a browser to look at it with, as an operator has them.

Environment: BRIDGE_TEST_ARTIFACTS names the folder that pictures are kept in; without it that is `artifacts/` of the checkout.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import pytest
from fix_servers import POLL, ROOT, missing, wait_until
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By

from bridge.local.broker import free_port
from bridge.local.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fix_servers import Launcher

COLUMNS = "name,uuid,state,args,result,received,worker"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1500,1100",
)  # fmt: skip


def answers(url: str) -> bool:
    """Whether a server of this machine answers there."""
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.TransportError:
        return False


@dataclass(frozen=True)
class Flower:
    """A Flower that runs."""

    url: str

    def get(self, path: str) -> Any:
        """What a page of it gives to programs."""
        return httpx.get(self.url + path, timeout=30).raise_for_status().json()

    def post(self, path: str, **body: Any) -> Any:
        """One call of its API."""
        return httpx.post(self.url + path, json=body, timeout=60).raise_for_status().json()

    def wait_for_worker(self) -> None:
        """Wait until it has heard of a worker: from then on it hears of jobs too."""
        wait_until(lambda: any(worker["status"] for worker in self.get("/workers?json=1")["data"]), 60, "a worker that Flower knows")

    def wait_for_task(self, task: object, state: str) -> None:
        """Wait until it has heard that a task is in a state: its pages are of the moment when they are opened."""
        wait_until(lambda: self.get("/api/tasks").get(str(task), {}).get("state") == state, 60, f"Flower to know {task} as {state}")


class StartFlower(Protocol):
    """What the fixture `flower` gives."""

    def __call__(self, *celery: str, env: Mapping[str, str] | None = None) -> Flower:
        """Start `celery <words> flower` and wait until it knows a worker."""


@pytest.fixture
def flower(launcher: Launcher) -> StartFlower:
    """Start real Flowers on free ports, whose API takes calls."""

    def start(*celery: str, env: Mapping[str, str] | None = None) -> Flower:
        port = free_port()
        command = [sys.executable, "-m", "celery", *celery, "flower", "--address=127.0.0.1", f"--port={port}", f"--tasks-columns={COLUMNS}"]
        process = launcher.start("flower", command, {"FLOWER_UNAUTHENTICATED_API": "1", **(env or {})})
        flower = Flower(f"http://127.0.0.1:{port}")
        process.wait_ready(lambda: answers(f"{flower.url}/healthcheck"), 60.0)
        flower.wait_for_worker()
        return flower

    return start


@dataclass(frozen=True)
class Browser:
    """A Chromium without a screen."""

    driver: webdriver.Remote

    def open(self, url: str) -> None:
        self.driver.get(url)

    def texts(self, selector: str) -> list[str]:
        """What a reader sees in each element."""
        try:
            return [element.text for element in self.driver.find_elements(By.CSS_SELECTOR, selector)]
        except StaleElementReferenceException:  # the page was drawn anew meanwhile
            return []

    def wait_for_row(self, *words: str) -> str:
        """Wait until a row of a table on the page shows all of these words."""
        deadline = time.monotonic() + 30
        while not (found := next((row for row in self.texts("tbody tr") if all(word in row for word in words)), "")):
            if time.monotonic() > deadline:
                shown = self.texts("tbody tr")
                pytest.fail(f"no row of {self.driver.current_url} shows {words} but {shown}; see {self.picture('failed')}")
            time.sleep(POLL)
        return found

    def details(self) -> dict[str, str]:
        """The names, in lower case, and values of a page of details."""
        names = [
            (element.get_attribute("textContent") or "").strip().lower() for element in self.driver.find_elements(By.CSS_SELECTOR, "dt")
        ]
        return dict(zip(names, self.texts("dd"), strict=True))

    def press(self, button: str) -> None:
        """Press a button of the page."""
        self.driver.find_element(By.ID, button).click()

    def picture(self, name: str) -> Path:
        """Keep what the browser shows."""
        folder = Path(os.environ.get("BRIDGE_TEST_ARTIFACTS") or ROOT / "artifacts")
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.png"
        assert self.driver.save_screenshot(str(file))
        return file


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A new Chromium with a profile of its own, gone afterwards."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        missing("chromium with its driver", "apt-get install chromium chromium-driver")
    port = free_port()
    process = Process("chromedriver", [chromedriver, f"--port={port}"], log=tmp_path / "chromedriver.log", death_signal=signal.SIGKILL)
    process.start()
    process.wait_ready(lambda: answers(f"http://127.0.0.1:{port}/status"), 60)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'chromium'}"):
        options.add_argument(flag)
    driver = webdriver.Remote(f"http://127.0.0.1:{port}", options=options)
    yield Browser(driver)
    driver.quit()
    process.stop()
