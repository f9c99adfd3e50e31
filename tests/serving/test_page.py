"""The page in Chromium: adapt, ask, download, by keyboard, narrow. Skipped without a browser, but a failure in CI."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import resize, shoot
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from hart import Client
from hart.serving.download import unbundle

from .conftest import running

WIDER_THAN_ITS_CARD = """
return [...document.querySelectorAll(".card *, .card")]
  .filter(each => each.getBoundingClientRect().right > each.closest(".card").getBoundingClientRect().right + 0.5
    || each.getBoundingClientRect().right > innerWidth)
  .map(each => each.id || each.tagName)
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running("mini", "--store", tmp_path_factory.mktemp("store")) as (_, url):
        yield url


def text(browser: Any, id: str) -> str:
    return browser.find_element("id", id).text


def until(browser: Any, condition: Callable[[], Any]) -> Any:
    return WebDriverWait(browser, 20, poll_frequency=0.05).until(lambda _: condition())


@pytest.mark.parametrize("width", [1000, 360])
def test_adapt_ask_and_download(browser: Any, address: str, width: int, tmp_path: Path) -> None:
    resize(browser, width, 900)
    browser.get(address)
    until(browser, lambda: "mini" in text(browser, "model"))
    Select(browser.find_element("id", "example")).select_by_visible_text("Only the fruits")
    browser.find_element("id", "adapt").click()
    until(browser, lambda: "in one forward pass of" in text(browser, "adapted"))
    for query in ("dog grape saw lime", "plum lion hat banana"):
        field = browser.find_element("id", "queries")
        field.clear()
        field.send_keys(query)
        browser.find_element("id", "send").click()
        until(browser, lambda: text(browser, "answers").splitlines()[:1] == [query])  # noqa: B023
    newest = browser.find_element("css selector", "#answers li")
    assert newest.find_element("css selector", ".with").text == "plum banana done"
    assert newest.find_element("css selector", ".without").text not in ("", "plum banana done")
    browser.find_element("id", "download").click()
    packed = until(browser, lambda: [*(tmp_path / "got").glob("*.zip")])[0]
    assert unbundle(packed.read_bytes()).tasks[0]["Definition"][0].startswith("You are given a list of words.")
    assert browser.execute_script(WIDER_THAN_ITS_CARD) == []
    shoot(browser, f"page_{width}.png", width)


NAMES = (
    "Only the fruits",
    "How many are no animals? (with choices)",
    "The opposite of the last",
    "Who gave, and to whom",
    "The first number above ten",
    "Everybody's fruit, first and last exchanged",
    "The first in brackets",
)
ANSWERS = (
    ["plum banana done", "grape lime done"],
    ["two", "three"],
    ["rich", "closed"],
    ["Mark Tom done"],
    ["fifteen", "thirteen"],
    ["banana cherry berry"],
    ["pilot", "yellow"],
)


def answers_to(browser: Any, example: str, count: int) -> list[Any]:
    """Of the adapted model to the queries of an example, in their order."""
    Select(browser.find_element("id", "example")).select_by_visible_text(example)
    browser.find_element("id", "adapt").click()
    until(browser, lambda: browser.find_element("id", "send").is_enabled())
    before = len(browser.find_elements("css selector", "#answers li"))
    browser.find_element("id", "send").click()
    until(browser, lambda: len(browser.find_elements("css selector", "#answers li")) == before + count)
    found: list[Any] = browser.find_elements("css selector", "#answers .with")[:count]
    return found


def test_examples_of_several_families_are_answered_right(browser: Any, address: str) -> None:
    """Each with all of its queries at once, in their order; with choices the bars say the same."""
    browser.get(address)
    until(browser, lambda: "mini" in text(browser, "model"))
    options = Select(browser.find_element("id", "example"))
    assert tuple(option.text for option in options.options[1:]) == NAMES
    for name, expected in zip(NAMES, ANSWERS, strict=True):
        found = answers_to(browser, name, len(expected))
        if "choices" in name:
            found = [each.find_element("css selector", ".chosen .choice") for each in found]
        assert [each.text for each in found] == expected
    bars = browser.find_elements("css selector", "#answers dl:has(meter) .with")[0]
    values = [float(each.get_attribute("value")) for each in bars.find_elements("css selector", "meter")]
    assert sum(values) == pytest.approx(1, abs=1e-6) and max(values) == values[1]
    browser.find_element("id", "choices").clear()
    browser.find_element("id", "choices").send_keys("one")
    browser.find_element("id", "send").click()
    until(browser, lambda: "at least two choices" in text(browser, "ask-problem"))


def test_the_decoder_only_model_has_examples_that_it_solves(browser: Any, tmp_path: Path) -> None:
    with running("mini-causal", "--store", tmp_path / "store") as (_, url):
        browser.get(url)
        until(browser, lambda: "mini-causal, which knows a few hundred words" in text(browser, "model"))
        options = Select(browser.find_element("id", "example"))
        solved = {name: answers for name, answers in zip(NAMES, ANSWERS, strict=True) if "How many" not in name}
        assert [option.text for option in options.options[1:]] == [*solved]
        for name, expected in solved.items():
            found = answers_to(browser, name, len(expected))
            assert [each.text for each in found] == expected


def test_a_query_that_is_far_from_the_training_is_told_of(browser: Any, address: str) -> None:
    browser.get(address)
    until(browser, lambda: "a few hundred words" in text(browser, "model"))
    Select(browser.find_element("id", "example")).select_by_visible_text("Only the fruits")
    browser.find_element("id", "adapt").click()
    until(browser, lambda: browser.find_element("id", "send").is_enabled())
    field = browser.find_element("id", "queries")
    field.clear()
    field.send_keys("The orchestra opened its season with Mahler.\nplum lion hat banana")
    browser.find_element("id", "send").click()
    until(browser, lambda: browser.find_elements("css selector", "#answers li"))
    told = [each.is_displayed() for each in browser.find_elements("css selector", "#answers .far")]
    assert told == [True, False]


@pytest.mark.parametrize("choices", ["", 'one, it\'s "two", three'])
def test_the_question_as_code(browser: Any, address: str, choices: str) -> None:
    """What is copied is run, and gives what the server answers."""
    browser.get(address)
    until(browser, lambda: "mini" in text(browser, "model"))
    Select(browser.find_element("id", "example")).select_by_index(2)
    browser.find_element("id", "adapt").click()
    until(browser, lambda: browser.find_element("id", "send").is_enabled())
    field = browser.find_element("id", "choices")
    field.clear()
    field.send_keys(choices)
    queries = ["belt dog boat sheep", "frog judge violin pear sheep"]
    with Client(address) as client:
        id = text(browser, "id")
        own = [each.strip() for each in choices.split(",")]
        expected = client.classify(queries, own, id) if choices else client.generate(queries, id)
    browser.find_element("id", "python").click()
    until(browser, lambda: "import Client" in text(browser, "code"))
    done = subprocess.run([sys.executable, "-c", text(browser, "code")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(expected)
    browser.find_element("id", "curl").click()
    until(browser, lambda: "curl" in text(browser, "code"))
    words = shlex.split(text(browser, "code"))
    assert words[0] == "curl" and json.loads(words[-1]) == {
        "inputs": queries,
        "adaptation": id,
        **({"choices": own} if choices else {}),
    }
    assert words[2] == f"{address}/v1/{'classify' if choices else 'generate'}"


def press(browser: Any, *keys: str) -> None:
    webdriver.ActionChains(browser).send_keys(*keys).perform()


def focused(browser: Any) -> str:
    return browser.execute_script("const e = document.activeElement; return e.id || e.getAttribute('aria-label') || ''")


def tab_to(browser: Any, name: str) -> None:
    for _ in range(40):
        if focused(browser) == name:
            return
        press(browser, Keys.TAB)
    raise AssertionError(f"the keyboard does not reach {name}")


def test_by_keyboard_alone(browser: Any, address: str) -> None:
    browser.get(address)
    until(browser, lambda: "mini" in text(browser, "model"))
    tab_to(browser, "definition")
    press(browser, "You are given a list of words. Keep only the fruits, then end the answer with the word done.")
    for number, pair in enumerate(
        (("apple saw pear", "apple pear done"), ("truck cherry grape", "cherry grape done")), 1
    ):
        for part, words in zip(("Input", "Output"), pair, strict=True):
            tab_to(browser, f"{part} of demonstration {number}")
            press(browser, words)
    tab_to(browser, "Remove demonstration 2")
    press(browser, Keys.ENTER)
    assert focused(browser) == "Input of demonstration 1"
    tab_to(browser, "add")
    press(browser, Keys.ENTER)
    assert focused(browser) == "Input of demonstration 2"
    press(browser, "truck cherry grape", Keys.TAB, "cherry grape done")
    tab_to(browser, "adapt")
    press(browser, Keys.ENTER)
    until(browser, lambda: focused(browser) == "queries")
    press(browser, "lion plum hat")
    webdriver.ActionChains(browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    until(browser, lambda: "plum done" in text(browser, "answers"))
    tab_to(browser, "download")
    # A changed task must be adapted to again.
    browser.find_element("id", "definition").send_keys("!")
    assert "adapt again" in text(browser, "adapted") and not browser.find_element("id", "send").is_enabled()


def test_problems_are_told(browser: Any, address: str) -> None:
    browser.get(address)
    until(browser, lambda: "mini" in text(browser, "model"))
    adapt = browser.find_element("id", "adapt")
    adapt.click()
    until(browser, lambda: "a definition, a demonstration, or both" in text(browser, "task-problem"))
    browser.find_element("css selector", ".input").send_keys("<b>one</b>")
    adapt.click()
    until(browser, lambda: "needs both" in text(browser, "task-problem"))


def test_a_definition_alone(browser: Any, address: str) -> None:
    browser.get(address)
    until(browser, lambda: "mini" in text(browser, "model"))
    browser.find_element("id", "definition").send_keys("Write the words in reverse order.")
    browser.find_element("id", "adapt").click()
    until(browser, lambda: "in one forward pass of" in text(browser, "adapted"))
    assert "has no demonstrations, which every training task of the model had" in text(browser, "adapted")


def test_a_token(browser: Any, tmp_path: Path) -> None:
    with running("mini", "--store", tmp_path / "store", HART_TOKEN="sesame") as (_, url):
        browser.get(url)
        until(browser, lambda: "mini" in text(browser, "model"))
        Select(browser.find_element("id", "example")).select_by_index(1)
        browser.find_element("id", "adapt").click()
        until(browser, lambda: focused(browser) == "token")
        press(browser, "sesame", Keys.ENTER)
        until(browser, lambda: focused(browser) == "adapt")
        press(browser, Keys.ENTER)
        until(browser, lambda: "in one forward pass of" in text(browser, "adapted"))
