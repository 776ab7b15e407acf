#!/usr/bin/env bash
# Shared by the scripts here: sourced, not run. Sets `root` (the repository) and `python`.

unset CDPATH  # with it, cd prints and may go elsewhere
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Prints the first of its arguments that is a Python 3.10 to 3.12.
first_python() {
  local candidate
  for candidate in "$@"; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
        >/dev/null 2>&1; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

# Sets `python` to the interpreter to run with: $PYTHON, else the repository's own environment,
# else python3. Installs nothing.
choose_python() {
  if [ -n "${PYTHON:-}" ]; then
    python="$PYTHON"
  elif [ -x "$root/.venv/bin/python" ]; then
    python="$root/.venv/bin/python"
  else
    python="python3"
  fi
  if ! command -v "$python" >/dev/null 2>&1; then
    echo "error: Python interpreter $python not found; install Python 3.11 or set PYTHON" >&2
    return 1
  fi
}

# Makes the repository's own virtual environment hold what is needed, and sets `python` to it.
# $1: optional extra of pyproject.toml, such as dev. Does nothing when it was done before and the
# requirements have not changed since.
prepare_environment() {
  local extra="${1:-}" venv="${VENV:-$root/.venv}" base hash marker what
  [[ "$venv" = /* ]] || venv="$PWD/$venv"
  what="$root${extra:+[$extra]}"
  hash="$(cat "$root/pyproject.toml" "$root/requirements.txt" | cksum | tr ' ' '-')"
  marker="$venv/.ready-${extra:-base}-$hash"
  python="$venv/bin/python"
  if [ -e "$marker" ] && "$python" -c '' >/dev/null 2>&1; then
    return 0
  fi
  if ! first_python "$python" >/dev/null; then
    if ! base="$(first_python "${PYTHON:-}" python3.11 python3.12 python3.10 python3 python)"; then
      echo "error: no Python 3.10, 3.11 or 3.12 found (MindSpore has no wheels for others);" \
        "install one, or set PYTHON to it" >&2
      return 1
    fi
    echo "creating $venv with $("$base" --version)"
    if ! "$base" -m venv --clear "$venv"; then
      echo "error: $base cannot create virtual environments;" \
        "install its venv package (Debian, Ubuntu: apt install python3-venv)" >&2
      return 1
    fi
  fi
  echo "installing the requirements into $venv (some minutes, log: $venv/setup.log)"
  if ! "$python" -m pip install --disable-pip-version-check --no-input -e "$what" \
    >"$venv/setup.log" 2>&1; then
    tail -n 20 "$venv/setup.log" >&2
    echo "error: installing the requirements failed, see above and $venv/setup.log;" \
      "check the network, or set PIP_INDEX_URL to a mirror" >&2
    return 1
  fi
  rm -f "$venv/.ready-${extra:-base}-"*
  # The larger installation serves the smaller one too.
  touch "$marker" "$venv/.ready-base-$hash"
}

# Splits the arguments of a run script: sets `positional` and `flags` (the first argument that
# starts with -- and everything after it).
split_arguments() {
  positional=()
  while [ $# -gt 0 ] && [[ "$1" != --* ]]; do
    positional+=("$1")
    shift
  done
  # shellcheck disable=SC2034  # used by the scripts that source this file
  flags=("$@")
}

# The network to run: $1 (optional argument), else $NETWORK (the wrappers in research/ set it),
# else the name of the current folder.
network_name() {
  local network="${1:-${NETWORK:-}}"
  echo "${network:-$(basename "$PWD")}"
}

# Replaces the shell by the launcher, which works in the caller's folder. It is started from the
# repository because "python -m" looks in the current folder first, where another model_utils
# may lie.
launch() {
  local start="$PWD"
  choose_python || exit 1
  cd "$root" || exit 1
  case "$python" in
    /*) ;;
    */*) python="$start/$python" ;;
  esac
  export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
  exec "$python" -m model_utils.launching --workdir "$start" "$@"
}
