"""`make search`: random programs against real databases, with a second connection as the judge.

Each seed makes a program that mixes iterators and generators that are left early or dropped,
transactions, holds and cursors, tasks and threads, cancellations, hooks, forks and garbage
collections. It runs as real code. Whatever it is told is noted, and compared with what is there.

| module | what |
|---|---|
| `program.py` | programs as data, and as text |
| `generate.py` | the program of a seed; what may stand where |
| `running.py`, `statements/` | runs a program, and notes what it is told |
| `journal.py` | blocks, writes and hooks as they were told, and their judgement |
| `model.py` | which errors may come where |
| `databases.py` | two databases for each worker; the judge's connections |
| `inside.py` | what is left in the process afterwards |
| `worker.py`, `workers.py` | the processes that run programs, and those that watch them |
| `shrink.py` | makes a program that fails small |
| `__main__.py` | the search |

# The model

What the documentation promises, and so what is judged:

- *A write outside of blocks* that was answered is there; one that raised is not. One that was
  cancelled, or whose outcome is unknown, may be either, with all its rows or none.
- *A block* whose body came to its end and whose exit raised nothing is committed: all that was
  answered in it is there. One whose body raised is rolled back, whatever its exit raised; so is
  one whose exit raised, unless that is a cancellation or `OutcomeUnknown` (either, but wholly) or
  a hook's own error, which comes out of a committed block. An error of the database that a hook
  raises must not look like one that says "not applied".
- *A savepoint* is judged so within what is around it; with `savepoint=False` it shares the fate
  of the block around it.
- *Something that failed or was cancelled in a block and was swallowed in it* may have that block
  rolled back at its end without an error, as in Django: either, but wholly.
- *Hooks* ran once if and only if their block was committed, cancelled or not; not those after one
  that raised, nor where nobody knows the outcome.
- *Tasks and threads that outlive their block* get `ScopeEnded`, and the block may be told
  `OpenBlock`; what they were answered has the block's fate.
- *An iterator or generator that is left early*, with a cursor, a hold or an open `aiterator()` in
  it, changes nothing of what comes after it. One with a transaction in it that is dropped without
  `aclosing()` is the exception: `aatomic` says that its consumer is in that transaction until it
  is closed. What such a program is told afterwards may be either, each block wholly.
- *A query's answer* is the one to its own question.
- *At the end* no session is in a transaction, the pools are idle, no task and no bridge is left,
  nobody has reported an error to the loop or to Python, and the process lives and does not hang.

Any error that `model.py` does not list is a fault.
"""
