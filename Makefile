# Every target depends on `setup`, which runs once. `make` alone lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
# uv installs in half a minute what takes pip several. It does not read pip's configuration, so pip
# is the fallback on machines whose package index is configured there.
INSTALL := --constraint constraints.txt --editable ".[dev]"
# Samples are compared with their prompts on the synthetic corpus only; other videos need another gate
# and an evaluation set of their own, named by a checksum of the folder's name.
# Verbatim: `value` prevents expansion of `$` by make, the single quotes any expansion by the shell.
QUOTED := '$(subst ','\'',$(value INPUT))'
ifdef INPUT
OWN_VIDEOS := --set inputs.videos=$(QUOTED) --set stages.tokens.min_psnr_db=15 \
  --set "inputs.frozen=ref://videos-$$set?optional=true" --set "stages.evalset.pin=videos-$$set" \
  --set "stages.release.rules=[{metric: frechet_lite0_change, max_over_floor: 1.3}, \
    {metric: frechet_lite0_change, noninferior: 10}, {metric: recon/psnr, min: 15}]"
endif
FAST := not (ray or browser or s3 or slow or gpu or shared or soak)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Containers often set this: every start of Python would then compile torch and the rest again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-fast check fmt bench soak clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile

setup: $(STAMP)  ## create .venv and install, once
	@command -v ffmpeg >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	      apt-get install -y -qq --no-install-recommends ffmpeg >/dev/null; \
	  else echo "error: ffmpeg: not installed (sudo apt install ffmpeg, then run make again)" >&2; \
	    exit 2; fi; }

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || { \
	  echo "error: python: 3.11 or 3.12 is needed (make PYTHON=/path/to/python3.11)" >&2; exit 2; }
	@echo "setting up .venv (once, a minute or two)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet uv
	@UV_FIND_LINKS="$${PIP_FIND_LINKS:-$$($(BIN)/pip config get global.find-links 2>/dev/null)}" \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python $(INSTALL) \
	  || $(BIN)/pip install --quiet $(INSTALL)
	@touch $(STAMP)

demo: setup  ## raw video to promoted model on this machine; INPUT=FOLDER takes your own videos
	@set=$$(printf %s $(QUOTED) | cksum | cut -d ' ' -f 1); \
	$(BIN)/videoar run pipelines/quickstart.yaml $(OWN_VIDEOS); \
	  code=$$?; \
	  echo "report page:"; $(BIN)/videoar report; \
	  exit $$code

# Files in the order of their names: the end-to-end files are few and long, so they start first.
test: setup  ## the default test suite
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not gpu and not shared and not soak"

# glibc keeps the memory of freed frames and tensors, instead of having each page cleared again.
test-fast: setup  ## without Ray, browser, S3 and slow tests: under 90 s on two cores
	@MALLOC_TRIM_THRESHOLD_=536870912 MALLOC_MMAP_THRESHOLD_=536870912 $(BIN)/python -m pytest -n 2 --dist worksteal -m "$(FAST)" tests/unit tests/test_repo_shape.py

check: setup  ## format, lint, types, layers, generated files, names, dependencies
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m videoar.contracts.codegen --check
	@$(BIN)/python -m videoar.pipeline.codegen --check
	@$(BIN)/python -m tests.checks.literals
	@$(BIN)/python -m tests.checks.names
	@$(BIN)/deptry .

fmt: setup  ## format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup  ## measure beside peers and physical limits, on this machine
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	@$(BIN)/videoar bench ingest
	@$(BIN)/videoar bench cuts --rounds 10
	@$(BIN)/videoar bench runner
	@$(BIN)/videoar bench tokenize
	@$(BIN)/videoar bench fvd

soak: setup  ## bounded random fault schedules
	@$(BIN)/python -m tests.checks.soak
	@$(BIN)/python -m pytest -m soak

clean:  ## remove .venv and caches, never the store
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
