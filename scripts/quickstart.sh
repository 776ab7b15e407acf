#!/usr/bin/env bash
# From a bare machine to a trained, evaluated and exported network on generated data.
# Usage: bash scripts/quickstart.sh [NETWORK] [--key=value ...]     (default network: sdnet)
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

prepare_environment
cd "$root"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m model_utils.quickstart "$@"
