"""What became of each fault: one row for a fault on a database, printed and put into the docs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN = "<!-- written by `make faults ARGS=--write-docs`: begin -->"
END = "<!-- end -->"
HEAD: tuple[str, ...] = ("fault", "database", "outcome", "seconds", "deadline")
NAMES = {"postgresql": "PostgreSQL", "mysql": "MariaDB", "sqlite": "SQLite", "redis": "Valkey"}


@dataclass
class Row:
    """A fault on a database: how it must end, and how it did."""

    fault: str
    database: str
    deadline: float
    """Seconds from the fault to what the caller gets."""
    outcome: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """The longest of what was measured."""
    failed: bool = False

    def took(self, seconds: float) -> None:
        """Note a time; raises AssertionError past the deadline."""
        self.seconds = max(self.seconds, seconds)
        assert seconds <= self.deadline, (
            f"{self.fault} took {seconds:.2f} s, and its deadline is {self.deadline:g} s"
        )

    def note(self, words: str) -> None:
        """Add to the outcome what is not said there yet."""
        if words not in self.outcome:
            self.outcome.append(words)

    def cells(self) -> tuple[str, ...]:
        outcome = "FAILED" if self.failed else ", ".join(self.outcome)
        return (
            self.fault,
            NAMES[self.database],
            outcome,
            f"{self.seconds:.2f}",
            f"{self.deadline:g}",
        )


class Matrix:
    """The rows of a run, in the order of the tests."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Row] = {}
        self.skipped: list[tuple[str, str, str]] = []
        """Fault, database and reason."""

    def row(self, fault: str, database: str, deadline: float) -> Row:
        """The row of that fault; what is measured on another loop goes into the same one."""
        return self._rows.setdefault((fault, database), Row(fault, database, deadline))

    def skip(self, row: Row, reason: str) -> None:
        self._rows.pop((row.fault, row.database), None)
        if (skipped := (row.fault, row.database, reason)) not in self.skipped:
            self.skipped.append(skipped)

    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def table(self) -> list[str]:
        """Lines for a terminal."""
        lines = [HEAD, *(row.cells() for row in self.rows())]
        widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
        return [
            *(
                "  ".join(
                    cell.rjust(width) if column > 2 else cell.ljust(width)
                    for column, (cell, width) in enumerate(zip(line, widths, strict=True))
                ).rstrip()
                for line in lines
            ),
            *(
                f"skipped: {fault}, {NAMES[database]}: {why}"
                for fault, database, why in self.skipped
            ),
        ]

    def markdown(self) -> str:
        """A table for the docs: databases on which a fault ends alike share a line."""
        alike: dict[tuple[str, str, str], list[tuple[str, ...]]] = {}
        for cells in (row.cells() for row in self.rows()):
            alike.setdefault((cells[0], cells[2], cells[4]), []).append(cells)
        lines = [HEAD, ("---", "---", "---", "---:", "---:")]
        for (fault, outcome, deadline), rows in alike.items():
            databases = ", ".join(row[1] for row in rows)
            lines.append((fault, databases, outcome, ", ".join(row[3] for row in rows), deadline))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def write_docs(self, path: Path = DOCS) -> None:
        """Put the table between the markers. Raises ValueError where rows are missing."""
        if self.skipped or any(row.failed for row in self.rows()):
            raise ValueError("the docs show a whole run: something failed or was skipped")
        text = path.read_text()
        before, found, rest = text.partition(BEGIN)
        _, also, after = rest.partition(END)
        if not (found and also):
            raise ValueError(f"{path} has not both markers, {BEGIN} and {END}")
        path.write_text(f"{before}{BEGIN}\n{self.markdown()}\n{END}{after}")
