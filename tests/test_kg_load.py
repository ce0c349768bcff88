"""kg/load.py: every format people keep graphs in, and what happens to what is broken in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kg.complaints import COMPLAINTS_A_FILE
from kg.graph import Graph, GraphError
from kg.load import LONGEST_LINE, load
from kg.names import is_awkward, normal, split_name, split_relation
from kg.values import Value, same_number, unit_in, value_of, values_in

PLANETS = Path(__file__).parent.parent / "kg" / "planets.ttl"

ONE = {("Earth", "orbits", "Sun"), ("Moon", "orbits", "Earth")}
FILES = {
    "plain.tsv": "Earth\torbits\tSun\nMoon\torbits\tEarth\n",
    "header.tsv": "head\trelation\ttail\nEarth\torbits\tSun\nMoon\torbits\tEarth\n",
    "columns.tsv": "id\tobject\tsubject\tpredicate\n1\tSun\tEarth\torbits\n2\tEarth\tMoon\torbits\n",
    "quoted.csv": 'Head,Relation,Tail\nEarth,"orbits",Sun\n"Moon",orbits,Earth\n',
    "bom.tsv": "\ufeffhead\trelation\ttail\r\nEarth\torbits\tSun\r\nMoon\torbits\tEarth\r\n",
    "objects.jsonl": '{"head": "Earth", "relation": "orbits", "tail": "Sun"}\n'
    '{"s": "Moon", "p": "orbits", "o": "Earth"}\n',
    "lists.jsonl": '["Earth", "orbits", "Sun"]\n["Moon", "orbits", "Earth"]\n',
    "records.jsonl": '{"entity": "Earth", "orbits": ["Sun"]}\n{"entity": "Moon", "orbits": "Earth"}\n',
    "list.json": '[["Earth", "orbits", "Sun"], {"name": "Moon", "orbits": ["Earth", "无", ""]}]',
    "g.graphml": """<?xml version="1.0"?><graphml xmlns="http://graphml.graphdrawing.org/xmlns">
        <key id="k" for="edge" attr.name="relation" attr.type="string"/>
        <graph edgedefault="directed"><node id="Earth"/><node id="Sun"/><node id="Moon"/>
        <edge source="Earth" target="Sun"><data key="k">orbits</data></edge>
        <edge source="Moon" target="Earth"><data key="k">orbits</data></edge></graph></graphml>""",
}  # fmt: skip


def keys_of(graph: Graph) -> set[tuple[str, str, str]]:
    return {graph.key_fact(fact) for fact in graph.facts()}


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("name", FILES)
def test_formats_give_the_same_facts(name: str, tmp_path: Path) -> None:
    graph, complaints = load([written(tmp_path, name, FILES[name])])
    assert keys_of(graph) == ONE
    assert complaints == []


YED = """<?xml version="1.0"?><graphml xmlns="http://graphml.graphdrawing.org/xmlns" xmlns:y="http://www.yworks.com/xml">
    <key for="node" id="d0" yfiles.type="nodegraphics"/><key for="edge" id="d1" yfiles.type="edgegraphics"/>
    <key for="edge" id="d2" attr.name="relation"><default>orbits</default></key>
    <key for="node" id="d3" attr.name="type"/>
    <graph edgedefault="directed"><node id="n0"><data key="d0"><y:ShapeNode><y:NodeLabel>Saturn  V</y:NodeLabel>
    </y:ShapeNode></data><data key="d3">rocket</data><graph id="n0:"><node id="n1" name="Moon"/></graph></node>
    <edge source="n1" target="n0"/><edge source="n0" target="n1"><data key="d1"><y:PolyLineEdge>
    <y:EdgeLabel>flew to</y:EdgeLabel></y:PolyLineEdge></data><data key="d2"/></edge><edge source="n0"/>
    <hyperedge><endpoint node="n0"/></hyperedge></graph></graphml>"""


def test_graphml_has_defaults_names_types_and_the_labels_of_yed(tmp_path: Path) -> None:
    graph, complaints = load([written(tmp_path, "g.graphml", YED)])
    assert keys_of(graph) == {("n1", "orbits", "n0"), ("n0", "orbits", "n1")}
    assert [graph.label(graph.node(key), "en") for key in ("n0", "n1")] == ["Saturn V", "Moon"]
    assert graph.types == {graph.node("n0"): [graph.node("rocket")]}
    assert [complaint.why for complaint in complaints] == [
        "no source or no target",
        "joins more than two nodes, and is no fact",
    ]
    labelled = YED.replace('attr.name="relation"', 'attr.name="weight"')
    assert keys_of(load([written(tmp_path, "g.graphml", labelled)])[0]) == {("n0", "flew to", "n1")}


def test_n_quads_are_triples_whose_graphs_are_dropped(tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    lines = '<urn:x:a> <urn:x:b> _:c <urn:g:1> .\n_:c <urn:x:d> "e"@en .\nbroken\n<urn:x:a> <urn:x:b> <urn:x:f> _:g .\n'
    graph, complaints = load([written(tmp_path, "g.nq", lines)])
    assert keys_of(graph) == {
        ("urn:x:a", "urn:x:b", "_:0"),
        ("_:0", "urn:x:d", '"e"@en'),
        ("urn:x:a", "urn:x:b", "urn:x:f"),
    }
    assert [complaint.where for complaint in complaints] == ["g.nq, line 3"]


def test_named_graphs_of_json_ld_are_read(tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    value = {"@context": {"@vocab": "urn:x:"}, "@id": "urn:g", "@graph": [{"@id": "urn:x:a", "b": {"@id": "urn:x:c"}}]}
    graph, _ = load([written(tmp_path, "g.jsonld", json.dumps(value))])
    assert keys_of(graph) == {("urn:x:a", "urn:x:b", "urn:x:c")}


RDF = {
    "g.ttl": '@prefix : <urn:x:> . @prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .\n'
    ':Earth :orbits :Sun ; :mass 5.97 ; :since "1610"^^<http://www.w3.org/2001/XMLSchema#gYear> ;\n'
    '  rdfs:label "Earth"@en, "地球"@zh-Hans . :orbits rdfs:label "orbits"@en .',
    "g.nt": '<urn:x:Earth> <urn:x:orbits> <urn:x:Sun> .\n'
    '<urn:x:Earth> <urn:x:mass> "5.97"^^<http://www.w3.org/2001/XMLSchema#decimal> .\n'
    '<urn:x:Earth> <urn:x:since> "1610"^^<http://www.w3.org/2001/XMLSchema#gYear> .\n'
    '<urn:x:Earth> <http://www.w3.org/2000/01/rdf-schema#label> "Earth"@en .\n'
    '<urn:x:Earth> <http://www.w3.org/2000/01/rdf-schema#label> "\\u5730\\u7403"@zh .\n'
    '<urn:x:orbits> <http://www.w3.org/2000/01/rdf-schema#label> "orbits"@en .\n',
    "g.jsonld": json.dumps({
        "@context": {"@vocab": "urn:x:", "label": "http://www.w3.org/2000/01/rdf-schema#label"}, "@graph": [
        {"@id": "urn:x:Earth", "orbits": {"@id": "urn:x:Sun"},
         "mass": {"@value": "5.97", "@type": "http://www.w3.org/2001/XMLSchema#decimal"},
         "since": {"@value": "1610", "@type": "http://www.w3.org/2001/XMLSchema#gYear"},
         "label": [{"@value": "Earth", "@language": "en"}, {"@value": "地球", "@language": "zh"}]},
        {"@id": "urn:x:orbits", "label": {"@value": "orbits", "@language": "en"}}]}),
    "g.rdf": """<?xml version="1.0"?><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
        xmlns:rdfs="http://www.w3.org/2000/01/rdf-schema#" xmlns:x="urn:x:">
        <rdf:Description rdf:about="urn:x:Earth"><x:orbits rdf:resource="urn:x:Sun"/>
        <x:mass rdf:datatype="http://www.w3.org/2001/XMLSchema#decimal">5.97</x:mass>
        <x:since rdf:datatype="http://www.w3.org/2001/XMLSchema#gYear">1610</x:since>
        <rdfs:label xml:lang="en">Earth</rdfs:label><rdfs:label xml:lang="zh">地球</rdfs:label></rdf:Description>
        <rdf:Description rdf:about="urn:x:orbits"><rdfs:label xml:lang="en">orbits</rdfs:label></rdf:Description>
        </rdf:RDF>""",
}  # fmt: skip


@pytest.mark.parametrize("name", RDF)
def test_rdf_labels_languages_and_datatypes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    graph, complaints = load([written(tmp_path, name, RDF[name])])
    earth = graph.node("urn:x:Earth")
    assert keys_of(graph) == {
        ("urn:x:Earth", "urn:x:orbits", "urn:x:Sun"),
        ("urn:x:Earth", "urn:x:mass", '"5.97"^^decimal'),
        ("urn:x:Earth", "urn:x:since", '"1610"^^gYear'),
    }
    assert (graph.label(earth, "en"), graph.label(earth, "zh")) == ("Earth", "地球")
    assert graph.relation_phrases(graph.relation("urn:x:orbits"), "en").label == "orbits"
    assert complaints == []


def test_the_shipped_graph() -> None:
    pytest.importorskip("rdflib")
    graph, complaints = load([PLANETS])
    assert complaints == []
    assert len(graph) >= 300
    nodes = {node for fact in graph.facts() for node in (fact[0], fact[2])}
    for node in nodes:
        if not graph.is_literal(node):
            assert {"en", "zh"} <= set(graph.labels[node]), graph.keys[node]
            assert nodes & set(graph.nodes_named(graph.label(node, "en"))) == {node}, "two entities of one name"
    for relation in range(len(graph.relation_keys)):
        for language in ("en", "zh"):
            phrases = graph.phrases[relation][language]
            assert all((phrases.label, phrases.statement, phrases.tail, phrases.head, phrases.ref))


def test_a_huatuo_record(tmp_path: Path) -> None:
    record = '{"中心词": "偏头痛", "相关症状": ["头痛", "恶心"], "所属科室": ["神经内科"], "治疗": []}\n'
    graph, complaints = load([written(tmp_path, "g.jsonl", record)])
    assert keys_of(graph) == {
        ("偏头痛", "相关症状", "头痛"),
        ("偏头痛", "相关症状", "恶心"),
        ("偏头痛", "所属科室", "神经内科"),
    }
    assert complaints == []


# ---------------------------------------------------------------- broken things

GOOD = b"a\tb\tc\n"
BROKEN_LINES = [
    ("g.tsv", GOOD + b"only\ttwo\n", "line 2", "2 columns"),
    ("g.tsv", GOOD + b"a\t\tc\n", "line 2", "empty cell"),
    ("g.tsv", GOOD + b"a\t\xff\tc\n", "line 2", "not UTF-8"),
    ("g.tsv", GOOD + b"a\tb\t" + b"c" * LONGEST_LINE + b"\n", "line 2", "bytes"),
    ("g.jsonl", b'["a", "b", "c"]\n{"head": "a"\n', "line 2", "not JSON"),
    ("g.jsonl", b'["a", "b", "c"]\n["a", "b"]\n', "line 2", "neither a triple nor an object"),
    ("g.jsonl", b'["a", "b", "c"]\n{"head": "a", "tail": "b"}\n', "line 2", "neither head"),
    ("g.jsonl", b'["a", "b", "c"]\n' + b"[" * 100_000 + b"\n", "line 2", "not JSON"),
    ("g.jsonl", '["a", "b", "c"]\n{"中心词": "x", "症状": ["无"]}\n'.encode(), "line 2", "without facts"),
    ("g.json", b'[["a", "b", "c"], 7]', "entry 2", "neither"),
]


@pytest.mark.parametrize(("name", "content", "where", "why"), BROKEN_LINES)
def test_a_broken_line_is_a_complaint_and_the_others_count(
    name: str, content: bytes, where: str, why: str, tmp_path: Path
) -> None:
    graph, complaints = load([written(tmp_path, name, content)])
    assert keys_of(graph) == {("a", "b", "c")}
    assert len(complaints) == 1
    assert where in complaints[0].where
    assert why in complaints[0].why


def test_a_million_broken_lines_are_not_listed_one_by_one(tmp_path: Path) -> None:
    graph, complaints = load([written(tmp_path, "g.tsv", GOOD + b"x\n" * (COMPLAINTS_A_FILE + 500))])
    assert len(graph) == 1
    assert len(complaints) == COMPLAINTS_A_FILE + 1
    assert "no more listed" in complaints[-1].why


BROKEN_FILES = [
    ("g.ttl", b":a :b :c .", "not turtle"),  # an unknown prefix
    ("g.ttl", b"@prefix : <urn:x:> . :a :b", "it ends in the middle of a statement"),
    ("g.ttl", b'@prefix : <urn:x:> .\n:a :b "open ;\n:c :d :e .\n', "line 2: newline found in string"),
    ("g.nt", b"<urn:a> <urn:b> .\n", "no facts; the first complaint: g.nt, line 1"),
    ("g.rdf", b"<rdf:RDF", "not xml .line 1: unclosed token"),
    ("g.nq", b"<urn:a> <urn:b> .\n", "no facts; the first complaint: g.nq, line 1"),
    ("g.jsonld", b'{"@context": "https://x.invalid/c", "@id": "urn:a"}', "context lies at https://x.invalid/c"),
    (
        "g.jsonld",
        b'[{"@graph": [{"@context": [{}, {"@import": "http://x.invalid"}]}]}]',
        "put the context into the file",
    ),
    ("g.jsonld", b"{", "not json-ld"),
    ("g.json", b"{", "not JSON"),
    ("g.graphml", b"<graphml", "not GraphML"),
    ("g.graphml", b"<svg/>", "no element graphml"),
    ("g.docx", b"", "is no graph format"),
    ("g.tsv", b"", "no facts"),
    ("g.tsv", b"a\tb\n", "no facts; the first complaint: g.tsv, line 1: 2 columns"),
]


@pytest.mark.parametrize(("name", "content", "why"), BROKEN_FILES)
def test_a_broken_file_is_refused_with_its_reason(name: str, content: bytes, why: str, tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    with pytest.raises(GraphError, match=why):
        load([written(tmp_path, name, content)])


def test_an_unknown_prefix_is_named(tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    with pytest.raises(GraphError, match="foo"):
        load([written(tmp_path, "g.ttl", "<urn:a> foo:bar <urn:c> .")])


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.tsv", tmp_path / "none.ttl"):
        with pytest.raises(GraphError, match="cannot be read"):
            load([path])


def test_a_folder_is_refused_with_the_graph_that_lies_in_it(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="there are none in it"):
        load([tmp_path])
    for name in ("a.json", "b.tsv", "notes.md"):
        written(tmp_path, name, GOOD)
    with pytest.raises(GraphError, match=f"a folder; name the graph's files, such as {tmp_path / 'b.tsv'}"):
        load([tmp_path])


CYCLE = """@prefix : <urn:x:> .
_:a :knows _:b . _:b :knows _:a . _:a :name 'Ann' . :root :has _:a . :root :has _:c . _:c :knows _:c ."""


def test_blank_nodes_in_a_cycle_get_the_same_keys_at_every_reading(tmp_path: Path) -> None:
    pytest.importorskip("rdflib")
    once = keys_of(load([written(tmp_path, "g.ttl", CYCLE)])[0])
    renamed = CYCLE.replace("_:a", "_:z").replace("_:b", "_:y").replace("_:c", "_:x")
    again = keys_of(load([written(tmp_path, "g.ttl", renamed)])[0])
    assert once == again
    assert len(once) == 6


# ---------------------------------------------------------------- labels


def test_labels_from_a_table(tmp_path: Path) -> None:
    labels = written(tmp_path, "labels.tsv", "Q1\tthe Sun\nQ1\t太阳\tzh\nP1\torbits\nQ9\tnobody\nbroken\n")
    graph, complaints = load([written(tmp_path, "g.tsv", "Q2\tP1\tQ1\n")], labels)
    assert graph.label(graph.node("Q1"), "en") == "the Sun"
    assert graph.label(graph.node("Q1"), "zh") == "太阳"
    assert graph.relation_phrases(graph.relation("P1"), "en").label == "orbits"
    assert [(c.where, "no entity" in c.why) for c in complaints] == [
        ("labels.tsv, line 4", True),
        ("labels.tsv, line 5", False),
    ]


def test_labels_from_an_edited_relations_file(tmp_path: Path) -> None:
    said = {"P1": {"en": {"label": "orbits", "statement": "{s} circles {o}", "colour": "red"}}, "Q1": "the Sun"}
    labels = written(tmp_path, "relations.json", json.dumps(said))
    graph, complaints = load([written(tmp_path, "g.tsv", "Q2\tP1\tQ1\n")], labels)
    assert graph.relation_phrases(graph.relation("P1"), "en").statement == "{s} circles {o}"
    assert graph.label(graph.node("Q1"), "en") == "the Sun"
    assert len(complaints) == 1
    assert "colour" in complaints[0].why


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([1], "holds [1]; it should be {"),
        ({"P1": 3}, "the key 'P1' has 3; it should be "),
        ({"P1": {"en": 3}}, "the key 'P1' has 'en': 3; it should be "),
        ({"P1": {"statement": "{s} circles {o}"}}, "the key 'P1' has 'statement' where a language such as"),
    ],
)
def test_labels_of_another_shape_are_refused_by_file_and_key(said: object, why: str, tmp_path: Path) -> None:
    labels = written(tmp_path, "mine.json", json.dumps(said))
    with pytest.raises(GraphError) as refused:
        load([written(tmp_path, "g.tsv", "Q2\tP1\tQ1\n")], labels)
    assert str(refused.value).startswith(f"{labels}: ")
    assert why in str(refused.value)
    assert '"KEY": {"en": {"label": ' in str(refused.value)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("http://dbpedia.org/resource/Mount_Everest", "Mount Everest"),
        ("http://example.org/x#birthPlace", "birth Place"),
        ("urn:x:HTTPServer", "HTTP Server"),
        ("http://x/%E5%9C%B0%E7%90%83", "地球"),
        ("Jean-Luc Godard", "Jean-Luc Godard"),
        ("偏头痛", "偏头痛"),
        ('"42"^^integer', "42"),
    ],
)
def test_a_name_out_of_a_key(key: str, name: str) -> None:
    assert split_name(key) == name


@pytest.mark.parametrize(
    ("key", "name", "awkward"),
    [
        ("http://x/birthPlace", "birth place", False),
        ("located_in", "located in", False),
        ("hasISBN", "has ISBN", False),
        ("film film genre", "film film genre", True),
        ("people person profession", "people person profession", True),
        ("award award winner. award honor", "award award winner. award honor", True),
        ("P31", "P31", True),
        ("相关症状", "相关症状", False),
        ("date of birth", "date of birth", False),
    ],
)
def test_a_relation_out_of_a_key(key: str, name: str, awkward: bool) -> None:
    assert split_relation(key) == name
    assert is_awkward(name) == awkward


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("the Sun", "Sun", True),
        ("The Who", "who", False),
        ("67P/Churyumov–Gerasimenko", "67p churyumov gerasimenko", True),
        ("ＮＡＳＡ", "nasa", True),
        ("木卫一", "木卫二", False),
    ],
)
def test_names_are_found_under_one_spelling(one: str, other: str, same: bool) -> None:
    assert (normal(one) == normal(other)) is same


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("6371 km", "6,371 kilometres", True),
        ("6371 km", "6371公里", True),
        ("6371 km", "6.371 million metres", True),
        ("6371 km", "6.371 × 10^6 m", True),
        ("6371 km", "0.6371万公里", True),
        ("6371 km", "6371", True),
        ("6371 km", "6371 miles", False),
        ("6371 km", "6370 km", False),
        ("1969-07-20", "20 July 1969", True),
        ("1969-07-20", "July 20th, 1969", True),
        ("1969-07-20", "1969年7月20日", True),
        ("1969-07-20", "1969-07-21", False),
        ("1610", "1610年", True),
        ("36 hours", "1.5 days", True),
        ("5 kg", "5 km", False),
    ],
)
def test_values_are_compared_and_not_their_spelling(one: str, other: str, same: bool) -> None:
    first, second = value_of(one), value_of(other)
    assert isinstance(first, Value)
    assert isinstance(second, Value)
    assert same_number(second, first) is same


def test_numbers_in_words_and_inside_names() -> None:
    assert [v.written for v in values_in("There are twelve of them", words=True)] == [12]
    assert [v.written for v in values_in("共有十二个", words=True)] == [12]
    assert values_in("the B12 vitamin") == []
    assert value_of("Voyager 2") is None
    assert (unit_in("mean radius in kilometres"), unit_in("直径（公里）"), unit_in("capital")) == (
        "kilometres",
        "公里",
        "",
    )
