# make demo: set up, then prune a small vision transformer on real digits and draw report.png
# make test: set up, then format, lint, types and every test; the site is one of them
# make docs: set up, then build the site into site/; any dead link is an error
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test docs lint format clean

demo: .venv/installed
	$(BIN)/platon-prune demo

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "The site is in site/: open site/index.html in a browser, or serve it with"
	@echo "    $(BIN)/python -m http.server --directory site    and open http://localhost:8000"

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Made again only when what is to be installed has changed.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "platon-prune needs Python 3.11 or newer, got $$($(PYTHON) --version): run make PYTHON=python3.11 (or newer)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@

clean:
	rm -rf .venv build site *.egg-info .mypy_cache .ruff_cache .pytest_cache
