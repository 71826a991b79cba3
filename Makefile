# Each of `make demo` and `make test` works as the only command on a fresh clone: it makes a virtual
# environment in .venv, installs torch there and builds fastcomm against it. Python sources are used
# in place; native ones are rebuilt when they have changed.

PYTHON ?= python3
# A pinned version: pip takes a CPU wheel where it is set up to find one, else PyPI's, which brings
# gigabytes of CUDA. To choose, after `make clean`:
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0

# Of `make demo`: EPOCHS=4 is the full run of MNIST. Where MNIST cannot be downloaded, scikit-learn's
# digits are trained, by a schedule of their own, as with DATA=digits, which asks no mirror. MNIST is
# the folder of MNIST's files, if they are there already.
WORLD ?= 2
RATE ?= 100mbit
DATA ?= auto
MNIST ?=
EPOCHS ?=

# Of `make fuzz`: a clang with libFuzzer, on Debian of the packages clang and libclang-rt-dev.
FUZZ_CXX ?= clang++
FUZZ_SECONDS ?= 300

VENV := .venv
BIN := $(VENV)/bin
NATIVE_SOURCES := pyproject.toml CMakeLists.txt $(shell find cmake csrc -type f)
CPP_FILES = $(shell find csrc tests/cpp tests/cuda_emulation tests/fuzz -name '*.h' -o -name '*.cpp' \
  -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-cpp test-python cuda-check sanitize sanitize-memory sanitize-threads \
  stress fuzz bench lint format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.with-demo  ## train with and without compression, write demo.png; EPOCHS= WORLD= RATE= DATA=digits MNIST=
	$(BIN)/python examples/mnist_ddp.py --compare --json demo.json --world $(WORLD) --rate $(RATE) --data $(DATA) \
	  $(if $(MNIST),--data-root $(MNIST)) $(if $(EPOCHS),--epochs $(EPOCHS))

test: test-cpp test-python  ## build if needed, run the C++ and then the Python tests

test-cpp: $(VENV)/.with-test  ## the C++ tests (built without torch)
	$(BIN)/cmake -S . -B build/cpp -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -DFASTCOMM_PYTHON=OFF -DFASTCOMM_TESTS=ON
	$(BIN)/cmake --build build/cpp
	$(BIN)/ctest --test-dir build/cpp --output-on-failure --parallel 2

test-python: $(VENV)/.with-test  ## the Python tests
	$(BIN)/python -m pytest

# Where nvcc is: on the PATH, or where its installer puts it.
NVCC := $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)

stress: $(VENV)/.with-demo,test sanitize  ## a hundred kills, long runs, PyTorch's own tests of DDP, sanitizers: 15 minutes on 2 cores
	$(BIN)/python -m pytest -m stress -s
	$(BIN)/python tests/torch_suite.py

cuda-check: $(VENV)/.with-test  ## compile and link the CUDA kernels, without a GPU or torch; spilled registers are errors
ifeq ($(NVCC),)
	@echo "there is no nvcc: the CUDA kernels were not compiled (make test runs them in an emulation)"
else
	$(BIN)/cmake -S . -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -DFASTCOMM_PYTHON=OFF -DFASTCOMM_TESTS=ON -DFASTCOMM_CUDA=ON -DCMAKE_CUDA_COMPILER=$(NVCC) \
	  "-DCMAKE_CUDA_FLAGS=-Xptxas=-v -Werror=all-warnings"
	$(BIN)/cmake --build build/cuda --target clean
	$(BIN)/cmake --build build/cuda --target fastcomm_cuda_tests > build/cuda/kernels.log || (cat build/cuda/kernels.log; exit 1)
	$(BIN)/python cmake/kernel_report.py build/cuda/kernels.log
endif

sanitize: sanitize-memory sanitize-threads  ## the C++ tests under AddressSanitizer and UBSan; those of threads under ThreadSanitizer

sanitize-memory: SANITIZERS := address,undefined
sanitize-memory: TESTS := native
# The leak check needs ptrace, which containers may forbid.
sanitize-memory: export ASAN_OPTIONS := detect_leaks=0
sanitize-threads: SANITIZERS := thread
sanitize-threads: TESTS := threads
sanitize-memory sanitize-threads: $(VENV)/.with-test
	$(BIN)/cmake -S . -B build/$@ -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -DFASTCOMM_PYTHON=OFF -DFASTCOMM_TESTS=ON -DFASTCOMM_SANITIZE=$(SANITIZERS)
	$(BIN)/cmake --build build/$@ --target fastcomm_tests
	$(BIN)/ctest --test-dir build/$@ --label-regex $(TESTS) --output-on-failure --parallel 2

fuzz: $(VENV)/.with-test  ## damaged payloads against the decoders, with clang; FUZZ_SECONDS= FUZZ_CXX=
	$(BIN)/cmake -S . -B build/fuzz -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -DCMAKE_CXX_COMPILER=$(FUZZ_CXX) -DFASTCOMM_PYTHON=OFF -DFASTCOMM_FUZZ=ON
	$(BIN)/cmake --build build/fuzz --target payload_fuzz
	mkdir -p build/fuzz/found
	build/fuzz/tests/fuzz/payload_fuzz -max_total_time=$(FUZZ_SECONDS) -timeout=10 \
	  -artifact_prefix=build/fuzz/ build/fuzz/found tests/fuzz/corpus

bench: $(VENV)/.with-demo  ## codecs against the speed of memory, all-reduces and DDP steps against PyTorch's, accuracy; RATE=
	$(BIN)/python bench/codecs.py --quick
	$(BIN)/python bench/allreduce.py --quick $(if $(filter 0,$(shell id -u)),--rate $(RATE))
	$(BIN)/python bench/ddp.py --quick
	$(BIN)/python bench/accuracy.py --quick

lint: $(VENV)/.with-demo,lint,test  ## check style and types of Python and C++
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@echo clang-format --dry-run -Werror csrc tests
	@$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

format: $(VENV)/.with-demo,lint,test  ## format Python and C++, fix what can be fixed
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	@echo clang-format -i csrc tests
	@$(BIN)/clang-format -i $(CPP_FILES)

clean:  ## remove .venv and everything that was built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# torch before all else: fastcomm's build asks the installed one how it was built.
$(VENV)/.with-torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet "scikit-build-core>=0.11" "cmake>=3.22" ninja numpy
	@touch $@

# fastcomm with the extras that a target needs. The build folder is kept, so that a second set of
# extras compiles nothing again.
$(VENV)/.with-%: $(NATIVE_SOURCES) | $(VENV)/.with-torch
	@echo "building fastcomm, which takes a minute or two the first time"
	$(BIN)/python cmake/show_progress.py install --no-build-isolation --editable ".[$*]"
	@touch $@
