# Each command sets itself up: a virtual environment in .venv, the pinned dependencies, the package.
PYTHON ?= python3
BIN := .venv/bin
FAMILIES := MAR_DiSA FlowAR_DiSA xAR_DiSA Harmon_DiSA
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
# One thread per rank and per test process; more threads than cores only wait for each other.
export OMP_NUM_THREADS := 1

.PHONY: demo test test-fast test-web lint docs setup clean

# `make demo MODELS="mar_fashion xar_fashion"` shows these alone.
demo: setup
	$(BIN)/torchrun --standalone --nproc_per_node=2 -m disa demo --out out/demo $(if $(MODELS),--models $(MODELS))

test: setup
	$(PYTEST)

# What takes at most a few seconds in one process.
test-fast: setup
	$(PYTEST) -m "not slow and not distributed"

# The page of `disa web`, in a browser. Gradio wants an older Pillow: it gets an environment of its own, which sees the
# packages of the other one behind its own.
test-web: .venv-web/ready
	.venv-web/bin/python -m pytest tests/web tests/commands/test_web.py -rs

.venv-web/ready: .venv/ready constraints-web.txt
	$(BIN)/python -m venv .venv-web
	$(BIN)/python -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' \
		> "$$(.venv-web/bin/python -c 'import site; print(site.getsitepackages()[0])')/zz_behind.pth"
	.venv-web/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-web.txt \
		--editable '.[web]' selenium
	touch .venv-web/ready

# Commands of different families have the same names, which mypy would take for the same modules.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(foreach folder,$(FAMILIES),$(BIN)/mypy $(wildcard $(addprefix $(folder)/,*.py scripts/*.py util/*.py)) &&) true

# The site, in out/site. A link that leads nowhere is an error. The variable silences an advertisement.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

setup: .venv/ready

# The mark comes last, so that a broken installation is made again.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed; name it: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch .venv/ready

clean:
	rm -rf .venv .venv-web out
