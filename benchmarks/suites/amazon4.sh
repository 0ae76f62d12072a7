#!/usr/bin/env bash
# amazon4: 4 specialists by domain, each the pretrained encoder fine-tuned; the student is the encoder's first two layers.
# ENCODER and DATA name an encoder and a folder of data sets beside the checkout.
set -euo pipefail
cd "$(dirname "$0")/../.."
encoder=${ENCODER:-../shared/models/minilm-l6-h384}
data=${DATA:-../shared/data}/amazon4
kinds=()
for _ in $(seq 4); do kinds+=(--kind "$encoder"); done
rlkd train-teachers --task "$data" "${kinds[@]}" --specialize domain --epochs 3 --max-length 128 \
    --output-dir runs/amazon4/teachers --resume
rlkd cache --task "$data" --teachers runs/amazon4/teachers --max-length 128 --output-dir runs/amazon4/cache
rlkd headroom --task "$data" --cache runs/amazon4/cache --json benchmarks/results/amazon4-headroom.json
rlkd train-policy --task "$data" --cache runs/amazon4/cache --student rlkd/bilstm --learning-rate 5e-3 --max-length 128 \
    --output-dir runs/amazon4/policy --resume
rlkd compare --task "$data" --cache runs/amazon4/cache --policy runs/amazon4/policy/policy \
    --student "$encoder" --num-layers 2 --max-steps 250 --batch-size 32 --learning-rate 2e-4 --max-length 128 \
    --jobs 2 --output-dir runs/amazon4/compare --resume
cp runs/amazon4/compare/runs.jsonl benchmarks/results/amazon4.jsonl
