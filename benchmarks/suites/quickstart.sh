#!/usr/bin/env bash
# The quick start: three specialists of the embedded text task, a policy, paired students.
set -euo pipefail
cd "$(dirname "$0")/../.."
rlkd quickstart --output-dir runs/quickstart --resume
cp runs/quickstart/runs.jsonl benchmarks/results/quickstart.jsonl
rlkd headroom --task docstrings --cache runs/quickstart/cache --json benchmarks/results/quickstart-headroom.json
