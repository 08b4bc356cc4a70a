# facefleet: everything a fresh machine with Python 3.11 or newer needs. `make help` lists it.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Read by recipes from the environment, so that no character in them can mean anything to the shell.
export SOURCE KEEP OUT PORT PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo test bench chaos lint clean distclean debian

help:
	@echo 'make demo                          a minute of the whole product on a built-in clip; results in out/demo'
	@echo 'make demo SOURCE=clip.mp4          the same on a video, a folder/, a USB index or an rtsp:// or http:// address'
	@echo 'make demo SECONDS=60 KEEP=1        end after a minute; leave everything running until Ctrl-C'
	@echo 'make test                          all tests that this machine can run'
	@echo 'make bench                         milliseconds per stage, memory, start, peers, cameras; BENCH=--quick'
	@echo 'make chaos                         kill everything at random: is each event there once? CHAOS="--seconds 600 --seed 7"'
	@echo 'make lint                          ruff and mypy'
	@echo 'make clean, make distclean         remove results and caches; and the environment $(VENV) too'
	@echo
	@echo 'The first of them makes $(VENV) and installs into it. PYTHON=… says which Python (3.11 or newer).'

demo: $(STAMP)
	@exec $(BIN)/facefleet-demo $${SOURCE:+--source "$$SOURCE"} $(if $(SECONDS),--seconds "$(SECONDS)") \
	  $${OUT:+--out "$$OUT"} $${PORT:+--port "$$PORT"} $${KEEP:+--keep}

test: $(STAMP) debian
	@$(BIN)/python -m pytest -q

bench: $(STAMP)
	@$(BIN)/python -m tests.bench $(BENCH)

chaos: $(STAMP) debian
	@$(BIN)/python -m tests.chaos $(CHAOS)

lint: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy

clean:
	@rm -rf out/demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV) ./*.egg-info

$(STAMP): pyproject.toml
	@set -e; \
	if ! $(BIN)/python -c '' 2>/dev/null; then \
	  for p in $${PYTHON:-python3.12 python3.13 python3.11 python3 python}; do \
	    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && python=$$p && break; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "facefleet needs Python 3.11 or newer; found $$( ($${PYTHON:-python3} --version) 2>&1 | tail -n 1 )." >&2; \
	    echo 'Install one (Debian: apt install python3.11-venv), or name one: make PYTHON=/path/to/python' >&2; exit 1; \
	  fi; \
	  echo "making $(VENV) with $$($$python --version)"; \
	  if ! made=$$($$python -m venv --clear $(VENV) 2>&1); then \
	    rm -rf $(VENV); echo "$$made" >&2; \
	    version=$$($$python -c 'import sys; print("python%d.%d" % sys.version_info[:2])'); \
	    echo "$$python cannot make an environment; Debian: apt install $$version-venv" >&2; exit 1; \
	  fi; \
	fi; \
	echo 'installing facefleet and what it needs (some minutes the first time, about 1.5 GB)'; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo,dev]'; \
	touch $@

# Real servers that tests start where they are installed. Never needed, never a reason to fail; RUNLEVEL keeps Debian
# from starting Mosquitto and sshd as services; an sshd that came only for the tests does not come back at boot either.
DEBIAN := mosquitto openssh-server python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
  gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly chromium systemd systemd-container debootstrap
debian:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $(DEBIAN) >/dev/null 2>&1; then \
	  echo 'installing Mosquitto, sshd, Chromium, an RTSP server and containers for the tests'; \
	  export RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive; \
	  dpkg -s openssh-server >/dev/null 2>&1 && had_sshd=1; \
	  { apt-get update -qq && apt-get install -qq --no-install-recommends $(DEBIAN) && \
	    { [ -n "$${had_sshd:-}" ] || systemctl disable ssh || true; }; } >/dev/null 2>&1 || \
	    echo 'they cannot be installed here: the tests that use them are skipped'; \
	fi
