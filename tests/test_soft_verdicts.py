"""Verdicts that are probabilities: from token log-probabilities, from reward differences, and in every table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sacpo.errors import SpaceError, StepError
from sacpo.judges import llm
from sacpo.judges.chat import chat
from sacpo.judges.endpoint import Call, Endpoint
from sacpo.judges.ledger import Ledger, Meter
from sacpo.judges.noisy import noisy
from sacpo.judges.rubric import RUBRICS, messages
from sacpo.judges.scalar import by_score
from sacpo.judges.token_probabilities import Token, VerdictProbabilities, read_tokens, verdict_probabilities
from sacpo.judges.verdicts import AnswerPair, Verdict, outcome_of
from sacpo.results import load
from sacpo.results.win_rates import criterion_columns
from sacpo.spaces.evaluation import LLMJudge
from sacpo.synthetic.world import PROMPTS, extremes
from tests.servers import Behaviour, Fail, Say, Server, scripted, verdict
from tests.spaces import space
from tests.test_judging import judge_again, llm_judge

Parts = list[tuple[str, float, dict[str, float]]]
"""Tokens: text, probability, alternatives with their probabilities."""
OPEN, CLOSE = ('{"verdict": "', 1.0, {}), ('"}', 1.0, {})
CASES: dict[str, tuple[Parts, str, tuple[float, float, float]]] = {
    "one token": ([OPEN, ("A", 0.7, {"B": 0.2, "tie": 0.06}), CLOSE], "first", (0.7, 0.2, 0.06)),
    "with its quote": (
        [('{"verdict":', 1, {}), (' "B', 0.6, {' "A': 0.3, " B": 0.05}), CLOSE],
        "second",
        (0.3, 0.65, 0),
    ),
    "a tie in parts": ([OPEN, ("t", 0.5, {"A": 0.4}), ("ie", 1, {}), CLOSE], "tie", (0.4, 0, 0.5)),
    "a noun first": (
        [OPEN, ("Answer", 0.8, {"tie": 0.2}), (" A", 0.75, {" B": 0.25}), CLOSE],
        "first",
        (0.6, 0.2, 0.2),
    ),
    "the last of two": (
        [('{"verdict": "A"} no, {"verdict": "', 1, {}), ("B", 0.9, {"A": 0.1}), CLOSE],
        "second",
        (0.1, 0.9, 0),
    ),
    "after thoughts": (
        [('<think>"verdict": "A"</think>\n', 1, {}), ("A", 0.55, {"B": 0.4, "Both": 0.05})],
        "first",
        (0.55, 0.4, 0),
    ),
    "brackets": (
        [("It is better: [[", 1, {}), ("B", 0.8, {"A": 0.1, "C": 0.1}), ("]].", 1, {})],
        "second",
        (0.1, 0.8, 0),
    ),
    "the beginning of a word": ([OPEN, ("A", 0.5, {"Another": 0.3, "Be": 0.2})], "first", (0.5, 0, 0)),
}


def tokens(parts: Parts) -> list[Token]:
    return [Token(text, {**others, text: probability}) for text, probability, others in parts]


@pytest.mark.parametrize("name", CASES)
def test_probabilities_stand_where_the_verdict_stands(name: str) -> None:
    parts, preference, expected = CASES[name]
    found = verdict_probabilities(tokens(parts), preference)  # type: ignore[arg-type]
    assert found is not None
    assert (found.first, found.second, found.tie) == pytest.approx(expected)
    assert found.none == pytest.approx(1 - sum(expected))


def test_a_verdict_that_is_not_where_it_was_read_has_no_probability() -> None:
    assert verdict_probabilities(tokens([('{"verdict": "', 1, {}), ("A", 1, {})]), "second") is None
    assert verdict_probabilities(tokens([("I cannot decide.", 1, {})]), "first") is None
    assert VerdictProbabilities(0.3, 0.3, 0.1).most_probable == "tie"
    assert VerdictProbabilities(0.3, 0.2, 0.4).most_probable == "tie"
    assert VerdictProbabilities(0.6, 0.2, 0.0).score == pytest.approx(0.75)


def test_tokens_are_read_from_both_forms_of_the_api() -> None:
    text = 'ä {"verdict": "A"}'
    chat_form = [{"token": "?", "bytes": [byte], "logprob": 0.0, "top_logprobs": []} for byte in text.encode()]
    chat_form[-3]["top_logprobs"] = [{"token": "B", "logprob": np.log(0.25)}]
    chat_form[-3]["logprob"] = np.log(0.75)
    older = {
        "tokens": ['{"verdict":', '\u0120"', "A", '"}'],
        "token_logprobs": [0, 0, np.log(0.75), 0],
        "top_logprobs": [None, None, {"A": np.log(0.75), "B": np.log(0.25)}, None],
    }
    for logprobs in ({"content": chat_form}, older):
        read = read_tokens({"logprobs": logprobs})
        assert read is not None
        found = verdict_probabilities(read, "first")
        assert found is not None
        assert (found.first, found.second, found.tie) == pytest.approx((0.75, 0.25, 0))
    certain = [{"token": "A", "logprob": 0.0, "top_logprobs": []}]
    no_number = [{"token": "A", "logprob": -0.1, "top_logprobs": [{"token": "B", "logprob": float("nan")}]}]
    for content in (None, [], [{}], certain, no_number):
        assert read_tokens({"logprobs": {"content": content}}) is None
    older["top_logprobs"] = [None] * 4
    for choice in ({}, {"logprobs": None}, {"logprobs": older}):
        assert read_tokens(choice) is None


# Endpoints


def ask_pairs(server: Server, folder: Path, pairs: list[AnswerPair], **changes: Any) -> list[Verdict]:
    settings = LLMJudge.model_validate(llm_judge(server, verdicts="probabilities", **changes))
    judge = chat(settings, rubric=RUBRICS["helpfulness"], criterion="helpfulness", ledger=folder, run="r" * 8,
                 writer="w", report_stats=lambda stats: None, ask_equal=False)  # fmt: skip
    return judge(pairs)


PAIRS = [AnswerPair(str(i), "", 0, f"How do I cook bean {i}?", f"Boil it for {i} hours.", "No idea.") for i in range(4)]


def leaning(first: float, second: float, tie: float) -> Callable[..., Behaviour]:
    """A judge that has these probabilities of preferring the answer shown first, the other one, and neither."""
    shares = {"A": first, "B": second, "tie": tie}
    return lambda *_: Say(verdict(max(shares, key=lambda name: shares[name])), alternatives=shares)


def test_both_orders_are_averaged_and_stored_probabilities_are_used_again(tmp_path: Path) -> None:
    with scripted(leaning(0.7, 0.1, 0.1)) as server:
        verdicts = ask_pairs(server, tmp_path, PAIRS)
        assert server.calls == 8
        assert all(request["logprobs"] is True and request["top_logprobs"] == 5 for request in server.requests)
        again = ask_pairs(server, tmp_path, PAIRS)
        assert server.calls == 8
    for found in (verdicts, again):
        by_order = {v.order: v for v in found}
        assert by_order["policy_first"].score == pytest.approx(0.75 / 0.9)
        assert by_order["baseline_first"].score == pytest.approx(0.15 / 0.9)
        assert {v.order: v.outcome for v in found} == {"policy_first": "win", "baseline_first": "loss"}
        assert [v.no_verdict_mass for v in found] == pytest.approx([0.1] * 8)


def test_a_sampled_verdict_that_is_not_the_most_probable_one_is_not_the_outcome(tmp_path: Path) -> None:
    with scripted(lambda *_: Say(verdict("A"), alternatives={"A": 0.2, "B": 0.7, "tie": 0.1})) as server:
        found = {v.order: (v.outcome, v.score) for v in ask_pairs(server, tmp_path, PAIRS[:1])}
    assert found == {"policy_first": ("loss", pytest.approx(0.25)), "baseline_first": ("win", pytest.approx(0.75))}


def test_a_reply_whose_mass_states_no_verdict_is_unparsable(tmp_path: Path) -> None:
    with scripted(lambda *_: Say(verdict("A"), alternatives={"A": 0.3, "Both": 0.6})) as server:
        (first, _) = ask_pairs(server, tmp_path, PAIRS[:1], calls={"attempts": 1})
    assert (first.outcome, first.score, first.no_verdict_mass) == ("unparsable", None, None)
    assert "says no verdict" in first.raw


@pytest.mark.parametrize(
    "behaviour",
    [
        Say(verdict("A")),  # ignores the parameter
        Fail(400, '{"error": {"message": "logprobs is not supported by this model", "param": "logprobs"}}'),
        Fail(422, '{"detail": [{"loc": ["body", "top_logprobs"], "msg": "Extra inputs are not permitted"}]}'),
    ],
)
def test_an_endpoint_without_log_probabilities_is_named_at_once_with_the_way_out(
    behaviour: Behaviour, tmp_path: Path
) -> None:
    with scripted(lambda *_: behaviour) as server:
        with pytest.raises(StepError, match=r"no token log-probabilities.*set verdicts: outcomes"):
            ask_pairs(server, tmp_path, PAIRS, calls={"concurrency": 1})
        assert server.calls == 1


def test_without_reasons_the_request_asks_for_the_verdict_alone(tmp_path: Path) -> None:
    endpoint = Endpoint("m", "r")
    identities = {json.dumps(e.identity()) for e in (endpoint, Endpoint("m", "r", reasons=False),
                                                     Endpoint("m", "r", probabilities=True))}  # fmt: skip
    assert len(identities) == 3
    with scripted(lambda *_: Say(verdict("A"))) as server:
        short = Endpoint("m", "r", base_url=server.base_url, api_key_env=None, reasons=False)
        call = Call("p", "a", "b")
        llm.ask([call], short, Ledger(tmp_path, "x"), Meter(tmp_path, None, None, (0, 0)), tmp_path / "slots")
        (request,) = server.requests
    assert request["response_format"]["json_schema"]["schema"]["required"] == ["verdict", "token"]
    assert "Write no reasons" in request["messages"][0]["content"]
    assert "Reasons first" not in request["messages"][1]["content"]
    with_reasons = messages("r", "p", "a", "b", "0")
    assert "Write your reasons first" in with_reasons[0]["content"]
    assert "Reasons first" in with_reasons[1]["content"]


# Scores and errors of known size


def test_reward_differences_become_bradley_terry_probabilities() -> None:
    scores = {"policy": 2.0, "baseline": 0.5, "long": float("nan")}
    pairs = [AnswerPair("0", "", 0, "p", a, b) for a, b in (("policy", "baseline"), ("baseline", "policy"),
                                                            ("policy", "policy"), ("long", "policy"))]  # fmt: skip
    for temperature, first in ((None, 1 / (1 + np.exp(-1.5))), (3.0, 1 / (1 + np.exp(-0.5)))):
        judge = by_score(lambda answers: [scores[a] for _, a in answers], temperature=temperature, probabilities=True)
        found = judge(pairs)
        assert [v.score for v in found[:3]] == pytest.approx([first, 1 - first, 0.5])
        assert [v.outcome for v in found] == ["win", "loss", "tie", "unavailable"]
        assert found[3].score is None
        assert [v.p_win for v in found[:2]] == (
            [None, None] if temperature is None else pytest.approx([first, 1 - first])
        )


def test_probabilities_of_the_noisy_judge_are_the_means_of_its_outcomes() -> None:
    pairs = [AnswerPair(p, "", 0, p, *extremes(p, "helpfulness")) for p, kind in PROMPTS if kind == "benign"]
    settings = {"error": 0.2, "order_bias": 0.3, "seed": 1}
    outcomes = noisy("helpfulness", repeats=400, **settings)(pairs)
    exact = noisy("helpfulness", repeats=1, probabilities=True, **settings)(pairs)
    for order in ("policy_first", "baseline_first"):
        mean = np.mean([v.decided_score for v in outcomes if v.order == order])
        probabilities = [v.score for v in exact if v.order == order]
        assert probabilities == pytest.approx([0.3 * (order == "policy_first") + 0.7 * 0.8] * len(pairs))
        assert mean == pytest.approx(probabilities[0], abs=0.03)


def test_scores_are_read_as_outcomes() -> None:
    scores = {
        0.0: "loss",
        0.49: "loss",
        0.5: "tie",
        0.1 + 0.4: "tie",
        0.7 - 0.2 + 1e-12: "tie",
        0.51: "win",
        1.0: "win",
    }
    assert {score: outcome_of(score) for score in scores} == scores
    assert [Verdict(0, "none", 0, o, "").score for o in ("win", "tie", "loss", "unparsable")] == [1, 0.5, 0, None]


@pytest.mark.parametrize(
    ("judge", "setting"),
    [
        ({"kind": "noisy", "verdicts": "probabilities", "repeats": 2}, "repeats"),
        ({"kind": "noisy", "verdicts": "probabilities", "seed": 3}, "seed"),
    ],
)
def test_settings_without_effect_on_probabilities_are_refused(judge: dict[str, Any], setting: str) -> None:
    with pytest.raises(SpaceError, match=rf"judge\.{setting}: is \d, which has no effect with verdicts: probabilities"):
        space(evaluation__helpfulness__judge=judge)


# Tables


def test_soft_verdicts_reach_every_table(copied: Path) -> None:
    """The probabilities of the noisy judge are known, so every win rate of outcomes is known by the share of wins."""
    noise = {"kind": "noisy", "error": 0.25, "order_bias": 0.2, "verdicts": "probabilities"}
    panel = judge_again(copied, noise, "soft").set_index(["panel", "trial_id"])
    gold_rates = panel.loc["main", "helpfulness"]
    # A win has 0.5 * (0.2 + 0.8 * 0.75) + 0.5 * 0.8 * 0.75 = 0.7, a loss 0.3, a tie 0.5.
    assert panel.loc["soft", "helpfulness"].to_numpy() == pytest.approx((0.3 + 0.4 * gold_rates).to_numpy())
    assert set(panel.loc["soft", "helpfulness_verdicts"]) == {"probabilities"}
    assert set(panel.loc["main", "helpfulness_verdicts"]) == {"outcomes"}
    results = load(copied)
    verdicts = results.verdicts.query("panel == 'soft' and trial_id != baseline_id")
    assert {round(score, 9) for score in verdicts["score"]} <= {0.8, 0.6, 0.4, 0.2, 0.1 * 4, 0.5, 0.7, 0.3, 1, 0}
    assert set(verdicts["verdicts"]) == {"probabilities"}
    agreement = results.comparisons["agreement"]
    assert set(agreement["raw"]) == {1.0}  # the means over both orders lie on the gold judge's side
    assert set(agreement["other_verdicts"] + agreement["verdicts"]) == {"probabilitiesoutcomes"}
    for name in ("differences", "length", "judges"):
        assert "verdicts" in results.comparisons[name]
    for name in ("front", "hypervolume", "choice"):  # of the main judge
        assert set(results.comparisons[name]["verdicts"]) == {"outcomes"}, name
    judges = results.comparisons["judges"].set_index("panel")["verdicts"]
    assert set(judges["soft"]) == {"probabilities"}


def test_a_trial_has_the_mean_mass_on_no_verdict(tmp_path: Path) -> None:
    with scripted(leaning(0.5, 0.2, 0.2)) as server:
        verdicts = ask_pairs(server, tmp_path, [*PAIRS, AnswerPair("5", "", 0, "p", "equal", "equal")])
    table = pd.DataFrame([vars(v) for v in verdicts]).assign(sample=0, category="", verdicts="probabilities")
    columns = criterion_columns("helpfulness", table.rename(columns={"pair": "prompt_id"}), None)
    assert columns["helpfulness_no_verdict_mass"] == pytest.approx(0.1)
    assert columns["helpfulness_verdicts"] == "probabilities"
    assert columns["helpfulness_if_missing_lost"] == columns["helpfulness_if_missing_won"] == pytest.approx(0.5)
