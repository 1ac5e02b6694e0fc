#!/bin/sh
# A picture with curl: sh examples/curl.sh [URL] [PICTURE]
# curl talks to the server. Python with Pillow turns the answer into a PNG; PYTHON names the interpreter.
set -eu
url=${1:-${TESSERA_URL:-http://localhost:8000}}
picture=${2:-curl.png}
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT

# The server can draw if the model `generate` is ready.
curl --fail --silent --show-error "$url/v2/models/generate/ready"

# Every tensor has a leading batch dimension of 1. Inputs that are left out get the bundle's defaults.
curl --fail-with-body --silent --show-error "$url/v2/models/generate/infer" --output "$answer" --data '{
  "inputs": [
    {"name": "PROMPT", "datatype": "BYTES", "shape": [1, 1],
     "data": ["a large green square in the center on a striped white background"]},
    {"name": "SEED", "datatype": "INT64", "shape": [1, 1], "data": [3]},
    {"name": "STEPS", "datatype": "INT32", "shape": [1, 1], "data": [10]},
    {"name": "JOB_ID", "datatype": "BYTES", "shape": [1, 1], "data": ["curl-example"]}
  ]
}'

# IMAGE is a flat list of UINT8, INFO a JSON text.
"${PYTHON:-python3}" - "$answer" "$picture" <<'END'
import json
import sys

from PIL import Image

with open(sys.argv[1]) as file:
    outputs = {output["name"]: output for output in json.load(file)["outputs"]}
_, height, width, _ = outputs["IMAGE"]["shape"]
Image.frombytes("RGB", (width, height), bytes(outputs["IMAGE"]["data"])).save(sys.argv[2])
print(outputs["INFO"]["data"][0])
END

# How the job went. While it runs, ACTION "cancel" would end it.
curl --fail --silent --show-error "$url/v2/models/jobs/infer" --data '{
  "inputs": [
    {"name": "ACTION", "datatype": "BYTES", "shape": [1, 1], "data": ["status"]},
    {"name": "JOB_ID", "datatype": "BYTES", "shape": [1, 1], "data": ["curl-example"]}
  ]
}'
