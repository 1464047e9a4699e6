# Every target works with only make and a Python >= 3.11 on the machine: scripts/env makes .venv.

.DEFAULT_GOAL := help
.PHONY: help demo test lint format lock audit streams sweep faults soak search bank backfill \
	lowest django-suite bench logins cache-bench clean

# Which Python makes .venv; empty: the first one >= 3.11 found.
PYTHON ?=
# Where `make demo` serves.
PORT ?= 8000
# More arguments, for pytest or the benchmark, as in: make test ARGS="tests/unit -k pool"
ARGS ?=
# How many processes run the tests, which wait as long as they compute; 0 is this one, as a debugger
# wants it.
JOBS ?= 3
# How many waits of an operation `make sweep` tries; 0: all.
POINTS ?= 0
# Seconds that `make faults` may take.
LIMIT ?= 300
# How long `make soak` loads its server; empty: 200,000 requests and ten minutes at least. So for
# `make bank`; empty: two minutes.
MINUTES ?=
# How many programs `make search` tries.
PROGRAMS ?= 50000
# What `make lowest` runs: the databases' drivers, and the seams on what they replace. Not the Redis
# cache: a socket is left to the garbage collector with redis 8.0.0, whose cause is not found yet.
LOWEST ?= tests/unit/test_seams.py tests/unit/test_bridge.py $(addprefix tests/integration/test_,\
	smoke.py orm.py transactions.py postgresql_backend.py mysql_backend.py sqlite_backend.py \
	mail.py plain_sync_code.py)
# For `make django-suite`: postgresql, sqlite or mysql; test modules of Django, all by default; 1
# runs stock Django anew.
DB ?= sqlite
MODULES ?=
REFRESH_STOCK ?=

export PYTHON
# The tests start hundreds of processes, and each would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 # \2/p' Makefile | \
	while IFS='#' read -r target text; do printf '%-22s%s\n' "$$target" "$$text"; done
	@echo
	@echo "Variables: PYTHON=python3.12, PORT=8000 (demo), ARGS='...' (test, bench), JOBS=3 (test),"
	@echo "  POINTS=5 (sweep), LIMIT=300 (faults), MINUTES=2 (soak, bank),"
	@echo "  PROGRAMS=50000 (search),"
	@echo "  DB=postgresql|sqlite|mysql MODULES='queries transactions' REFRESH_STOCK=1 (django-suite)"

demo: ## Install, migrate, load sample data, serve on http://127.0.0.1:8000
	@scripts/env demo
	cd demo && ../.venv/bin/python manage.py migrate --verbosity 0
	cd demo && ../.venv/bin/python manage.py loadsample
	cd demo && exec ../.venv/bin/python manage.py runserver 127.0.0.1:$(PORT)

test: ## Run the tests; they start the servers they need
	@scripts/env dev
	.venv/bin/python -m pytest -n $(JOBS) $(ARGS)

lint: ## Check style, formatting and types
	@scripts/env dev
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

format: ## Put imports and formatting right
	@scripts/env dev
	.venv/bin/python -m ruff check --fix-only .
	.venv/bin/python -m ruff format .

lock: ## Write requirements/dev.lock anew: the newest versions that pyproject.toml allows
	@scripts/env lock
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras \
		--no-emit-index-url --no-emit-find-links --no-emit-package nuages \
		--custom-compile-command "make lock" --output-file requirements/dev.lock pyproject.toml

audit: ## Look for known vulnerabilities in requirements/dev.lock; ARGS="-s osv" asks another service
	@scripts/env lock
	.venv/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off \
		--requirement requirements/dev.lock $(ARGS)

streams: ## Open 2,000 event streams on one worker and print what they cost
	@scripts/env dev
	NUAGES_STREAMS=2000 .venv/bin/python -m pytest tests/acceptance/test_many_streams.py -s -p no:logging

sweep: ## Cancel every operation at each of its waits; POINTS=5 for the first five
	@scripts/env dev
	NUAGES_SWEEP_POINTS=$(POINTS) .venv/bin/python -m pytest tests/integration/test_sweep.py \
		tests/integration/test_sweep_cache.py -s -p no:logging $(ARGS)

faults: ## Break real servers, each fault once, and print what became of it; LIMIT=300 seconds
	@scripts/env dev
	.venv/bin/python -m tests.faults --limit $(LIMIT) $(ARGS)

backfill: ## Change a million rows in batches, killed half-way, and print what it costs
	@scripts/env dev
	NUAGES_BACKFILL_ROWS=1000000 \
		.venv/bin/python -m pytest tests/acceptance/test_large_backfill.py -s -p no:logging

soak: ## Load a server with mixed requests, leavings and faults; MINUTES=2 for a short run
	@scripts/env dev
	.venv/bin/python -m tests.soak $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

search: ## Try random programs, judged from outside; ARGS="--database sqlite", or --seed 123
	@scripts/env dev
	.venv/bin/python -m tests.search --programs $(PROGRAMS) $(ARGS)

bank: ## Make transfers in many styles while all fails; MINUTES=2, ARGS="--database mysql"
	@scripts/env dev
	.venv/bin/python -m tests.bank $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

lowest: ## Run tests with the lowest versions that pyproject.toml declares
	@scripts/env dev
	@mkdir -p .cache && .venv/bin/python scripts/lowest_versions.py >.cache/lowest.txt
	@VENV=.venv-lowest CONSTRAINTS=.cache/lowest.txt PYTHON=.venv/bin/python scripts/env dev
	.venv-lowest/bin/python -m pytest -n $(JOBS) $(LOWEST) $(ARGS)

django-suite: ## Run Django's own tests on the event loop, all or MODULES; goes on where it was
	@scripts/env dev
	.venv/bin/python -m tests.django_suite --db $(DB) \
		$(if $(REFRESH_STOCK),--refresh-stock) $(ARGS) $(MODULES)

bench: ## Compare with stock Django and FastAPI; ARGS=--quick for a short run
	@scripts/env bench
	.venv/bin/python -m benchmarks $(ARGS)

logins: ## Log 50 users in at once and print how late the event loop wakes meanwhile
	@scripts/env bench
	.venv/bin/python -m benchmarks.logins $(ARGS)

cache-bench: ## Compare the Redis cache with Django's own on one loop; ARGS=--quick for a short run
	@scripts/env bench
	.venv/bin/python -m benchmarks.cache $(ARGS)

clean: ## Remove .venv, caches, builds and the demo's data
	rm -rf .venv .venv-lowest build dist .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f demo/*.sqlite3 demo/*.sqlite3-*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
