"""The decisions of the benchmark: who is visited when, what wrk said, what the rates say."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import logins, placement, report, rounds, usage, wrk
from benchmarks.subjects import SUBJECTS, TARGETS, Subject, Target
from benchmarks.usage import Usage
from benchmarks.works import WORKS

ROOT = Path(__file__).parents[2]

WRK_REPORT = """\
Running 4s test @ http://127.0.0.1:40001/hello
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.61ms  403.15us   9.30ms   88.16%
    Req/Sec    12.33k   561.00    13.05k    87.50%
  49062 requests in 4.00s, 6.97MB read
Requests/sec:  12258.31
Transfer/sec:      1.74MB
"""

RATES = {
    "hello": {"stock": [100.0, 200.0, 150.0], "nuages": [900.0, 1200.0, 1500.0]},
    "row": {"stock": [10.0, 10.0, 10.0], "nuages": [50.0, 60.0, 70.0]},
}

USAGES = {"hello": {"stock": [Usage(0.9, 0.05)]}}


class TestRounds:
    @pytest.mark.parametrize("number", range(8))
    def test_every_pair_once_in_a_round(self, number: int) -> None:
        found = rounds.visits(number, SUBJECTS, WORKS)
        pairs = {(work.name, subject.name) for work, subject in found}
        assert len(found) == len(pairs) == len(SUBJECTS) * len(WORKS)

    def test_every_round_begins_with_another_subject(self) -> None:
        first = [rounds.visits(n, SUBJECTS, WORKS)[0][1] for n in range(rounds.FULL.rounds)]
        assert len(set(first)) == rounds.FULL.rounds

    def test_every_second_round_goes_backwards(self) -> None:
        def followers(number: int) -> set[tuple[str, str]]:
            names = [s.name for _, s in rounds.visits(number, SUBJECTS, WORKS[:1])]
            return set(zip(names, names[1:] + names[:1], strict=True))

        assert followers(1) == {(b, a) for a, b in followers(0)}
        assert followers(2) == followers(0)

    def test_one_subject_is_enough(self) -> None:
        assert rounds.visits(3, SUBJECTS[:1], WORKS[:1]) == [(WORKS[0], SUBJECTS[0])]

    def test_a_quick_run_is_planned_for_less_than_six_minutes(self) -> None:
        assert rounds.QUICK.rounds == 2
        assert rounds.QUICK.seconds(len(SUBJECTS), len(WORKS)) < 360

    def test_a_full_run_has_five_rounds(self) -> None:
        assert rounds.FULL.rounds == 5


class TestWrk:
    def test_the_rate_is_read(self) -> None:
        assert wrk.read(WRK_REPORT) == 12258.31

    @pytest.mark.parametrize(
        "line",
        [
            "  Socket errors: connect 0, read 3, write 0, timeout 0",
            "  Non-2xx or 3xx responses: 49062",
        ],
    )
    def test_errors_fail_the_run(self, line: str) -> None:
        told = WRK_REPORT.replace("Requests/sec", f"{line}\nRequests/sec")
        with pytest.raises(wrk.WrkError, match=r"worthless") as caught:
            wrk.read(told)
        assert line.strip() in str(caught.value)

    @pytest.mark.parametrize("told", ["", WRK_REPORT.replace("12258.31", "0.00")])
    def test_no_answer_fails_the_run(self, told: str) -> None:
        with pytest.raises(wrk.WrkError, match="no answered request"):
            wrk.read(told)

    def test_a_machine_without_wrk_is_told_how_to_get_it(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--quick"],
            cwd=ROOT,
            env={**os.environ, "PATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert "apt-get install wrk" in done.stderr
        assert done.stdout == ""


class TestReport:
    def test_a_ratio_is_of_medians_and_spreads_over_rounds(self) -> None:
        found = report.ratio(RATES["hello"]["nuages"], RATES["hello"]["stock"])
        assert found == report.Ratio(8.0, 6.0, 10.0)
        assert str(found) == "8.00 (6.00..10.00)"

    def test_rounds_must_pair(self) -> None:
        with pytest.raises(ValueError, match="longer"):
            report.ratio([1.0], [1.0, 2.0])

    def test_targets_are_met_missed_or_not_measured(self) -> None:
        targets = [
            Target("hello", "nuages", "stock", 8),
            Target("row", "nuages", "stock", 7),
            Target("row", "nuages", "fastapi", 1.3),
            Target("gathered", "nuages", "stock", 2),
        ]
        verdicts = report.judge(RATES, targets)
        assert [(v.met, v.missed) for v in verdicts] == [
            (True, False),
            (False, True),
            (False, False),
            (False, False),
        ]
        lines = [line.split(":") for line in report.target_lines(verdicts).splitlines()[1:]]
        assert [line[0].split()[0] for line in lines] == ["met", "missed", "-", "-"]
        assert lines[2][-1] == " not measured in this run"

    def test_the_table_compares_with_stock(self) -> None:
        subjects = [Subject("stock", "Stock"), Subject("nuages", "Nuages")]
        lines = report.table(RATES, subjects, WORKS[:2]).splitlines()
        assert [line.split() for line in lines[1:3]] == [
            ["Stock", "150", "1.00", "(1.00..1.00)"],
            ["Nuages", "1200", "8.00", "(6.00..10.00)"],
        ]
        assert lines[0].endswith("ratio to stock (least..greatest)")

    def test_the_table_without_stock_compares_with_the_first(self) -> None:
        lines = report.table(RATES, [Subject("nuages", "Nuages")], WORKS[:1]).splitlines()
        assert lines[0].endswith("ratio to nuages (least..greatest)")

    def test_the_json_has_every_rate(self) -> None:
        verdicts = report.judge(RATES, TARGETS)
        told = json.loads(json.dumps(report.as_json(RATES, verdicts, {"rounds": 3}, USAGES)))
        assert told["about"] == {"rounds": 3}
        assert told["rates"] == RATES
        assert told["usages"] == {"hello": {"stock": [{"server": 0.9, "others": 0.05}]}}
        assert told["medians"]["hello"] == {"stock": 150.0, "nuages": 1200.0}
        [hello, row] = told["targets"]
        assert (hello["work"], hello["ratio"], hello["met"]) == ("hello", 8.0, True)
        assert (row["work"], row["least"], row["greatest"], row["met"]) == ("row", 5, 7, False)

    def test_a_machine_that_is_not_quiet_is_told_of(self) -> None:
        assert report.disturbance({}) == report.disturbance(USAGES) == ""
        told = report.disturbance({"row": {"stock": [Usage(0.9, 0.05), Usage(0.6, 0.4)]}})
        assert "1 of 2 visits" in told
        assert "40%" in told


class TestUsage:
    def test_the_ticks_of_a_core(self) -> None:
        stat = "cpu  9 9 9 9 9 9\ncpu0 1 2 3 100 5 6\ncpu1 10 20 30 100 50 60\nintr 1\n"
        assert usage.core_ticks(stat, 0) == 6
        assert usage.core_ticks(stat, 1) == 60
        with pytest.raises(ValueError, match="no core 2"):
            usage.core_ticks(stat, 2)

    def test_descendants_belong_to_a_process(self) -> None:
        def entry(parent: int, ticks: int) -> list[str]:
            return ["S", str(parent), *"0" * 9, str(ticks), str(ticks)]

        table = {1: entry(0, 500), 7: entry(1, 1), 8: entry(7, 2), 9: entry(8, 3), 10: entry(1, 4)}
        ticks = [usage.process_ticks(fields) for fields in usage.family(table, 7)]
        assert sorted(ticks) == [2, 4, 6]

    @pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux has /proc")
    def test_a_process_that_runs_is_seen(self) -> None:
        meter = usage.Meter(os.getpid(), min(placement.usable_cores()))
        before = time.process_time()
        while time.process_time() - before < 0.1:
            pass
        assert meter.read().server > 0


class TestPlacement:
    def test_the_server_has_a_core_for_itself(self) -> None:
        found = placement.place(frozenset({2, 5, 7}))
        assert (found.server, found.others) == ({2}, {5, 7})
        assert str(found) == "server on core 2; wrk and PostgreSQL on 5, 7"

    @pytest.mark.parametrize("cores", [frozenset(), frozenset({0})])
    def test_where_there_is_nothing_to_share_out_nothing_is_placed(
        self, cores: frozenset[int]
    ) -> None:
        assert placement.place(cores) == placement.Placement()

    @pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux places processes")
    def test_placing_ends_with_the_block(self) -> None:
        before = placement.usable_cores()
        one = frozenset({min(before)})
        with placement.on_cores(one):
            assert placement.usable_cores() == one
        with placement.on_cores(frozenset()):
            assert placement.usable_cores() == before
        assert placement.usable_cores() == before


class TestSubjects:
    def test_targets_name_what_is_measured(self) -> None:
        names = {subject.name for subject in SUBJECTS}
        works = {work.name for work in WORKS}
        for target in TARGETS:
            assert {target.subject, target.other} <= names
            assert target.work in works

    def test_compared_subjects_have_the_same_middleware(self) -> None:
        middleware = {s.name: s.variables.get("BENCH_MIDDLEWARE", "none") for s in SUBJECTS}
        for target in TARGETS:
            assert middleware[target.subject] == middleware[target.other]


class TestLogins:
    def test_the_percentile_is_by_nearest_rank(self) -> None:
        assert logins.percentile(range(1, 201), 99) == 198
        assert logins.percentile([3.0, 1.0, 2.0], 99) == 3.0
        assert logins.percentile([7.0], 50) == 7.0

    def test_the_report_is_a_ratio_of_percentiles(self) -> None:
        quiet = logins.Burst(2.0, 100, [0.001] * 100)
        late = logins.Burst(4.0, 50, [0.001] * 98 + [0.005, 0.1])
        text = logins.report(SUBJECTS[0], quiet, late)
        assert "5.0 times" in text
        assert "12.5" in text
        assert "100.0" in text
