"""The documentation: its links and anchors, citation and changelog, the site, and completion in the shell."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import sacpo
from sacpo import sweep
from sacpo.cli import COMMANDS
from tests.commands import call
from tests.spaces import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a Markdown text, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path, text: str) -> list[str]:
    """Relative links of a page whose file or anchor does not exist."""
    dead = []
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (anchor and anchor not in anchors(text if path == page else path.read_text())):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert not dead_links(page, page.read_text())


def test_a_dead_link_is_seen() -> None:
    text = "# A `b`, c\n[1](#a-b-c) [2](#b) [3](docs/spaces.md#judges) [4](docs/spaces.md#judge-s) [5](docs/none.md)"
    assert dead_links(ROOT / "README.md", text) == ["#b", "docs/spaces.md#judge-s", "docs/none.md"]


def test_citation_and_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == sacpo.__version__
    (paper,) = citation["preferred-citation"]["identifiers"]
    assert paper["value"] == "arXiv:2404.11049"
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert versions[0] == sacpo.__version__


def test_the_space_of_the_guide_gives_the_trials_that_its_commands_name(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "own-data.md").read_text()
    (space,) = re.findall(r"^```yaml\n(name: .*?)^```", text, flags=re.M | re.S)
    (tmp_path / "space.yaml").write_text(space)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / yaml.safe_load(space)["model"]["gguf_file"]).touch()
    for name in ("helpful", "harmless"):
        (tmp_path / f"{name}.jsonl.gz").touch()
        (tmp_path / f"{name}_prompts.json").write_text(json.dumps([{"prompt": f"{name} {n}?"} for n in range(40)]))
    answer = call(sweep.main, str(tmp_path / "space.yaml"), "--dry-run")
    assert answer.returncode == 0, answer.stderr
    trials = [line.strip() for line in answer.stdout.partition("\ntrials:\n")[2].splitlines()]
    exported = re.findall(r'sacpo export \S+ "([^"]+)"', text)
    assert exported
    assert set(exported) < set(trials)
    assert "\n".join(f"  {trial}" for trial in trials) in text, "the guide shows the trials of its dry run"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra `docs` is not installed")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "sacpo.results.load.load" in (tmp_path / "reference" / "results.html").read_text()


def completions(line: str, tmp_path: Path) -> list[str]:
    """What the shell offers at the end of a line."""
    answer = tmp_path / "completions"
    variables = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    environment = os.environ | variables | {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    subprocess.run([sys.executable, "-m", "sacpo.cli"], cwd=ROOT, env=environment, check=True)
    return [word.strip() for word in answer.read_text().splitlines()]


def test_the_shell_completes_commands_options_and_trials(tmp_path: Path) -> None:
    assert set(COMMANDS) <= set(completions("sacpo ", tmp_path))
    assert completions("sacpo ex", tmp_path) == ["export", "extend"]
    assert completions("sacpo diff --c", tmp_path) == ["--csv"]
    (tmp_path / "trials.csv").write_text("trial_id,label\n1,sft\n2,dpo-a\n")
    assert "sft" in completions(f"sacpo export {tmp_path} s", tmp_path)
