#!/usr/bin/env bash
# Fills a folder with what scripts/gpu.sh --wheels installs on a host without a package index. Run it where there is one.
# usage: scripts/gpu_wheels.sh [OPTION...] DIR
#   --python VERSION   of the target (default: 3.12)
#   --platform NAME    the newest that the target's C library serves (default: manylinux_2_28_x86_64)
#   --parts LIST       bindings and engines, with commas between (default: cuda-bindings,nvidia-ml-py,
#                      nvidia-cuda-nvrtc-cu12,tensorrt-rtx,onnxruntime-gpu)
#   --torch            PyTorch too, some gigabytes; without, the target has its own
#   --tensorrt         TensorRT too, some gigabytes, from NVIDIA's index; without, the target has its own, or none
# Wheels that are there already are kept.
set -uo pipefail

usage() { sed -n 's/^# \{0,1\}//; 2,10p' "${BASH_SOURCE[0]}"; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3} version=3.12 platform=manylinux_2_28_x86_64 out='' torch=0
parts=cuda-bindings,nvidia-ml-py,nvidia-cuda-nvrtc-cu12,tensorrt-rtx,onnxruntime-gpu
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --torch) torch=1; shift; continue ;;
        --tensorrt) parts+=,tensorrt; shift; continue ;;
        --python | --platform | --parts)
            [ $# -ge 2 ] || { echo "expected a value after $1" >&2; exit 2; } ;;&
        --python) version=$2 ;;
        --platform) platform=$2 ;;
        --parts) parts=$2 ;;
        -*) echo "unknown argument $1" >&2; usage >&2; exit 2 ;;
        *)
            [ -z "$out" ] || { echo "expected one folder, got $out and $1" >&2; exit 2; }
            out=$1; shift; continue ;;
    esac
    shift 2
done
[ -n "$out" ] || { usage >&2; exit 2; }
[[ $platform =~ ^manylinux_2_([0-9]+)_(.+)$ ]] || { echo "expected a platform such as manylinux_2_28_x86_64, got $platform" >&2; exit 2; }

# pip takes a platform by its very name, and a newer C library serves wheels for every older one.
target=(--python-version "$version" --implementation cp --only-binary=:all:)
for ((n = BASH_REMATCH[1]; n >= 5; n--)); do target+=(--platform "manylinux_2_${n}_${BASH_REMATCH[2]}"); done
for name in manylinux2014 manylinux1; do target+=(--platform "${name}_${BASH_REMATCH[2]}"); done

_requirements() { # of hwnas, as setup.py has them: those of an extra, or those of a package
    "$python" - "$root/setup.py" "$@" <<'PY'
import ast, pathlib, re, sys
tree = ast.parse(pathlib.Path(sys.argv[1]).read_text())
extras = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "EXTRAS")
known = {re.match(r"[\w-]+", line)[0]: line for name, lines in extras.items() if name != "dev" for line in lines}
search = [line for line in extras["search"] if not line.startswith("torch")]
print(*(search if sys.argv[2] == "search" else [known.get(name, name) for name in sys.argv[2:]]), sep="\n")
PY
}

_pip() { "$python" -m pip "$1" --disable-pip-version-check --quiet --find-links "$out" "${index[@]}" "${@:2}"; }

_build() { _pip wheel --no-deps --wheel-dir "$out" "$@"; } # what comes as source, and is the same for every target

_download() { _pip download --dest "$out" "${target[@]}" "$@"; } # with all that it needs

mkdir -p "$out" || exit 1
index=()
mapfile -t search < <(_requirements search)
_build fvcore iopath || exit 1
_download 'numpy>=1.23' 'setuptools>=77' wheel 'pytest>=8' hypothesis "${search[@]}" || exit 1
[ $torch -eq 0 ] || _download "$(_requirements torch)" || exit 1
failed=0
IFS=, read -ra wanted <<<"$parts"
for part in "${wanted[@]}"; do
    index=() source=()
    case "$part" in
        tensorrt-rtx) source=(tensorrt-rtx tensorrt_rtx_cu13) ;;
        tensorrt) source=(tensorrt tensorrt_cu13) index=(--extra-index-url https://pypi.nvidia.com) ;;
    esac
    if ! { [ ${#source[@]} -eq 0 ] || _build "${source[@]}"; } || ! _download "$(_requirements "$part")"; then
        echo "$part: not downloaded" >&2
        failed=1
    fi
done

du -h -- "$out"/*.whl | sort -h
du -sh -- "$out"
exit $failed
