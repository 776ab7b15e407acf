#!/usr/bin/env bash
# Trains in one process; see the usage message.
set -eo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

split_arguments "$@"
device=()
if [[ "${positional[0]:-}" =~ ^[0-9]+$ ]]; then
  device=(--device_id "${positional[0]}")
  positional=("${positional[@]:1}")
fi
if [ ${#positional[@]} -lt 1 ] || [ ${#positional[@]} -gt 2 ]; then
  cat >&2 <<'USAGE'
Usage: bash run_standalone_train.sh [DEVICE_ID] [DATA_PATH] [NETWORK] [--key=value ...]
  DEVICE_ID    number of the card; default: the environment variable DEVICE_ID, else 0
  DATA_PATH    folder of the training data (write ./0 for a folder whose name is a number)
  NETWORK      folder under research/; default: the name of the current folder
  --key=value  handed over to train.py
The output goes to ./train/log.
USAGE
  exit 1
fi
launch --network="$(network_name "${positional[1]:-}")" --task train "${device[@]}" \
  --data="${positional[0]}" -- "${flags[@]}"
