#!/usr/bin/env bash
# Usage: bash commit_img.sh CHECKPOINT [REGISTRY/REPOSITORY]
exec bash "$(dirname "${BASH_SOURCE[0]}")/commit.sh" img "$@"
