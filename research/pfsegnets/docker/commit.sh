#!/usr/bin/env bash
# Builds a track's contest image and, if a registry is named, pushes it there.
# Usage: bash commit.sh img|sar CHECKPOINT [REGISTRY/REPOSITORY]
set -euo pipefail

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
  echo "Usage: bash ${0##*/} img|sar CHECKPOINT [REGISTRY/REPOSITORY]" >&2
  exit 1
fi
track="$1" checkpoint="$2" registry="${3:-}"
unset CDPATH
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../../.." && pwd)"
if [ ! -f "$here/$track/Dockerfile" ]; then
  echo "error: there is no track $track; tracks are img and sar" >&2
  exit 2
fi
if [ ! -f "$checkpoint" ]; then
  echo "error: checkpoint $checkpoint does not exist; give the weights of the $track track" >&2
  exit 2
fi

# Docker reads only what lies below the repository's root.
weights="$root/weights/$track.ckpt"
if [ ! "$checkpoint" -ef "$weights" ]; then
  if [ -e "$weights" ]; then
    echo "error: $weights is in the way; remove it, or give it as CHECKPOINT" >&2
    exit 2
  fi
  mkdir -p "$root/weights"
  trap 'rm -f "$weights"' EXIT
  cp -- "$checkpoint" "$weights"
fi
docker build --file "$here/$track/Dockerfile" --tag "pfnet_$track" "$root"
if [ -n "$registry" ]; then
  docker tag "pfnet_$track" "$registry/$track"
  docker push "$registry/$track"
fi
