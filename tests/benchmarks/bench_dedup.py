"""How fast near and semantic duplicates are found, beside datasketch and semhash, and the memory of a million records.

    python -m tests.benchmarks.bench_dedup                    # all, about ten minutes on one core; Markdown tables
    python -m tests.benchmarks.bench_dedup --only signatures  # or near, semantic, million

Real records are read from INSTRUCTLOOP_DATA (default ../shared/data); a tenth of them is repeated with a few words
changed, so that there is something to find. Everyone gets the same records, words and vectors, in one run. Semantic
search is compared on ready vectors, for the model takes the same time for everyone. Each measure has a process of its
own, so that its peak memory is its own (data and imports included).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.records import FileSource, Record, make_record

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("INSTRUCTLOOP_DATA", ROOT.parent / "shared" / "data"))
PERMUTATIONS = 96
THRESHOLD = 0.7
VECTORS, MANY_VECTORS = 50_000, 150_000  # the second beyond what is compared exactly
MILLION = 1_000_000
Measured = dict[str, float]


def record(instruction: str, input: str, output: str) -> Record:
    return make_record(
        instruction=instruction, input=input, output=output, task="generation", generator="imported", model="",
        language="en", source=FileSource(file="bench", line=1), prompts={}, requests=(),
    )  # fmt: skip


def records() -> list[Record]:
    """9,000 real records, and 900 of them with one word in twenty changed."""
    rows = []
    for name in ("alpaca_4k", "self_instruct_5k"):
        with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows += [json.loads(line) for line in lines]
    random_ = random.Random(0)
    real = [record(row["instruction"], row["input"], row["output"]) for row in rows]
    changed = []
    for one in random_.sample(real, len(real) // 10):
        words = [word if random_.random() > 0.05 else "other" for word in one.output.split(" ")]
        changed.append(record(one.instruction, one.input, " ".join(words)))
    return real + changed


def timed(work: Callable[[], object]) -> float:
    """Seconds, the best of three."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def measure_signatures() -> Measured:
    """Records a second, from the words in common hands to signatures; and for us from the texts too."""
    from datasketch import MinHash
    from rensa import RMinHash

    from pipeline.curation.near_duplicates import band_keys, signatures, text_of
    from pipeline.curation.shingles import window_hashes, words_of
    from pipeline.novelty import tokens

    texts = [text_of(one) for one in records()]
    words = [tokens(text) for text in texts]
    runs = [[" ".join(run).encode() for run in zip(w, w[1:], w[2:], strict=False)] or [b" "] for w in words]
    hashed = window_hashes(words, mass=3, short_ones=True)
    signatures(texts)  # imports, and the words' hashes
    few = runs[:1000]
    return {
        "hashed runs -> signatures (rensa, as we call it)": len(texts) / timed(
            lambda: RMinHash.digest_matrix_from_flat_token_hashes(hashed.hashes, hashed.starts, PERMUTATIONS, 1)
        ),
        "runs as bytes -> signatures (rensa)": len(texts) / timed(
            lambda: RMinHash.digest_matrix_from_token_byte_sets(runs, PERMUTATIONS, 1)
        ),
        "runs as bytes -> signatures (datasketch, bulk)": len(few) / timed(
            lambda: MinHash.bulk(few, num_perm=PERMUTATIONS, seed=1)
        ),
        "words -> hashed runs (ours)": len(texts) / timed(lambda: window_hashes(words, mass=3, short_ones=True)),
        "text -> words (ours)": len(texts) / timed(lambda: [words_of(text) for text in texts]),
        "text -> band keys (ours, all of the above)": len(texts) / timed(lambda: band_keys(texts)),
    }  # fmt: skip


def measure_near_ours() -> Measured:
    """From records to losers, candidates verified."""
    from pipeline.curation.near_duplicates import band_keys, find_near_duplicates, fingerprint, text_of

    some = records()
    band_keys(["import"])
    started = time.perf_counter()
    keys = band_keys(map(text_of, some))
    found = find_near_duplicates(keys, range(len(some)), lambda place: fingerprint(some[place]), THRESHOLD)
    return {"seconds": time.perf_counter() - started, "records": len(some), "found": len(found)}


def measure_near_datasketch() -> Measured:
    """datasketch's LSH over whole records, first come first kept; its candidates are taken as they are."""
    from datasketch import MinHash, MinHashLSH

    from pipeline.curation.near_duplicates import text_of
    from pipeline.novelty import tokens

    some = records()
    started = time.perf_counter()
    index, found = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS), 0
    for place, one in enumerate(some):
        words = tokens(text_of(one))
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch(
            [" ".join(run).encode() for run in zip(words, words[1:], words[2:], strict=False)] or [b" "]
        )
        if index.query(sketch):
            found += 1
        else:
            index.insert(place, sketch)
    return {"seconds": time.perf_counter() - started, "records": len(some), "found": found}


def vectors(number: int = VECTORS) -> object:
    """Directions of 384 numbers, a fifth of them near another one."""
    import numpy as np

    random_ = np.random.default_rng(0)
    rows = random_.normal(size=(number, 384)).astype(np.float32)
    copies = random_.choice(number, number // 5, replace=False)
    rows[copies] = rows[random_.choice(number, len(copies))] + 0.2 * rows[copies]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def measure_semantic(exact: bool, number: int = VECTORS) -> Measured:
    import numpy as np

    from pipeline.curation.semantic import find_semantic_duplicates

    half: np.ndarray[tuple[int, int], np.dtype[np.float16]] = vectors(number).astype(np.float16)  # type: ignore[attr-defined]
    started = time.perf_counter()
    limit = number if exact else 0
    found = find_semantic_duplicates(half, range(len(half)), 0.9, lambda _, __, cosine: cosine, exact_up_to=limit)
    return {"seconds": time.perf_counter() - started, "records": len(half), "found": len(found.lost),
            "recall": found.recall}  # fmt: skip


def measure_semantic_ours() -> Measured:
    """Every pair compared."""
    return measure_semantic(exact=True)


def measure_semantic_index() -> Measured:
    """The inverted file that is used beyond 100,000 records, its recall included."""
    return measure_semantic(exact=False)


def measure_semantic_index_of_many() -> Measured:
    """… of as many records as it is for."""
    return measure_semantic(exact=False, number=MANY_VECTORS)


def measure_semantic_semhash() -> Measured:
    """semhash on the same vectors, with its default index."""
    import numpy as np
    from semhash import SemHash

    class Unused:
        def encode(self, inputs: object, **_: object) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
            raise AssertionError("the vectors are given; nothing is encoded")

    rows = vectors()
    started = time.perf_counter()
    index = SemHash.from_embeddings(rows, [str(n) for n in range(VECTORS)], Unused())
    found = index.self_deduplicate(threshold=0.9)
    return {"seconds": time.perf_counter() - started, "records": VECTORS, "found": len(found.filtered)}


def measure_million() -> Measured:
    """pipeline.curate over a million short synthetic records, one in ten nearly a copy, without embeddings."""
    from pipeline import curate

    random_ = random.Random(0)
    words = [f"{a}{b}{c}" for a in "bdfklmnprst" for b in "aeiou" for c in "lmnrst"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "million.jsonl")
        with source.open("w", encoding="utf-8") as file:
            outputs: list[str] = []
            for number in range(MILLION):
                output = " ".join(random_.choices(words, k=30))
                if number % 10 == 9:
                    output = outputs[random_.randrange(len(outputs))] + " again"
                elif len(outputs) < 10_000:
                    outputs.append(output)
                file.write(
                    json.dumps({"instruction": "Say this in the old tongue of the hills.", "output": output}) + "\n"
                )
        started = time.perf_counter()
        out = str(Path(folder, "out"))
        code = curate.main([str(source), "--out", out, "--semantic-duplicates", "off"])
        summary = json.loads(Path(out, "summary.json").read_bytes())
    return {"seconds": time.perf_counter() - started, "records": MILLION, "found": MILLION - summary["kept"],
            "code": code}  # fmt: skip


MEASURES: dict[str, Callable[[], Measured]] = {
    name.removeprefix("measure_"): function
    for name, function in list(globals().items())
    if name.startswith("measure_") and name != "measure_semantic"
}


def measured_apart(name: str) -> Measured:
    """A measure in a process of its own, with its peak memory."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_dedup", "--measure", name]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: Measured = json.loads(ran.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["signatures", "near", "semantic", "million"])
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        result = MEASURES[arguments.measure]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(result | {"MB": peak}))
        return
    names = [name for name in MEASURES if arguments.only is None or name.startswith(arguments.only)]
    if "signatures" in names:
        names.remove("signatures")
        print("| step, 96 numbers a signature | records/s |\n|---|---|")
        for step, rate in measured_apart("signatures").items():
            if step != "MB":
                print(f"| {step} | {rate:,.0f} |")
        print()
    if names:
        print("| measure | records | seconds | found | recall | peak MB |\n|---|---|---|---|---|---|")
    for name in names:
        result = measured_apart(name)
        recall = f"{result['recall']:.3f}" if "recall" in result else "–"
        print(f"| {name} | {result['records']:,.0f} | {result['seconds']:.1f} | {result['found']:,.0f} | {recall}"
              f" | {result['MB']:,.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
