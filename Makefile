# make demo       a sound from the bundled model, and its spectrogram: out/demo.wav, out/demo.png
# make test       lint, format, types, and the tests of the core: networks to sounds, with parity
# make test-rest  commands, batches, devices, training, the page and the server, robustness, scripts
# make test-all   both
#
# Each creates .venv on its first run. PYTHON names the interpreter to make it from.

PYTHON ?= python3
PROMPT ?= a rising chirp
BIN := .venv/bin
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
CORE := $(addprefix tests/,attention audio checkpoints codec diffusion models ops parity reuse) \
	$(wildcard tests/test_*.py)

.PHONY: demo test test-rest test-all
.DELETE_ON_ERROR:

demo: .venv/installed-plot
	mkdir -p out
	$(BIN)/audiolitefocus generate "$(PROMPT)" -o out/demo.wav --model demo \
		--duration 5.12 --sampler dpm++ --steps 25 --guidance-scale 7 --seed 1 --force
	$(BIN)/python -m scripts.plots.spectrogram out/demo.wav out/demo.png

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) $(CORE)

test-rest: .venv/installed-dev
	$(PYTEST) tests $(addprefix --ignore=,$(CORE))

test-all: test test-rest

# PyTorch comes first and pinned, so that no other package's wishes choose its build.
.venv/installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@
