# `make demo` and `make test` do all the set-up that they need: a virtual environment, the packages, the native library.
# Debian: apt install make g++ python3-venv. Without g++ everything works by the PyTorch references, slower.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
NATIVE := CMakeLists.txt setup.py $(shell find csrc -type f)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest

.PHONY: demo test gate native sanitize smoke lint setup clean

# One thread: on images this small a second one gains little, and waits whenever anything else runs.
demo: setup
	OMP_NUM_THREADS=1 $(BIN)/fastflow train configs/scnf-glow-digits.yaml

test: setup
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder --benchmark-disable

# Every Triton kernel compiled for sm_80 and sm_90, without a GPU: registers, stack, spills, width of accesses.
gate: setup
	$(BIN)/python -m fastflow.bench.resources

# The CUDA C++ half, which needs nvcc, and the audit of the library that it goes into.
native: setup
	CMAKE_ARGS=-DFASTFLOW_CUDA=ON $(BIN)/python setup.py -q build_ext --inplace
	FASTFLOW_REQUIRE=nvcc,triton $(PYTEST) tests/test_native_library.py

# The tests of the C++ kernels, at each instruction set, on a library with ASan and UBSan, which end the process at the
# first report. The default is the best instruction set of this CPU.
SANITIZED := LD_PRELOAD="$$(g++ -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
    PYTHONPATH=build/sanitize/lib $(PYTEST) -p no:cacheprovider -q --capture=sys
KERNEL_TESTS := $(addprefix tests/test_, $(addsuffix .py, \
    act_norm affine_coupling channel_mix dequantize_logit gaussian_class_marginal gaussian_class_scores logit \
    mlp permute residual_coupling sym_log uniform_noise))
sanitize: setup
	CMAKE_ARGS="-DFASTFLOW_SANITIZE=address,undefined -DFASTFLOW_CUDA=OFF" $(BIN)/python setup.py -q \
	    build --build-base build/sanitize --build-lib build/sanitize/lib
	$(SANITIZED) -m slow tests/test_sanitizers.py
	$(SANITIZED) tests/test_affine_coupling_cpu.py $(KERNEL_TESTS)
	FASTFLOW_CPU_ISA=avx2 $(SANITIZED) $(KERNEL_TESTS)
	FASTFLOW_CPU_ISA=baseline $(SANITIZED) $(KERNEL_TESTS)

smoke: setup
	$(PYTEST) -m smoke --timeout 1800

lint: setup
	$(BIN)/ruff check .

setup: build/native.stamp

.venv/stamp: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt 'setuptools>=77' cmake ninja torch
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[train,test]'
	touch $@

build/native.stamp: .venv/stamp $(NATIVE)
	$(BIN)/python setup.py -q build_ext --inplace
	mkdir -p build && touch $@

clean:
	rm -rf build dist fastflow.egg-info fastflow/_C.abi3.so .pytest_cache .hypothesis .ruff_cache .benchmarks
