#!/usr/bin/env bash
# ModelZoo's usual name for run_train.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_train.sh" "$@"
