#!/usr/bin/env bash
# Fills an example's placeholders in, from the environment: fill.sh FILE.json
#   ACCOUNT=123456789012 REGION=eu-west-1 examples/ecs/fill.sh examples/ecs/head-task.json
# A placeholder that nothing is given for is named, and nothing is printed.
set -euo pipefail

file=${1:?usage: fill.sh FILE.json}
text=$(<"$file")
missing=()
for name in ACCOUNT REGION SUBNET SECURITY_GROUP HEAD_SERVICE TARGET_GROUP FILE_SYSTEM; do
  [[ $text =~ (^|[^A-Z_])$name([^A-Z_]|$) ]] || continue
  if [[ -z ${!name:-} ]]; then
    missing+=("$name")
    continue
  fi
  text=$(sed -E "s#(^|[^A-Z_])$name([^A-Z_]|\$)#\1${!name}\2#g" <<<"$text")
done
if ((${#missing[@]})); then
  echo "fill.sh: $file needs ${missing[*]} in the environment" >&2
  exit 1
fi
printf '%s\n' "$text"
