#!/usr/bin/env bash
# Lint, types and all tests, in an environment of their own; the tests on two to four processes.
# Usage: bash scripts/test.sh [pytest arguments]     (SKIP_SLOW=1 leaves the slow tests out)
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

prepare_environment dev
cd "$root"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
PATH="$(dirname "$python"):$PATH"

step() {
  echo "== $*"
  "$@"
}

step ruff check .
step ruff format --check .
step mypy
step shellcheck --external-sources --source-path="$root" scripts/*.sh research/*/scripts/*.sh \
  research/*/docker/*.sh .ci/run
[ "${SKIP_SLOW:-0}" = 0 ] || set -- -m "not slow" "$@"
# By file: the tests of a file share what they trained and exported.
step python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile "$@"
