#!/bin/sh
# Make the two folders that are carried to a GPU without a network: bench/gpu/pack.sh [FOLDER] [--libpython FILE]
# They are FOLDER/carry-1 and FOLDER/carry-2, by default under out/. Needs an index of packages and Python 3.11 or later with pip.
set -eu
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" -m bench.gpu.pack "$@"
