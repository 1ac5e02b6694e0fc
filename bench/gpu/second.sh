#!/bin/sh
# Measure on an NVIDIA GPU without a network: bench/gpu/second.sh [CARRY] [--tiny] [--only STEP,...]
# CARRY is the folder that bench/gpu/pack.sh made; PYTHON names the interpreter. docs/internals/gpu.md explains it.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
exec "${PYTHON:-python3}" -m bench.gpu.start second "$@"
