# Two commands: `make demo` and `make test`. Each makes .venv and installs what it needs.
# `make proof` is what takes hours: every demo, suite and comparison; docs/proof.md keeps its result.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLOOR := .venv-floor
EXAMPLES := .venv-examples
PARALLEL := -n auto --maxprocesses 8 --dist worksteal
FAST := -m "not slow and not proof"
# The tests in which other libraries' versions matter; the rest knows our own code alone.
MEETS_LIBRARIES := tests/test_*.py tests/envs tests/trainers tests/feedback tests/agents/test_ppo.py
PRESET ?= tiny
RUN ?= runs/demo-$(PRESET)

# torch goes in first: with it there, nothing else pulls a multi-gigabyte CUDA build. With a GPU,
# `make TORCH=torch ...` takes the newest build; elsewhere name the CPU build you can get.
TORCH ?= torch==2.13.0

# Without what they require: TextArena's chess is under the GPL, and of OpenEnv, whose server is tested
# against, gradio and openai are not needed.
# RewardBench pins transformers 4.51 and requires bitsandbytes and wandb; of it and of FastChat, which
# it imports, only the dialogues and the pipeline of a sequence classifier are tested against.
NO_DEPS := textarena==0.7.4 openenv-core==0.3.0 rewardbench==0.1.4 fschat==0.2.36
# What reads our outputs and data. Its other requirements are ours already.
PEERS := trl==1.16.0

# Another environment begins as a copy of the first, of links to its files: pip replaces a file and
# never writes into it, so that only what differs is installed anew.
COPY := $(PYTHON) -c "import os, shutil, sys; a, b = sys.argv[1:]; assert a != b; \
	shutil.rmtree(b, True); shutil.copytree(a, b, symlinks=True, copy_function=os.link)"

.PHONY: demo docs test test-slow test-floor test-worlds test-peers test-proof mutants check environments format examples proof clean

demo: $(VENV)/.stamp-demo
	$(BIN)/textrl demo --preset $(PRESET) --output_dir $(RUN) --overwrite

test: $(VENV)/.stamp-test
	$(BIN)/python -m pytest $(FAST) $(PARALLEL)

test-floor: $(FLOOR)/.stamp-floor
	$(FLOOR)/bin/python -m pytest $(FAST) $(PARALLEL) $(MEETS_LIBRARIES)

test-slow: $(VENV)/.stamp-slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(PARALLEL)

# One after another: some of them measure time and memory.
test-proof: $(VENV)/.stamp-slow
	$(BIN)/python -m pytest -m proof

# Wrong variants of the code, each in a copy of the checkout: a fast test must fail on every one.
mutants: $(VENV)/.stamp-test
	$(BIN)/python tests/run_mutants.py

proof: $(VENV)/.stamp-slow
	$(BIN)/python benchmarks/proof.py $(STEPS)

examples: example-own_reward example-torchrl_rollout example-reasoning_gym_task example-rllib_ppo \
	example-other_worlds

GAIN_own_reward := 0.1
GAIN_torchrl_rollout := 0.05
GAIN_reasoning_gym_task := 0.3
GAIN_rllib_ppo := 0.05
GAIN_other_worlds := 0.3
example-%: $(EXAMPLES)/.stamp-examples
	$(EXAMPLES)/bin/python tests/check_example.py $(GAIN_$*) examples/$*.py

# The adapters to other people's environments, with the real packages: none may be missing.
test-worlds: $(EXAMPLES)/.stamp-examples
	TEXTRL_WORLDS=1 OMP_NUM_THREADS=1 $(EXAMPLES)/bin/python -m pytest tests/envs/test_adapters.py

# Our outputs in other libraries and their data in ours, with the real packages.
test-peers: $(EXAMPLES)/.stamp-examples
	TEXTRL_PEERS=1 OMP_NUM_THREADS=1 $(EXAMPLES)/bin/python -m pytest tests/test_peers.py

check: $(VENV)/.stamp-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/typos

docs: $(VENV)/.stamp-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "open build/docs/index.html"

environments: $(FLOOR)/.stamp-floor $(EXAMPLES)/.stamp-examples

format: $(VENV)/.stamp-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(FLOOR) $(EXAMPLES) build *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.stamp-torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

$(VENV)/.stamp-demo: setup.cfg $(VENV)/.stamp-torch
	$(BIN)/python -m pip install --quiet -e ".[demo]"
	touch $@

$(VENV)/.stamp-docs: setup.cfg $(VENV)/.stamp-torch
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	touch $@

$(VENV)/.stamp-test: setup.cfg $(VENV)/.stamp-torch
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@ $(VENV)/.stamp-demo

$(FLOOR)/.stamp-floor: constraints-floor.txt $(VENV)/.stamp-test | $(VENV)/.stamp-dev
	$(COPY) $(VENV) $(FLOOR)
	$(FLOOR)/bin/python -m pip uninstall --quiet --yes schemathesis hypothesis
	grep -v '^torch==' constraints-floor.txt > $(FLOOR)/constraints.txt
	$(FLOOR)/bin/python -m pip install --quiet -c $(FLOOR)/constraints.txt -e ".[test]"
	touch $@

$(VENV)/.stamp-slow: setup.cfg $(VENV)/.stamp-torch
	$(BIN)/python -m pip install --quiet -e ".[audit,browser,dev]"
	touch $@ $(VENV)/.stamp-test $(VENV)/.stamp-demo $(VENV)/.stamp-dev $(VENV)/.stamp-docs

$(EXAMPLES)/.stamp-examples: $(VENV)/.stamp-test | $(VENV)/.stamp-dev
	$(COPY) $(VENV) $(EXAMPLES)
	$(EXAMPLES)/bin/python -m pip install --quiet -e ".[rllib,torchrl,reasoning,worlds]" "fastmcp>=3" "$(PEERS)"
	$(EXAMPLES)/bin/python -m pip install --quiet --no-deps $(NO_DEPS)
	touch $@

$(VENV)/.stamp-dev: setup.cfg $(VENV)/.stamp-torch | $(VENV)/.stamp-test
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@
