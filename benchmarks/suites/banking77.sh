#!/usr/bin/env bash
# banking77: three specialists by class, each the pretrained encoder fine-tuned; the student is a small transformer.
# ENCODER and DATA name an encoder and a folder of data sets.
set -euo pipefail
cd "$(dirname "$0")/../.."
encoder=${ENCODER:-../shared/models/minilm-l6-h384}
data=${DATA:-../shared/data}/banking77
rlkd train-teachers --task "$data" --kind "$encoder" --kind "$encoder" --kind "$encoder" --specialize class \
    --epochs 5 --max-length 32 --output-dir runs/banking77/teachers --resume
rlkd cache --task "$data" --teachers runs/banking77/teachers --max-length 32 --output-dir runs/banking77/cache
rlkd headroom --task "$data" --cache runs/banking77/cache --json benchmarks/results/banking77-headroom.json
rlkd train-policy --task "$data" --cache runs/banking77/cache --student rlkd/bilstm --learning-rate 5e-3 \
    --max-length 32 --output-dir runs/banking77/policy --resume
rlkd compare --task "$data" --cache runs/banking77/cache --policy runs/banking77/policy/policy \
    --student rlkd/tiny --max-steps 600 --learning-rate 2e-3 --max-length 32 --jobs 2 \
    --output-dir runs/banking77/compare --resume
cp runs/banking77/compare/runs.jsonl benchmarks/results/banking77.jsonl
