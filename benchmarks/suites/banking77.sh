#!/usr/bin/env bash
# banking77: 3 specialists by class, each the pretrained encoder fine-tuned; the student is the encoder's first two layers.
# ENCODER and DATA name an encoder and a folder of data sets beside the checkout.
set -euo pipefail
cd "$(dirname "$0")/../.."
encoder=${ENCODER:-../shared/models/minilm-l6-h384}
data=${DATA:-../shared/data}/banking77
kinds=()
for _ in $(seq 3); do kinds+=(--kind "$encoder"); done
rlkd train-teachers --task "$data" "${kinds[@]}" --specialize class --epochs 5 --max-length 32 \
    --output-dir runs/banking77/teachers --resume
rlkd cache --task "$data" --teachers runs/banking77/teachers --max-length 32 --output-dir runs/banking77/cache
rlkd headroom --task "$data" --cache runs/banking77/cache --json benchmarks/results/banking77-headroom.json
rlkd train-policy --task "$data" --cache runs/banking77/cache --student rlkd/bilstm --learning-rate 5e-3 --max-length 32 \
    --output-dir runs/banking77/policy --resume
rlkd compare --task "$data" --cache runs/banking77/cache --policy runs/banking77/policy/policy \
    --student "$encoder" --num-layers 2 --max-steps 400 --batch-size 64 --learning-rate 5e-4 --max-length 32 \
    --jobs 2 --output-dir runs/banking77/compare --resume
cp runs/banking77/compare/runs.jsonl benchmarks/results/banking77.jsonl
