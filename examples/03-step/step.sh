#!/usr/bin/env bash
# STEP by flags: 4 layers, then 7 of which the 4 old ones are frozen behind adapters, then the merged model alone.
set -euo pipefail
out=${1:?usage: step.sh FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
script=$here/../01-plug-in/pretrain_gpt.py

model="--hidden-size 64 --ffn-hidden-size 168 --num-attention-heads 8 --normalization RMSNorm --swiglu
  --disable-bias-linear --position-embedding-type rope --untie-embeddings-and-output-weights --init-method-std 0.06
  --hidden-dropout 0 --attention-dropout 0 --seq-length 64 --max-position-embeddings 64"
data="--mock-data --tokenizer-type NullTokenizer --vocab-size 255 --num-workers 0"
training="--micro-batch-size 4 --global-batch-size 8 --lr-decay-style cosine --lr 5e-3 --min-lr 5e-4
  --lr-warmup-iters 4 --weight-decay 0.1 --clip-grad 1.0 --eval-iters 0 --eval-interval 1000 --log-interval 5
  --ckpt-format torch_dist --save-interval 1000 --growth-layer-spec local"

# `-m megatron_growth.backend.cpu` is for a host without a GPU; on GPUs give the script itself to torchrun.
run() { OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node "$1" -m megatron_growth.backend.cpu "$script" "${@:2}"; }

# shellcheck disable=SC2086
run 1 $model $data $training --num-layers 4 --train-iters 30 --save "$out/small"
run 2 $model $data $training --num-layers 7 --train-iters 25 --save "$out/step" \
  --tensor-model-parallel-size 2 --growth-from "$out/small" --growth-depth interpolate \
  --growth-method 'relora:rank=8,layers=[0,2,4,6],freeze_layers=true,reset_iterations=10,optimizer_reset=magnitude'
run 1 $model $data $training --num-layers 7 --train-iters 5 --load "$out/step" --finetune \
  --save "$out/after"
