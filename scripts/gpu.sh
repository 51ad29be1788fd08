#!/usr/bin/env bash
# All evidence that an NVIDIA GPU can give, on a bare Linux host: tests, latency tables, kernels, frames per second.
# usage: scripts/gpu.sh [--minutes N] [--out DIR] [--wheels DIR] [--quick]
#   --minutes N    bound on the time after installation (default: 60, with --quick 20)
#   --out DIR      where results go (default: gpu-results)
#   --wheels DIR   install from this folder alone, as scripts/gpu_wheels.sh fills it: for hosts without a package index
#   --quick        small images and few visits, to see whether everything works
# It makes .venv-gpu over the host's Python (PYTHON=... chooses one) and uses what that has: PyTorch, TensorRT.
# Run it again and it goes on where it stopped.
set -uo pipefail

usage() { sed -n 's/^# \{0,1\}//; 2,9p' "${BASH_SOURCE[0]}"; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv-gpu
python=$venv/bin/python
stamp=$venv/.hwnas-setup
base=${PYTHON:-python3}
wheels='' arguments=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --quick) arguments+=("$1"); shift; continue ;;
        --minutes | --out | --wheels)
            [ $# -ge 2 ] || { echo "expected a value after $1" >&2; exit 2; } ;;&
        --minutes | --out) arguments+=("$1" "$2") ;;
        --wheels)
            [ -d "$2" ] || { echo "expected a folder after --wheels, $2 is none" >&2; exit 2; }
            wheels=$(cd "$2" && pwd) ;;
        *) echo "unknown argument $1" >&2; usage >&2; exit 2 ;;
    esac
    shift 2
done

"$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
    echo "expected Python 3.10 or newer, $base is: $("$base" -V 2>&1); run again with PYTHON=/path/to/one" >&2
    exit 2
}
"$base" -c 'import ctypes; ctypes.CDLL("libcuda.so.1")' 2>/dev/null || {
    echo "there is no NVIDIA driver here (libcuda.so.1); install one, nvidia-smi shows that it works" >&2
    exit 2
}

_pip() { # into the environment; from the folder alone if there is one
    local from=()
    [ -z "$wheels" ] || from=(--no-index --find-links "$wheels")
    (
        if [ -n "$wheels" ]; then
            export PIP_CONFIG_FILE=/dev/null
            unset PIP_FIND_LINKS PIP_EXTRA_INDEX_URL
        fi
        "$python" -m pip install --disable-pip-version-check --quiet "${from[@]}" "$@"
    ) >"$log" 2>&1
}

_has() { "$python" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$1" 2>/dev/null; }

_requirements() { # of some extras, as setup.py has them
    "$python" - "$root/setup.py" "$@" <<'PY'
import ast, pathlib, sys
tree = ast.parse(pathlib.Path(sys.argv[1]).read_text())
extras = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "EXTRAS")
print(*(line for name in sys.argv[2:] for line in extras[name]), sep="\n")
PY
}

_fingerprint() { { cat "$root/setup.py" && "$python" -V && echo "$root $wheels"; } 2>/dev/null | sha256sum | cut -d' ' -f1; }

_fail() { # _fail MESSAGE: what pip said, and what that means
    cat "$log" >&2
    echo "$1" >&2
    exit 1
}

_install() {
    [ "$(cat "$stamp" 2>/dev/null)" = "$(_fingerprint)" ] && return 0
    echo "setting up $venv (once; some minutes)"
    "$base" -m venv --system-site-packages --clear "$venv" >"$log" 2>&1 ||
        _fail "$base cannot make an environment; Debian has what it needs in python3-venv"
    # Of an interpreter that is in an environment itself, only what that was made with counts as the system.
    "$base" -c 'import sys, sysconfig; print(sysconfig.get_path("purelib") if sys.prefix != sys.base_prefix else "")' \
        >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/host.pth" || exit 1
    _pip 'setuptools>=77' wheel || _fail "setuptools could not be installed"
    _pip --no-build-isolation --editable "${root}[search]" 'pytest>=8' hypothesis ||
        _fail "hwnas could not be installed; a host without PyTorch needs scripts/gpu_wheels.sh --torch"
    local extras=(cuda tensorrt-rtx tensorrt) requirement here
    here=$(_has onnxruntime)
    if [ -n "$here" ] && [ -n "$(_has onnxruntime-gpu)" ]; then
        _fail "$base has both onnxruntime and onnxruntime-gpu, which overwrite each other; uninstall one of them"
    elif [ -n "$here" ]; then
        echo "  onnxruntime-gpu: left out, the host has onnxruntime $here and the two overwrite each other"
    else
        extras+=(gpu)
    fi
    # Each by itself: what is not to be had is said, and its engine reported as not ready.
    while read -r requirement; do
        if _pip "$requirement"; then
            echo "  $requirement: $(_has "${requirement%%[><=]*}")"
        else
            echo "  $requirement: not installed ($(grep -v '^ *$' "$log" | tail -n 1))"
        fi
    done < <(_requirements "${extras[@]}")
    _fingerprint >"$stamp"
    echo "set up in ${SECONDS} s"
}

log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
_install
rm -f "$log"
exec "$python" "$root/scripts/bench/gpu.py" "${arguments[@]}"
