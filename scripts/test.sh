#!/usr/bin/env bash
# Everything that must hold before a change goes in: lint, format, types, tests.
# usage: scripts/test.sh [--full]      --full: slow tests too, coverage, and published networks measured; some hours
set -uo pipefail

markers='not gpu and not slow'
coverage=()
case "${1-}" in
    '') ;;
    --full) markers='not gpu' coverage=(--cov --cov-report=term) ;; # it makes tests slower by a fifth
    *) echo "usage: scripts/test.sh [--full]" >&2; exit 2 ;;
esac

# shellcheck source=scripts/_setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
cd "$root" || exit 1

failed=0
summary=''
phase() { # phase NAME COMMAND...: every phase runs, whatever became of the one before
    local name=$1 start=$SECONDS verdict=ok
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    "$@" || { verdict="FAILED ($?)"; failed=1; }
    summary+=$(printf '%-9s %5d s  %s' "$name" $((SECONDS - start)) "$verdict")$'\n'
}

export OMP_NUM_THREADS=1 # one thread for each of the two test processes
# Beside the next phases: it takes a minute, and of one core.
building=$(mktemp)
trap 'rm -f "$building"' EXIT
bash scripts/build_pycuda.sh >"$building" 2>&1 & # by hand: it has no wheels
builder=$!
built() { wait "$builder"; local status=$?; cat "$building"; return $status; }

phase lint "$python" -m ruff check
phase format "$python" -m ruff format --check
phase types "$python" -m mypy
# The part for deployment boxes runs on Python 3.10 too: this finds calls into a newer standard library.
phase types310 "$python" -m mypy --python-version 3.10 hwnas/runtime
phase pycuda built
phase tests "$python" -m pytest -q -n 2 --dist worksteal -m "$markers" "${coverage[@]}"

if [ "$markers" = 'not gpu' ]; then # one after the other, with nothing beside them: they measure
    measured=$(mktemp -d)
    trap 'rm -rf "$building" "$measured"' EXIT
    for filters in 20 32 48; do
        phase "F=$filters" "$python" scripts/bench/published.py --filters "$filters" --networks 5 --visits 5 \
            --require 5 --folder "$measured"
    done
fi

printf '\n%s' "$summary"
exit $failed
