# The developer's commands; CONTRIBUTING.md lists them.
PY ?= python3
ARGS ?=
BIN := .venv/bin
.PHONY: demo test check fix bench bench-gpu docs

demo: .venv/.ready  ## train a GPT-2 and fine-tune an encoder on real data
	@$(BIN)/python scripts/demo.py $(ARGS)

test: .venv/.ready  ## everything CI runs
	@$(MAKE) --no-print-directory check
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal $(ARGS)

check: .venv/.ready  ## format, lint, types, import layers
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/pyrefly check --output-format min-text
	@$(BIN)/lint-imports --no-logo

fix: .venv/.ready  ## format and mend what can be mended
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

bench: .venv/.ready  ## ours and the peers side by side, into docs/benchmarks.md
	@$(BIN)/python -m benchmarks.run $(ARGS)

bench-gpu: .venv/.ready  ## the same on one NVIDIA GPU, into docs/benchmarks-gpu.md
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

docs: .venv/.ready  ## write docs/reference.md from the code
	@$(BIN)/python scripts/reference.py && $(BIN)/python scripts/families.py

.venv/.ready: pyproject.toml constraints.txt scripts/bootstrap.py
	@$(PY) scripts/bootstrap.py
