#!/usr/bin/env bash
NETWORK=pfsegnets exec bash "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/run_distribute_train.sh" "$@"
