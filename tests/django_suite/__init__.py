"""Django's own test suite, run unmodified on Django's backends and on Nuages' event loop.

``python -m tests.django_suite --db postgresql|sqlite|mysql MODULE ...`` fetches the suite of the
installed Django, runs each module twice and reports every test that the loop does not pass
although stock does. One module per duty:

- ``source``: the suite's files and what they need installed;
- ``parts``: which modules an eighth of the suite has, and the order of running;
- ``databases``: the server, each process's own databases, its settings module;
- ``processes``: one module in one process, with a time limit;
- ``launch``, ``recorder``, ``blocking``: what runs inside that process;
- ``outcomes``, ``accepted``, ``compare``: plain functions from events to a verdict;
- ``report``: what is printed and stored.
"""
