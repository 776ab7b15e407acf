#!/usr/bin/env bash
# Evaluates a checkpoint; see the usage message.
set -eo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

split_arguments "$@"
if [ ${#positional[@]} -lt 2 ] || [ ${#positional[@]} -gt 3 ]; then
  cat >&2 <<'USAGE'
Usage: bash run_eval.sh [DATA_PATH] [CHECKPOINT_PATH] [NETWORK] [--key=value ...]
  DATA_PATH        folder of the evaluation data
  CHECKPOINT_PATH  checkpoint to evaluate
  NETWORK          folder under research/; default: the name of the current folder
  --key=value      handed over to eval.py
The output goes to ./eval/log.
USAGE
  exit 1
fi
launch --network="$(network_name "${positional[2]:-}")" --task eval \
  --data="${positional[0]}" --checkpoint="${positional[1]}" -- "${flags[@]}"
