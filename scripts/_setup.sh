# Sourced by the other scripts. Makes .venv with the tested versions of everything, or finds that it is there.
# Sets `root` (the repository) and `python` (the interpreter of .venv); PYTHON=... chooses the one .venv is made with.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=$venv/bin/python
_extras=search,cpu,openvino,tensorrt-rtx,trials,dev
_constraints=$root/scripts/constraints.txt
_stamp=$venv/.hwnas-setup

# Run a command silently; show all it said only if it fails.
_quietly() {
    local log
    log=$(mktemp) || return 1
    if "$@" >"$log" 2>&1; then
        rm -f "$log"
    else
        printf 'failed: %s\n' "$*" >&2
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
}

_recent_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

_pip() { _quietly "$python" -m pip install --disable-pip-version-check --constraint "$_constraints" "$@"; }

# What was installed where: a tree that was copied or moved, or has another Python now, is installed again.
_fingerprint() {
    { cat "$_constraints" "$root/setup.py" && "$python" -V && echo "$root $_extras"; } 2>/dev/null | sha256sum | cut -d' ' -f1
}

_make_venv() {
    local base=${PYTHON:-python3}
    if ! _recent_enough "$base"; then
        printf 'expected Python 3.11 or newer (onnxruntime has no wheels for older ones), %s is: %s; ' \
            "$base" "$("$base" -V 2>&1)" >&2
        printf 'install one and run again with PYTHON=/path/to/it\n' >&2
        return 1
    fi
    _quietly "$base" -m venv --clear "$venv"
}

_install() {
    # "unfinished" is an installation that was killed: half of a package may be there, so it starts from nothing.
    if [ "$(cat "$_stamp" 2>/dev/null)" = unfinished ] || ! "$python" -c '' 2>/dev/null; then
        _make_venv || return 1
    fi
    _recent_enough "$python" || { echo "expected Python 3.11 or newer in $venv; remove that folder and run again" >&2; return 1; }
    [ "$(cat "$_stamp" 2>/dev/null)" = "$(_fingerprint)" ] && return 0
    echo "setting up $venv (once; some minutes)"
    echo unfinished >"$_stamp"
    _pip pip setuptools || return 1
    # First and alone, by its exact version: see constraints.txt.
    _pip "$(grep '^torch==' "$_constraints")" || return 1
    _pip --no-build-isolation --editable "${root}[$_extras]" || return 1
    _fingerprint >"$_stamp"
    echo "set up in ${SECONDS} s"
}

# Several scripts may start at once; the first one installs and the others wait for it.
( flock 9 && _install ) 9>"$root/.venv.lock" || exit 1
