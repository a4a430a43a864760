# The newcomer's commands: `make demo` and `make test`. Everything is installed into $(VENV).
#
#   PYTHON=python3.12   the interpreter to make the environment from (3.10 or newer)
#   TORCH=torch==2.13.0 the PyTorch to install (2.10 or newer; default: the newest)
#   D2PROJ_CUDA=0|1     leave the CUDA kernels out | insist on them (default: built if nvcc is found)

PYTHON ?= python3
TORCH ?= torch
VENV ?= .venv
FUZZ_MINUTES ?= 10
DEMO_CONFIG := configs/retinanet/retinanet_tiny_digits.py
DEMO_OUTPUT := output/demo

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet
BUILD_INPUTS := setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: demo test lint format build bench sanitize fuzz clean help

help:
	@echo "make demo    install, generate the digits data, train a tiny detector, evaluate it"
	@echo "make test    install with the test extra, run the test suite"
	@echo "make lint    ruff, clang-format, mypy"
	@echo "make build   only install (into $(VENV))"
	@echo "make bench   measure the ops and the models on this machine (benchmarks/results/)"
	@echo "make sanitize the ops' tests and FUZZ_MINUTES of fuzzing under the address and undefined-behaviour sanitizers"
	@echo "make fuzz    the fuzzing alone"
	@echo "make clean   remove the environment, the build and the outputs"

demo: $(VENV)/.installed
	$(PY) train_net.py --config-file $(DEMO_CONFIG) --overwrite train.output_dir=$(DEMO_OUTPUT) \
	    eval.visualize=8

test: $(VENV)/.installed-test
	D2PROJ_REQUIRE_EXT=1 $(PY) -m pytest tests

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' | xargs $(VENV)/bin/clang-format --dry-run -Werror
	$(VENV)/bin/mypy

format: $(VENV)/.installed-test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' | xargs $(VENV)/bin/clang-format -i

bench: $(VENV)/.installed-test
	$(PY) -m benchmarks.ops
	$(PY) -m benchmarks.models

build: $(VENV)/.installed

# torch comes first and the project is built without isolation, so that torch is downloaded once.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else \
	    f"d2proj needs Python 3.10 or newer; {sys.executable} is {v[0]}.{v[1]} (use make PYTHON=...)")'
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || \
	    { echo "d2proj needs a C++ compiler; none was found (install g++ or set CXX)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) "setuptools>=77" wheel ninja "$(TORCH)"
	$(PY) -m pip freeze | grep '^torch==' > $(VENV)/constraints.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(BUILD_INPUTS)
	$(PIP) --no-build-isolation --constraint $(VENV)/constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --no-build-isolation --constraint $(VENV)/constraints.txt --editable '.[test]'
	@touch $@

# The ops' tests and some minutes of fuzzing on a library with AddressSanitizer and UndefinedBehaviorSanitizer.
# Leaks are not looked for: Python has many. Tests in fresh interpreters inherit the preloaded runtimes.
SANITIZE_ENV = D2PROJ_LIBRARY=$(CURDIR)/build/sanitize/lib/d2proj/libd2proj.so D2PROJ_REQUIRE_EXT=1 \
    LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1

build/sanitize/lib/d2proj/libd2proj.so: $(VENV)/.installed-test $(BUILD_INPUTS)
	D2PROJ_CUDA=0 D2PROJ_BUILD_DIR=build/sanitize/ops \
	    CXXFLAGS="-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=vptr \
	    -fno-sanitize-recover=all" \
	    $(PY) setup.py -q build_ext --build-lib build/sanitize/lib

sanitize: build/sanitize/lib/d2proj/libd2proj.so
	$(SANITIZE_ENV) $(PY) -m pytest -q tests/ops --ignore tests/ops/test_ext.py
	$(SANITIZE_ENV) $(PY) -m tests.ops.fuzz --minutes $(FUZZ_MINUTES)

fuzz: build/sanitize/lib/d2proj/libd2proj.so
	$(SANITIZE_ENV) $(PY) -m tests.ops.fuzz --minutes $(FUZZ_MINUTES)

clean:
	rm -rf $(VENV) build dist output *.egg-info d2proj/*.so
