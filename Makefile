# make demo   the main job on synthetic images: a few minutes, no download of data; the report is runs/demo/report.html
# make test   the fast tests
#
# Both make .venv first, if it is not there, from $(PYTHON) >= 3.10, a C++ compiler and pip; nothing is installed
# elsewhere. A second call starts at once. Python sources are used where they lie (an editable install), and a change
# in csrc/ or CMakeLists.txt compiles the kernels again, so what runs is always what stands here.
#
# Variables: PYTHON=python3.12   VENV=.venv-312   PYTEST_ARGS='-k keys'   DEMO_ARGS='--modality ultrasound'
#            PIP_ARGS=...  for pip, such as another index of CPU-only torch builds

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet $(PIP_ARGS) --constraint constraints.txt
PY_DIRS := ppcmi_fast tests docs .ci $(wildcard benchmarks examples experiments)
CXX_FILES := $(shell find csrc tests benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CORE_FILES := CMakeLists.txt $(filter csrc/%,$(CXX_FILES))

# A machine's torch may bring more OpenMP threads than cores; the tests are small and want one each.
TEST_ENV := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup fmt lint test experiments-smoke bench bench-cpu gpu-check gpu-experiments docs demo smoke wheel clean

help:
	@echo "make demo | test | setup | lint | fmt | bench | bench-cpu | gpu-check | gpu-experiments | docs | smoke | wheel | clean   (see the top of the Makefile)"

setup: $(VENV)/.installed

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "PYTHON=$(PYTHON): expected Python 3.10 or newer; name one, as in: make PYTHON=python3.12"; exit 1; }
	@echo "making $(VENV): downloads torch and the tools once, a minute or more"
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The build tools first: the package is then built against them, without a build environment of its own. setuptools for
# what is published as source alone (medpy): the one that a virtual environment starts with may be too old.
$(VENV)/.build-tools: $(VENV)/.created constraints.txt
	$(INSTALL) scikit-build-core pybind11 cmake ninja setuptools
	@touch $@

$(VENV)/.installed: $(VENV)/.build-tools pyproject.toml $(CORE_FILES)
	PATH="$(abspath $(BIN)):$$PATH" SKBUILD_BUILD_DIR="$(abspath $(VENV))/build" SKBUILD_CMAKE_DEFINE="PPCMI_WERROR=$(if $(CI),ON,OFF)" \
	  $(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

fmt: setup
	$(BIN)/ruff check --fix --quiet $(PY_DIRS) || true
	$(BIN)/ruff format $(PY_DIRS)
	$(BIN)/clang-format -i $(CXX_FILES)

lint: setup
	$(BIN)/ruff check $(PY_DIRS)
	$(BIN)/ruff format --check $(PY_DIRS)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

test: setup
	$(TEST_ENV) $(BIN)/python -m pytest $(PYTEST_ARGS)

demo: setup
	$(BIN)/ppcmi demo --out runs/demo --overwrite $(DEMO_ARGS)

# The demo with next to no training: that the main job runs, not what it is worth.
smoke: setup
	rm -rf build/smoke && mkdir -p build/smoke
	$(BIN)/ppcmi demo --out build/smoke/run --threads 2 --set codec.rounds=1 --set codec.local_steps=2 \
	  --set mapper.steps=4 --set mapper.views=1 --set baselines.images=64
	test -s build/smoke/run/metrics.json && test -s build/smoke/run/report.html

# Every experiment end to end on phantoms, with next to no training, a few in a process and two processes at a time. What
# passes leaves nothing: together they fill many gigabytes.
experiments-smoke: setup
	rm -rf build/experiments && mkdir -p build/experiments
	ls experiments/*.toml | $(TEST_ENV) xargs -P 2 -n 4 \
	  sh -c 'out=$$(mktemp -d build/experiments/XXXXXX) && \
	    $(BIN)/ppcmi experiment run "$$@" --smoke --out $$out && rm -r $$out' experiments-smoke

bench: setup
	$(BIN)/ppcmi bench klt $(BENCH_ARGS)

# All figures of docs/performance.md that a CPU can show: half an hour on a machine with nothing else to do.
bench-cpu: setup
	$(INSTALL) fht-cpu
	$(TEST_ENV) $(BIN)/ppcmi bench klt --suite cpu --compiled --threads 2 --json benchmarks/results/cpu.json
	$(TEST_ENV) $(BIN)/ppcmi bench klt --suite roof --json benchmarks/results/roof.json

# Build, GPU tests, compute-sanitizer, kernel lab and benchmark in under 8 minutes, with $(PYTHON) as it is: torch for
# CUDA, scikit-build-core, pybind11 and pytest have to be there. Writes benchmarks/results/gpu.json.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

# The comparison at the published size, a piece of some minutes a call, until it says that all is done. PPCMI_DATA names
# the folder of sunnybrook; $(PYTHON) has this package and torch for CUDA.
MINUTES ?= 7
gpu-experiments:
	$(PYTHON) -m ppcmi_fast.cli experiment run gpu_full_size --max-minutes $(MINUTES)

# The pages made from figures: docs/results.md and docs/lab.md from docs/results/, docs/performance.md and
# docs/reading.md from benchmarks/results/.
docs: setup
	$(BIN)/python docs/make_results.py
	$(BIN)/python docs/make_performance.py
	$(BIN)/python docs/make_reading.py
	$(BIN)/python docs/make_lab.py

# What a user's `pip install .` does, for one kind of GPU where nvcc is there (`setup` compiles for all): an isolated build (no torch in it), then the installed package outside this tree.
# The libraries come from $(VENV) by a .pth file; its editable install does not, as .pth files in there are not read.
wheel: setup
	rm -rf build/wheel && mkdir -p build/wheel
	$(PYTHON) -m venv build/wheel/venv
	cd build/wheel && SKBUILD_CMAKE_DEFINE="CMAKE_CUDA_ARCHITECTURES=80" PIP_CONSTRAINT="$(abspath constraints.txt)" \
	  venv/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) --no-deps "$(CURDIR)"
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$(build/wheel/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_libraries.pth"
	cd build/wheel && venv/bin/python -W error::ImportWarning "$(CURDIR)/.ci/check_installed.py"

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache $(VENV)
