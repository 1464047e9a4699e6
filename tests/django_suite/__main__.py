"""The command: ``python -m tests.django_suite --db postgresql|sqlite|mysql [MODULE ...]``.

Without a MODULE it is all of Django's suite, and a module whose result on the loop is stored and
still holds is not run again, so that a run which was stopped goes on where it was.

Owns the order of work: fetch, install what is cheap, run stock where no stored result holds, run
the loop, compare, report. Exit status 0 means: no difference but the accepted ones, none of those
stale, nothing blocked on the loop. 1 means otherwise, 2 that the tool itself could not work.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import django

from tests import services
from tests.django_suite import accepted, compatibility, parts, report, source, stored
from tests.django_suite.compare import compare, is_difference
from tests.django_suite.databases import REDIS_MODULES, SERVERS, ServerError
from tests.django_suite.outcomes import ModuleRun
from tests.django_suite.processes import ROOT, Job, Workshop

CACHE = ROOT / ".cache" / "django-suite"
# Tests that compare times, and fail on either side where others want the machine meanwhile. One
# that differs is run again by itself, and that run counts.
TIMED = {"serializers.test_deserialization.TestDeserializer.test_crafted_xml_performance"}
COMPATIBILITY = ROOT / "docs" / "compatibility.md"
DIFFERENCES = Path(__file__).with_name("differences.toml")
SECONDS = Path(__file__).with_name("seconds.json")


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(prog="python -m tests.django_suite", description=__doc__)
    made.add_argument("modules", nargs="*", metavar="MODULE", help="folders of Django's tests")
    made.add_argument("--db", required=True, choices=accepted.DATABASES)
    made.add_argument("--refresh-stock", action="store_true", help="run stock anew and store it")
    made.add_argument("--stock-only", action="store_true", help="run and store stock, no loop")
    made.add_argument("--test", metavar="LABEL", help="only this test, class or module")
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    made.add_argument("--time-limit", type=float, default=600.0, metavar="SECONDS")
    made.add_argument(
        "--part",
        metavar="N/M",
        help="of all modules only the N-th of M parts (1/8 ... 8/8); with hash/M the commit that "
        "is checked out chooses N",
    )
    made.add_argument(
        "--write-docs", action="store_true", help="put the table into docs/compatibility.md"
    )
    made.add_argument(
        "--write-seconds",
        action="store_true",
        help="put each module's seconds into seconds.json, by which --part deals",
    )
    made.add_argument(
        "--any-sources",
        action="store_true",
        help="a stored result of the loop holds by whatever sources it was made; the page of "
        "--write-docs names them",
    )
    made.add_argument("--fail-fast", action="store_true", help="stop at the first bad module")
    made.add_argument("--verbose-failures", action="store_true", help="whole tracebacks and logs")
    made.add_argument(
        "--plain",
        action="store_true",
        help="run the loop's side outside a loop: our engines and caches in plain sync code",
    )
    made.add_argument(
        "--package",
        type=Path,
        default=ROOT / "src",
        metavar="FOLDER",
        help="the folder that holds the package nuages (default: src)",
    )
    return made


class Call:
    """One call of the tool."""

    def __init__(self, options: argparse.Namespace, redis_url: str | None) -> None:
        self.options = options
        self.modules: list[str] = list(dict.fromkeys(options.modules))
        if options.test:
            self.modules = [options.test.split(".")[0]]
        self.resumes = not self.modules
        # Outside a loop nothing is replaced by anything else.
        self.entries = [] if options.plain else accepted.read(DIFFERENCES, django.VERSION[:2])
        version = metadata.version("django")
        self.cache = CACHE / version
        suite = source.fetch(version, self.cache)
        self.seconds = parts.read_seconds(SECONDS)
        if self.resumes:
            self.modules = self._of_all(source.all_modules(suite))
        if unknown := [name for name in self.modules if not (suite / name).is_dir()]:
            raise source.SourceError(f"Django {version} has no test modules {', '.join(unknown)}")
        requirements = self._requirements(suite)
        kind = SERVERS.get(options.db)
        self.server = None if kind is None else kind.from_environment()
        if self.server is not None and (dropped := self.server.drop_leftovers()):
            print(f"dropped what a killed run left: {', '.join(dropped)}")
        self.fingerprint = stored.fingerprint(requirements, self.server)
        self.workshop = Workshop(
            suite,
            options.db,
            self.server,
            options.time_limit,
            options.package.resolve(),
            redis_url,
            options.plain,
        )
        self.labels = (options.test,) if options.test else None
        digest = stored.digest(options.package, Path(__file__).parent)
        self.sources = parts.sources_of(ROOT, digest)
        self.loop_fingerprint = self.fingerprint | {"sources": digest, "plain": options.plain}
        self.free = {"sources"} if options.any_sources else set()

    def _of_all(self, modules: list[str]) -> list[str]:
        """Return all modules or the part that was asked for, in the order of running."""
        if self.options.part is None:
            return parts.longest_first(modules, self.seconds)
        number, of = parts.parse(self.options.part, parts.commit_of(ROOT))
        part = parts.part_of(modules, number, of, self.seconds)
        print(
            f"part {number}/{of}, {len(part)} of {len(modules)} modules: {' '.join(sorted(part))}"
        )
        return part

    def _requirements(self, suite: Path) -> dict[str, str | None]:
        found = source.requirements(suite, self.options.db)
        if cheap := [name for name in source.CHEAP_REQUIREMENTS if found.get(name, "") is None]:
            print(f"installing for Django's tests: {', '.join(cheap)}", flush=True)
            source.install(cheap)
            found = source.requirements(suite, self.options.db)
        left = ", ".join(name for name, version in found.items() if version is None) or "none"
        print(f"not installed, so their tests skip or fail on both sides: {left}")
        return found

    def stock(self, number: int, module: str) -> ModuleRun:
        """Return stock's run of ``module``: the stored one if it holds, else a new one."""
        path = stored.path_of(self.cache, self.options.db, module)
        if not self.options.refresh_stock and (known := stored.load(path, self.fingerprint)):
            return known
        run = self._run("stock", number, module)
        if self.labels is None:
            stored.save(path, run, self.fingerprint)
        return run

    def loop(self, number: int, module: str) -> ModuleRun:
        """Return the loop's run of ``module``: a new one, but of all modules a stored one."""
        path = stored.path_of(self.cache, self.options.db, module, "loop")
        if self.resumes and (known := stored.load(path, self.loop_fingerprint, self.free)):
            return known
        run = self._run("loop", number, module)
        if self.labels is None:
            stored.save(path, run, self.loop_fingerprint)
        return run

    def both(self, numbered: tuple[int, str]) -> report.ModuleReport:
        """Return the report on one module."""
        index, module = numbered
        stock = self.stock(2 * index, module)
        loop = self.loop(2 * index + 1, module)
        for test in self._timed_differences(stock, loop):
            print(f"{test} compares times: once more", flush=True)
            again = self.workshop.run(Job("loop", module, 2 * index + 1, (test,)))
            loop.outcomes[test] = again.outcomes.get(test, loop.outcomes[test])
        verdict = compare(
            stock.outcomes,
            loop.outcomes,
            self.entries,
            module=module,
            database=self.options.db,
            label=self.options.test,
        )
        return report.ModuleReport(module, stock, loop, verdict, self.options.plain)

    def _timed_differences(self, stock: ModuleRun, loop: ModuleRun) -> list[str]:
        return [
            test
            for test in TIMED & stock.outcomes.keys() & loop.outcomes.keys()
            if is_difference(stock.outcomes[test].kind, loop.outcomes[test].kind)
        ]

    def _run(self, side: str, number: int, module: str) -> ModuleRun:
        run = self.workshop.run(Job(side, module, number, self.labels or (module,)))
        run.sources = self.sources
        numbers = ", ".join(f"{n} {word}" for word, n in report.figures(run.outcomes).items())
        print(f"{module} {side}: {run.ending} after {run.seconds:.0f} s: {numbers}", flush=True)
        return run

    def stock_only(self) -> int:
        """Run stock alone and print its table; return the exit status."""
        with ThreadPoolExecutor(self.options.jobs) as executor:
            runs = list(executor.map(self.stock, range(len(self.modules)), self.modules))
        print(report.stock_table(dict(zip(self.modules, runs, strict=True))))
        return int(any(run.ending != "finished" for run in runs))

    def compare_all(self) -> int:
        """Run and compare every module, print and store the report; return the exit status."""
        reports: list[report.ModuleReport] = []
        executor = ThreadPoolExecutor(self.options.jobs)
        try:
            for one in executor.map(self.both, enumerate(self.modules)):
                reports.append(one)
                if self.options.fail_fast and one.problems():
                    break
        finally:
            executor.shutdown(cancel_futures=True)
        reports.sort(key=lambda one: one.module)
        for one in reports:
            if text := report.findings(one, verbose=self.options.verbose_failures):
                print(text)
        print(f"\nDjango {metadata.version('django')}, {self.options.db}\n{report.table(reports)}")
        last = self.cache / f"last-{self.options.db}.json"
        report.store(last, self.options.db, reports, {"fingerprint": self.fingerprint})
        if self.options.write_docs:
            compatibility.write(COMPATIBILITY, self.options.db, reports, self.fingerprint)
        if self.options.write_seconds:
            took = {one.module: one.stock.seconds + one.loop.seconds for one in reports}
            parts.write_seconds(SECONDS, took)
        failing = {one.module: one.problems() for one in reports if one.problems()}
        total = sum((len(one.verdict.accepted) for one in reports), 0)
        print(f"\naccepted differences: {total}; everything is in {last.relative_to(ROOT)}")
        for module, problems in failing.items():
            print(f"FAILED {module}: {'; '.join(problems)}")
        if not any(one.loop.outcomes for one in reports):
            print("FAILED: no test ran on the loop")
            return 1
        return 1 if failing else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit status."""
    options = parser().parse_args(arguments)
    if options.part and (options.modules or options.test):
        parser().error("--part is a part of all modules: name none")
    if (options.write_docs or options.write_seconds) and (
        options.part or options.modules or options.test
    ):
        parser().error("--write-docs and --write-seconds are for a run of all modules")
    if options.plain and not (options.modules or options.test):
        parser().error("--plain names its modules")
    with ExitStack() as stack:
        try:
            redis_url = None
            asked = {*options.modules, (options.test or "").split(".")[0]} - {""}
            if not asked or asked & REDIS_MODULES:
                redis_url = stack.enter_context(services.valkey_server()).rpartition("/")[0]
            call = Call(options, redis_url)
        except (
            source.SourceError,
            accepted.DifferencesError,
            ServerError,
            services.ServiceError,
        ) as error:
            print(error, file=sys.stderr)
            return 2
        return call.stock_only() if options.stock_only else call.compare_all()


if __name__ == "__main__":
    sys.exit(main())
