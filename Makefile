DEMO_WORKDIR ?= runs/demo
PYTHON := .venv/bin/python
STAMP := .venv/.installed

# The stamp contains the folder that .venv was built in. .venv is rebuilt if the clone was moved, if the installation
# was interrupted (no stamp), or if its Python is missing or was replaced by another version (pip cannot be imported).
HEALTHY := $(shell [ "$$(cat $(STAMP) 2>/dev/null)" = "$$(pwd -P)" ] && $(PYTHON) -c 'import pip' 2>/dev/null && echo yes)

# Sets the shell variable python to VENV_PYTHON if given, else to the newest Python on PATH that runs and can create a
# virtual environment, or to "".
VENV_PYTHON ?=
define FIND_PYTHON
python=; \
for name in $(or $(VENV_PYTHON),python3.13 python3.12 python3.11 python3); do \
	IFS=:; \
	for dir in $$PATH; do \
		[ -z "$$python" ] && [ -x "$$dir/$$name" ] || continue; \
		"$$dir/$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
			&& python=$$dir/$$name; \
	done; \
	unset IFS; \
done
endef

.PHONY: help install demo test test-all kernels-check stale
.DEFAULT_GOAL := help

help:
	@echo 'make install  create .venv with the dependencies of the demo and the tests (needs Python 3.11 to 3.13)'
	@echo 'make demo     install, then train the demo in $(DEMO_WORKDIR) (make demo DEMO_WORKDIR=... to change it)'
	@echo 'make test     install, then check style, format and types, and run the tests (under five minutes)'
	@echo 'make test-all make test, then the slow tests: every documented command, short training runs (25 minutes)'
	@echo 'make kernels-check install, then check the C kernels with sanitizers (needs gcc; 2 minutes on two cores)'

install: $(STAMP)

ifneq ($(HEALTHY),yes)
$(STAMP): stale
endif

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@set -e; \
	if [ "$(HEALTHY)" != yes ]; then \
		$(FIND_PYTHON); \
		if [ -z "$$python" ]; then \
			echo 'error: no Python 3.11 or newer with the modules venv and ensurepip on PATH (Debian, Ubuntu: install python3-venv)' >&2; \
			exit 1; \
		fi; \
		"$$python" -c 'import sys; v = sys.version_info[:2]; v <= (3, 13) or print("note: Python %d.%d is untested" % v)'; \
		echo "Creating .venv with $$python"; \
		rm -rf .venv; \
		"$$python" -m venv .venv; \
	fi; \
	rm -f $(STAMP); \
	echo 'Installing the packages into .venv (a few minutes the first time)'; \
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'; \
	pwd -P > $(STAMP)

demo: install
	$(PYTHON) -m experiments.classify --flagfile=experiments/recipes/demo.flags --workdir="$(DEMO_WORKDIR)"

test: install
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest --numprocesses=auto --dist=worksteal --durations=10 -m 'not slow'

test-all: test
	$(PYTHON) -m pytest --numprocesses=auto --dist=worksteal --durations=10 -m slow

kernels-check: install
	$(PYTHON) -P tests/kernels/check.py
