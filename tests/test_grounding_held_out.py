"""Sentences about two passages, written after grounding.py was done: none of its rules was made for them."""

from __future__ import annotations

import pytest

from pipeline.checks.grounding import unsupported

GLACIER = """Glaciers > Measuring

Vatnajökull in Iceland covers about 7,700 square kilometres and is up to 950 m thick. Helgi Björnsson's
team drilled through it
between 2005 and 2009 and found ice of 900 years. Each summer roughly 8% of the outlet's tongue melts; a
probe read -0.4 °C at
the bed. Meltwater reaches the sea within 36 hours, and the loss equals 9.6 Gt a year. The survey used
the GPR-200 radar at
50 MHz, cost 1.2 million dollars and was published by Cambridge University Press. Two crews of four worked in shifts."""
GLACIER_ZH = """冰川 > 测量

瓦特纳冰原位于冰岛，面积约7700平方公里，最厚处达九百五十米。张宏远博士的团队在2005年至2009年间钻探，取得了九百年前的冰。每年夏天约有
百分之八的冰舌融化，
融水在三十六小时内入海，
年损失96亿吨。测量使用GPR-200雷达，频率50兆赫，耗资120万美元，报告由海洋出版社出版，参加者来自中山大学。"""

FAITHFUL = """Vatnajökull's area is roughly 7700 square kilometres.
Its ice is at most 950 metres thick.
The oldest ice found is nine hundred years old.
Björnsson's team finished drilling in 2009, four years after they began.
In summer the tongue loses about 8 percent of its ice.
The bed was slightly below freezing, at -0.4 °C.
It takes a day and a half, 36 h, for the meltwater to arrive at the sea.
Every year 9.6 Gt of ice are lost.
The radar GPR-200 worked at 50 MHz.
The survey's price was $1.2 million, or $1,200,000.
Cambridge published the results.
Eight people took part: two crews with four members each.
Radar sees through ice, so drilling could be planned. Shifts kept the work going.
Meltwater from Iceland's largest ice cap ends in the sea after at most 36 hours."""
FAITHFUL_ZH = """瓦特纳冰原的面积大约是7,700平方公里。
冰层最厚的地方有950米。
张宏远的团队从2005年开始钻探，到2009年结束。
取得的冰有900年历史。
每到夏季，8%左右的冰舌会融化。
融水36小时之内就流入大海。
每年损失约96亿吨冰。
雷达的型号是GPR-200，频率为50兆赫。
项目花费了一百二十万美元。
报告的出版方是海洋出版社。
参加测量的人员来自中山大学。
这说明冰川退缩得很快，需要长期监测。"""
INVENTED = """It covers about 8,700 square kilometres.
The ice is 950 km thick.
The team drilled until 2012.
Grímsvötn was drilled as well.
Olafur Jonsson led the team.
About 12% of the tongue melts.
The probe read -4 °C at the bed.
It reaches the sea within 36 minutes.
The loss equals 96 Gt a year.
The GPR-300 was used.
The radar ran at 50 kHz.
It cost 1.2 billion dollars.
Oxford University Press printed it.
Three crews of seventeen worked on it.
NASA paid for the survey.
The meltwater flows into Lake Superior."""
INVENTED_ZH = """面积约8700平方公里。
最厚处达九百五十公里。
钻探在2012年结束。
李建军博士领导了团队。
约有百分之十二的冰舌融化。
融水在三十六分钟内入海。
年损失69亿吨。
测量使用GPR-300雷达。
频率为50千赫。
耗资120万欧元。
报告由科学出版社出版。
参加者来自复旦大学。
这一结果由《自然》杂志报道。
共有八十七人参加。"""


def rows(english: str, chinese: str) -> list[tuple[str, str]]:
    sources = ((GLACIER, english), (GLACIER_ZH, chinese))
    return [(source, line) for source, lines in sources for line in lines.splitlines()]


@pytest.mark.parametrize(("source", "answer"), rows(FAITHFUL, FAITHFUL_ZH))
def test_faithful_sentences_pass(source: str, answer: str) -> None:
    assert unsupported(answer, source) == []


@pytest.mark.parametrize(("source", "answer"), rows(INVENTED, INVENTED_ZH))
def test_invented_ones_do_not(source: str, answer: str) -> None:
    assert unsupported(answer, source)
