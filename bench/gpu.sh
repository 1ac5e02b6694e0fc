#!/bin/sh
# Tessera's server with torch engines against diffusers on one NVIDIA GPU, without a network:
#     bench/gpu.sh WHEELS_DIR [--tiny] [--minutes M]
# Needs Python 3.12 (or 3.11) with torch and transformers. The wheels of bench/gpu-wheels.txt that it lacks are taken
# from WHEELS_DIR; to fill that folder on a machine with a network:
#     pip download --only-binary=:all: --no-deps --python-version 3.12 -d WHEELS_DIR -r bench/gpu-wheels.txt
# PYTHON names the interpreter. The table comes last.
set -eu

if [ $# -lt 1 ] || [ ! -d "$1" ]; then
    echo "usage: bench/gpu.sh WHEELS_DIR [--tiny] [--minutes M]" >&2
    exit 2
fi
wheels=$(cd "$1" && pwd)
shift
root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${PYTHON:-python3}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# An environment of its own, as Triton's Python stub heeds no PYTHONPATH: the wheels come first (numpy 1.26 has to hide a newer
# one), then this checkout, then what is installed.
beside=$("$python" -c 'import site
for folder in site.getsitepackages() + [site.getusersitepackages()] * bool(site.ENABLE_USER_SITE):
    print(f"import site; site.addsitedir({folder!r})")')
"$python" -m venv --without-pip "$work/env"
if ls "$wheels"/*.whl >/dev/null 2>&1; then
    "$python" -m pip --python "$work/env/bin/python" install --quiet --no-index --no-deps --disable-pip-version-check "$wheels"/*.whl
fi
python="$work/env/bin/python"
{
    printf '%s\n' "$root/python_backend" "$root/build" "$root/client" "$root" "$beside"
} >"$("$python" -c 'import site; print(site.getsitepackages()[0])')/tessera.pth"
unset PYTHONPATH
"$python" - <<'CHECK'
import importlib.util, sys
needed = ("numpy torch transformers diffusers accelerate safetensors tokenizers onnx pydantic typer rich PIL tritonclient.http "
          "pytriton").split()
def missing(name):
    try:
        return importlib.util.find_spec(name) is None
    except ImportError:
        return True
lacking = [name for name in needed if missing(name)]
if lacking:
    sys.exit(f"bench/gpu.sh: these modules are missing, put their wheels into the folder: {', '.join(lacking)}")
import numpy
if int(numpy.__version__.split(".")[0]) > 1:
    sys.exit(f"bench/gpu.sh: numpy {numpy.__version__} does not work with this Triton; put the wheel of numpy 1.26.4 into the folder")
CHECK
cd "$work"
"$python" -m bench.gpu "$@" &
child=$!
trap 'kill "$child"; wait "$child"; exit 130' INT TERM
wait "$child"
