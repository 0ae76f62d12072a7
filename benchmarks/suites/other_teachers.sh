#!/usr/bin/env bash
# The policy of the quick start, unchanged, on five other teachers of the same task; run quickstart.sh first.
set -euo pipefail
cd "$(dirname "$0")/../.."
rlkd train-teachers --task docstrings --kind tfidf --kind tfidf --kind tfidf --kind tfidf --kind tfidf \
    --specialize class --variant 1 --max-length 64 --output-dir runs/other/teachers --resume
rlkd cache --task docstrings --teachers runs/other/teachers --max-length 64 --output-dir runs/other/cache
rlkd headroom --task docstrings --cache runs/other/cache --json benchmarks/results/other_teachers-headroom.json
rlkd compare --task docstrings --cache runs/other/cache --policy runs/quickstart/policy/policy \
    --student rlkd/bilstm --max-steps 400 --learning-rate 5e-3 --max-length 64 --jobs 2 \
    --output-dir runs/other/compare --resume
cp runs/other/compare/runs.jsonl benchmarks/results/other_teachers.jsonl
