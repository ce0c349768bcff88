"""Examples for Self-KG's prompts: earlier turns of the chat that show the form, about rivers and no graph of ours."""

from __future__ import annotations

import json


def _answer(**fields: str) -> str:
    return json.dumps(fields, ensure_ascii=False)


EXAMPLES: dict[str, list[tuple[dict[str, object], str]]] = {
    "en": [
        (
            {
                "facts": "The source of the Rhine is Lake Toma.",
                "question": "What is the source of the Rhine?",
                "answer": "The source of the Rhine is Lake Toma.",
            },
            _answer(instruction="Where does the Rhine rise?", answer="The Rhine rises at Lake Toma."),
        ),
        (
            {
                "facts": "The Danube flows through Vienna. The Danube flows through Budapest.",
                "question": "Which cities does the Danube flow through? Name all 2 that the knowledge graph gives.",
                "answer": "Budapest and Vienna.",
            },
            _answer(
                instruction="I am following the Danube by boat. Which cities on it does the knowledge graph list?",
                answer="It lists two cities on the Danube: Vienna and Budapest.",
            ),
        ),
        (
            {
                "facts": "The Seine flows into the English Channel.",
                "question": "True or false: The Seine flows into the Black Sea?",
                "answer": "False. The Seine flows into the English Channel.",
            },
            _answer(
                instruction="Does the Seine flow into the Black Sea?",
                answer="No. The Seine flows into the English Channel.",
            ),
        ),
    ],
    "zh": [
        (
            {"facts": "莱茵河的源头是托马湖。", "question": "莱茵河的源头是哪里？", "answer": "莱茵河的源头是托马湖。"},
            _answer(instruction="莱茵河发源于哪里？", answer="莱茵河发源于托马湖。"),
        ),
        (
            {
                "facts": "多瑙河流经维也纳。多瑙河流经布达佩斯。",
                "question": "多瑙河流经哪里？请列出知识图谱给出的全部2个答案。",
                "answer": "布达佩斯和维也纳。",
            },
            _answer(
                instruction="我打算坐船游览多瑙河，知识图谱里记着它流经哪些城市？",
                answer="图谱记了两座城市：维也纳和布达佩斯。",
            ),
        ),
        (
            {
                "facts": "塞纳河注入英吉利海峡。",
                "question": "判断对错：塞纳河注入黑海。",
                "answer": "错误。塞纳河注入英吉利海峡。",
            },
            _answer(instruction="塞纳河是注入黑海的吗？", answer="不是。塞纳河注入英吉利海峡。"),
        ),
    ],
}

# Plain questions in other words, for a small model that words nothing else.
REPHRASED = {
    "en": (
        ("What is the source of the Rhine?", "Can you tell me the source of the Rhine?"),
        (
            "Which cities does the Danube flow through? Name all 2 that the knowledge graph gives.",
            "Name all 2 cities that the Danube flows through.",
        ),
        ("True or false: The Seine flows into the Black Sea?", "Does the Seine flow into the Black Sea?"),
        ("Check this claim: The Po lies in Italy. Is it right?", "Is it right that the Po lies in Italy?"),
        (
            "Which has the greater length, the Nile or the Thames?",
            "Which of the Nile and the Thames has the greater length?",
        ),
        ("Sum up the main facts about the Volga.", "What do you know about the Volga?"),
    ),
    "zh": (
        ("莱茵河的源头是哪里？", "请问莱茵河的源头是哪里？"),
        ("多瑙河流经哪里？请列出知识图谱给出的全部2个答案。", "请列出知识图谱给出的多瑙河流经的全部2个答案。"),
        ("判断对错：塞纳河注入黑海。", "塞纳河注入黑海，对吗？"),
        ("请核对这一说法是否属实：波河位于意大利。", "波河是否位于意大利？"),
    ),
}

RELATION_EXAMPLES: dict[str, list[tuple[dict[str, object], str]]] = {
    "en": [
        (
            {"relation": "geo river river mouth", "facts": "Rhine — North Sea; Seine — English Channel"},
            _answer(
                label="mouth",
                statement="{s} flows into {o}",
                tail="Which body of water does {s} flow into?",
                head="Which river flows into {o}?",
            ),
        ),
        (
            {"relation": "people person employment. employment tenure company", "facts": "Ada Smith — Acme Mills"},
            _answer(
                label="employer",
                statement="{s} works for {o}",
                tail="Whom does {s} work for?",
                head="Who works for {o}?",
            ),
        ),
    ],
    "zh": [
        (
            {"relation": "geo river river mouth", "facts": "莱茵河 — 北海；塞纳河 — 英吉利海峡"},
            _answer(label="注入的水域", statement="{s}注入{o}", tail="{s}注入哪片水域？", head="哪条河注入{o}？"),
        ),
        (
            {"relation": "people person employment. employment tenure company", "facts": "李明 — 东方纺织厂"},
            _answer(label="雇主", statement="{s}在{o}工作", tail="{s}在哪里工作？", head="谁在{o}工作？"),
        ),
    ],
}
