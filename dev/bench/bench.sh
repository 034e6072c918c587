#!/usr/bin/env bash
# `make bench`: what this machine can do, and the share of it that training steps, matrix products, optimizers and
# decoding reach.
# Where PyTorch or OpenBLAS is installed it runs in turns with ours: A B A B A B, medians. About ten minutes.
# Called from the project's folder, after dev/bench/bench is built.
set -u
export LC_ALL=C # numbers have points, for awk, sort and printf
bench="env GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000} dev/bench/bench" # as the trainer sets it for itself
fails() { echo "error: $bench $* fails" >&2; exit 1; }
turns=${TURNS:-3}
torch=
python3 -c 'import torch' 2>/dev/null && torch=python3
median() { sort -n | awk '{ x[NR] = $1 } END { print x[int((NR + 1) / 2)] }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf (b > 0 ? "%.2f" : "-"), (b > 0 ? a / b : 0) }'; }
share() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.0f%%", 100 * a / b }'; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

read -r peak bandwidth < <($bench machine) || fails machine
[ -r /proc/cpuinfo ] && grep -m 1 'model name' /proc/cpuinfo | sed 's/.*: //'
echo "FMA peak $peak GFLOP/s, reads $bandwidth GB/s, $(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) cores"

echo
echo "training step (AdamW, clipping)     tok/s   GFLOP/s  of peak      MB | PyTorch tok/s       MB   ours/PyTorch, its better mode"
for model in 124M medium small; do
    : >"$work/ours" && : >"$work/torch"
    for ((i = 0; i < turns; i++)); do
        read -r speed flops memory < <($bench step $model) || fails step $model
        echo "$speed $flops $memory" >>"$work/ours"
        [ "$torch" ] && for mode in eager compiled; do # the better of the two counts
            $torch dev/bench/peer_torch.py $model $mode 2>/dev/null | sed "s/$/ $mode/" # nothing where it cannot compile
        done | sort -rn | head -n 1 >>"$work/torch"
    done
    speed=$(cut -d' ' -f1 "$work/ours" | median) flops=$(cut -d' ' -f2 "$work/ours" | median)
    memory=$(cut -d' ' -f3 "$work/ours" | median)
    peer=$(cut -d' ' -f1 "$work/torch" | median) peer_memory=$(cut -d' ' -f2 "$work/torch" | median)
    mode=$(cut -d' ' -f3 "$work/torch" | sort -u | xargs) # which was the better one
    printf '%-32s %8.0f  %8.1f  %7s  %6.0f | %13s %8s   %-4s %s\n' "$model" "$speed" "$flops" "$(share "$flops" "$peak")" "$memory" \
        "${peer:-$([ "$torch" ] && echo failed || echo not installed)}" "${peer_memory:--}" "$(ratio "$speed" "${peer:-0}")" "$mode"
done

echo
blas=
printf '#include <cblas.h>\nint main(void) { return 0; }\n' | ${CC:-gcc} -x c - -o /dev/null -lopenblas 2>/dev/null &&
    make -s dev/bench/bench_blas && blas=${bench}_blas
echo "matrix product                     M      N      K   GFLOP/s  of peak | OpenBLAS   ours/OpenBLAS"
for ((i = 0; ; i++)); do
    line=$($bench matmul $i) || fails matmul $i
    [ "$line" ] || break
    IFS='|' read -r what M N K _ <<<"$line"
    ours=$(for ((t = 0; t < turns; t++)); do
        $bench matmul $i | cut -d'|' -f5
        [ "$blas" ] && $blas matmul $i | cut -d'|' -f5 >>"$work/blas"
    done | median)
    peer=$([ "$blas" ] && median <"$work/blas")
    rm -f "$work/blas"
    printf '%-28s %7d %6d %6d  %8.1f  %7s | %8s   %s\n' "$what" "$M" "$N" "$K" "$ours" "$(share "$ours" "$peak")" "${peer:--}" \
        "$(ratio "$ours" "${peer:-0}")"
done

echo
echo "optimizer step, 124M parameters      s    GB moved   GB/s   of read bandwidth"
for optimizer in adamw gpa schedule-free prodigy; do
    read -r seconds gigabytes < <(for ((t = 0; t < turns; t++)); do $bench optim $optimizer; done | sort -n | head -n 1) || fails optim $optimizer
    awk -v n=$optimizer -v s="$seconds" -v g="$gigabytes" -v b="$bandwidth" \
        'BEGIN { printf "%-30s %8.3f  %8.2f  %6.1f   %.0f%%\n", n, s, g, g / s, 100 * g / s / b }'
done

echo
peer=
python3 -c 'import torch, transformers' 2>/dev/null && peer=python3
echo "plain decoding, 124M, one sequence   tok/s    GB/s   of read bandwidth | transformers tok/s   ours/theirs"
for kind in f32 bf16 int8; do
    : >"$work/ours" && : >"$work/peer"
    for ((t = 0; t < turns; t++)); do
        $bench decode $kind >>"$work/ours" || fails decode $kind
        [ "$peer" ] && $peer dev/bench/peer_transformers.py $kind >>"$work/peer" 2>/dev/null # int8: it has none
    done
    speed=$(cut -d' ' -f1 "$work/ours" | median) rate=$(cut -d' ' -f2 "$work/ours" | median)
    theirs=$(median <"$work/peer")
    printf '%-32s %8.1f  %6.1f   %-17s | %18s   %s\n' $kind "$speed" "$rate" "$(share "$rate" "$bandwidth")" "${theirs:--}" \
        "$(ratio "$speed" "${theirs:-0}")"
done
