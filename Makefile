# make demo    everything from nothing: environment, models, a small library, questions
# make test    the whole test suite, with linters and types
# make fuzz    a minute of damaged index files against the native library; needs clang
# make clean   remove what they made
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# An idle core waits in libgomp's spin loop and takes time from the others: 50 times slower on a busy machine.
export GOMP_SPINCOUNT ?= 0

.PHONY: demo test lint fuzz install install-dev clean
.DEFAULT_GOAL := demo

demo: install
	@EDGE_RAG_HOME="$(CURDIR)/.demo" PATH="$(CURDIR)/$(BIN):$$PATH" sh tests/samples/demo.sh

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

FUZZ_SECONDS ?= 60
fuzz: install-dev
	$(BIN)/cmake -S native -B build/fuzz -DEDGE_INDEX_TESTS=ON -DEDGE_INDEX_SANITIZE=fuzzer \
	    -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ >/dev/null
	$(BIN)/cmake --build build/fuzz --target fuzz_open
	@mkdir -p build/fuzz/found
	cd build/fuzz && ./fuzz_open found ../../native/tests/corpus -max_total_time=$(FUZZ_SECONDS) -max_len=20000 \
	    -timeout=20 -rss_limit_mb=2048

install: $(BIN)/pip
	@echo "installing edge-rag with a language model; llama.cpp compiles for 2 to 5 minutes the first time" >&2
	$(BIN)/pip install --quiet '.[llm]'

install-dev: $(BIN)/pip
	$(BIN)/pip install --quiet --group dev
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[llm]'

$(BIN)/pip:
	@sh tests/preflight.sh "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

clean:
	rm -rf $(VENV) .demo build dist
