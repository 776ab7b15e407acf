#!/usr/bin/env bash
# Trains on the cards of an HCCL rank table; see the usage message.
set -eo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

split_arguments "$@"
if [ ${#positional[@]} -lt 2 ] || [ ${#positional[@]} -gt 3 ]; then
  cat >&2 <<'USAGE'
Usage: bash run_train.sh [RANK_TABLE_FILE] [DATA_PATH] [NETWORK] [--key=value ...]
  RANK_TABLE_FILE  JSON file written by hccl_tools, or the folder holding jobstart_hccl.json
  DATA_PATH        folder of the training data
  NETWORK          folder under research/; default: the name of the current folder
  --key=value      handed over to train.py
Each rank's output goes to ./train_parallel{rank}/log. With DEVICE_TARGET=CPU the ranks are
processes of this machine; with several servers in the table set SERVER_ID=0, 1, ...
USAGE
  exit 1
fi
launch --network="$(network_name "${positional[2]:-}")" --task train \
  --rank_table="${positional[0]}" --data="${positional[1]}" -- "${flags[@]}"
