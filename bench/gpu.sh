#!/usr/bin/env bash
# On a machine with a GPU, PyTorch, Triton and no network: install, check every kernel, compile, measure; in ten minutes.
#
#   bench/gpu.sh [FOLDER]      results go to FOLDER, bench/results/gpu by default
#
# PYTHON picks the interpreter, LIMIT the seconds that all of it may take. The exit code is 1 if a kernel is wrong, 3 if
# none is and not all could be checked in time, and 2 if nothing could be checked.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-570}
OUT=${1:-bench/results/gpu}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
status=0

left() { echo $((LIMIT - SECONDS)); }
say() { printf '\n[%3d s] %s\n' "$SECONDS" "$*"; }

say "installing"
# The machine's own PyTorch and build tools are used: nothing can be fetched there. The native code is not needed here.
if ! timeout --kill-after=5 "${BUILD:-90}" \
  "$PYTHON" -m pip install --quiet --no-build-isolation --no-deps --no-index -e . >"$OUT/install.log" 2>&1; then
  tail -n 3 "$OUT/install.log"
  say "pip could not install it; the sources are used where they lie, without native code"
  tree=$(mktemp -d)
  trap 'rm -rf "$tree"' EXIT
  cp -r orthokernels "$tree/"
  mkdir -p "$tree/orthokernels/csrc"
  for room in export edge bench csrc/cuda; do ln -s "$PWD/$room" "$tree/orthokernels/$room"; done
  export PYTHONPATH="$tree${PYTHONPATH:+:$PYTHONPATH}"
  cd "$tree" # python -m looks into the current folder first, and the sources there lack the rooms
fi
unset TRITON_INTERPRET
"$PYTHON" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || {
  echo "orthokernels: no CUDA device is visible to PyTorch; to try the suites without one:" \
    "python -m orthokernels.bench.gpu.start ops --device cpu --tiny." >&2
  exit 2
}

say "checking every kernel, and compiling all of them for this GPU"
target=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
timeout --kill-after=5 200 "$PYTHON" -m orthokernels.bench.gpu.start compile --targets "$target" \
  >"$OUT/compile.log" 2>&1 &
compiling=$!
# The check ends by itself, with what it found so far.
timeout --kill-after=5 200 "$PYTHON" -m orthokernels.bench.gpu.check --seconds 180 --out "$OUT" 2>&1 |
  tee "$OUT/check.log" || status=$?
if grep -q ^WRONG "$OUT/check.log"; then
  status=1
  say "a kernel is wrong: see check.json"
elif ((status == 3 || status == 124 || status == 137)); then
  status=3
  say "not every kernel was checked in time: nothing is known of the others"
elif ((status)); then
  status=2
  say "the check itself failed: $(tail -n 1 "$OUT/check.log" | cut -c1-200)"
fi
# Nothing else may run while something is timed.
wait "$compiling" && echo "compile: every kernel fits" || {
  echo "compile: not every kernel, or not with this Triton:"
  tail -n 3 "$OUT/compile.log"
}

# A suite's share of the time that is left, in percent; those behind take what one before did not need.
measure() {
  local suite=$1 share=$2 seconds
  seconds=$((($(left) - 15) * share / 100))
  if ((seconds < 20)); then
    say "$suite: no time is left"
    return
  fi
  say "measuring $suite, $seconds s"
  # The suite ends by itself; a compiler that does not is stopped, and what was written before stays.
  timeout --kill-after=5 $((seconds + 10)) "$PYTHON" -m orthokernels.bench.gpu.start "$suite" --out "$OUT" \
    --minutes "$("$PYTHON" -c "print(round($seconds / 60, 2))")" >"$OUT/$suite.log" 2>&1 ||
    echo "$suite ended early: $(tail -n 1 "$OUT/$suite.log" | cut -c1-200)"
}
measure ops 42
measure model 55
measure training 100

say "results in $OUT"
"$PYTHON" -m orthokernels.bench.gpu.report "$OUT" || true
exit "$status"
