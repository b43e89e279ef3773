"""The report: its content, and that nothing in it is loaded from elsewhere or runs as code."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from sacpo.planning.plan import Trial
from sacpo.planning.planner import make_plan
from sacpo.report import main
from sacpo.reporting.page_data import page_data
from sacpo.reporting.plots import place_labels
from sacpo.reporting.series import all_series, drawn, front_points, optima, point_label
from sacpo.reporting.write import write_report
from sacpo.results.exact import objective_weights
from sacpo.results.load import Results
from sacpo.results.sweep_facts import RunFacts, SweepFacts
from sacpo.results.write import write_results
from sacpo.spaces.methods import METHODS
from sacpo.statistics.pareto import on_front
from tests.spaces import space

NAN = float("nan")
CHAIN = "dpo:helpfulness>dpo:harmlessness"
ATTACK = "</script><script>alert('owned')</script><img src=https://example.com/x>"
REASON = "train: the loss was not finite at step 112"


def _trial(number: int, method: str, chain: str, point: tuple[float, float], **values: Any) -> dict[str, Any]:
    half = 0.0 if method == "sft" else 0.06
    row: dict[str, Any] = {
        "trial_id": f"trial-{number}",
        "label": f"{method} {number}",
        "method": method,
        "chain": chain,
    }
    row |= {"beta": NAN, "beta_over_lambda": NAN, "q": NAN, "seed": 0, "status": "done", "error": ""}
    for name, value in zip(("helpfulness", "harmlessness"), point, strict=True):
        row |= {name: value, f"{name}_low": value - half, f"{name}_high": value + half, f"n_{name}": 40}
    row |= {"kl_to_sft": 1.5, "mean_response_tokens": 30.0, "seconds": 9.0, "device_seconds": 0.0, "warnings": ""}
    row |= {
        "expected_reward": 2 * point[0],
        "expected_safety": 2 * point[1],
        "support_mass": 0.98,
        "share_of_optimum": 0.9,
    }
    row |= values
    return row | {"lambda": row["beta"] / row["beta_over_lambda"]}


def _trials() -> pd.DataFrame:
    rows = [
        _trial(0, "sft", "", (0.5, 0.5), seed=pd.NA),
        _trial(1, "one-step", "dpo:helpfulness", (0.8, 0.5), beta=0.1),
    ]
    for i, (ratio, point) in enumerate([(0.01, (0.62, 0.8)), (0.1, (0.74, 0.58)), (0.025, (0.7, 0.74))]):
        rows.append(_trial(2 + i, "sacpo", CHAIN, point, beta=0.1, beta_over_lambda=ratio))
    rows.append(_trial(5, "p-sacpo", CHAIN, (0.76, 0.7), beta=0.1, beta_over_lambda=0.01, q=0.5, label=ATTACK))
    rows.append(_trial(6, "sacpo", "kto:harmlessness>dpo:helpfulness", (NAN, NAN), status="pending"))
    rows.append(_trial(7, "sacpo", CHAIN, (NAN, NAN), beta=0.1, beta_over_lambda=0.05, status="failed", error=REASON))
    trials = pd.DataFrame(rows)
    return trials.assign(on_front=on_front(trials[["helpfulness", "harmlessness"]].to_numpy(dtype=float)))


def _exact() -> pd.DataFrame:
    grid = np.geomspace(0.1, 20, 40)
    return pd.DataFrame(
        {"beta": 0.1, "lambda": grid, "expected_reward": 2 / grid, "expected_safety": np.log(grid), "kl_to_sft": 1.0}
    )


def _results(trials: pd.DataFrame, exact: pd.DataFrame | None) -> Results:
    answer = {"category": "c", "prompt": "How?", "sample": 0, "response": ATTACK, "tokens": 9, "finished": True}
    keys = [
        {"trial_id": trial, "criterion": criterion, "prompt_id": f"p{i}"}
        for trial in trials["trial_id"]
        for criterion in ("helpfulness", "harmlessness")
        for i in range(5)
    ]
    step = {"step_id": "train-1", "kind": "train", "label": "train x", "status": "failed", "error": ATTACK}
    steps = pd.DataFrame([step | {"seconds": NAN, "reused": False, "attempts": 2}])
    judged = {"outcome": "win", "panel": "", "baseline_id": "trial-0", "sample": 0}
    verdicts = pd.DataFrame([key | judged for key in keys])
    run = RunFacts(
        run="run", command=("sacpo",), address="local", started_at=0.0, ended_at=3671.0, seconds=3671.0,
        versions={"sacpo": "2"}, git_commit=None,
    )  # fmt: skip
    settings = {"name": "tiny", "note": ATTACK}
    facts = SweepFacts(name="tiny", plan_id="plan-0", space=settings, store="store", canaries="run", runs=(run,))
    return Results(facts, trials, steps, pd.DataFrame([key | answer for key in keys]), verdicts, exact)


def _judges() -> pd.DataFrame:
    """One LLM judge and one trained judge."""
    llm = {"criterion": "helpfulness", "panel": "main", "judge": "gpt", "judge_revision": "7", "canary_win_rate": 0.875,
           "canary_order_inconsistency": 0.25}  # fmt: skip
    trained = {"criterion": "harmlessness", "panel": "rm", "judge": "trained_reward_model", "judge_revision": "",
               "held_out_accuracy": 0.71, "temperature": 1.5, "calibration_error": 0.031}  # fmt: skip
    return pd.DataFrame([llm, trained])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(replace(_results(_trials(), _exact()), comparisons={"judges": _judges()}), folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_text_of_models_stays_text(page: str) -> None:
    assert "<script>alert(" not in page
    assert "<img src=https" not in page
    assert "&lt;script&gt;alert(" in page
    assert "\\u003cscript\\u003ealert(" in page


def test_page_loads_nothing(page: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    assert "http" not in policy[1]
    tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", re.sub(r"(?s)<script\b.*?</script>", "", page))
    assert not [tag for tag in tags if "src" in tag or "href" in tag]
    assert not re.findall(r"<script[^>]+src=", page)


def test_page_tells_what_happened(page: str) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", page[page.index("<main>") :]).split())
    assert "6 of 8 trials done 1 failed 1 pending" in text
    assert "1 h 1 min 11 s wall time" in text
    assert f"failed {REASON}" in text
    assert "0.700 [0.640, 0.760]" in text
    assert page.count('class="mark">★') == 4
    assert "helpfulness main gpt 7 0.875 0.250 - - -" in text.replace("\N{EN DASH}", "-")
    assert "harmlessness rm trained_reward_model - - 0.710 1.500 0.031" in text.replace("\N{EN DASH}", "-")


def test_picture_is_drawn_whole(folder: Path) -> None:
    height, width, _ = matplotlib.image.imread(folder / "pareto.png").shape
    assert (width, height) == (1600, 875)
    assert (folder / "pareto.png").stat().st_size > 40_000
    assert sorted(path.name for path in folder.iterdir()) == ["pareto.pdf", "pareto.png", "pareto.svg", "report.html"]
    assert (folder / "pareto.pdf").read_bytes().startswith(b"%PDF")
    svg = (folder / "pareto.svg").read_text()
    for text in ("over 5 prompts (helpfulness), 5 (harmlessness)", "SACPO: dpo:helpfulness"):
        assert text in svg


@pytest.mark.parametrize("rows", [slice(0, 8), slice(0, 1), slice(2, 3), slice(6, 8)])
@pytest.mark.parametrize("exact", [None, _exact()])
def test_report_of_any_part_of_a_sweep(rows: slice, exact: pd.DataFrame | None, tmp_path: Path) -> None:
    trials = _trials().iloc[rows]
    if exact is None:
        gold = ["expected_reward", "expected_safety", "support_mass", "share_of_optimum"]
        trials = trials.drop(columns=gold)
    write_report(_results(trials, exact), tmp_path)
    assert 30_000 < (tmp_path / "report.html").stat().st_size < 2_000_000


def test_report_before_anything_ran(tmp_path: Path) -> None:
    full = _results(_trials().iloc[6:7], None)
    write_report(Results(full.sweep, full.trials, full.steps, full.responses[:0], full.verdicts[:0], None), tmp_path)
    assert "No answers yet" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_series_are_joined_along_lambda_and_label_what_varies() -> None:
    series = {s.name: s for s in all_series(drawn(_trials(), ("helpfulness", "harmlessness")))}
    (run,) = series["SACPO: dpo:helpfulness → dpo:harmlessness"].runs
    assert [point_label(row) for row in run.to_dict("records")] == ["λ=1", "λ=4", "λ=10"]
    assert len({(s.colour, s.marker) for s in series.values()}) == len(series) == 4


def test_a_method_looks_the_same_in_every_sweep() -> None:
    def looks(rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
        return {s.name: (s.colour, s.marker) for s in all_series(rows)}

    rows = drawn(_trials(), ("helpfulness", "harmlessness"))
    assert looks(rows.iloc[2:]).items() <= looks(rows).items()
    other = rows.iloc[2:4].assign(chain=["a", "b"])
    (first, second) = looks(other).values()
    assert first[1] == second[1]
    assert first[0] != second[0]
    assert looks(rows.iloc[2:3].assign(method="new"))


def test_labels_never_collide() -> None:
    from matplotlib.figure import Figure

    rng = np.random.default_rng(0)
    figure = Figure(figsize=(8.8, 7.2), dpi=125)
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    points = [*rng.random((25, 2)), *(0.5 + 0.06 * rng.random((12, 2)))]
    boxes = place_labels(axes, [(x, y, "q=0.25", "#000000") for x, y in points], figure.dpi)
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not [pair for pair in pairs if pair[0].overlaps(pair[1])]


def test_sentinels_do_not_stretch_the_axes() -> None:
    from sacpo.reporting.plots import draw_front

    refusal = _trial(8, "sentinel", "", (0.01, 0.99), label="always-refuse")
    with_it = pd.concat([_trials(), pd.DataFrame([refusal]).assign(on_front=False)], ignore_index=True)
    plain, crowded = (draw_front(_results(trials, None)).axes[0] for trials in (_trials(), with_it))
    assert crowded.get_xlim() == plain.get_xlim()
    assert {"always-refuse (0.01, 0.99)", "λ=4", "q=0.5"} <= {text.get_text() for text in crowded.texts}


def test_runs_of_other_seeds_and_betas_are_not_joined() -> None:
    rows = [
        _trial(i, "sacpo", CHAIN, (0.6, 0.6), beta=beta, beta_over_lambda=0.05, seed=seed)
        for i, (beta, seed) in enumerate([(0.1, 0), (0.1, 1), (0.2, 0)])
    ]
    (series,) = all_series(pd.DataFrame(rows))
    assert [len(run) for run in series.runs] == [1, 1, 1]


def test_optima_are_read_where_the_trials_lambdas_are() -> None:
    marks = optima(_trials(), _exact())
    assert [mark["lambda"] for mark in marks] == pytest.approx([1.0, 2.0, 4.0, 10.0])
    assert marks[1]["expected_safety"] == pytest.approx(np.log(2.0), abs=0.01)
    assert optima(_trials(), _exact().assign(beta=0.3)) == []


def test_failed_trials_are_not_drawn() -> None:
    data = page_data(_results(_trials(), None))
    shown = {trial["id"] for trial in data["trials"] if trial["series"]}
    assert len(shown) == 6
    assert not shown & {"trial-6", "trial-7"}
    assert front_points(_trials()) == [(0.62, 0.8), (0.7, 0.74), (0.76, 0.7), (0.8, 0.5)]
    assert data["planes"][0]["front"] == front_points(_trials())


def test_verdicts_stand_beside_the_answer_that_they_belong_to() -> None:
    results = _results(_trials(), None)
    own = results.verdicts.iloc[:1]  # trial-0, helpfulness, p0
    others = [
        own.assign(outcome="loss", **change) for change in ({"panel": "gpt"}, {"sample": 1}, {"baseline_id": "x"})
    ]
    table = pd.concat([results.verdicts, *others, own.assign(outcome="tie")], ignore_index=True)
    answers = page_data(replace(results, verdicts=table))["answers"]["trial-0"]["helpfulness"]
    assert sorted(answer["verdicts"] for answer in answers) == [["win"]] * 4 + [["win", "tie"]]
    assert {answer["text"] for answer in answers} == {ATTACK}


def test_an_empty_front_says_why(tmp_path: Path) -> None:
    waiting = _results(_trials().iloc[6:8], None)
    write_report(waiting, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The front is empty: no trial is done (1 failed, 1 pending)." in page
    sentinel = pd.DataFrame([_trial(0, "sentinel", "", (0.1, 0.9))]).assign(on_front=False)
    write_report(_results(sentinel, None), tmp_path)
    assert "sentinels are never on it" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_answers_that_differ_most_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    results = _results(_trials(), None)
    lost = results.verdicts["prompt_id"].eq("p3") & results.verdicts["trial_id"].eq("trial-1")
    results = replace(results, verdicts=results.verdicts.assign(outcome=results.verdicts["outcome"].mask(lost, "loss")))
    monkeypatch.setattr("sacpo.reporting.page_data._MOST_ANSWERS", 1)
    data = page_data(results)
    assert data["prompt_counts"] == {"helpfulness": 5, "harmlessness": 5}
    (answer,) = data["answers"]["trial-1"]["helpfulness"]
    assert answer["score"] == 0.0


def test_command_refuses_a_folder_without_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "not a results folder" in capsys.readouterr().err


def test_command_uses_the_written_tables_if_there_is_no_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(_results(_trials(), _exact()), make_plan(space()), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main([str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert f"there is no store at {tmp_path / 'store'}" in output.err
    assert str(tmp_path / "report.html") in output.out
    assert (tmp_path / "pareto.png").exists()
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not (tmp_path / "store").exists()


def _chain(chain: str, *kl_parameters: float, q: float | None = None) -> Trial:
    return Trial(trial_id="t", label="", method="", chain=chain, policy={}, kl_parameters=kl_parameters, q=q)


@pytest.mark.parametrize(
    ("trial", "weights"),
    [
        (_chain("dpo:helpfulness", 0.5), {"helpfulness": 2.0}),
        (_chain("dpo:helpfulness>dpo:harmlessness", 0.5, 0.25), {"helpfulness": 2.0, "harmlessness": 4.0}),
        (_chain("kto:harmlessness>dpo:helpfulness", 0.5, 0.25), {"harmlessness": 2.0, "helpfulness": 4.0}),
        (_chain("dpo:helpfulness>dpo:helpfulness", 0.5, 0.25), {"helpfulness": 6.0}),
        (_chain("dpo:honesty>dpo:helpfulness", 1.0, 0.5), {"honesty": 1.0, "helpfulness": 2.0}),
        (_chain(""), None),
        (_chain("dpo:helpfulness>dpo:harmlessness", 0.5, 0.25, q=0.5), None),
        (_chain("dpo:helpfulness + dpo:harmlessness", 0.5), None),
        (_chain("grpo:helpfulness", 0.5), None),
        (_chain("dpo:helpfulness>dpo:harmlessness", 0.5), None),
    ],
)
def test_the_optimum_of_a_chain_is_known_by_its_objectives_or_not_at_all(
    trial: Trial, weights: dict[str, float] | None
) -> None:
    assert objective_weights(trial) == weights


def test_a_method_without_a_reference_policy_has_no_known_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "dpo", replace(METHODS["dpo"], uses_reference=False))
    assert objective_weights(_chain("dpo:helpfulness", 0.5)) is None
