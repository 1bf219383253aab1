# Two commands for a fresh machine: `make demo` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint format test-slow clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv does not work here; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu]'
	@touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,test]'
	@touch $@

# Prune the demo model, a small Vision Transformer for handwritten digits, and compare it with what it came from.
demo: install
	@mkdir -p out
	$(BIN)/corp-onnx prune models/demo_vit.onnx --calib models/calib -o out/demo_vit.pruned.onnx --force
	$(BIN)/corp-onnx evaluate models/demo_vit.onnx out/demo_vit.pruned.onnx --images models/test --reference models/demo_vit.onnx

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: .venv/.installed-test lint
	$(BIN)/pytest -n auto

test-slow: .venv/.installed-test
	$(BIN)/pytest -m slow

clean:
	rm -rf .venv build dist *.egg-info
