# make lab: learn.   make test: check everything.   make build: write the notebooks from the lessons.
PYTHON ?= python3
JOBS ?= 2
NOTEBOOKS := notebooks solutions
BIN := .venv/bin
export OMP_NUM_THREADS := 1
export COURSE_SEED ?= 0
# Empty, that is off: a hundred processes would each compile the course anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: lab test test-code test-notebooks test-browser test-cuda build site clean

lab: .venv/installed
	$(BIN)/course start
	$(BIN)/jupyter lab --notebook-dir=work

# The students' notebooks run from top to bottom in the browser. Where its tests are skipped, nbval runs them too.
test: NOTEBOOKS = $(if $(filter ready,$(shell cd tests/browser && ../../$(BIN)/python -c \
	"import conftest; print(conftest.missing() or 'ready')")),,notebooks) solutions
test: test-code test-notebooks test-browser

# No test reads log records, and to catch them costs each test a millisecond.
test-code: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q -p no:logging -n $(JOBS) --dist worksteal --ignore=tests/browser tests

# The students' notebooks run untouched from top to bottom. The solutions are compared with their stored outputs,
# which come from a CPU: on CUDA they only have to run. Only the tests of the code use hypothesis, which takes a second to load.
test-notebooks: .venv/installed
	$(BIN)/python -m pytest -q -p no:cacheprovider -p no:hypothesispytest --override-ini=filterwarnings=default \
		$(if $(filter cuda,$(COURSE_DEVICE)),--nbval-lax,--nbval --nbval-sanitize-with tests/nbval_sanitize.cfg) \
		--nbval-current-env --nbval-cell-timeout=120 -n $(JOBS) --dist loadfile $(NOTEBOOKS)

# Every week in JupyterLab and Chromium, as a student uses it. Skipped where there is no Chromium, unless
# COURSE_REQUIRE_BROWSER=1; COURSE_SCREENSHOTS=FOLDER keeps pictures.
test-browser: .venv/installed
	$(BIN)/python -m pytest -q -p no:hypothesispytest -n $(JOBS) tests/browser

# The grader tests and all notebooks on a GPU.
test-cuda: .venv/installed
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit( \
		'make test-cuda: torch ' + torch.__version__ + ' sees no CUDA device here. Run it on a machine with an NVIDIA GPU.')"
	COURSE_DEVICE=cuda $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal tests/test_graders.py
	COURSE_DEVICE=cuda $(MAKE) test-notebooks

build: .venv/installed
	$(BIN)/course build

# A website of the course in build/site, to be read from the disk or put on any web server.
site: .venv/installed
	rm -rf build/site
	$(BIN)/python docs/site/build.py build/site
	@echo "Open build/site/index.html"

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './work/*' -prune -exec rm -rf {} +

# Python compiles what is used when it is first imported; to compile all that is installed takes half a minute.
.venv/installed: pyproject.toml constraints.txt
	@echo "Installing about 1.5 GB into .venv; this takes some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile -e ".[dev]" -c constraints.txt
	touch $@
