#!/usr/bin/env bash
# Usage: bash commit_sar.sh CHECKPOINT [REGISTRY/REPOSITORY]
exec bash "$(dirname "${BASH_SOURCE[0]}")/commit.sh" sar "$@"
