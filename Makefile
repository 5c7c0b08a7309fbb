# A fresh clone needs `make table2` or `make test` and nothing else: each sets .venv up first.

# Options, as in `make table2 PANELS=ae TRIALS=3 DEVICE=cpu SEED=20 JOBS=2 DATA_DIR=path FRESH=1`
PANELS   ?= default
TRIALS   ?= 50
DEVICE   ?= auto
SEED     ?=
JOBS     ?=
DATA_DIR ?=
SCHEDULER ?=
FRESH    ?=

# The first Python that can be used; tried, since a pyenv shim may exist and yet not run.
PYTHONS = python3.12 python3.11 python3.10 python3.9 python3
USABLE  = import sys, venv, ensurepip; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))
PYTHON  ?= $(shell for python in $(PYTHONS); do \
             if $$python -c '$(USABLE)' 2>/dev/null; then echo $$python; break; fi; done)

# MXNet has one build for the CPU and one for CUDA, which does not load without NVIDIA's driver.
EXTRA ?= $(shell PATH=$$PATH:/sbin:/usr/sbin; \
           if nvidia-smi >/dev/null 2>&1 || ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1'; \
           then echo cuda; else echo cpu; fi)
FOUND = $(if $(filter filecpu,$(origin EXTRA)$(EXTRA)), since no NVIDIA driver was found)

# Written last: without it, .venv is what an interrupted set-up left and is made anew.
READY = .venv/ready
RUN   = .venv/bin/python -m fltrust_repro

WHICH = --trials '$(TRIALS)' $(if $(SEED),--seed '$(SEED)')
HOW   = $(if $(JOBS),--jobs '$(JOBS)') $(if $(DATA_DIR),--data-dir '$(DATA_DIR)') \
  $(if $(filter-out 0,$(FRESH)),--fresh)

# The experiments that a CPU can do in hours, the quickest first.
PAPER = table2a table4 table7b table8 figure4c figure5a figure5b figure5c figure4b figure4a \
  table6 figure2 figure3 table5 section44 table2e

.PHONY: help setup table2 paper test test-slow test-kernels smoke clean

help:
	@echo "make table2   Table 2 next to the paper's values; options with their defaults:"
	@echo "              PANELS=abcde (on a CPU: ae) TRIALS=50 DEVICE=auto|cpu|gpu SEED=10"
	@echo "              JOBS=one per core, DATA_DIR=where data sets lie, FRESH=1 computes"
	@echo "              what experiments/results/ has, too; results are written to results/"
	@echo "make paper    all tables and figures that a CPU can do, then the fidelity report; options"
	@echo "              as above but PANELS, and SCHEDULER=tcp://host:8786"
	@echo "make test     style, and the tests that end within minutes; ALL=1 for all"
	@echo "make test-slow      tests of seconds each: commands and trials as a user starts them"
	@echo "make test-kernels   tests of the arithmetic under each of OpenBLAS's kernels"
	@echo "make smoke    Table 2 in small on the CPU, in about a minute"
	@echo "make setup    only the set-up; PYTHON=python3.11 and EXTRA=cpu|cuda choose"
	@echo "make clean    remove .venv and caches, neither data nor results"

setup: $(READY)

$(READY): setup.py
	@test -n "$(PYTHON)" || { echo "Error: no Python 3.9 to 3.12 that can make a venv was found" \
	  "(tried $(PYTHONS)); install one, with its venv package on Debian," \
	  "or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c '$(USABLE)' 2>/dev/null || { echo "Error: PYTHON=$(PYTHON) does not run, is not" \
	  "Python 3.9 to 3.12, or cannot make a venv; name another one." >&2; exit 1; }
	@echo "Setting up .venv with $(PYTHON) and MXNet for $(EXTRA)$(FOUND); this takes minutes, once."
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --disable-pip-version-check -e '.[$(EXTRA),dev]'
	@touch $@

# Refused before a set-up of minutes; TRIALS, SEED, JOBS and DATA_DIR are the program's to check.
ifneq ($(filter table2,$(MAKECMDGOALS)),)
  ifneq ($(PANELS),default)
    letters := $(strip $(foreach l,a b c d e,$(findstring $(l),$(PANELS))))
    strange := $(subst a,,$(subst b,,$(subst c,,$(subst d,,$(subst e,,$(PANELS))))))
    ifneq ($(if $(letters),$(strange),none),)
      $(error PANELS is '$(PANELS)'; give letters from a to e without spaces, as PANELS=ae)
    endif
  endif
  ifeq ($(filter auto cpu gpu,$(DEVICE)),)
    $(error DEVICE is '$(DEVICE)'; choose cpu, gpu or auto)
  endif
endif

# One call for all panels, so that one without its data does not stop the others.
table2: $(READY)
	@panels=$(PANELS); device=$(DEVICE); status=0; \
	if [ $$device = auto ]; then \
	  device=$$(.venv/bin/python -c \
	    "from fltrust_repro.backend import resolve_device as f; print(f('auto'))") || exit; \
	fi; \
	if [ $$panels = default ]; then \
	  if [ $$device = gpu ]; then panels=abcde; else panels=ae; fi; \
	fi; \
	$(RUN) reproduce $$(echo $$panels | sed 's/./table2& /g') $(WHICH) $(HOW) --device $$device \
	  || status=$$?; \
	if [ $(PANELS)$$device = defaultcpu ] && [ $$status -le 1 ]; then \
	  echo; \
	  echo "Panels b, c and d are for a GPU; on a CPU they take:"; \
	  $(RUN) status $(WHICH) | grep -E '^(experiment|table2[bcd]) '; \
	  echo "One trial of each of their cells: make table2 PANELS=bcd TRIALS=1"; \
	fi; \
	exit $$status

paper: $(READY)
	@status=0; \
	$(RUN) reproduce $(PAPER) $(WHICH) $(HOW) --device $(DEVICE) \
	  $(if $(SCHEDULER),--scheduler '$(SCHEDULER)') || status=$$?; \
	if [ $$status -le 1 ]; then $(RUN) report || status=$$?; fi; \
	exit $$status

SOON  = not long and not gpu and not cuda_wheel
QUICK = not slow and $(SOON)
PYTEST = .venv/bin/python -m pytest tests -n auto --dist loadfile

test: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(PYTEST) $(if $(ALL),,-m "$(QUICK)")

test-slow: $(READY)
	$(PYTEST) -m "slow and $(SOON)"

# What computes with matrix products or sorts columns, under each of OpenBLAS's kernels that this
# CPU can run, whichever OpenBLAS would take by itself: they round differently.
KERNEL_TESTS = aggregation attacks convolutions defenses device distances doors examples golden \
  gradients hard_inputs kernels leverage preaggregations robust_means similarity spectral training workers
CPU_HAS = $(shell grep -qw $(1) /proc/cpuinfo && echo yes)
KERNELS = Prescott $(if $(call CPU_HAS,avx2),Haswell) $(if $(call CPU_HAS,avx512f),SkylakeX)

test-kernels: $(READY)
	@status=0; for kernel in $(KERNELS); do \
	  echo "OPENBLAS_CORETYPE=$$kernel"; \
	  env -u OPENBLAS_L2_SIZE OPENBLAS_CORETYPE=$$kernel .venv/bin/python -m pytest -q \
	    $(wildcard $(KERNEL_TESTS:%=tests/test_%.py)) -n auto --dist loadfile -m "$(QUICK)" \
	    || status=1; \
	done; exit $$status

# Panels a and e with few iterations, a on small digits, all of it in a temporary folder; and
# ResNet20 where its data are at hand, as they cannot be downloaded without a login.
smoke: $(READY)
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; trap 'exit 130' INT TERM; \
	small() { awk '/^\[paper\]/ {exit} {print} /^\[setting\]/ {print "iterations = '$$2'"}' $$1; }; \
	small experiments/table2a.toml 60 | sed 's/"mnist"/"digits"/; s/MNIST/digits/' \
	  > "$$folder/small-a.toml"; \
	small experiments/table2e.toml 10 > "$$folder/small-e.toml"; \
	options="--device cpu --store $$folder/trials.sqlite"; \
	$(RUN) reproduce "$$folder/small-a.toml" "$$folder/small-e.toml" --trials 2 \
	  $$options --out "$$folder"; \
	test "$$(wc -l < "$$folder/small-a.csv")" -eq 16; \
	test "$$(wc -l < "$$folder/small-e.csv")" -eq 16; \
	$(RUN) run --dataset digits --iterations 200 --rule trimmed-mean --attack trimmed-mean \
	  $$options --json > "$$folder/run.json"; \
	.venv/bin/python -m json.tool "$$folder/run.json" > /dev/null; \
	if ! $(RUN) data status | grep -q 'ch-mnist-8 .*not at hand'; then \
	  $(RUN) run --dataset ch-mnist-8 --model resnet20 --workers 10 --compromised 2 \
	    --rule median --attack trimmed-mean --iterations 2 $$options; \
	fi; \
	echo "smoke: all is well"

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find fltrust_repro tests -name __pycache__ -prune -exec rm -rf {} +
