#!/usr/bin/env bash
# Measures the latency tables that ship in profiles/, for this machine: each recipe on each engine for the CPU.
# usage: scripts/make_profiles.sh [--replace] [RECIPE...]      (default: darts-quick)
#   --replace   write over tables of this device, engine and recipe that are there
# Run it again and it goes on where it stopped. Takes some minutes a table; leave the machine alone meanwhile.
set -uo pipefail

usage() { sed -n 's/^# \{0,1\}//; 2,5p' "${BASH_SOURCE[0]}"; }

replace=0 recipes=()
for argument in "$@"; do
    case "$argument" in
        -h | --help) usage; exit 0 ;;
        --replace) replace=1 ;;
        -*) echo "unknown argument $argument" >&2; usage >&2; exit 2 ;;
        *) recipes+=("$argument") ;;
    esac
done
[ ${#recipes[@]} -gt 0 ] || recipes=(darts-quick)

# shellcheck source=scripts/_setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
cd "$root" || exit 1

for recipe in "${recipes[@]}"; do
    for engine in onnxruntime openvino; do
        run=profiles-$engine-$recipe
        printf '\n$ hwnas profile %s --engine %s --run %s\n' "$recipe" "$engine" "$run"
        "$venv/bin/hwnas" profile "$recipe" --engine "$engine" --run "$run" || exit $?
        table=runs/$run/table.json
        name=$("$python" -c 'import sys; from pathlib import Path; from hwnas.latency import LatencyTable
print(LatencyTable.load(Path(sys.argv[1])).name)' "$table") || exit $?
        place=profiles/$name/$recipe.json
        if [ -e "$place" ] && [ $replace -eq 0 ] && ! cmp -s "$table" "$place"; then
            echo "$place is there already; --replace writes over it" >&2
            exit 2
        fi
        mkdir -p "$(dirname "$place")" && cp "$table" "$place.tmp" && mv "$place.tmp" "$place" || exit 1
        echo "$place"
    done
done
