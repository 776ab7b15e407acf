#!/usr/bin/env bash
NETWORK=pfsegnets exec bash "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/run_standalone_train.sh" "$@"
