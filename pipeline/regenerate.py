"""Bring a dataset up to date with its sources: ask only for what changed, and publish a version that can be compared.

    python -m pipeline.regenerate regenerate.toml --plan           what changed, and what it would cost; sends nothing
    python -m pipeline.regenerate regenerate.toml                  a new version, if anything changed
    python -m pipeline.regenerate regenerate.toml --diff A B       records added, removed and changed between versions
    python -m pipeline.regenerate regenerate.toml --revoke SOURCE  take out a document, a triple file or a seed task
    python -m pipeline.regenerate regenerate.toml --gc N           keep the last N versions, and their replies

Safe under cron: one at a time, and the same command again after any kill. In this order: read the sources; refuse
changed prompts, models and settings that nobody accepted; ask what is not stored yet; curate; train, if the file says
so; write the version aside; ask the gate; rename it; move LATEST. docs/regenerate.md is the guide.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, get_args

from pipeline import crash
from pipeline.cli import Progress, judge_line, say, show, show_json
from pipeline.errors import DONE, REFUSED, SHORT, Interrupted, StopRun, UsageError, storage_failures
from pipeline.extras import need
from pipeline.funnel import why_nothing
from pipeline.instruction_filters import INSTRUCTION
from pipeline.interrupt import interruptible
from pipeline.journal import Journal
from pipeline.money import Plan, usd
from pipeline.one_run import OneRun, changes
from pipeline.regeneration import kept, spending
from pipeline.regeneration.assembly import Assembled, assemble
from pipeline.regeneration.project import Project, read_project
from pipeline.regeneration.revocation import collect, finish_revocations, read_revoked, revoke
from pipeline.regeneration.sources import UNITS, Difference, Prepared, difference, prepare
from pipeline.regeneration.spending import Spending
from pipeline.regeneration.training import check_flags
from pipeline.regeneration.versions import Version, Versions, differences
from pipeline.run import Tally
from pipeline.run_folder import PROJECT, DerivedFiles, check_maker, locked, read_records, write_json
from pipeline.scheduling.timing import NO_SCHEDULE
from pipeline.scheduling.units import Kind, unit
from pipeline.settings import resolved

MOST_NAMED = 10  # files of a kind, where it is said what changed
MOST_SHOWN = 70  # characters of an instruction, in a difference
REPORTED = "reported.json"  # bad files that a tick has failed for already


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parse(argv)
    again = shlex.join(["python", "-m", "pipeline.regenerate", *(sys.argv[1:] if argv is None else argv)])
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        project = read_project(options.project)
        if options.print:
            show(_unit(project, options.print))
            return DONE
        with storage_failures():
            found, code = _Command(project, options, again).run()
    except StopRun as stop:
        say(f"{stop}" if isinstance(stop, UsageError) or again in str(stop) else f"{stop} Go on with: {again}")
        found, code = {"reason": str(stop)}, stop.exit_code
    except KeyboardInterrupt:
        say(f"Interrupted; LATEST is as it was. Go on with: {again}")
        found, code = {"reason": "interrupted"}, Interrupted.exit_code
    if options.json:
        show_json({**found, "exit": code})
    return code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.regenerate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("project", type=Path, nargs="?", default=Path("regenerate.toml"), help="the project file [regenerate.toml]")
    add("--plan", action="store_true", help="send and write nothing: say what changed, and its price")
    add("--accept-changes", action="store_true", help="ask anew what changed prompts, models and settings shape")
    add("--keep", action="store_true", help="or copy the records of what did not change from the last version")
    add("--retry-failed", action="store_true", help="ask again what failed for good")
    add("--json", action="store_true", help="print the result as JSON, in the last line of stdout")
    add("--diff", nargs=2, metavar=("A", "B"), help="compare two versions, by name or the beginning of it, or LATEST")
    add("--revoke", metavar="SOURCE", help="a document, triple file or seed task; with --plan, only say what goes")
    add("--gc", type=int, metavar="N", help="keep N versions, and the replies that these were made from")
    add("--print", choices=get_args(Kind), help="print [schedule] as a unit for one of these; docs/schedule.md")
    return parser.parse_args(argv)


def _unit(project: Project, kind: Kind) -> str:
    if project.schedule is None:
        raise UsageError(f"{project.path}: {NO_SCHEDULE}")
    return unit(kind, project.path, project.schedule, out=project.out)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A source with what it was in the last version, and what has changed since."""

    prepared: Prepared
    before: Mapping[str, Any] | None  # its part of the manifest
    folder_before: Path | None
    difference: Difference
    changed_shaping: str  # "" where nothing that shapes a request did

    @property
    def name(self) -> str:
        return self.prepared.name

    @property
    def is_unchanged(self) -> bool:
        return self.before is not None and not self.changed_shaping and self.difference.is_none

    @property
    def items(self) -> tuple[int, int]:
        """How many items are new, and how many are gone."""
        were = kept.read_ids(self.folder_before / kept.ITEMS) if self.folder_before else set()
        return len(self.prepared.live - were), len(were - self.prepared.live)


class _Command:
    """One call of the command."""

    def __init__(self, project: Project, options: argparse.Namespace, again: str) -> None:
        self.project, self.options, self.again = project, options, again
        self.out, self.versions = project.out, Versions(project.out)
        self.accept = bool(project.accept_changes or options.accept_changes)
        self.keep = bool(project.keep or options.keep)

    def run(self) -> tuple[dict[str, Any], int]:
        options = self.options
        if options.diff:
            return self._diff(*options.diff), DONE
        if options.gc is not None and options.gc < 1:
            raise UsageError(f"--gc {options.gc}: at least one version is kept.")
        check_maker(self.out, PROJECT, f"give {self.project.path} another `out`")
        if not self.out.is_dir() and (options.plan or options.revoke or options.gc):
            return self._without_folder()
        with locked(self.out) as lock:
            if options.revoke:
                found = revoke(self.project, self.versions, options.revoke, say, lock=lock, plan_only=options.plan)
                return found, DONE
            if options.gc is not None:
                return collect(self.project, self.versions, options.gc, say), DONE
            if not options.plan:
                finish_revocations(self.project, self.versions, say, lock=lock)
            ready = self._read()
            return (self._plan(ready), DONE) if options.plan else self._tick(ready, lock)

    def _without_folder(self) -> tuple[dict[str, Any], int]:
        if self.options.plan and not self.options.revoke:
            return self._plan(self._read()), DONE
        raise UsageError(f"{self.out}: there is no such project yet.")

    # ---------------------------------------------------------------- reading the sources

    def _read(self) -> list[_Ready]:
        """Every source, ready, beside what it was in the last version."""
        latest = self.versions.latest()
        adapter = (
            str(self.out / "adapters" / latest.manifest["adapter"]) if latest and latest.manifest["adapter"] else None
        )
        revoked = read_revoked(self.out)
        found = []
        for source in self.project.sources:
            try:
                prepared = prepare(source, self.versions.aside / "sources" / source.name, self.out, revoked, adapter)
            except UsageError as error:
                raise UsageError(f"{self.project.path}, [[source]] {source.name}: {error}") from error
            if prepared is None:
                say(f"{source.name}: all of it is revoked.")
                continue
            found.append(self._beside(prepared, latest))
        return found

    def _beside(self, prepared: Prepared, latest: Version | None) -> _Ready:
        before = latest.manifest["sources"].get(prepared.name) if latest else None
        folder = latest.folder / "sources" / prepared.name if latest and before else None
        changed = changes(before["shaping"], prepared.shaping) if before else ""
        prepared.kept = kept.to_keep(prepared, folder, changed=bool(changed), keep=self.keep, accept=self.accept)
        if prepared.source.generator != "self_instruct":
            prepared.generator.passed_over = frozenset(prepared.kept)
        return _Ready(prepared, before, folder, difference(before["files"] if before else {}, prepared.files), changed)

    # ---------------------------------------------------------------- --plan

    def _plan(self, ready: Sequence[_Ready]) -> dict[str, Any]:
        """Say what changed, what would be sent, and what it would cost."""
        plans = asyncio.run(self._plans(ready))
        found = {}
        for source, (plan, price) in zip(ready, plans, strict=True):
            for line in _described(source):
                say(line)
            say(f"  would send {plan.priced(price)}")
            found[source.name] = {
                **asdict(source.difference), "items": source.items, "changed_settings": source.changed_shaping,
                **asdict(plan), "cost": price,
            }  # fmt: skip
        requests, prices = sum(plan.requests for plan, _ in plans), [price for _, price in plans]
        total = None if None in prices else sum(price for price in prices if price is not None)
        say(f"In all about {requests} requests, {usd(total)}. Nothing was sent or written.")
        refusal = self._refusal(ready, plans)
        say(refusal or f"To do it: {self.again.replace(' --plan', '')}")
        return {"sources": found, "requests": requests, "cost": total, "refusal": refusal}

    async def _plans(self, ready: Sequence[_Ready]) -> list[tuple[Plan, float | None]]:
        """What each source would still send, and its price."""
        if not self.project.journal.exists():
            return [await self._plan_of(source, None) for source in ready]
        with Journal(self.project.journal) as journal:
            return [await self._plan_of(source, journal) for source in ready]

    async def _plan_of(self, source: _Ready, journal: Journal | None) -> tuple[Plan, float | None]:
        prepared = source.prepared
        one = OneRun(prepared.source.settings, prepared.generator, prepared.model)
        if prepared.source.generator == "self_instruct" and prepared.kept:
            return Plan(0, 0, 0, "the chain is copied as it was"), 0.0
        plan = await one.plan(prepared.source.settings.target, journal)
        forecast = one.forecast(plan, source.folder_before or self.out)
        return forecast.plan, forecast.price

    def _refusal(self, ready: Sequence[_Ready], plans: Sequence[tuple[Plan, float | None]]) -> str | None:
        """What changed settings would invalidate, where nobody accepted that."""
        if self.accept or self.keep:
            return None
        said = [
            f"{source.name} was made with other settings ({source.changed_shaping}): its"
            f" {source.before['records']} records would go, and about {plan.requests} requests be asked anew,"
            f" {usd(price)}."
            for source, (plan, price) in zip(ready, plans, strict=True)
            if source.changed_shaping and source.before
        ]
        if not said:
            return None
        return (
            f"{' '.join(said)} Put the settings back; or accept_changes = true in {self.project.path.name}, or"
            " --accept-changes, to ask anew; or --keep for the records of what did not change as they are."
        )

    # ---------------------------------------------------------------- a tick

    def _tick(self, ready: Sequence[_Ready], lock: int) -> tuple[dict[str, Any], int]:
        if any(source.changed_shaping for source in ready) and not (self.accept or self.keep):
            refusal = self._refusal(ready, asyncio.run(self._plans(ready)))
            if refusal is not None:
                raise UsageError(refusal)
        if self.project.curate.semantic_duplicates is not None:  # not only once everything is paid for
            need("dedup", "[curate] semantic_duplicates", "sentence_transformers", "faiss")
        if self.project.train is not None:
            need("local,train", "[train]", "peft", "trl")
            check_flags(self.project.train, self.project.path)
        for source in ready:
            for line in _described(source):
                say(line)
        try:
            with storage_failures():
                self.versions.start()
                sources, tick, short = asyncio.run(self._ask(ready))
                signal.signal(signal.SIGTERM, signal.default_int_handler)  # the line's handlers went with its loop
                bad = [
                    entry
                    for source in ready
                    for entry in kept.bad_files(source.prepared.source.settings.out, source.name, source.prepared.files)
                ]
                made = assemble(self.project, self.versions, sources, tick, say, lock=lock)
        except (StopRun, KeyboardInterrupt):
            self.versions.drop()
            spending.end(self.out)
            raise
        result = self._finish(made, tick, bad, short)
        if self.project.keep_versions is not None and len(self.versions.all()) > self.project.keep_versions:
            collect(self.project, self.versions, self.project.keep_versions, say)
        return result

    async def _ask(self, ready: Sequence[_Ready]) -> tuple[dict[str, dict[str, Any]], dict[str, Any], list[str]]:
        """Every source's records into its folder. Returns their parts of the manifest, the tick's, and who is short."""
        sources: dict[str, dict[str, Any]] = {}
        short: list[str] = []
        with Journal(self.project.journal) as journal:
            purse = await spending.begin(self.out, self.project.budget, journal, [one.prepared for one in ready])
            for source in ready:
                sources[source.name], complete = await self._ask_one(source, journal, purse)
                if not complete:
                    short.append(source.name)
                crash.point("source.done")
            spent = await purse.spent(journal)
            tick = {
                "latest_attempt": await journal.latest(),
                "sent": spent.attempts,
                "prompt_tokens": spent.prompt_tokens,
                "completion_tokens": spent.completion_tokens,
                "cost": purse.cost(spent),
            }
        return sources, tick, short

    async def _ask_one(self, source: _Ready, journal: Journal, purse: Spending) -> tuple[dict[str, Any], bool]:
        """One source's line, run to its end. Raises the StopRun that kept it from getting there."""
        prepared = source.prepared
        settings = prepared.source.settings
        settings.out.mkdir(parents=True, exist_ok=True)
        records, rejections = (
            kept.copied(prepared, source.folder_before) if source.folder_before and prepared.kept else ([], [])
        )
        target = settings.target
        if target is not None:
            target -= min(target, len(records))
        one = OneRun(settings, prepared.generator, prepared.model, purse.limits, purse.prices)
        await one.open(
            journal, await purse.spent(journal), retry_failed=self.options.retry_failed, source=prepared.name
        )
        for note in one.notes:
            say(note)
        with DerivedFiles(settings.out, preferences=one.pairs is not None) as files:
            for record in records:
                files.keep(record)
            for rejection in rejections:
                files.reject(rejection)
            whole = prepared.source.generator == "self_instruct" and bool(prepared.kept)
            tally, stopped = Tally(), None
            try:
                if not whole and target != 0:
                    line = one.line(files, Progress(target, one.ask, sys.stderr.isatty()), target)
                    stopped = await interruptible(line.run(), one.ask, say)
                    tally = line.tally
                else:
                    files.publish(await one.summarize(tally))
            finally:
                await one.close()
        if stopped is not None:
            raise stopped
        kept.write_ids(settings.out / kept.ITEMS, prepared.live)
        kept.write_ids(settings.out / kept.KEPT, prepared.kept)
        replies = set(one.ask.read)
        if source.folder_before and prepared.kept:
            replies |= kept.read_ids(source.folder_before / kept.REPLIES)
        kept.write_ids(settings.out / kept.REPLIES, replies)
        number = len(records) + tally.kept
        say(f"{prepared.name}: {number} records, {len(records)} of them copied; {one.ask.counts.sent} requests sent.")
        if (judged := one.judge_counts()) is not None:
            say(f"{prepared.name}: {judge_line(judged)}")
        why = "" if number else _why_nothing(one, tally, len(prepared.live), is_copied=whole)
        if why:
            say(f"{prepared.name} brings no record: {why}")
        shown = {name: value for name, value in resolved(settings).items() if name != "out"}
        part = {
            "generator": prepared.source.generator, "shaping": prepared.shaping, "settings": shown,
            "files": prepared.files, "kept": len(prepared.kept), "records": number,
            "rejected": dict(tally.rejected), "failed": one.ask.counts.failed, "why_nothing": why,
        }  # fmt: skip
        complete = not one.ask.counts.failed and (settings.target is None or number >= settings.target or whole)
        return part, complete

    def _finish(
        self, made: Assembled, tick: dict[str, Any], bad: list[list[str]], short: list[str]
    ) -> tuple[dict[str, Any], int]:
        """Say how it ended, and remember what was said of bad files."""
        reported = kept.read_reported(self.out / REPORTED)
        news = [entry for entry in bad if entry not in reported]
        for source, _, reason, _ in news:
            say(f"{source}: {reason}")
        version, records = made.version, made.version.manifest["counts"]["records"]
        empty = _empty(made.version)
        result = {
            "version": version.name, "new": made.is_new, "published": not made.reasons, "records": records,
            "reasons": list(made.reasons), "bad_files": [entry[2] for entry in news], "short": short, "empty": empty,
            "sent": tick["sent"], "cost": tick["cost"],
        }  # fmt: skip
        if "[curate]" in empty:
            say(f"[curate]: {empty['[curate]']}")
        if made.reasons:
            say(f"The gate refused {version.name}: {'; '.join(made.reasons)}. LATEST is as it was.")
            say(f"Next: look at {version.folder}; mend the sources or the [gate], then: {self.again}")
            code = REFUSED
        elif made.is_new:
            say(f"LATEST is {version.name}: {records} records; {tick['sent']} requests sent, {usd(tick['cost'])}.")
            code = SHORT if short or news else DONE
        else:
            say(f"Nothing changed: LATEST is {version.name}, {records} records; {tick['sent']} requests sent.")
            code = SHORT if news else DONE
        if short and code == SHORT:
            say(f"Short of the target, or with failures: {', '.join(short)}; --retry-failed asks failures again.")
        write_json(self.out / REPORTED, bad)
        spending.end(self.out)
        return result, code

    # ---------------------------------------------------------------- --diff

    def _diff(self, first: str, second: str) -> dict[str, Any]:
        before, after = self.versions.find(first), self.versions.find(second)
        found = differences(before, after)
        say(
            f"{before.name} -> {after.name}: {len(found['added'])} added, {len(found['removed'])} removed,"
            f" {len(found['changed'])} changed."
        )
        asked = {record.id: record.instruction for one in (before, after) for record in read_records(one.folder)}
        for word in ("added", "removed", "changed"):
            for id_ in found[word]:
                ids = [id_] if isinstance(id_, str) else id_
                say(f"  {word:8} {' -> '.join(ids)}  {shorten(asked[ids[0]], MOST_SHOWN, placeholder=' …')}")
        return {"before": before.name, "after": after.name, **found}


def _why_nothing(one: OneRun, tally: Tally, items: int, *, is_copied: bool) -> str:
    if is_copied:
        return "--keep copies it from the last version as it was, and that held none of it."
    switches = {filter_.name for filter_ in one.filters} | {filter_.name for filter_ in INSTRUCTION}
    return why_nothing(tally, items, one.generator.at_its_end, switches, one.generator.name)


def _empty(version: Version) -> dict[str, str]:
    """Which sources brought no record, or left none in the set, and why."""
    parts, counts = version.manifest["sources"], version.manifest["counts"]
    found = {name: part["why_nothing"] for name, part in parts.items() if part.get("why_nothing")}
    if not counts["records"] and any(part["records"] for part in parts.values()):
        took = ", ".join(f"{number} {name}" for name, number in counts["rejected"].items())
        found["[curate]"] = f"it turned away all that the sources brought: {took}."
    return found


def _described(source: _Ready) -> list[str]:
    """What changed of a source since the last version, a line each."""
    found, (new, gone) = source.difference, source.items
    unit = UNITS[source.prepared.source.generator]
    lines = [f"{source.name}: {new} {unit} new, {gone} gone, {len(source.prepared.live) - new} as they were"]
    for word, names in (("new", found.new), ("changed", found.changed), ("gone", found.gone)):
        lines += [f"  {word:8} {name}" for name in names[:MOST_NAMED]]
        if len(names) > MOST_NAMED:
            lines.append(f"  {word:8} … and {len(names) - MOST_NAMED} more")
    lines += [f"  {'renamed':8} {old} -> {new_name}" for old, new_name in found.renamed]
    if source.changed_shaping:
        lines.append(f"  settings {source.changed_shaping}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
