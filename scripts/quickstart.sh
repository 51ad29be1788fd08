#!/usr/bin/env bash
# From nothing to a measured network: sets up .venv, profiles this machine, searches, trains, exports, validates.
# usage: scripts/quickstart.sh [--data DIR] [--fps N] [--run NAME]
#   --data DIR   a folder in the CamVid layout; without it, synthetic street scenes
#   --fps N      the budget in frames per second; without it, the recipe's
#   --run NAME   everything goes to runs/NAME/ (default: quickstart, with --data quickstart-camvid)
# Run it again and it goes on where it stopped.
set -uo pipefail

usage() { sed -n 's/^# \{0,1\}//; 2,7p' "${BASH_SOURCE[0]}"; }

recipe=darts-quick run='' data=() fps=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --data | --fps | --run)
            [ $# -ge 2 ] || { echo "expected a value after $1" >&2; exit 2; } ;;&
        --data)
            [ -d "$2" ] || { echo "expected a folder after --data, $2 is none" >&2; exit 2; }
            recipe=darts-camvid data=(--data "$(cd "$2" && pwd)") ;;
        --fps) fps=(--fps "$2") ;;
        --run) run=$2 ;;
        *) echo "unknown argument $1" >&2; usage >&2; exit 2 ;;
    esac
    shift 2
done
[ -n "$run" ] || { [ $recipe = darts-quick ] && run=quickstart || run=quickstart-camvid; }

# shellcheck source=scripts/_setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
cd "$root" || exit 1

SECONDS=0
summary=''
finish() { printf '\n%s%-8s %5d s  after installation\n' "$summary" total $SECONDS; }
trap finish EXIT

verb() { # verb NAME ARGUMENT...: run one, end with its exit code if it fails
    local start=$SECONDS code=0
    printf '\n$ hwnas %s\n' "$*"
    "$venv/bin/hwnas" "$@" || code=$?
    summary+=$(printf '%-8s %5d s' "$1" $((SECONDS - start)))$'\n'
    [ $code -eq 0 ] || { printf '\nhwnas %s failed with exit code %d\n' "$1" $code >&2; exit $code; }
}

verb doctor
verb profile $recipe --run "$run" "${data[@]}"
verb search $recipe --run "$run" --measure "${data[@]}" "${fps[@]}"
verb train "$run"
verb export "$run"
verb validate "$run"
printf '\neverything is in runs/%s/\n' "$run"
