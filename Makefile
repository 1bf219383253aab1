# Two commands for a fresh machine: `make demo` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
# Bytecode is made of what is imported, when that happens: of everything it takes as long as the rest of an installation.
INSTALL := install --quiet --disable-pip-version-check --no-compile

# An environment that sees all of .venv: only what comes on top has to be installed, and .venv stays without it.
SITE := import sysconfig; path = sysconfig.get_path("purelib");
define on_top
	@$(BIN)/python -m venv --clear --without-pip $(@D)
	@$(BIN)/python -c '$(SITE) print("import site; site.addsitedir(%r)" % path)' > "$$($(@D)/bin/python -c '$(SITE) print(path)')/base.pth"
	$(BIN)/python -m pip --python $(@D)/bin/python $(INSTALL)
endef

# Some images of containers forbid it: every command would compile the whole package anew, a second each.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install demo docs test test-long lint format test-slow test-taylor test-triton test-tensorrt test-openvino test-cpp test-ray test-web test-gpu fuzz fuzz-short clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv does not work here; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip $(INSTALL) -e '.[cpu]'
	@touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip $(INSTALL) -e '.[cpu,test]' 'pip>=22.3'
	@touch $@

# Prune the demo model, a small Vision Transformer for handwritten digits, and compare it with what it came from.
demo: install
	@mkdir -p out
	$(BIN)/corp-onnx prune models/demo_vit.onnx --calib models/calib -o out/demo_vit.pruned.onnx --force
	$(BIN)/corp-onnx evaluate models/demo_vit.onnx out/demo_vit.pruned.onnx --images models/test --reference models/demo_vit.onnx

# The pages as a site: a warning of Sphinx, a dead link among them, fails. Open out/site/index.html; it needs no server.
.venv/.installed-docs: .venv/.installed
	$(BIN)/python -m pip $(INSTALL) -e '.[cpu,docs]'
	@touch $@

docs: .venv/.installed-docs
	$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going --conf-dir docs --doctree-dir build/doctrees . out/site

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: .venv/.installed-test lint
	$(BIN)/pytest -n auto

# The rest of CI's tests: every exporter and every kind of run, where `make test` has a few of them.
test-long: .venv/.installed-test
	$(BIN)/pytest -n auto -m "long and not slow"

# Long runs; some want the real model, in ../shared or where CORP_ONNX_SHARED says.
test-slow: .venv/.installed-test
	$(BIN)/pytest -m slow

# The gradients behind --rank taylor, with PyTorch in an environment of its own: everything else is tested without it.
TORCH ?= torch==2.13.0

.venv-torch/.installed: .venv/.installed-test
	$(on_top) '$(TORCH)'
	@touch $@

test-taylor: .venv-torch/.installed
	.venv-torch/bin/python -m pytest tests/gradients tests/search/test_amp.py

# A real Triton Inference Server: the binaries of nvidia-pytriton (55 MB) in an environment of their own, with NumPy 1,
# because with NumPy 2 this build serves wrong values; there is no NumPy 1 for Python 3.13.
TRITON_PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.10,$(shell python$(v) -c 'import sys; print(sys.executable)' 2>/dev/null)) $(PYTHON))

.venv-triton/.installed: Makefile
	@$(TRITON_PYTHON) -m venv .venv-triton || { echo "$(TRITON_PYTHON) -m venv does not work here; give make test-triton TRITON_PYTHON=, a Python 3.10 to 3.12" >&2; exit 2; }
	.venv-triton/bin/python -m pip $(INSTALL) 'numpy<2' onnxruntime
	.venv-triton/bin/python -m pip $(INSTALL) --no-deps nvidia-pytriton==0.7.0
	@touch $@

test-triton: .venv/.installed-test .venv-triton/.installed
	CORP_ONNX_TRITON=.venv-triton $(BIN)/pytest -m triton tests/triton

# A real TensorRT, the RTX edition, which builds engines without a GPU (90 MB), in an environment of its own.
TENSORRT_RTX ?= 1.7.1.116

.venv-tensorrt/.installed: .venv/.installed-test Makefile
	$(on_top) --no-deps tensorrt_rtx_cu12_bindings==$(TENSORRT_RTX) tensorrt_rtx_cu12_libs==$(TENSORRT_RTX)
	@touch $@

test-tensorrt: .venv-tensorrt/.installed
	.venv-tensorrt/bin/python -m pytest -m tensorrt tests/tensorrt

# OpenVINO's own API (59 MB, 180 MB installed), in an environment of its own: what is found is measured by default.
OPENVINO ?= openvino==2026.4.1

.venv-openvino/.installed: .venv/.installed-test Makefile
	$(on_top) '$(OPENVINO)'
	@touch $@

test-openvino: .venv-openvino/.installed
	.venv-openvino/bin/python -m pytest -m openvino tests/run tests/test_examples.py

# The program of examples/cpp, against the headers and libraries of OpenVINO's package (Debian: apt-get install g++).
test-cpp: .venv/.installed-test .venv-openvino/.installed
	CORP_ONNX_OPENVINO=.venv-openvino $(BIN)/pytest tests/test_examples.py -k cpp

# A local Ray cluster of two workers, one of them killed (75 MB), in an environment of its own.
RAY ?= ray==2.60.0

.venv-ray/.installed: .venv/.installed-test Makefile
	$(on_top) '$(RAY)'
	@touch $@

test-ray: .venv-ray/.installed
	.venv-ray/bin/python -m pytest -m ray tests/calibrate tests/test_calibration.py

# The page of examples/web in a headless Chromium (Debian: apt-get install chromium npm).
test-web: .venv/.installed-test
	$(BIN)/python -m pip $(INSTALL) playwright
	cd examples/web && npm install --no-audit --no-fund --silent
	CORP_ONNX_BROWSER=1 $(BIN)/pytest -m browser tests/report tests/test_site.py tests/test_web_example.py

test-gpu: .venv/.installed-test
	$(BIN)/pytest -m gpu

# An attack with spoilt models, odd inputs, bad places and kills (docs/reliability.md): `make fuzz MINUTES=60 SEED=3`.
MINUTES ?= 5
SEED ?= 0
JOBS ?= 1

fuzz: .venv/.installed-test
	$(BIN)/python tools/run_fuzz.py --minutes $(MINUTES) --seed $(SEED) --jobs $(JOBS)

# A fixed list of it, a minute or two; CI runs it.
fuzz-short: .venv/.installed-test
	$(BIN)/python tools/run_fuzz.py --short

clean:
	rm -rf .venv .venv-torch .venv-triton .venv-tensorrt .venv-openvino .venv-ray build dist *.egg-info
