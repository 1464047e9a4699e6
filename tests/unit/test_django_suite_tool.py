"""The decisions of the tool that runs Django's own suite: what it folds, accepts and reports."""

import asyncio
import os
import select
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import pymysql  # type: ignore[import-untyped]
import pytest

from nuages.test import blocking
from tests.django_suite import (
    accepted,
    databases,
    outcomes,
    parts,
    processes,
    report,
    source,
    stored,
)
from tests.django_suite.accepted import Accepted, DifferencesError
from tests.django_suite.blocking import _SOCKET_CALLS, BlockingWatch
from tests.django_suite.compare import compare, is_difference, is_within
from tests.django_suite.compatibility import with_section
from tests.django_suite.outcomes import Counters, Ending, Kind, ModuleRun, Outcome, fold

TEST = "basic.tests.ModelTest.test_one"
OTHER = "basic.tests.ModelTest.test_two"
REASON = "asserts that the query runs in a thread"


def events_of(kind: str, test: str = TEST, detail: str = "") -> list[dict[str, Any]]:
    return [
        {"event": "start", "test": test},
        {"event": "outcome", "test": test, "kind": kind, "detail": detail},
        {"event": "stop", "test": test},
    ]


def entry(test: str = TEST, database_list: str = '["sqlite"]', reason: str = REASON) -> str:
    return f'[[difference]]\ntest = "{test}"\ndatabases = {database_list}\nreason = "{reason}"\n'


class TestFolding:
    @pytest.mark.parametrize("kind", list(Kind)[:6])
    def test_one_event_is_the_outcome(self, kind: Kind) -> None:
        run = fold(events_of(kind, detail="why"), Ending.FINISHED)
        assert run.outcomes == {TEST: Outcome(kind, "why")}

    @pytest.mark.parametrize("order", [("failed", "skipped"), ("skipped", "failed")])
    def test_the_worst_subtest_counts(self, order: tuple[str, str]) -> None:
        events = [{"event": "outcome", "test": TEST, "kind": kind} for kind in order]
        assert fold(events, Ending.FINISHED).outcomes[TEST].kind is Kind.FAILED

    def test_an_error_after_the_end_of_a_passed_test_counts(self) -> None:
        late = {"event": "outcome", "test": TEST, "kind": "error", "detail": "post-teardown"}
        run = fold([*events_of("passed"), late], Ending.FINISHED)
        assert run.outcomes[TEST] == Outcome(Kind.ERROR, "post-teardown")

    @pytest.mark.parametrize("owner", ["basic.tests.ModelTest", "basic.tests"])
    @pytest.mark.parametrize("kind", ["error", "skipped"])
    def test_a_set_up_counts_for_each_planned_test_below(self, owner: str, kind: str) -> None:
        beside = "basic.testsuite.ModelTest.test_three"
        word = "setUpClass" if owner.endswith("Test") else "setUpModule"
        events = [
            {"event": "planned", "tests": [TEST, OTHER, beside]},
            {"event": "outcome", "test": f"{word} ({owner})", "kind": kind, "detail": "no"},
            *events_of("passed", beside),
        ]
        run = fold(events, Ending.FINISHED)
        assert {test: one.kind for test, one in run.outcomes.items()} == {
            TEST: kind,
            OTHER: kind,
            beside: Kind.PASSED,
        }
        assert run.outcomes[TEST].detail == f"{word} ({owner}): no"

    def test_a_tear_down_has_an_entry_of_its_own(self) -> None:
        name = "tearDownClass (basic.tests.ModelTest)"
        late = {"event": "outcome", "test": name, "kind": "error"}
        run = fold([*events_of("passed"), late], Ending.FINISHED)
        assert run.outcomes[TEST].kind is Kind.PASSED
        assert run.outcomes[name].kind is Kind.ERROR

    def test_a_set_up_without_planned_tests_is_not_lost(self) -> None:
        name = "setUpClass (basic.tests.ModelTest)"
        run = fold([{"event": "outcome", "test": name, "kind": "error"}], Ending.FINISHED)
        assert run.outcomes[name].kind is Kind.ERROR

    @pytest.mark.parametrize(
        ("ending", "kind"), [(Ending.HUNG, Kind.HUNG), (Ending.CRASHED, Kind.CRASHED)]
    )
    def test_an_unfinished_test_is_told_from_those_never_started(
        self, ending: Ending, kind: Kind
    ) -> None:
        events = [
            {"event": "planned", "tests": [TEST, OTHER]},
            {"event": "start", "test": TEST},
        ]
        run = fold(events, ending, "the log's end")
        assert run.outcomes[TEST] == Outcome(kind, "the log's end")
        assert run.outcomes[OTHER].kind is Kind.MISSING

    def test_the_last_counters_and_all_stacks_are_kept(self) -> None:
        events = [
            {"event": "counters", "bridged": 1, "worker": 0, "blocked": 0},
            {"event": "blocked", "stack": "here"},
            {"event": "counters", "bridged": 7, "worker": 2, "blocked": 1},
        ]
        run = fold(events, Ending.FINISHED)
        assert run.counters == Counters(7, 2, 1)
        assert run.blocked_stacks == ["here"]


class TestDifference:
    @pytest.mark.parametrize("loop", [kind for kind in Kind if kind not in outcomes.GOOD])
    def test_whatever_is_not_passed_differs_from_passed(self, loop: Kind) -> None:
        assert is_difference(Kind.PASSED, loop)

    @pytest.mark.parametrize("stock", [Kind.SKIPPED, Kind.MISSING])
    def test_a_failure_of_a_test_that_stock_does_not_run_differs(self, stock: Kind) -> None:
        assert is_difference(stock, Kind.ERROR)
        assert not is_difference(stock, Kind.PASSED)
        assert not is_difference(stock, Kind.SKIPPED)

    @pytest.mark.parametrize("loop", list(Kind))
    def test_what_fails_on_stock_is_no_measure(self, loop: Kind) -> None:
        assert not is_difference(Kind.FAILED, loop)

    def test_a_test_absent_from_the_loop_is_missing(self) -> None:
        verdict = compare({TEST: Outcome(Kind.PASSED)}, {}, [], module="basic", database="sqlite")
        assert [(one.test, one.loop) for one in verdict.differences] == [(TEST, Kind.MISSING)]

    def test_an_accepted_difference_is_set_apart_on_its_database_only(self) -> None:
        stock, loop = {TEST: Outcome(Kind.PASSED)}, {TEST: Outcome(Kind.FAILED)}
        entries = [Accepted(TEST, ("sqlite",), REASON)]
        here = compare(stock, loop, entries, module="basic", database="sqlite")
        there = compare(stock, loop, entries, module="basic", database="postgresql")
        assert (len(here.accepted), here.differences, here.stale) == (1, [], [])
        assert (there.accepted, len(there.differences), there.stale) == ([], 1, [])

    @pytest.mark.parametrize(
        ("stock", "loop"),
        [
            ({TEST: Outcome(Kind.PASSED)}, {TEST: Outcome(Kind.PASSED)}),
            ({TEST: Outcome(Kind.SKIPPED)}, {TEST: Outcome(Kind.SKIPPED)}),
            ({}, {}),
        ],
    )
    def test_an_entry_that_no_test_needs_is_stale(
        self, stock: dict[str, Outcome], loop: dict[str, Outcome]
    ) -> None:
        entries = [Accepted(TEST, ("sqlite",), REASON)]
        verdict = compare(stock, loop, entries, module="basic", database="sqlite")
        assert len(verdict.stale) == 1
        assert verdict.stale[0].startswith(TEST)

    def test_entries_of_other_modules_are_left_alone(self) -> None:
        entries = [Accepted("basic_more.tests.A.test_b", ("sqlite",), REASON)]
        assert compare({}, {}, entries, module="basic", database="sqlite").stale == []

    def test_a_label_limits_what_is_compared(self) -> None:
        stock = {TEST: Outcome(Kind.PASSED), OTHER: Outcome(Kind.PASSED)}
        verdict = compare(
            stock,
            {},
            [],
            module="basic",
            database="sqlite",
            label="basic.tests.ModelTest.test_one",
        )
        assert [one.test for one in verdict.differences] == [TEST]

    def test_a_fixture_is_within_the_label_of_its_class(self) -> None:
        assert is_within("tearDownClass (basic.tests.ModelTest)", "basic")
        assert is_within(TEST, "basic.tests")
        assert not is_within("basic_more.tests.A.test_b", "basic")
        assert not is_within("tearDownClass (basic_more.tests.A)", "basic")


class TestAcceptedList:
    def test_the_list_of_the_project_is_well_formed(self) -> None:
        path = Path(accepted.__file__).with_name("differences.toml")
        assert accepted.read(path, (99, 0))

    def test_an_entry_holds_since_a_django_version(self, tmp_path: Path) -> None:
        path = tmp_path / "differences.toml"
        path.write_text(entry() + 'since = "6.1"\n')
        assert accepted.read(path, (5, 2)) == []
        assert len(accepted.read(path, (6, 1))) == 1

    def test_an_entry(self) -> None:
        assert accepted.parse(entry()) == [Accepted(TEST, ("sqlite",), REASON)]

    @pytest.mark.parametrize(
        "test",
        [
            "basic.tests.ModelTest.*",
            "basic.*",
            "basic",
            "basic.tests.ModelTest",
            "basic.tests.ModelTest.test_?",
            "basic.tests.ModelTest.test_[ab]",
            "",
        ],
    )
    def test_anything_but_a_full_id_is_refused(self, test: str) -> None:
        with pytest.raises(DifferencesError, match="full id"):
            accepted.parse(entry(test))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (entry(reason=""), "reason"),
            (entry(reason="flaky"), "reason"),
            (entry(database_list="[]"), "databases"),
            (entry(database_list='["oracle"]'), "databases"),
            (entry() + 'note = "x"\n', "exactly the keys"),
            ('[[difference]]\ntest = "a.b.C.test_d"\n', "exactly the keys"),
            ('[[differences]]\ntest = "a.b.C.test_d"\n', "unknown tables"),
            ("[[difference", "not TOML"),
            (entry() + entry(), "twice"),
        ],
    )
    def test_what_is_not_in_the_form_is_refused(self, text: str, message: str) -> None:
        with pytest.raises(DifferencesError, match=message):
            accepted.parse(text)

    def test_one_entry_too_many_is_refused(self) -> None:
        many = range(accepted.MOST_ENTRIES + 1)
        text = "".join(entry(f"basic.tests.A.test_{number}") for number in many)
        with pytest.raises(DifferencesError, match="21 entries for sqlite"):
            accepted.parse(text)


class TestReport:
    def report_of(self, loop: ModuleRun) -> report.ModuleReport:
        stock = ModuleRun(outcomes={TEST: Outcome(Kind.PASSED)})
        made = compare(stock.outcomes, loop.outcomes, [], module="basic", database="sqlite")
        return report.ModuleReport("basic", stock, loop, made)

    def passing(self) -> ModuleRun:
        return ModuleRun(
            outcomes={TEST: Outcome(Kind.PASSED)},
            counters=Counters(worker=3),
            databases=["default"],
        )

    def test_a_clean_module_has_no_problem_and_nothing_to_say(self) -> None:
        clean = self.report_of(self.passing())
        assert clean.problems() == []
        assert report.findings(clean, verbose=False) == ""

    def test_a_blocked_call_fails_the_module_and_shows_its_stack(self) -> None:
        run = self.passing()
        run.counters += Counters(blocked=1)
        run.blocked_stacks = ["sqlite3: SELECT 1\n  the caller"]
        blocked = self.report_of(run)
        assert blocked.problems() == ["1 calls blocked the loop"]
        assert "the caller" in report.findings(blocked, verbose=False)

    def test_a_run_that_counted_no_statement_fails(self) -> None:
        run = self.passing()
        run.counters = Counters()
        assert len(self.report_of(run).problems()) == 1

    def test_a_run_without_database_needs_no_statement(self) -> None:
        run = self.passing()
        run.counters, run.databases = Counters(), []
        assert self.report_of(run).problems() == []

    @pytest.mark.parametrize("ending", [Ending.HUNG, Ending.CRASHED])
    def test_a_run_that_did_not_finish_fails_even_if_each_test_passed(
        self, ending: Ending
    ) -> None:
        run = self.passing()
        run.ending = ending
        assert self.report_of(run).problems() == [f"the loop's run {ending}"]

    def test_a_difference_is_shown_with_the_end_of_its_traceback(self) -> None:
        run = self.passing()
        run.outcomes = {TEST: Outcome(Kind.FAILED, "first\n" + "line\n" * 50 + "AssertionError")}
        text = report.findings(self.report_of(run), verbose=False)
        assert TEST in text
        assert "AssertionError" in text
        assert "first" not in text
        assert "first" in report.findings(self.report_of(run), verbose=True)

    def test_the_table_adds_up(self) -> None:
        lines = report.table([self.report_of(self.passing())] * 2).splitlines()
        assert lines[-1].split() == ["total", "2", "0", "0", "2", "0", "0", "0", "6", "0", "0"]


class TestNamesAndSources:
    def test_a_url_gives_the_server(self) -> None:
        server = databases.Server.from_url("postgresql://me:s%2Fx@db:6543/main?sslmode=require")
        assert server.settings() == {
            "HOST": "db",
            "PORT": 6543,
            "USER": "me",
            "PASSWORD": "s/x",
            "OPTIONS": {"sslmode": "require"},
        }

    def test_a_socket_folder_may_be_the_host(self) -> None:
        server = databases.Server.from_url("postgresql://me@/postgres?host=/run/pg&port=5433")
        assert (server.host, server.port, server.options) == ("/run/pg", 5433, ())

    def test_only_databases_of_a_gone_process_are_leftovers(self) -> None:
        with subprocess.Popen([sys.executable, "-c", ""]) as ended:
            ended.wait()
        gone, alive = databases.names_for(ended.pid, 1), databases.names_for(os.getpid(), 1)
        assert databases.is_leftover(f"test_{gone[0]}")
        assert databases.is_leftover(gone[1])
        assert not databases.is_leftover(alive[0])
        assert not databases.is_leftover("postgres")

    def test_a_process_that_a_test_starts_has_stocks_engine_and_a_driver(
        self, tmp_path: Path
    ) -> None:
        shim = tmp_path / databases.SHIM
        shim.mkdir()
        (shim / "__init__.py").touch()
        (shim / "base.py").write_text(databases.shim_text("stock", "mysql"))
        code = f"import {databases.SHIM}.base as base; print(base.Database.connect.__module__)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"NUAGES_SUITE_PROCESS": "0", "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "pymysql.connections\n"

    @pytest.mark.parametrize("side", ["stock", "loop"])
    def test_the_settings_differ_by_engine_only(self, side: str) -> None:
        server = databases.Server.from_url(databases.DEFAULT_URL)
        names = databases.names_for(1, 2)
        text = databases.settings_text(side, "postgresql", names, server)
        other = databases.settings_text("stock", "postgresql", names, server)
        engine = databases.ENGINES[side, "postgresql"]
        assert text == other.replace(databases.ENGINES["stock", "postgresql"], engine)
        assert f"test_{names[1]}" in text

    @pytest.mark.parametrize(
        ("side", "database", "module", "shimmed"),
        [
            ("loop", "sqlite", "admin_scripts", True),
            ("stock", "sqlite", "admin_scripts", False),
            ("stock", "mysql", "admin_scripts", True),
            ("stock", "mysql", "test_runner", True),
            ("loop", "mysql", "test_runner", False),
        ],
    )
    def test_started_projects_have_an_engine_that_they_can_load(
        self, side: str, database: str, module: str, shimmed: bool
    ) -> None:
        text = databases.settings_text(side, database, ("a", "b"), None, module)
        assert (databases.SHIM in text) is shimmed

    def test_requirement_names(self) -> None:
        text = (
            "# a comment\nasgiref >= 3.8.1\nPillow>=6\npywatchman; sys_platform != 'win32'\n"
            "colorama >= 0.4.6; sys_platform == 'win32'\npsycopg[binary]>=3\n\n"
        )
        assert source.requirement_names(text) == ["asgiref", "Pillow", "pywatchman", "psycopg"]

    def test_a_stored_result_holds_only_for_its_fingerprint(self, tmp_path: Path) -> None:
        path = stored.path_of(tmp_path, "sqlite", "basic")
        run = ModuleRun(outcomes={TEST: Outcome(Kind.SKIPPED, "why")}, databases=["default"])
        stored.save(path, run, {"python": "1"})
        assert stored.load(path, {"python": "2"}) is None
        assert stored.load(path, {"python": "1"}) == run

    def test_an_unfinished_stock_run_is_not_stored(self, tmp_path: Path) -> None:
        path = stored.path_of(tmp_path, "sqlite", "basic")
        stored.save(path, ModuleRun(ending=Ending.HUNG), {})
        assert stored.load(path, {}) is None

    def test_a_line_cut_by_a_kill_is_left_out(self, tmp_path: Path) -> None:
        path = tmp_path / "events"
        path.write_text('{"event": "start", "test": "a"}\n{"event": "st')
        assert processes.read_events(path) == [{"event": "start", "test": "a"}]
        assert processes.read_events(tmp_path / "none") == []


class TestWholeSuite:
    def suite(self, tmp_path: Path) -> Path:
        for file in (
            *("basic/tests.py", "many/test_a.py", "gis_tests/tests.py", "helper/models.py"),
            "test_runner_apps/tests.py",
        ):
            path = tmp_path / file
            path.parent.mkdir()
            path.touch()
        (tmp_path / "runtests.py").touch()
        return tmp_path

    def test_the_tests_and_what_they_need_are_unpacked(self, tmp_path: Path) -> None:
        tree = tmp_path / "django-9.9"
        for file in ("tests/runtests.py", "docs/_ext/links.py", "docs/index.txt", "setup.py"):
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            (tree / file).touch()
        archive = tmp_path / "django-9.9.tar.gz"
        with tarfile.open(archive, "w:gz") as bundle:
            bundle.add(tree, tree.name)
        root = source._unpack(archive, tmp_path / "unpacked")
        found = {str(path.relative_to(root)) for path in root.rglob("*.*")}
        assert found == {"tests/runtests.py", "docs/_ext/links.py"}

    def test_what_asks_the_package_index_is_tried_again(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        script = f"cd {tmp_path}; echo >>tries; echo no index >&2; [ $(wc -l <tries) = $0 ]"
        source._run(["sh", "-c", script, "2"], pauses=(0, 0))
        assert "no index\n\nIt is tried again in 0 s.\n" in capsys.readouterr().out
        with pytest.raises(source.SourceError, match="no index"):
            source._run(["sh", "-c", script, "9"], pauses=(0, 0))
        assert (tmp_path / "tries").read_text() == "\n" * 5

    @pytest.mark.parametrize("name", ["tests/link", "tests/../../up"])
    def test_an_archive_with_more_than_files_is_refused(self, tmp_path: Path, name: str) -> None:
        archive = tmp_path / "django-9.9.tar.gz"
        with tarfile.open(archive, "w:gz") as bundle:
            member = tarfile.TarInfo(f"django-9.9/{name}")
            member.type = tarfile.SYMTYPE if name == "tests/link" else tarfile.REGTYPE
            bundle.addfile(member)
        with pytest.raises(source.SourceError, match="which is no file"):
            source._unpack(archive, tmp_path / "unpacked")
        assert not (tmp_path / "unpacked").exists()

    def test_it_is_every_folder_with_tests_but_those_left_out(self, tmp_path: Path) -> None:
        assert source.all_modules(self.suite(tmp_path)) == ["basic", "many"]

    def test_the_parts_are_all_of_it(self) -> None:
        modules = [f"m{number}" for number in range(10)]
        seconds = {"m3": 90.0, "m4": 30.0, "m5": 2.0, "gone": 1000.0}
        dealt = [parts.part_of(modules, number, 4, seconds) for number in range(1, 5)]
        assert sorted(module for part in dealt for module in part) == modules

    def test_the_parts_take_about_the_same_time(self) -> None:
        seconds = {"a": 9.0, "b": 8.0, "c": 7.0, "d": 2.0, "e": 2.0, "f": 2.0}
        assert parts.part_of(seconds, 1, 3, seconds) == ["a", "f"]
        assert parts.part_of(seconds, 2, 3, seconds) == ["b", "e"]
        assert parts.part_of(seconds, 3, 3, seconds) == ["c", "d"]

    def test_the_longest_is_run_first_and_an_unknown_one_is_as_the_median(self) -> None:
        seconds = {"a": 1.0, "b": 30.0, "c": 5.0}
        assert parts.longest_first(["a", "b", "c", "new"], seconds) == ["b", "c", "new", "a"]
        assert parts.longest_first(["b", "a"], {}) == ["a", "b"]

    def test_the_modules_seconds_are_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "seconds.json"
        assert parts.read_seconds(path) == {}
        parts.write_seconds(path, {"b": 1.26, "a": 2.0})
        assert parts.read_seconds(path) == {"a": 2.0, "b": 1.3}
        assert path.read_text() == '{\n "a": 2.0,\n "b": 1.3\n}\n'

    @pytest.mark.parametrize(
        ("part", "commit", "found"),
        [("3/8", "", (3, 8)), ("hash/8", "a0", (1, 8)), ("hash/8", "a7", (8, 8))],
    )
    def test_a_part_is_a_number_or_the_commits(
        self, part: str, commit: str, found: tuple[int, int]
    ) -> None:
        assert parts.parse(part, commit) == found

    @pytest.mark.parametrize("part", ["0/4", "5/4", "4", "a/4", "1/", "-1/4", "hash/0", "hash/"])
    def test_a_part_that_is_none_is_refused(self, part: str) -> None:
        with pytest.raises(source.SourceError, match="N/M"):
            parts.parse(part, "a0")

    def test_without_a_commit_nothing_chooses(self) -> None:
        with pytest.raises(source.SourceError, match="no commit"):
            parts.parse("hash/8", "")

    def test_sources_are_named_by_their_commit_or_their_digest(self, tmp_path: Path) -> None:
        assert parts.commit_of(tmp_path) == ""
        assert parts.sources_of(tmp_path, "0123456789abcdef") == "digest 0123456789"
        file = tmp_path / "src" / "module.py"
        file.parent.mkdir()
        file.write_text("a = 1")
        author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "a"]):
            subprocess.run(["git", *command], cwd=tmp_path, check=True)
        commit = parts.commit_of(tmp_path)
        assert parts.sources_of(tmp_path, "0123456789abcdef") == f"commit {commit[:10]}"
        file.write_text("a = 2")
        assert parts.sources_of(tmp_path, "0123456789abcdef") == "digest 0123456789"

    def test_a_loops_result_is_stored_with_its_counters(self, tmp_path: Path) -> None:
        run = ModuleRun(
            outcomes={TEST: Outcome(Kind.PASSED)},
            counters=Counters(bridged=3, blocked=1),
            blocked_stacks=["where"],
            databases=["default"],
            seconds=1.5,
            sources="commit a",
        )
        path = stored.path_of(tmp_path, "sqlite", "basic", "loop")
        stored.save(path, run, {"sources": "a", "python": "1"})
        assert stored.load(path, {"sources": "a", "python": "1"}) == run
        assert stored.load(path, {"sources": "b", "python": "1"}) is None
        assert stored.load(path, {"sources": "b", "python": "1"}, {"sources"}) == run
        assert stored.load(path, {"sources": "a", "python": "2"}, {"sources"}) is None

    @pytest.mark.parametrize("changed", ["src/module.py", "tool/launch.py"])
    def test_the_digest_follows_the_sources(self, tmp_path: Path, changed: str) -> None:
        tool = tmp_path / "tool"
        shutil.copytree(Path(stored.__file__).parent, tool)
        package = tmp_path / "src"
        package.mkdir()
        (package / "module.py").write_text("a = 1")
        before = stored.digest(package, tool)
        (tool / "report.py").write_text("# what only tells")
        assert stored.digest(package, tool) == before
        (tmp_path / changed).write_text("a = 2")
        assert stored.digest(package, tool) != before


class TestPage:
    FINGERPRINT = {"django": "5.2.19", "python": "3.11.7", "sqlite": "3.40.1"}

    def reports(self, loop: Kind) -> list[report.ModuleReport]:
        stock = ModuleRun(outcomes={TEST: Outcome(Kind.PASSED), OTHER: Outcome(Kind.SKIPPED)})
        run = ModuleRun(
            outcomes={TEST: Outcome(loop), OTHER: Outcome(Kind.SKIPPED)},
            counters=Counters(worker=5),
            sources="commit a",
        )
        made = compare(stock.outcomes, run.outcomes, [], module="basic", database="sqlite")
        return [report.ModuleReport("basic", stock, run, made)]

    def test_a_run_is_a_section(self) -> None:
        page = with_section(
            "# Page\n\nWords.\n", "sqlite", self.reports(Kind.FAILED), self.FINGERPRINT
        )
        assert page.startswith("# Page\n\nWords.\n\n<!-- run 5.2 sqlite -->\n## Django 5.2.19, ")
        assert "| stock | 1 | 0 | 1 |\n| on the loop | 0 | 1 | 1 |" in page
        assert "| basic | 1 | 0 | 1 | 0 | 1 | 1 |" in page
        assert f"bugs:\n\n- `{TEST}`" in page
        assert "5 statements" in page
        assert "\nSources: commit a.\n" in page

    def test_a_section_of_several_sources_says_so(self) -> None:
        mended = self.reports(Kind.PASSED)[0]
        mended.loop.sources = "commit b"
        reports = [*self.reports(Kind.PASSED), *self.reports(Kind.PASSED), mended]
        page = with_section("# Page\n", "sqlite", reports, self.FINGERPRINT)
        assert "\nSources: commit a (2 modules), commit b (1 modules).\n" in page

    def test_a_later_run_takes_its_place(self) -> None:
        first = with_section("# Page\n", "sqlite", self.reports(Kind.FAILED), self.FINGERPRINT)
        other = {**self.FINGERPRINT, "django": "6.1.3"}
        both = with_section(first, "sqlite", self.reports(Kind.PASSED), other)
        again = with_section(both, "sqlite", self.reports(Kind.PASSED), self.FINGERPRINT)
        assert again.count("## Django") == 2
        assert TEST not in again
        assert again == with_section(again, "sqlite", self.reports(Kind.PASSED), other)


class TestBlockingWatch:
    @pytest.fixture
    def watch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlockingWatch:
        self.stacks: list[str] = []
        monkeypatch.setattr(sqlite3, "connect", sqlite3.connect)
        monkeypatch.setattr(sqlite3.dbapi2, "connect", sqlite3.connect)
        watch = BlockingWatch(tmp_path, self.stacks.append)
        watch.install(psycopg=False)
        return watch

    def query(self) -> None:
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        connection.execute("SELECT 1")
        connection.close()

    def test_sqlite_on_the_watched_thread_counts(self, watch: BlockingWatch) -> None:
        watch.start()
        self.query()
        watch.stop()
        self.query()
        assert watch.blocked == 2
        assert self.stacks[1].startswith("sqlite3: SELECT 1")
        assert "in query" in self.stacks[1]

    async def test_sqlite_in_a_worker_does_not_count(self, watch: BlockingWatch) -> None:
        watch.start()
        await asyncio.to_thread(self.query)
        assert watch.blocked == 0

    def test_what_a_test_of_django_opens_itself_does_not_count(
        self, watch: BlockingWatch, tmp_path: Path
    ) -> None:
        file = tmp_path / "tests.py"
        text = "import sqlite3\nsqlite3.connect(':memory:').close()\nquery()\n"
        watch.start()
        exec(compile(text, str(file), "exec"), {"query": self.query})
        assert watch.blocked == 2  # those of query(), a file outside the suite

    def test_pymysqls_blocking_waits_count_and_nobody_elses(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in _SOCKET_CALLS:
            monkeypatch.setattr(socket.socket, name, getattr(socket.socket, name))
        monkeypatch.setattr(select, "poll", select.poll)
        watch = BlockingWatch(tmp_path, [].append)
        watch._watch_pymysql()
        text = """
def blocking(sock): return sock.recv(1)
def polling(sock):
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return poll.poll(timeout)
"""

        def called(file: str, name: str, sock: socket.socket, timeout: int = 1) -> Any:
            scope: dict[str, Any] = {"select": select, "timeout": timeout}
            exec(compile(text, file, "exec"), scope)
            return scope[name](sock)

        driver = f"{Path(pymysql.__file__).parent}/connections.py"
        ours = "/x/nuages/db/backends/mysql/transport.py"
        near, far = socket.socketpair()
        with near, far:
            watch.start()
            far.send(b"123456")
            called("/elsewhere.py", "blocking", near)
            called("/elsewhere.py", "polling", far)
            assert watch.blocked == 0
            called(driver, "blocking", near)
            assert watch.blocked == 1
            called(ours, "polling", far)
            assert watch.blocked == 2
            # With its answer there, without time, or without blocking, nothing is waited for.
            called(ours, "polling", near)
            called(ours, "polling", far, timeout=0)
            near.setblocking(False)
            called(ours, "blocking", near)
            assert watch.blocked == 2
            watch.stop()

    def test_a_wait_counts_when_it_has_to_wait(self, watch: BlockingWatch) -> None:
        def answered() -> Any:
            return 1
            yield

        def asked() -> Any:
            return (yield "wanted")

        def result(gen: Any) -> Any:
            ready = None
            while True:
                try:
                    gen.send(ready)
                except StopIteration as end:
                    return end.value
                ready = "ready"

        wait = blocking.watched_wait(result, "wait", watch._is_here, watch.note)
        watch.start()
        assert wait(answered()) == 1
        assert watch.blocked == 0
        assert wait(asked()) == "ready"
        assert watch.blocked == 1
        thread = threading.Thread(target=wait, args=(asked(),))
        thread.start()
        thread.join()
        assert watch.blocked == 1
