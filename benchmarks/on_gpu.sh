#!/bin/sh
# Everything that docs/benchmarks.md wants from a GPU, most wanted first, about 40 minutes on an H100.
#
#   sh benchmarks/on_gpu.sh OUT [--quick]      from the root of the repository; PYTHON=... for another interpreter than .venv's
#
# Every part runs by itself into OUT/NAME.log and OUT/NAME.json, with a limit of its own: one that fails or takes too long
# costs the others nothing. --quick: the least of each part at the demo's sizes, on any machine: does it all run?

set -u
OUT=${1:?usage: sh benchmarks/on_gpu.sh OUT [--quick]}
PYTHON=${PYTHON:-.venv/bin/python}
mkdir -p "$OUT"
if [ "${2:-}" = --quick ]; then
    SIZE=demo ONE="--seconds 0.1 --repeats 1" PICTURES=2 STEPS=2 SCALING="--trials 1000 --batches 8 --lengths 512"
    PHASE1=8 SMALL=2 LARGE=4 DRAWN=2
else
    SIZE=paper ONE="" PICTURES=2000 STEPS=5,10,15,20,25,50 SCALING=""
    PHASE1=250 SMALL=16 LARGE=128 DRAWN=125
fi

part() { # NAME MINUTES COMMAND...
    name=$1 minutes=$2
    shift 2
    began=$(date +%s)
    timeout "$((60 * minutes))" "$PYTHON" "$@" > "$OUT/$name.log" 2>&1
    status=$?
    echo "$name: exit $status after $(($(date +%s) - began)) s" | tee -a "$OUT/parts.txt"
}

measure() { # NAME MINUTES OPTIONS OF cadiff benchmark...
    name=$1 minutes=$2
    shift 2
    # shellcheck disable=SC2086  ONE is several words
    part "$name" "$minutes" -m cadiff benchmark "$@" --size "$SIZE" $ONE --json "$OUT/$name.json"
}

part tests 5 -m pytest -q -n0 tests/test_graphs.py tests/test_precision.py tests/test_fake_cuda.py tests/diffuse/test_drawing_precision.py
measure phase-1 4 contrast --batch "$PHASE1" --profile "$OUT/phase-1"
measure phase-2 4 attend --batch "$SMALL" --batch "$LARGE"
measure drawing 6 reconstruct --batch "$DRAWN"
measure tuning 4 diffuse --batch 5 --batch 25 --profile "$OUT/tuning"
measure tuning-compiled 8 diffuse --batch 5 --batch 25 --compile
measure rest 4 evaluate data
part solvers 10 benchmarks/solver_quality.py --pictures "$PICTURES" --steps "$STEPS" --out "$OUT/solvers"
# shellcheck disable=SC2086
part scaling 5 benchmarks/scaling.py --size "$SIZE" $SCALING --json "$OUT/scaling.json"
! grep -qv "exit 0" "$OUT/parts.txt"
