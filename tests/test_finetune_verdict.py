"""The verdict's arithmetic: intervals, decisions, metrics.

python -m pytest tests/test_finetune_verdict.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rouge_score", reason="the trainer needs the extra: pip install -e .[local,train]")
pytest.importorskip("sacrebleu", reason="the trainer needs the extra: pip install -e .[local,train]")

from finetune.data import Example
from finetune.measure import Loss, Reply, mean_loss, rouge_l, scores
from finetune.verdict import decide, describe, judge, judged, paired_interval, write
from pipeline.judge_answers import Opinions, Pair


def task(question: str, answer: str, kind: str = "generation") -> Example:
    return Example((("user", question), ("assistant", answer)), "", kind)


def losses(count: int, shift: float, noise: float, seed: int) -> tuple[list[Loss], list[Loss]]:
    """(ours, other): tasks that differ widely, ours shifted by `shift` nats a token, up to noise."""
    numbers = random.Random(seed)
    ours, other = [], []
    for _ in range(count):
        tokens, hardness = numbers.randrange(5, 40), numbers.uniform(0.5, 5.0)
        other.append(Loss(tokens * hardness, tokens))
        ours.append(Loss(tokens * (hardness + shift + numbers.gauss(0, noise)), tokens))
    return ours, other


def test_the_loss_is_per_token_over_all_tasks() -> None:
    assert mean_loss([Loss(10.0, 10), Loss(90.0, 30)]) == 2.5


def test_a_small_steady_difference_is_seen_though_tasks_differ_widely() -> None:
    difference, low, high = paired_interval(*losses(40, -0.05, 0.02, seed=1))
    assert low < difference < high < 0
    assert difference == pytest.approx(-0.05, abs=0.02)
    assert decide(low, high) == "better"


@pytest.mark.slow
def test_noise_alone_is_told_from_an_effect_at_the_promised_rate() -> None:
    false_alarms = 0
    for seed in range(200):
        _, low, high = paired_interval(*losses(40, 0.0, 0.3, seed))
        false_alarms += decide(low, high) != "cannot tell"
    assert false_alarms <= 24  # 5 % are promised; 12 % would be 1 in 10,000 by chance


def drawn(draws: int, luck: float, seed: int) -> list[list[Loss]]:
    """Ours and so many draws of the control, none better than another, each with a luck of its own."""
    numbers = random.Random(seed)
    tasks = [(numbers.randrange(5, 40), numbers.uniform(0.5, 5.0)) for _ in range(40)]
    lucks = [numbers.gauss(0, luck) for _ in range(1 + draws)]
    return [[Loss(n * (hard + luck + numbers.gauss(0, 0.01)), n) for n, hard in tasks] for luck in lucks]


@pytest.mark.slow
@pytest.mark.parametrize(("draws", "fewest", "most"), [(1, 50, 100), (2, 0, 13), (5, 0, 13)])
def test_the_luck_of_the_draw_is_told_from_an_effect_at_the_promised_rate(draws: int, fewest: int, most: int) -> None:
    alarms = [decide(*paired_interval(*drawn(draws, 0.02, seed))[1:]) != "cannot tell" for seed in range(100)]
    assert fewest <= sum(alarms) <= most  # one draw takes luck for an effect, which is why there may be several


def test_several_draws_still_see_an_effect_beyond_their_luck() -> None:
    ours, *draws = drawn(3, 0.01, seed=1)
    better = [Loss(loss.nats - 0.2 * loss.tokens, loss.tokens) for loss in ours]
    difference, low, high = paired_interval(better, *draws)
    assert low < difference < high < 0
    names = ("base", "ours", "control", "control 2", "control 3")
    losses = dict(zip(names, [draws[0], better, *draws], strict=True))
    verdict = judge(dict.fromkeys(names, MEASURES), losses, control="all candidates", overlap=0.5)
    assert (verdict["draws"], verdict["interval_95"]) == (3, [low, high])
    assert verdict["sentence"].startswith("Better: ")
    assert "3 draws of the control" in verdict["sentence"]


def test_the_decision_needs_an_interval_clear_of_zero() -> None:
    assert [decide(-2, -1), decide(-1, 1), decide(1, 2), decide(0.0, 1.0)] == [
        "better",
        "cannot tell",
        "worse",
        "cannot tell",
    ]


MEASURES = {"answer_loss": 1.0, "rouge_l": 10.0, "bleu": 1.0, "exact_match": None, "stop_rate": 1.0, "empty_rate": 0.0,
            "mean_tokens": 9.0, "plain_text_loss": 3.0}  # fmt: skip


@pytest.mark.parametrize(("shift", "said"), [(-0.2, "Better"), (0.2, "Worse"), (0.0, "Cannot tell")])
def test_one_sentence_says_it_against_the_control(shift: float, said: str) -> None:
    ours, control = losses(40, shift, 0.05, seed=3)
    arms = {"base": MEASURES, "control": MEASURES, "ours": MEASURES}
    verdict = judge(arms, {"base": control, "control": control, "ours": ours}, control="all candidates", overlap=0.5)
    assert verdict["sentence"].startswith(said)
    assert verdict["about_filtering"] == verdict["verdict"]
    assert ("one draw" in verdict["sentence"]) == (said != "Cannot tell")
    assert describe(verdict)[-1] == verdict["sentence"]


def test_without_a_control_nothing_is_said_about_filtering() -> None:
    ours, base = losses(40, -0.2, 0.05, seed=3)
    verdict = judge({"base": MEASURES, "ours": MEASURES}, {"base": base, "ours": ours}, control=None, overlap=None)
    assert verdict["about_filtering"] is None
    assert "Without a control nothing is said about filtering" in verdict["sentence"]


def test_few_tasks_tell_nothing() -> None:
    ours, base = losses(9, -1.0, 0.01, seed=3)
    assert judge({}, {"base": base, "ours": ours}, control=None, overlap=None)["verdict"] == "cannot tell"


def verdict_of_judge(*opinions: tuple[Opinions, int]) -> dict[str, Any]:
    """What is made of so many of each opinion, on pairs whose first answer is the longer."""
    heard = [opinion for opinion, count in opinions for _ in range(count)]
    return judged([Pair("Q", "a longer answer", "short", "en")] * len(heard), heard, "j", "control")


WON, LOST, TIED = (Opinions(said, said) for said in ("first", "second", "tie"))
TORN, UNHEARD = Opinions("first", "second"), Opinions("first", None)


def test_a_judge_counts_where_it_agrees_with_itself() -> None:
    found = verdict_of_judge((WON, 40), (LOST, 8), (TIED, 4), (TORN, 12), (UNHEARD, 6))
    assert (found["tasks"], found["judged"]) == (70, 64)
    assert (found["won"], found["lost"], found["tied"]) == (40, 8, 16)
    assert found["win_rate"] == pytest.approx((40 + 16 / 2) / 64)
    low, high = found["interval_95"]
    assert 0.5 < low < found["win_rate"] < high < 1
    assert found["agrees_with_itself"] == pytest.approx(52 / 64)
    assert found["longer_won"] == pytest.approx(40 / 48)
    assert "read 64 of 70 pairs in both orders: against the control won 40, lost 8, tied 16" in found["sentence"]


def test_a_judge_that_follows_the_order_counts_for_nothing() -> None:
    found = verdict_of_judge((WON, 5), (TORN, 15))
    assert found["agrees_with_itself"] == 0.25
    assert "its word counts for nothing" in found["sentence"]


def test_answers_that_are_alike_are_no_word_of_the_judges() -> None:
    alike, differing = Pair("Q", "same", "same ", "en"), Pair("Q", "a longer answer", "short", "en")
    found = judged([alike] * 20 + [differing] * 12, [TIED] * 20 + [TORN] * 9 + [WON] * 3, "j", "control")
    assert (found["judged"], found["alike"], found["agrees_with_itself"]) == (12, 20, 0.25)
    assert "read 12 of 32 pairs in both orders (20 more are alike)" in found["sentence"]
    assert "its word counts for nothing" in found["sentence"]
    unheard = judged([alike] * 20 + [differing] * 12, [TIED] * 20 + [UNHEARD] * 12, "j", "control")
    assert (unheard["judged"], unheard["win_rate"]) == (0, None)


def test_few_opinions_say_nothing() -> None:
    found = verdict_of_judge((WON, 3), (UNHEARD, 30))
    assert (found["win_rate"], found["longer_won"]) == (None, 1.0)
    assert "too few to say anything" in found["sentence"]
    assert verdict_of_judge((UNHEARD, 3))["agrees_with_itself"] is None


def test_what_a_judge_says_decides_nothing_and_is_shown(tmp_path: Path) -> None:
    ours, base = losses(40, 0.2, 0.05, seed=3)
    verdict = judge({"base": MEASURES, "ours": MEASURES}, {"base": base, "ours": ours}, control=None, overlap=None)
    verdict["judge"] = verdict_of_judge((WON, 40))
    assert verdict["verdict"] == "worse"
    assert describe(verdict)[-2:] == [verdict["judge"]["sentence"], verdict["sentence"]]
    write(tmp_path, verdict, [])
    assert verdict["judge"]["sentence"] in (tmp_path / "verdict.html").read_text()


def test_chinese_is_compared_by_characters() -> None:
    assert rouge_l(task("中国的首都是哪里?", "中国的首都是北京。"), "首都是北京。") == pytest.approx(0.8)
    assert rouge_l(task("Where?", "She is running home"), "She runs home") > 0.7  # stems


def test_the_measures_of_answers() -> None:
    tasks = [task("A?", "yes", "classification"), task("B?", "no", "classification"), task("C?", "a b c d e")]
    replies = [Reply("Yes.", 2, True), Reply("yes", 2, True), Reply("", 48, False)]
    found = scores(tasks, replies)
    assert found["exact_match"] == 0.5
    assert found["stop_rate"] == pytest.approx(2 / 3)
    assert found["empty_rate"] == pytest.approx(1 / 3)
    assert found["mean_tokens"] == pytest.approx(52 / 3)
    assert scores(tasks[2:], [Reply("a b c d e", 6, True)])["bleu"] == pytest.approx(100)


def test_the_page_shows_answers_as_text_not_as_markup(tmp_path: Path) -> None:
    ours, base = losses(40, -0.2, 0.05, seed=3)
    verdict = judge({"base": MEASURES, "ours": MEASURES}, {"base": base, "ours": ours}, control=None, overlap=None)
    asked = [{"question": "<b>Q</b>", "wanted": "w", "answers": {"base": "<script>x</script>", "ours": "fine"}}]
    write(tmp_path, verdict, asked)
    page = (tmp_path / "verdict.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert json.loads((tmp_path / "verdict.json").read_text()) == verdict
