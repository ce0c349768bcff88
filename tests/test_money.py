"""Limits are never crossed, whatever the server answers; a price is known or unknown, never 0; --plan sends nothing."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import crash
from pipeline.ask import Ask
from pipeline.errors import BudgetReached, StopRun, UsageError
from pipeline.journal import Journal, Totals, Used
from pipeline.llm import Reply, Request, RequestFailed, most_prompt_tokens
from pipeline.money import FREE, Budget, Limits, Price, plan_of, read_prices
from tests.fake_server import FakeServer
from tests.forked import Forked

PRICES = {"fake": Price(2.0, 8.0)}
PRICES_TOML = '["fake"]\ninput = 2.0\noutput = 8.0\n'


# ---------------------------------------------------------------- a thousand random servers


class RandomServer:
    """A model that answers as servers have been seen to: with odd usage, an error, or not at all. It keeps a bill."""

    reader = "openai"
    is_local = False
    address = "http://127.0.0.1:9/v1"
    identity = "fake"

    def __init__(self, random_: random.Random) -> None:
        self._random = random_
        self._faults = random_.random() * 0.5
        self.requests = self.prompt_tokens = self.completion_tokens = 0

    def refuse(self, parameters: set[str]) -> None:
        pass

    async def close(self) -> None:
        pass

    async def complete(self, request: Request) -> Reply:
        prompt = self._random.randint(1, sum(len(text.encode()) for _, text in request.messages))
        written = self._random.randint(0, request.max_tokens)
        self.requests += 1
        await asyncio.sleep(0)
        if self._random.random() < self._faults:
            outcome = self._random.choice(["timeout", "connection", "server_error", "rate_limit", "malformed_reply"])
            if outcome in ("timeout", "connection", "malformed_reply"):  # the server worked, and sends its bill
                self._bill(prompt, written)
            raise RequestFailed(outcome, outcome, retry_after=0.0)
        self._bill(prompt, written)
        usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": written}
        odd = self._random.random()
        if odd < 0.2:
            usage = {"prompt_tokens": -1, "completion_tokens": written} if odd < 0.1 else {}
        known = [usage.get(name, -1) for name in ("prompt_tokens", "completion_tokens")]
        tokens = [number if number >= 0 else None for number in known]
        raw = {"choices": [{"message": {"content": "yes"}}], "usage": usage}
        return Reply("yes", "stop", tokens[0], tokens[1], json.dumps(raw).encode())

    def _bill(self, prompt: int, written: int) -> None:
        self.prompt_tokens += prompt
        self.completion_tokens += written

    @property
    def cost(self) -> float:
        return PRICES["fake"].of(self.prompt_tokens, self.completion_tokens)


def random_limits(random_: random.Random) -> Limits:
    return Limits(
        cost=random_.choice([None, random_.uniform(0.0, 0.03)]),
        total_tokens=random_.choice([None, random_.randint(1, 6000)]),
        requests=random_.choice([None, random_.randint(1, 40)]),
    )


async def one_life(journal: Journal, server: RandomServer, limits: Limits, random_: random.Random) -> None:
    """A run of up to 40 requests, which may be killed in its middle; it ends at a limit, an outage, or by itself."""
    budget = Budget("fake", PRICES, limits)
    ask = Ask(server, journal, concurrency=random_.choice([1, 4, 16]), budget=budget, pause_s=0.0)
    await ask.start()
    requests = [
        Request((("user", "x" * random_.randint(1, 400)),), max_tokens=random_.choice([1, 50, 400]), sample=number)
        for number in range(random_.randint(1, 40))
    ]
    tasks = [asyncio.ensure_future(ask(request)) for request in requests]
    if random_.random() < 0.3:
        await asyncio.wait(tasks, timeout=0.0)
        ask.abort()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await ask.drain()
    bugs = [error for error in results if isinstance(error, Exception) and not isinstance(error, StopRun)]
    assert not bugs


@pytest.mark.parametrize("seeds", [range(100), pytest.param(range(100, 1000), marks=pytest.mark.slow)], ids=str)
async def test_a_thousand_random_servers_cross_no_limit(tmp_path: Path, seeds: range) -> None:
    stopped = 0
    for seed in seeds:
        random_ = random.Random(seed)
        server, limits = RandomServer(random_), random_limits(random_)
        with Journal(tmp_path / f"{seed}.sqlite") as journal:
            for _ in range(random_.choice([1, 2])):  # the second life counts what the first one paid
                await one_life(journal, server, limits, random_)
        (tmp_path / f"{seed}.sqlite").unlink()
        assert limits.requests is None or server.requests <= limits.requests, seed
        spent = server.prompt_tokens + server.completion_tokens
        assert limits.total_tokens is None or spent <= limits.total_tokens, seed
        assert limits.cost is None or server.cost <= limits.cost, seed
        stopped += limits != Limits()
    assert stopped > len(seeds) / 2


async def test_a_limit_is_used_up_and_not_given_away(tmp_path: Path) -> None:
    """What is in flight counts at its worst, but only while it is in flight: then more may go."""
    random_ = random.Random(7)
    server = RandomServer(random_)
    server._faults = 0.0
    limits = Limits(total_tokens=20_000)
    with Journal(tmp_path / "j.sqlite") as journal:
        ask = Ask(server, journal, concurrency=8, budget=Budget("fake", PRICES, limits))
        requests = [Request((("user", "y" * 100),), max_tokens=400, sample=number) for number in range(400)]
        results = await asyncio.gather(*map(ask, requests), return_exceptions=True)
        assert any(isinstance(result, BudgetReached) for result in results)
        most = most_prompt_tokens(requests[0].body("fake")) + 400
        at_most = ask.budget.used["fake"].at_most
        assert limits.total_tokens is not None
        assert limits.total_tokens - most < at_most <= limits.total_tokens


class Held(RandomServer):
    """Answers when it is let go."""

    def __init__(self) -> None:
        super().__init__(random.Random(1))
        self._faults = 0.0
        self.begun, self.let_go = asyncio.Event(), asyncio.Event()

    async def complete(self, request: Request) -> Reply:
        self.begun.set()
        await self.let_go.wait()
        return Reply("yes", "stop", 10, 10, b"{}")


async def test_a_limit_waits_for_what_another_model_of_the_run_has_in_flight(tmp_path: Path) -> None:
    """A judge whose request fits only once the generator's turned out cheap waits for that, and stops nothing."""
    slow = Held()
    asked = Request((("user", "y" * 100),), max_tokens=400)
    verdict = Request((("user", "z" * 100),), max_tokens=400, sample=1)
    most = most_prompt_tokens(asked.body("fake")) + 400
    with Journal(tmp_path / "j.sqlite") as journal:
        budget = Budget("fake", PRICES, Limits(total_tokens=most + most // 2))
        ask = Ask(slow, journal, concurrency=8, budget=budget)
        judge = ask.beside(Held(), concurrency=8)
        judge.model.let_go.set()  # type: ignore[attr-defined]
        first = asyncio.ensure_future(ask(asked))
        await slow.begun.wait()
        second = asyncio.ensure_future(judge(verdict))
        for _ in range(100):  # as far as it comes
            await asyncio.sleep(0)
        slow.let_go.set()
        replies = await asyncio.gather(first, second, return_exceptions=True)
        assert [reply.text for reply in replies if isinstance(reply, Reply)] == ["yes", "yes"]


@pytest.mark.parametrize(
    ("said", "paid", "at_most"),
    [
        ((None, None), False, 0),  # refused: nothing is owed
        ((None, None), True, 130),  # it broke off, or the reply has no usage
        ((70, None), True, 100),
        ((None, 20), True, 120),
        ((70, 20), True, 90),
    ],
)
def test_what_nobody_said_counts_at_its_worst(said: tuple[int | None, int | None], paid: bool, at_most: int) -> None:
    budget = Budget("fake", PRICES, Limits(total_tokens=259))
    budget.reserve((100, 30))
    assert budget.used["fake"].at_most == 130, "in flight"
    budget.settle((100, 30), said, paid=paid)
    assert budget.used["fake"].at_most == at_most
    assert (budget.objection((100, 30)) is None) == (at_most + 130 <= 259)


# ---------------------------------------------------------------- prices


def test_an_unknown_price_is_unknown_and_never_zero() -> None:
    budget = Budget("fake", {})
    budget.reserve((10, 10))
    assert (budget.cost, budget.cost_at_most, budget.cost_per(3)) == (None, None, None)
    assert budget.price_of(10, 10) is None
    assert Budget("local", {"local": FREE}).cost == 0.0
    with pytest.raises(UsageError, match=r"the price of 'fake' is unknown; write it into prices\.toml"):
        Budget("fake", {}, Limits(cost=1.0))


def test_an_earlier_models_unknown_price_makes_the_sum_unknown() -> None:
    budget = Budget("fake", PRICES)
    totals = Totals(attempts=1, used={"old": Used(prompt_tokens=5)})
    budget.start(totals)
    assert budget.cost is None
    with pytest.raises(UsageError, match="'old'"):
        Budget("fake", PRICES, Limits(cost=1.0)).start(totals)


@pytest.mark.parametrize(
    "text",
    ['["m"]\ninput = 1', '["m"]\ninput = 1\noutput = -1', '["m"]\ninput = "1"\noutput = 2', "m = 3",
     '["m"]\ninput = nan\noutput = 1', '["m"]\ninput = 1\noutput = 2\nouput = 3', "[",
     '["m"]\ninput = true\noutput = 1'],
)  # fmt: skip
def test_what_is_no_price_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "prices.toml").write_text(text)
    with pytest.raises(UsageError, match=r"prices\.toml"):
        read_prices(tmp_path / "prices.toml")


def test_a_prices_file_that_is_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no such file"):
        read_prices(tmp_path / "elsewhere.toml")
    assert read_prices(Path("prices.toml")) == {}, "the default one may be missing"


def test_the_shipped_prices_file_names_no_price() -> None:
    assert read_prices(Path("prices.toml")) == {}


def test_a_plan_adds_up_and_scales() -> None:
    requests = [(Request((("user", "x" * 40),), max_tokens=9), 5.0)] * 4
    plan = plan_of(requests, "…", times=2.5)
    assert (plan.requests, plan.prompt_tokens, plan.completion_tokens) == (10, 140, 50)


# ---------------------------------------------------------------- the whole command


def run(
    forked: Forked, tmp_path: Path, server: FakeServer, *more: str, env: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    (tmp_path / "prices.toml").write_text(PRICES_TOML)
    folder = tmp_path / "out"
    arguments = ["--model", "fake", "--base-url", server.base_url, "--out", str(folder), *more]
    code = forked.run([*arguments, "--prices", str(tmp_path / "prices.toml")], env=env)
    path = folder / "summary.json"
    return code, json.loads(path.read_text()) if path.exists() else None


def bill(server: FakeServer) -> tuple[int, int]:
    lines = server.ledger()
    return sum(line["prompt_tokens"] for line in lines), sum(line["completion_tokens"] for line in lines)


@pytest.mark.parametrize(
    ("flag", "value", "spent"),
    [
        ("--max-cost", 0.02, lambda server: PRICES["fake"].of(*bill(server))),
        pytest.param("--max-total-tokens", 9000, lambda server: sum(bill(server)), marks=pytest.mark.slow),
        pytest.param("--max-requests", 9, lambda server: len(server.ledger()), marks=pytest.mark.slow),
    ],
)
def test_a_limit_holds_over_runs_and_a_higher_one_goes_on(
    tmp_path: Path, forked: Forked, flag: str, value: float, spent: Any
) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl", plan=[{"fault": "missing_usage", "every": 5}]) as server:
        for _ in range(2):  # the limit counts all that the folder ever paid
            code, found = run(forked, tmp_path, server, "--target", "40", flag, str(value))
            assert code == 4, forked.output
            assert f"{flag} " in forked.output
            assert 0.1 * value < spent(server) <= value
        code, found = run(forked, tmp_path, server, "--target", "40", flag, str(value * 20))
        assert (code, found["kept"]) == (0, 40), forked.output
        assert max(line["attempt"] for line in server.ledger()) == 1


PASSING = ("server_error", "reset", "cut_body", "garbage_json", "empty_choices", "rate_limit")
FLAWED = ("missing_usage", "negative_usage", "nan", "length", "refusal", "reasoning_only", "think_block")


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 40), marks=pytest.mark.slow)], ids=str)
def test_whole_runs_against_random_servers_cross_no_limit(tmp_path: Path, forked: Forked, seeds: range) -> None:
    """The same over sockets, with processes that are killed; the server's ledger is the bill."""
    reached = 0
    for seed in seeds:
        random_ = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        plan = [{"fault": fault, "share": random_.uniform(0, 0.08)} for fault in (*PASSING, *FLAWED)]
        plan[PASSING.index("rate_limit")] |= {"retry_after": 0.01, "form": "ms"}
        limits = {
            "--max-cost": random_.uniform(0.004, 0.03),
            "--max-total-tokens": random_.randint(3_000, 20_000),
            "--max-requests": random_.randint(1, 40),
        }
        chosen = random_.sample(sorted(limits), random_.randint(1, 3))
        flags = [word for name in chosen for word in (name, str(limits[name]))]
        flags += [
            "--concurrency",
            str(random_.choice([1, 4, 16])),
            "--max-tokens",
            str(random_.choice([100, 400, 1024])),
        ]
        with FakeServer(ledger=folder / "ledger.jsonl", plan=plan) as server:
            for life in range(random_.choice([1, 2, 3])):
                point = (
                    f"{random_.choice(['attempt.begun', 'reply.arrived', 'commit.before'])}:{random_.randint(1, 30)}"
                )
                dies = {crash.VARIABLE: point} if random_.random() < 0.4 else {}
                code, _ = run(forked, folder, server, "--target", str(10 * (life + 1)), *flags, env=dies)
                assert code in (0, 3, 4, 5, -signal.SIGKILL), (seed, forked.output)
                reached += code == 4
            asked, tokens, cost = len(server.ledger()), sum(bill(server)), PRICES["fake"].of(*bill(server))
        assert asked <= limits["--max-requests"] or "--max-requests" not in chosen, seed
        assert tokens <= limits["--max-total-tokens"] or "--max-total-tokens" not in chosen, seed
        assert cost <= limits["--max-cost"] or "--max-cost" not in chosen, seed
    assert reached >= len(seeds) / 2, "limits that nobody reaches show nothing"


def test_cost_is_what_the_server_billed_and_survives_a_second_run(tmp_path: Path, forked: Forked) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl") as server:
        code, first = run(forked, tmp_path, server, "--target", "10")
        assert code == 0
        assert first["cost"] == pytest.approx(PRICES["fake"].of(*bill(server)))
        assert first["cost_per_kept"] == pytest.approx(first["cost"] / 10)
        assert f"{first['cost']:.4f} USD" in forked.output
        _, again = run(forked, tmp_path, server, "--target", "10")
        assert (again["cost"], again["cost_at_most"]) == (first["cost"], first["cost"])
        _, more = run(forked, tmp_path, server, "--target", "40")
        assert more["cost"] == pytest.approx(PRICES["fake"].of(*bill(server)))


def test_max_cost_without_a_price_sends_nothing(tmp_path: Path, forked: Forked) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl") as server:
        arguments = ["--model", "other", "--base-url", server.base_url, "--out", str(tmp_path / "o"), "--max-cost", "1"]
        assert forked.run(arguments) == 2
        assert "the price of 'other' is unknown" in forked.output
        assert server.ledger() == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max-cost", "0.05"], ["--max-cost 0.05 would stop it: "]),
        (["--max-requests", "89", "--max-total-tokens", "500"], ["--max-requests 89 would stop it: 90 with those",
                                                                 "--max-total-tokens 500 would stop it: "]),
        (["--max-cost", "9", "--max-requests", "90", "--max-total-tokens", "9999999"], []),
    ],
)  # fmt: skip
def test_a_plan_says_which_limit_would_stop_the_run(
    tmp_path: Path, forked: Forked, flags: list[str], said: list[str]
) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl") as server:
        code, _ = run(forked, tmp_path, server, "--target", "100", "--plan", "--json", *flags)
        assert (code, server.ledger()) == (0, [])
    plan = json.loads(next(line for line in forked.output.splitlines() if line.startswith("{")))
    assert [sentence[: len(start)] for sentence, start in zip(plan["stopped_by"], said, strict=True)] == said
    assert forked.output.count("Warning: ") == len(said)


def test_what_was_spent_before_counts_in_a_plan(tmp_path: Path, forked: Forked) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl") as server:
        assert run(forked, tmp_path, server, "--target", "10")[0] == 0
        spent = len(server.ledger())
        run(forked, tmp_path, server, "--target", "100", "--plan", "--json")
        plan = json.loads(next(line for line in forked.output.splitlines() if line.startswith("{")))
        stored = int(re.search(r"(\d+) records come of what is stored", plan["assumes"])[1])  # type: ignore[index]
        assert 10 <= stored < 100, "what was under way when the target was reached is stored, too"
        tasks = math.ceil((100 - stored) / 2.5)
        assert plan["requests"] == math.ceil(tasks / 4) + 2 * tasks
        enough = plan["requests"] + spent
        run(forked, tmp_path, server, "--target", "100", "--plan", "--max-requests", str(enough))
        assert "Warning: " not in forked.output
        run(forked, tmp_path, server, "--target", "100", "--plan", "--max-requests", str(enough - 1))
        assert f"Warning: --max-requests {enough - 1} would stop it: {enough} with those sent" in forked.output


def test_a_plan_sends_and_writes_nothing_and_says_what_it_assumes(tmp_path: Path, forked: Forked) -> None:
    with FakeServer(ledger=tmp_path / "ledger.jsonl") as server:
        code, summary = run(forked, tmp_path, server, "--target", "100", "--plan", "--json")
        assert (code, summary, server.ledger()) == (0, None, [])
        assert not (tmp_path / "out").exists()
    assert "Assumed: a prompt brings 4 new instructions of 8 asked for" in forked.output
    plan = json.loads(next(line for line in forked.output.splitlines() if line.startswith("{")))
    assert plan["requests"] == 10 + 2 * 40  # 100 records at 2.5 an instruction, 40 instructions at 4 a prompt
    assert plan["cost"] == pytest.approx(PRICES["fake"].of(plan["prompt_tokens"], plan["completion_tokens"]))
