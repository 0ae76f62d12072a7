#!/usr/bin/env bash
# amazon4: four specialists by domain, each the first three layers of the pretrained encoder fine-tuned; the student is
# a small transformer. ENCODER and DATA name an encoder and a folder of data sets.
set -euo pipefail
cd "$(dirname "$0")/../.."
encoder=${ENCODER:-../shared/models/minilm-l6-h384}
data=${DATA:-../shared/data}/amazon4
rlkd train-teachers --task "$data" --kind "$encoder" --kind "$encoder" --kind "$encoder" --kind "$encoder" \
    --specialize domain --num-layers 3 --epochs 2 --learning-rate 1e-4 --max-length 48 \
    --output-dir runs/amazon4/teachers --resume
rlkd cache --task "$data" --teachers runs/amazon4/teachers --max-length 48 --output-dir runs/amazon4/cache
rlkd headroom --task "$data" --cache runs/amazon4/cache --json benchmarks/results/amazon4-headroom.json
rlkd train-policy --task "$data" --cache runs/amazon4/cache --student rlkd/bilstm --learning-rate 5e-3 \
    --max-length 48 --output-dir runs/amazon4/policy --resume
rlkd compare --task "$data" --cache runs/amazon4/cache --policy runs/amazon4/policy/policy \
    --student rlkd/tiny --max-steps 300 --learning-rate 1e-3 --max-length 48 --jobs 2 \
    --output-dir runs/amazon4/compare --resume
cp runs/amazon4/compare/runs.jsonl benchmarks/results/amazon4.jsonl
