#!/usr/bin/env bash
# The policy of the quick start, unchanged, on two sets of five other teachers of the same task: five linear ones, and
# three linear ones with two networks. Run quickstart.sh first.
set -euo pipefail
cd "$(dirname "$0")/../.."
distil() {
    local name=$1
    shift
    rlkd train-teachers --task docstrings "$@" --specialize class --variant 1 --epochs 8 --max-length 64 \
        --output-dir "runs/$name/teachers" --resume
    rlkd cache --task docstrings --teachers "runs/$name/teachers" --max-length 64 --output-dir "runs/$name/cache"
    rlkd headroom --task docstrings --cache "runs/$name/cache" --json "benchmarks/results/$name-headroom.json"
    rlkd compare --task docstrings --cache "runs/$name/cache" --policy runs/quickstart/policy/policy \
        --student rlkd/bilstm --max-steps 400 --learning-rate 5e-3 --max-length 64 --jobs 2 \
        --output-dir "runs/$name/compare" --resume
    cp "runs/$name/compare/runs.jsonl" "benchmarks/results/$name.jsonl"
}
distil other_teachers --kind tfidf --kind tfidf --kind tfidf --kind tfidf --kind tfidf
distil other_teachers_mixed --kind tfidf --kind tfidf --kind tfidf --kind rlkd/bilstm --kind rlkd/bilstm
