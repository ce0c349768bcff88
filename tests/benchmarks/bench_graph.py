"""Self-KG on a large graph: loading, and the first and the rest of the questions. One million triples by default.

    python -m tests.benchmarks.bench_graph [TRIPLES [graph.ttl …]]

The graph: 40 relations of very different frequency, a twentieth of all facts on one hub, numbers among the objects.
Each line runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

FORMS = ("graph.tsv", "graph.jsonl", "graph.nt", "graph.ttl", "graph.rdf", "graph.graphml", "star.tsv")
QUESTIONS = 20_000
AROUND = {
    ".rdf": (
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:r="urn:r:">\n',
        "</rdf:RDF>\n",
    ),
    ".graphml": (
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><key id="r" for="edge" attr.name="relation"/><graph>\n',
        "</graph></graphml>\n",
    ),
}


def write(path: Path, triples: int) -> None:
    """A graph of so many triples in the format of the file's ending; a star has one hub alone."""
    chance = random.Random(0)
    entities = max(10, triples // 4)
    at_hub = 1.0 if path.stem == "star" else 0.05
    written: set[tuple[int, int, int]] = set()
    opening, closing = AROUND.get(path.suffix, ("", ""))
    with path.open("w", encoding="utf-8") as file:
        file.write(opening)
        while len(written) < triples:
            relation = int(40 * chance.random() ** 3)
            subject = 0 if chance.random() < at_hub else chance.randrange(entities)
            fact = (subject, relation, chance.randrange(entities))
            if fact in written:
                continue
            written.add(fact)
            names = f"Entity number {fact[0]}", f"relation {relation}", f"Entity number {fact[2]}"
            if path.suffix in (".nt", ".ttl"):
                file.write(f"<urn:e:{fact[0]}> <urn:r:{relation}> <urn:e:{fact[2]}> .\n")
            elif path.suffix == ".rdf":
                about, resource_ = f'<rdf:Description rdf:about="urn:e:{fact[0]}">', f'rdf:resource="urn:e:{fact[2]}"'
                file.write(f"{about}<r:n{relation} {resource_}/></rdf:Description>\n")
            elif path.suffix == ".graphml":
                ends = f'source="urn:e:{fact[0]}" target="urn:e:{fact[2]}"'
                file.write(f'<edge {ends}><data key="r">relation {relation}</data></edge>\n')
            elif path.suffix == ".jsonl":
                file.write(json.dumps(dict(zip(("head", "relation", "tail"), names, strict=True))) + "\n")
            else:
                file.write("\t".join(names) + "\n")
        file.write(closing)


def measure(path: Path) -> None:
    """Load and sample in this process; prints one row."""
    from kg.load import load
    from kg.questions import Sampler

    started = time.perf_counter()
    graph, _ = load([path])
    loaded = time.perf_counter()
    at_rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sampler = Sampler(graph)
    surveyed = time.perf_counter()
    questions = sampler.questions()
    made = sum(1 for _ in islice(questions, QUESTIONS))
    done = time.perf_counter()
    hub = graph.node("Entity number 0" if path.suffix in (".tsv", ".jsonl") else "urn:e:0")
    places = [index for index in range(len(graph)) if graph.fact_at(index)[0] == hub]
    hub_started = time.perf_counter()
    asked = sum(1 for index in places[:: len(places) // 200] for _ in sampler.starting_at(graph.fact_at(index)))
    hub_s = time.perf_counter() - hub_started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"| {path.name} | {len(graph):,} | {loaded - started:.1f} s | {len(graph) / (loaded - started):,.0f}/s"
        f" | {surveyed - loaded:.1f} s | {made / (done - surveyed):,.0f}/s"
        f" | {hub_s / 200 * 1000:.2f} ms, degree {len(places):,}, {asked / 200:.1f} questions"
        f" | {at_rest:.0f} MB | {peak:.0f} MB |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--measure"]:
        measure(Path(arguments[1]))
        return 0
    triples, forms = int(arguments[0]) if arguments else 1_000_000, arguments[1:] or FORMS
    print("| format | triples | load | load rate | survey | questions | at the hub, a fact | after loading | peak |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for form in forms:
            path = Path(folder) / form
            write(path, triples)
            command = [sys.executable, "-m", "tests.benchmarks.bench_graph", "--measure", str(path)]
            subprocess.run(command, check=True)
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
