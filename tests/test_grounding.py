"""What an answer may say: faithful paraphrases pass, invented numbers, names and units do not; quotes are located.

The two tables are written by hand, apart from the fake server's planted answers, which the last test counts.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checks.grounding import locate, quotes_in, unsupported
from pipeline.checks.quantities import quantities
from pipeline.filters import RECORD
from pipeline.run_folder import read_records
from pipeline.self_qa import main
from tests.fake_faults import text_of
from tests.fake_server import FakeServer
from tests.fake_words import Writer

DATA = Path(os.environ.get("INSTRUCTLOOP_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))

PUMP = """Pumps > Model P-40

The P-40 pump moves 40 litres of water a minute and weighs 12.5 kg. It was designed by Marta Keller at Kreuzwerk in
1998, and about 1,200 of them are in use. Close the valve for 90 seconds before you open the lid; 20% of all failures
come from a worn seal. The `flow_limit` setting defaults to 3.5 bar. There is a warranty of two years, and a repair
costs $250. Set connect_timeout=10.0 if the network is slow. HTTP/2 is off by default. Spare seals are sold in packs of
five. It tolerates temperatures from -5 to 60 °C."""
VALVE = """阀门 > 型号

李明教授在2015年提出了双层阀门，由清华大学测试。每个阀门重1.5公斤，可承受三百二十度高温，使用寿命约2万次。关闭阀门需要九十秒，
其中百分之二十的故障来自密封圈。默认压力为3.5兆帕，共有四种型号。更换一次费用是120元，详见《阀门手册》。LoRA的秩通常取8。"""

FAITHFUL = [
    (PUMP, "The pump moves forty litres of water every minute."),
    (PUMP, "It weighs 12.5kg."),
    (PUMP, "Roughly 1200 pumps are in service."),
    (PUMP, "Wait one and a half minutes, that is 90 s, with the valve closed before opening the lid."),
    (PUMP, "Keep the valve shut for 1.5 minutes first."),
    (PUMP, "A worn seal causes 20 percent of the failures."),
    (PUMP, "One failure in every few, or 0.2 of them, comes from the seal."),
    (PUMP, "Marta Keller designed it at Kreuzwerk in 1998."),
    (PUMP, "Kreuzwerk's designer Keller made it."),
    (PUMP, "The warranty lasts 2 years."),
    (PUMP, "A repair costs 250 dollars."),
    (PUMP, "Raise `connect_timeout` to 10 seconds when the network is slow."),
    (PUMP, "The connect timeout should be 10."),
    (PUMP, "Setting flow_limit changes the pressure; its default is 3.5 bar."),
    (PUMP, "HTTP/2 must be switched on; it is off by default."),
    (PUMP, "There are three things to know: the flow, the weight and the warranty."),
    (PUMP, "Users should first close the valve. Then they can open the lid. Finally, they replace the seal."),
    (PUMP, "Opening the lid requires the valve to be closed beforehand."),
    (PUMP, "Seals come five to a pack."),
    (PUMP, "It works between -5 °C and 60 °C."),
    (PUMP, "Yes. Because seals wear out, keep a spare pack of 5 seals."),
    (PUMP, "1. Close the valve.\n2. Wait 90 seconds.\n3. Open the lid."),
    (PUMP, "The model P-40 pump's flow is 40 litres per minute, its mass 12.5 kilograms."),
    (PUMP, "Maintenance is needed when the seal is worn, since that is a common cause of failure."),
    (PUMP, "Twelve hundred or so are in use: about 1,200."),
    (VALVE, "双层阀门由李明教授于2015年提出，经清华大学测试。"),
    (VALVE, "每个阀门的重量是1.5千克。"),
    (VALVE, "它能承受320度的高温。"),
    (VALVE, "使用寿命大约为20000次。"),
    (VALVE, "寿命约两万次，需要定期更换。"),
    (VALVE, "关闭阀门要花90秒，也就是1.5分钟。"),
    (VALVE, "20%的故障是密封圈造成的。"),
    (VALVE, "一共有4种型号，默认压力3.5兆帕。"),
    (VALVE, "更换一次需要120元。"),
    (VALVE, "可以参考《阀门手册》。"),
    (VALVE, "LoRA的秩一般设为8。"),
    (VALVE, "主要有两点：一是耐高温，二是寿命长。"),
    (VALVE, "这种设计一般用于高温环境，同时便于更换。"),
    (VALVE, "首先关闭阀门，然后等待九十秒，最后检查密封圈。"),
    (VALVE, "测试工作由清华大学完成，提出者是李明。"),
]

INVENTED = [
    (PUMP, "The pump moves 45 litres a minute."),
    (PUMP, "It weighs 13 kg."),
    (PUMP, "It weighs 12.5 grams."),
    (PUMP, "Close the valve for 90 minutes."),
    (PUMP, "Close the valve for three hundred seconds."),
    (PUMP, "About 1,250 of them are in use."),
    (PUMP, "A worn seal causes 35% of failures."),
    (PUMP, "It was designed in 1989."),
    (PUMP, "Marta Schneider designed it."),
    (PUMP, "It was designed by Keller at Siemens."),
    (PUMP, "Einstein designed the pump."),
    (PUMP, "The pump was tested by NASA."),
    (PUMP, "Set read_timeout to change it."),
    (PUMP, "Call httpx.get to read it."),
    (PUMP, "The warranty lasts two months."),
    (PUMP, "The warranty lasts seven years."),
    (PUMP, "A repair costs 250 euros."),
    (PUMP, "A repair costs €300."),
    (PUMP, "Its default is 3.5 kW."),
    (PUMP, "See https://pumps.example.org/p40 for more."),
    (PUMP, "It supports HTTP3 as well."),
    (PUMP, "Sold in Germany since then."),
    (PUMP, "Tolerates temperatures down to -15 °C."),
    (PUMP, "The P-50 pump is larger."),
    (PUMP, "Fifty-five of them failed."),
    (VALVE, "双层阀门在2018年提出。"),
    (VALVE, "王建国教授提出了双层阀门。"),
    (VALVE, "由北京大学测试。"),
    (VALVE, "每个阀门重1.5吨。"),
    (VALVE, "每个阀门重2.5公斤。"),
    (VALVE, "可承受五百度高温。"),
    (VALVE, "使用寿命约3万次。"),
    (VALVE, "关闭阀门需要九十分钟。"),
    (VALVE, "百分之三十的故障来自密封圈。"),
    (VALVE, "共有四十种型号。"),
    (VALVE, "更换一次费用是120美元。"),
    (VALVE, "详见《水泵手册》。"),
    (VALVE, "QLoRA的秩通常取8。"),
    (VALVE, "由华能集团生产。"),
    (VALVE, "秩通常取64。"),
]


@pytest.mark.parametrize(("source", "answer"), FAITHFUL)
def test_what_the_source_says_in_other_words_is_supported(source: str, answer: str) -> None:
    assert unsupported(answer, source) == []


@pytest.mark.parametrize(("source", "answer"), INVENTED)
def test_invented_numbers_names_and_units_are_found(source: str, answer: str) -> None:
    assert unsupported(answer, source)


# ---------------------------------------------------------------- quotes

LOCATED = [
    ("about 1,200 of\nthem are in use", "about 1,200 of\nthem are in use"),
    ("about 1,200 of them are in use", "about 1,200 of\nthem are in use"),
    ("The “flow_limit” setting defaults to 3.5 bar.", "The `flow_limit` setting defaults to 3.5 bar."),
    ("the flow_limit setting defaults to 3.5 bar", "The `flow_limit` setting defaults to 3.5 bar"),
    ("李明教授在2015年提出了双层阀门,由清华大学测试", "李明教授在2015年提出了双层阀门，由清华大学测试"),
    ("关闭阀门需要九十秒， 其中百分之二十的故障来自密封圈。", "关闭阀门需要九十秒，\n其中百分之二十的故障来自密封圈。"),
]
NOT_LOCATED = [
    "about 1,300 of them are in use",
    "defaults to 35 bar",
    "valve",
    "阀门",
    "",
    "...",
    "Close the valve for ever",
]


@pytest.mark.parametrize(("quote", "expected"), LOCATED)
def test_a_quote_is_found_as_the_source_has_it(quote: str, expected: str) -> None:
    source = PUMP.replace("1,200 of", "1,200 of\n").replace("\n ", "\n") + VALVE
    place = locate(quote, source)
    assert place is not None
    assert source[slice(*place)] == expected


@pytest.mark.parametrize("quote", NOT_LOCATED)
def test_what_the_source_does_not_hold_is_no_quote(quote: str) -> None:
    assert locate(quote, PUMP + VALVE) is None


def test_a_quote_with_an_ellipsis_is_several() -> None:
    places = quotes_in("Marta Keller at Kreuzwerk ... worn seal", PUMP)
    assert [" ".join(PUMP[slice(*place)].split()) for place in places] == ["Marta Keller at Kreuzwerk", "worn seal"]
    assert quotes_in("Marta Keller at Kreuzwerk ... a thing that is not there", PUMP) == []


@given(st.text(max_size=200), st.data())
def test_every_stretch_of_a_text_is_located_where_the_text_equals_it(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    stretch = text[start : data.draw(st.integers(start, len(text)))]
    place = locate(stretch, text)
    if place is not None:
        assert text[slice(*place)] == stretch.strip()
    else:
        assert sum(character.isalnum() for character in stretch) < 6


# ---------------------------------------------------------------- numbers

VALUES = [
    ("1,234.5", 1234.5), ("two hundred and five thousand", 205_000), ("1.5万", 15_000), ("二百零五万", 2_050_000),
    ("二〇二四", 2024), ("7B", 7e9), ("3 million", 3e6), ("十六", 16), ("百分之二十", 20), ("-5", -5), ("a dozen", 12),
    ("twenty-one", 21), ("½", None), ("GPT-4", None), ("utf8", None), ("一般", None), ("十分", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_numbers_have_the_value_they_say(text: str, value: float | None) -> None:
    assert [quantity.value for quantity in quantities(text)] == ([] if value is None else [value])


# ---------------------------------------------------------------- through the whole line


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "docs_en").is_dir(), reason=f"real documents are not at {DATA}")
def test_planted_inventions_are_caught_and_paraphrases_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with FakeServer(ledger=tmp_path / "ledger.jsonl", plant=0.5) as server:
        off = ",".join(f"{f.name}=off" for f in RECORD if f.name != "ungrounded")  # each answer judged by its grounding
        fixed = ["--out", str(out), "--model", "fake", "--base-url", server.base_url, "--filters", off]
        main([str(DATA / "docs_en"), str(DATA / "docs_zh"), "--per-chunk", "10", *fixed])
        ledger = server.ledger()
    planted: dict[str, str | None] = {}
    for line in ledger:
        schema = line["body"]["response_format"]["json_schema"]["schema"]
        if "answer" in schema["properties"]:  # the server's words again, to learn which it had invented
            writer = Writer(int(line["key"][:16], 16), text_of(line["body"]["messages"][-1]), plant=0.5)
            answer = json.loads(writer.answer(schema)[0])["answer"].strip()
            planted[answer] = writer.planted
    kept = {record.output for record in read_records(out)}
    counts = Counter((kind is not None, answer in kept) for answer, kind in planted.items())
    invented, faithful = counts[True, False] + counts[True, True], counts[False, False] + counts[False, True]
    assert invented > 150
    assert faithful > 150
    assert counts[True, False] >= 0.95 * invented
    assert counts[False, False] <= 0.05 * faithful
