"""Knowledge graphs as documents: what a graph says of an entity becomes a paragraph of plain sentences.

Runs in the child process (extraction.py), on kg/load.py. The paragraphs stand in the order of the entities' keys, so
that a fact more changes one paragraph and moves no other. How relations read is told in docs/self-kg.md.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from kg.graph import Graph, GraphError
from kg.load import load
from pipeline.phrasing.speaker import Speaker, graph_language
from pipeline.reading.blocks import Part
from pipeline.reading.extraction import LARGEST_TEXT, BadFile, Extracted

MOST_REMARKS = 20  # on single lines of one file


def read_graph(data: bytes, suffix: str, language: str) -> Extracted:
    """A graph in `language`, or for "auto" in the language of its labels."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data)
        file.flush()
        try:
            graph, complaints = load([Path(file.name)])
        except GraphError as error:
            raise BadFile("damaged", str(error).replace(file.name, "it")) from error
    speaker = Speaker(graph, graph_language(graph) if language == "auto" else language)
    parts: list[Part] = []
    size = 0
    for subject in _subjects(graph):
        text = " ".join(speaker.paragraph(subject).split())
        parts.append(("paragraph", 0, text))
        size += len(text)
        if size > LARGEST_TEXT:
            raise BadFile("too_large", f"it makes more than {LARGEST_TEXT >> 20} MB of text.")
    remarks = [("bad_row", f"{c.where.partition(', ')[2]}: {c.why}.") for c in complaints[:MOST_REMARKS]]
    if len(complaints) > MOST_REMARKS:
        remarks.append(("bad_row", f"{len(complaints) - MOST_REMARKS} more lines cannot be read."))
    return Extracted(parts, remarks, Counter())


def _subjects(graph: Graph) -> list[int]:
    """Every entity that some fact is about, by its key; what has no name is told where it is an object."""
    subjects = {fact[0] for fact in graph.facts()}
    told = {node for node in subjects if not graph.is_nameless(node) or not graph.in_degree(node)}
    return sorted(told, key=lambda node: graph.keys[node])
