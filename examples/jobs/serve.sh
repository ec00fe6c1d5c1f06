#!/usr/bin/env bash
# Serves a fleet as a Ray job: the job runs as long as the fleet serves, and ends it when it is stopped.
#   RAY_API_SERVER_ADDRESS=http://HEAD:8265 examples/jobs/serve.sh examples/laptop.yaml
#   ray job stop stafette
# The cluster's nodes need stafette installed (an image, or this checkout's venv).
set -euo pipefail

config=${1:?usage: serve.sh CONFIG.yaml [--set NAME=VALUE ...]}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp "$config" "$folder/fleet.yaml"

# The secrets travel with the job; without STAFETTE_TOKEN a new one is made for this start.
environment=$(python3 - <<'PY'
import json, os
names = ("STAFETTE_TOKEN", "STAFETTE_API_KEYS")
print(json.dumps({"env_vars": {name: os.environ[name] for name in names if name in os.environ}}))
PY
)
ray job submit --submission-id stafette --no-wait --working-dir "$folder" \
  --runtime-env-json "$environment" -- \
  "${STAFETTE:-stafette}" serve fleet.yaml "${@:2}"
