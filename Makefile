# Two commands: `make demo` and `make test`. Each makes .venv and installs what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLOOR := .venv-floor
PARALLEL := -n auto --maxprocesses 8 --dist worksteal
PRESET ?= tiny
RUN ?= runs/demo-$(PRESET)

# torch goes in first: with it there, nothing else pulls a multi-gigabyte CUDA build. With a GPU,
# `make TORCH=torch ...` takes the newest build; elsewhere name the CPU build you can get.
TORCH ?= torch==2.13.0

.PHONY: demo test test-slow test-floor check format examples clean

demo: $(VENV)/.stamp-demo
	$(BIN)/textrl demo --preset $(PRESET) --output_dir $(RUN) --overwrite

test: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-floor:
	$(MAKE) $(FLOOR)/.stamp-floor VENV=$(FLOOR)
	$(FLOOR)/bin/python -m pytest -m "not slow" $(PARALLEL)

test-slow: $(VENV)/.stamp-slow
	$(BIN)/python -m pytest -m slow

examples: $(VENV)/.stamp-examples
	$(BIN)/python tests/check_example.py 0.1 examples/own_reward.py
	$(BIN)/python tests/check_example.py 0.05 examples/torchrl_rollout.py
	$(BIN)/python tests/check_example.py 0.3 examples/reasoning_gym_task.py
	$(BIN)/python tests/check_example.py 0.05 examples/rllib_ppo.py

check: $(VENV)/.stamp-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.stamp-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(FLOOR) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.stamp-torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

$(VENV)/.stamp-demo: setup.cfg $(VENV)/.stamp-torch
	$(BIN)/python -m pip install --quiet -e ".[demo]"
	touch $@

$(VENV)/.stamp-test: setup.cfg $(VENV)/.stamp-torch
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

$(VENV)/.stamp-floor: setup.cfg constraints-floor.txt $(VENV)/.stamp-torch
	grep -v '^torch==' constraints-floor.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet -c $(VENV)/constraints.txt -e ".[test]"
	touch $@

$(VENV)/.stamp-slow: setup.cfg $(VENV)/.stamp-torch
	$(BIN)/python -m pip install --quiet -e ".[browser]"
	touch $@

$(VENV)/.stamp-examples: setup.cfg $(VENV)/.stamp-torch
	$(BIN)/python -m pip install --quiet -e ".[rllib,torchrl,reasoning]"
	touch $@

$(VENV)/.stamp-dev: setup.cfg $(VENV)/.stamp-torch
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@
