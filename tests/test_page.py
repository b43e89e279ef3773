"""The page in a real browser: Chromium, driven by Selenium; the tests are skipped where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sacpo.reporting.page import write_html
from sacpo.reporting.page_data import page_data
from sacpo.reporting.write import write_report
from sacpo.results.choice import choice_table, choose
from sacpo.results.front import Resamples, candidates, own_verdicts
from sacpo.results.load import Results
from sacpo.spaces.constraints import Constraint
from tests.simulated_sweeps import simulated

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs Debian's packages chromium and chromium-driver",
    ),
]
RATES = [(0.8, 0.3), (0.74, 0.6), (0.7, 0.7), (0.55, 0.9), (0.4, 0.75)]
SPACE = {"constraint": [{"criterion": "harmlessness", "at_least": 0.6, "confidence": 0.95}]}


@pytest.fixture(scope="module")
def results() -> Results:
    """A simulated sweep with answers, and the tables that the page draws."""
    simple = simulated(np.random.default_rng(5), RATES, prompts=300, space=SPACE)
    trials = simple.trials.assign(
        chain="", beta=np.nan, beta_over_lambda=np.nan, q=np.nan, seed=0, error="", warnings=""
    )
    trials["chain"] = trials["method"].map({"sft": "", "sacpo": "dpo:helpfulness>dpo:harmlessness"})
    trials["lambda"] = [np.nan, 0.1, 0.5, 1, 2, 4]
    own = own_verdicts(simple.verdicts, "sft")
    for axis in ("helpfulness", "harmlessness"):
        rates = own[own["criterion"] == axis].assign(won=own["outcome"] == "win").groupby("trial_id")["won"].mean()
        trials[axis] = trials["trial_id"].map(rates).fillna(0.5)
        trials[f"{axis}_low"], trials[f"{axis}_high"] = trials[axis] - 0.05, trials[axis] + 0.05
    for column in ("kl_to_sft", "mean_response_tokens", "seconds"):
        trials[column] = 1.0
    trials["on_front"] = [False, True, True, True, True, False]
    responses = own.drop_duplicates(["trial_id", "criterion", "prompt_id"]).assign(
        response=lambda table: "answer of " + table["trial_id"], prompt=lambda table: "prompt " + table["prompt_id"],
        finished=True, tokens=3,
    )  # fmt: skip
    resamples = Resamples(trials.loc[candidates(trials), "trial_id"], "sft", own)
    tables = {"choice": choice_table(trials, own, []), **resamples.tables()}
    steps = pd.DataFrame(columns=["step_id", "kind", "label", "status", "error", "seconds", "reused", "attempts"])
    return replace(simple, trials=trials, responses=responses, steps=steps, comparisons=tables)


@pytest.fixture(scope="module")
def browser(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    folder = tmp_path_factory.mktemp("page")
    write_report(results, folder)
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1400"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.folder = folder  # type: ignore[attr-defined]
    driver.get((folder / "report.html").as_uri())
    yield driver
    driver.quit()


def script(browser: Any, code: str, *arguments: Any) -> Any:
    return browser.execute_script(code, *arguments)


def test_the_page_runs_without_errors_and_loads_nothing(browser: Any) -> None:
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {e["params"]["request"]["url"] for e in sent if e["method"] == "Network.requestWillBeSent"}
    assert urls == {browser.current_url}
    assert len(browser.find_elements("css selector", "#chart-rates .point")) == 6


def test_the_page_chooses_what_the_command_chooses(browser: Any, results: Results) -> None:
    seen = set()
    for bound in np.round(np.arange(0.05, 1, 0.05), 2):
        code = "const c = choose([['harmlessness', arguments[0]]]);"
        code += "return [c.front.map(row => row.id), c.certified.map(row => row.id), c.best.id]"
        names = script(browser, code, float(bound))
        choice = choose(results, [Constraint(criterion="harmlessness", at_least=float(bound))])
        assert names == [list(choice.sequence), list(choice.certified_trials), choice.best]
        seen.add(choice.chosen)
    assert len(seen) >= 4


def test_moving_the_bound_by_keyboard_changes_the_choice(browser: Any, results: Results) -> None:
    from selenium.webdriver.common.keys import Keys

    slider, text = browser.find_element("id", "bound-0"), browser.find_element("id", "choice")
    before = text.text
    assert str(choose(results, [Constraint(criterion="harmlessness", at_least=0.6)]).chosen) in before
    assert "lower bound" in before
    slider.send_keys(Keys.END)
    assert browser.find_element("id", "bound-0-value").text == "0.99"
    assert "None qualifies" in text.text
    slider.send_keys(Keys.HOME)
    assert "policy-0" in text.text


def test_two_policies_are_picked_by_keyboard_and_by_click(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    point = browser.find_element("css selector", '#chart-rates [data-trial="policy-0"]')
    script(browser, "arguments[0].focus()", point)
    assert "policy-0" in browser.find_element("id", "tip").text
    point.send_keys(Keys.ENTER)
    script(browser, "document.querySelector('#chart-rates [data-trial=\"policy-3\"]')"
           ".dispatchEvent(new MouseEvent('click', {bubbles: true}))")  # fmt: skip
    head, first, *_ = browser.find_element("id", "answers").text.splitlines()
    assert head == "prompt policy-0 policy-3"
    assert first.startswith("prompt ")
    text = browser.find_element("id", "answers").text
    assert "answer of policy-0" in text
    assert "verdicts: loss" in text
    assert "difference -1.000" in text
    assert "those with the largest difference first" in browser.find_element("id", "answers-note").text


def test_tables_are_sorted_filtered_and_saved(browser: Any) -> None:
    table = browser.find_element("css selector", 'table[data-name="trials"]')

    def column() -> list[float]:
        values = script(browser, "return [...arguments[0].tBodies[0].rows].filter(r => !r.hidden)"
                        ".map(r => Number(r.cells[4].dataset.value))", table)  # fmt: skip
        return [float(value) for value in values]

    button = table.find_elements("css selector", "thead .sort")[3]
    script(browser, "arguments[0].click()", button)
    assert column() == sorted(column(), reverse=True)
    script(browser, "arguments[0].click()", button)
    assert column() == sorted(column())
    tools = table.find_element("xpath", "../preceding-sibling::div[@class='tools'][1]")
    tools.find_element("css selector", "input").send_keys("policy-3")
    assert len(column()) == 1
    code = "window.saved = null; const old = URL.createObjectURL; URL.createObjectURL = (blob) => "
    script(browser, code + "{ blob.text().then(text => { window.saved = text; }); return old(blob); }")
    script(browser, "arguments[0].click()", tools.find_element("css selector", "button"))
    from selenium.webdriver.support.ui import WebDriverWait

    text = WebDriverWait(browser, 10).until(lambda driver: script(driver, "return window.saved"))
    assert text.splitlines()[0].startswith(",trial,status,helpfulness,harmlessness")
    assert len(text.splitlines()) == 2
    assert "policy-3" in text


def test_a_phone_a_printer_and_dark_mode(browser: Any) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                            {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True})  # fmt: skip
    assert script(browser, "return document.documentElement.scrollWidth") <= 390
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    background = "return getComputedStyle(document.body).backgroundColor"
    light = script(browser, background)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert script(browser, background) != light
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    criterion = script(browser, "return document.getElementById('criterion').value")
    assert f"prompts for {criterion}" in browser.find_element("id", "answers-note").text
    assert script(browser, "return getComputedStyle(document.querySelector('.tools')).display") == "none"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_the_page_is_small(browser: Any, results: Results) -> None:
    page: Path = browser.folder / "report.html"
    answers = len(json.dumps(page_data(results)["answers"]))
    assert page.stat().st_size - answers < 300_000


@pytest.mark.parametrize(("status", "reason"), [("pending", "no trial is done"), ("done", "moved by its last stage")])
def test_an_empty_front_says_why_and_previews_differ_in_their_dashes(
    browser: Any, results: Results, tmp_path: Path, status: str, reason: str
) -> None:
    points = np.linspace(0.3, 0.7, 41)
    path = pd.DataFrame({"chain": "a>b", "beta": 2.0, "lambda": points, "second_id": "one"})
    path = path.assign(
        **{f"{axis}{end}": points for axis in ("helpfulness", "harmlessness") for end in ("", "_low", "_high")}
    )
    preview = pd.concat([path, path.assign(second_id="two", beta=1.0)])
    trials = results.trials.assign(on_front=False, status=status)
    empty = replace(results, trials=trials, comparisons={"preview": preview})
    write_html(empty, tmp_path / "report.html")
    home = browser.current_url
    browser.get((tmp_path / "report.html").as_uri())
    assert reason in browser.find_element("css selector", ".empty").text
    dashes = [
        line.get_attribute("stroke-dasharray") for line in browser.find_elements("css selector", ".lines .preview")
    ]
    assert len(dashes) == len(set(dashes)) == (2 if status == "done" else 0)
    browser.get(home)
