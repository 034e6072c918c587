#!/usr/bin/env bash
# Checks and measures train_gpt2.cu on a machine with an NVIDIA GPU, in less than ten minutes and without a network.
#   dev/gpu_check.sh [REPORT_DIR]          default: gpu_report; report.txt there is the summary, beside it every output
#   PEAK=312      peak TFLOP/s of the card's bf16 (dense), for MFU, where the table below does not know the card
#   GOLDEN=DIR    more golden folders than test/golden/gpt2_tiny: those in DIR
#   LIMIT=570     seconds it may take
# Needs nvcc, cuBLAS and make; uses ncu and compute-sanitizer where they are installed, PyTorch beside us where python3
# has it, and all GPUs of the machine where NCCL and Open MPI are.
set -u
export LC_ALL=C # numbers have points, for awk, sort and printf
unset CDPATH # cd would search it, and print where it went
cd "$(dirname "$0")/.." || exit 1
report=${1:-gpu_report}
mkdir -p "$report"
report=$(realpath "$report")
work=$(mktemp -d) || exit 1
sampler=
trap '[ ! "$sampler" ] || kill $sampler; rm -rf "$work"' EXIT
began=$SECONDS failures=0
gpu=./train_gpt2cu cpu=./train_gpt2 golden_test=./test/test_gpt2_cuda_gpu

say() { printf '%s\n' "$*" | tee -a "$report/report.txt"; }
fail() { failures=$((failures + 1)) && say "FAILED: $*"; }
left() { echo $((${LIMIT:-570} - (SECONDS - began))); } # seconds
: >"$report/report.txt"

# ---- the machine
name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
[ -n "$name" ] || { say "FAILED: nvidia-smi finds no GPU"; exit 1; }
nvidia-smi >"$report/nvidia-smi.txt" 2>&1
say "GPU        $name, $(nvidia-smi --query-gpu=memory.total,driver_version --format=csv,noheader | head -n 1)"
case $name in # dense bf16 TFLOP/s, from NVIDIA's data sheets
    *B200*) peak=2250 ;; *H200* | *H100*SXM* | *H100*HBM3*) peak=989 ;; *H100*) peak=756 ;; *A100*) peak=312 ;;
    *L40S*) peak=362 ;; *L40*) peak=181 ;; *L4*) peak=121 ;; *A10G*) peak=70 ;; *A10*) peak=125 ;; *4090*) peak=165 ;; *3090*) peak=71 ;; *) peak= ;;
esac
peak=${PEAK:-$peak}

# ---- build
gpus=$(nvidia-smi --query-gpu=name --format=csv,noheader | wc -l) several=
if [ "$gpus" -gt 1 ] && command -v mpirun >/dev/null && command -v mpicxx >/dev/null &&
    echo '#include <nccl.h>' | "${NVCC:-nvcc}" -x cu -E - >/dev/null 2>&1; then several="USE_NCCL=1 USE_MPI=1"; fi
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
if ! make -j CUDA_ARCH="$arch" $several train_gpt2 train_gpt2cu test/test_gpt2_cuda_gpu dev/data/tales.txt >"$report/build.txt" 2>&1; then
    fail "the build; see build.txt"
    exit 1
fi
say "build      $(grep -c -i warning "$report/build.txt") warnings, $((SECONDS - began)) seconds"

# ---- golden files, every kernel and every optimizer on the device
goldens=(test/golden/gpt2_tiny)
if [ -n "${GOLDEN:-}" ]; then
    for folder in "$GOLDEN"/*/; do [ ! -f "$folder/state.bin" ] || goldens+=("${folder%/}"); done
    [ ${#goldens[@]} -gt 1 ] || fail "GOLDEN=$GOLDEN has no golden folders"
fi
$golden_test "${goldens[@]}" >"$report/golden.txt" 2>&1 || fail "test_gpt2_cuda_gpu; see golden.txt"
say "goldens    $(tail -n 1 "$report/golden.txt")"
grep -h '^golden' "$report/golden.txt" | while read -r line; do say "           $line"; done

# ---- 50 steps beside the CPU's trainer
largest_difference() { # largest_difference RUN RUN: of a step's loss
    awk -F, 'NR == FNR { a[FNR] = $4; next } FNR > 1 { d = a[FNR] - $4; d = d < 0 ? -d : d; if (d > most) most = d }
        END { printf "%.6f", FNR < 51 ? 9 : most }' "$1/log.csv" "$2/log.csv"
}
options=(--data dev/data/tales.txt --layers 4 --heads 4 --channels 128 --context 64 --batch 12 --steps 50
    --eval-tokens 4096)
$cpu "${options[@]}" --out "$work/cpu" >"$report/steps_cpu.txt" 2>&1 || fail "train_gpt2"
for precision in --f32 ""; do
    $gpu "${options[@]}" $precision --out "$work/gpu$precision" >"$report/steps_gpu$precision.txt" 2>&1 ||
        fail "train_gpt2cu $precision"
    difference=$(largest_difference "$work/cpu" "$work/gpu$precision")
    cp "$work/gpu$precision/log.csv" "$report/log_gpu$precision.csv"
    say "50 steps   ${precision:-bf16}: largest difference of a step's loss from the CPU's: $difference"
    awk -v d="$difference" -v f32="$precision" 'BEGIN { exit !(d < (f32 ? 0.001 : 0.05)) }' || fail "the losses of 50 steps"
done
$gpu "${options[@]}" --out "$work/again" >/dev/null 2>&1
cmp -s "$work/gpu/model.bin" "$work/again/model.bin" && say "twice      the same bits" || fail "the same run twice gives other bits"

# ---- all GPUs: the losses of one
if [ "$several" ]; then
    FULL=1 mpirun -n "$gpus" $golden_test >"$report/golden_all.txt" 2>&1 || fail "test_gpt2_cuda_gpu on $gpus GPUs; see golden_all.txt"
    on_all="mpirun -n $gpus $gpu --workers data"
    $gpu "${options[@]}" --f32 --accumulate "$gpus" --out "$work/one" >/dev/null 2>&1 || fail "one GPU"
    $on_all "${options[@]}" --f32 --accumulate "$gpus" --out "$work/all" >"$report/steps_all.txt" 2>&1 ||
        fail "$gpus GPUs"
    difference=$(largest_difference "$work/one" "$work/all")
    say "$gpus GPUs     largest difference of a step's loss from one GPU's: $difference"
    awk -v d="$difference" 'BEGIN { exit !(d < 0.001) }' || fail "the losses of $gpus GPUs"
elif [ "$gpus" -gt 1 ]; then say "$gpus GPUs     one is measured: NCCL or Open MPI is not installed"
fi

# ---- speed for 124M. Tokens: the bytes of an ASCII text, two a token, all below 32640; header: llm.c's magic, version, count
shard=$work/tokens.bin count=$(($(wc -c <dev/data/tales.txt) / 2))
{
    printf '\210\330\064\001\001\000\000\000'
    for shift in 0 8 16 24; do printf "\\$(printf '%03o' $((count >> shift & 255)))"; done
    head -c 1012 /dev/zero
    head -c $((2 * count)) dev/data/tales.txt
} >"$shard"
model=(--data "$shard" --layers 12 --heads 12 --channels 768 --context 1024 --eval-tokens 1024 --warmup 10 --lr 6e-4)
# measure BATCH STEPS [OPTION...]: sets speed (tokens/s after the first third), seconds (of a step), memory (MiB); 1: it
# does not fit, or failed, which is counted
measure() {
    local batch=$1 steps=$2
    shift 2
    rm -rf "$work/run"
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 200 >"$work/memory" 2>/dev/null &
    sampler=$!
    timeout "$(left)" ${trainer:-$gpu} "${model[@]}" --batch "$batch" --steps "$steps" --out "$work/run" "$@" \
        >"$work/run.txt" 2>&1
    local code=$?
    kill $sampler
    wait $sampler 2>/dev/null
    sampler=
    memory=$(sort -n "$work/memory" | tail -n 1)
    if [ $code != 0 ]; then
        cat "$work/run.txt" >>"$report/speed.txt"
        grep -q 'smaller model or --batch' "$work/run.txt" || fail "124M, batch $batch $*: exit $code; see speed.txt"
        return 1
    fi
    read -r speed seconds < <(awk -F, -v third=$((steps / 3)) -v last=$((steps - 1)) '
        $1 == third { t = $2; s = $3 } $1 == last { print ($2 - t) / ($3 - s), ($3 - s) / (last - third) }' "$work/run/log.csv")
    echo "batch $batch $*: $speed tokens/s, $seconds s a step, $memory MiB" >>"$report/speed.txt"
}
: >"$report/speed.txt"
flops=$((6 * 123532032 + 6 * 12 * 768 * 1024)) # a token, as train_gpt2.c counts: of weights that multiply
best=
for batch in 32 64 128 16 8 4 2; do
    [ "$(left)" -gt 150 ] || break
    [ -n "$best" ] && [ $batch -lt 32 ] && break
    measure $batch 30 || { say "124M       B $batch does not fit"; [ -n "$best" ] && break; continue; }
    best=$batch
    say "124M       B $batch x 1024: $(awk -v s="$speed" -v f=$flops -v p="${peak:-0}" 'BEGIN {
        printf "%.0f tokens/s, %.1f TFLOP/s", s, s * f / 1e12; if (p > 0) printf ", %.1f%% of the peak", s * f / p / 1e10 }'), $memory MiB"
done
[ -n "$best" ] || fail "124M fits with no batch, or no time was left"
if [ "$several" ] && [ -n "$best" ] && [ "$(left)" -gt 140 ]; then
    trainer=$on_all measure "$best" 30 --accumulate "$gpus" &&
        say "124M       $gpus GPUs, B $best x 1024 each: $(printf '%.0f' "$speed") tokens/s"
fi

# ---- optimizers: a step of one micro-batch of one sequence, less the time that a second micro-batch takes
for optimizer in adamw "gpa --optimizer gpa" "schedule-free --optimizer schedule-free" "muon --optimizer muon"; do
    [ "$(left)" -gt 120 ] || break
    read -r label option <<<"$optimizer"
    measure 1 60 --seq-len 64 $option && one=$seconds && measure 1 60 --seq-len 64 --accumulate 2 $option &&
        say "optimizer  $label: $(awk -v one="$one" -v two="$seconds" -v label="$label" 'BEGIN { t = 2 * one - two
            printf "%.2f ms", 1e3 * t; if (label == "adamw") printf ", 38 bytes a parameter: %.0f GB/s", 38 * 124.44e6 / t / 1e9 }')"
done

# ---- PyTorch: the same step, bf16, compiled
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null && [ "$(left)" -gt 110 ] && [ -n "$best" ]; then
    batch=$((best < 32 ? best : 32))
    peer=$(timeout "$(($(left) - 60))" python3 dev/bench/peer_torch.py 124M-gpu compiled 5 $batch 2>"$report/peer.txt") &&
        say "PyTorch    B $batch x 1024, compiled: ${peer% *} tokens/s, ${peer#* } MB" || say "PyTorch    see peer.txt"
fi

# ---- each kernel's share of the time
if command -v ncu >/dev/null && [ "$(left)" -gt 60 ] && [ -n "$best" ]; then
    timeout "$(($(left) - 30))" ncu --clock-control none --metrics gpu__time_duration.sum --csv --print-units base \
        --log-file "$report/kernels.csv" $gpu "${model[@]}" --batch $((best < 32 ? best : 32)) --steps 3 \
        --out "$work/profile" >"$report/ncu.txt" 2>&1 || say "kernels    ncu failed; see ncu.txt"
    # a line a launch; the last field is its time in ns, with commas, and the fifth the kernel and its parameters.
    # Not counted is the first launch of each kernel, for which memory comes to the GPU.
    awk -F'","' '$NF ~ /^[0-9,.]+"/ { name = $5; sub(/\(.*/, "", name); sub(/^void /, "", name); time = $NF; gsub(/[",]/, "", time)
            if (!launches[name]++) next
            total += time; of[name] += time }
        END { for (name in of) printf "%5.1f%% %8.2f ms %6d launches  %s\n", 100 * of[name] / total, of[name] / 1e6, launches[name] - 1, name
            printf "%5.1f%% %8.2f ms in all\n", 100, total / 1e6 }' "$report/kernels.csv" | sort -rn >"$report/kernels.txt"
    say "kernels    of 3 steps (kernels.txt):"
    head -n 16 "$report/kernels.txt" | cut -c 1-140 | while read -r line; do say "           $line"; done
else say "kernels    ncu is not installed, or no time was left"; fi

# ---- files, resume, teachers, proxies and errors, beside the CPU's trainer
if [ "$(left)" -gt 130 ]; then
    timeout "$(($(left) - 40))" bash test/test_gpt2_cuda.sh $gpu $cpu >"$report/trainer.txt" 2>&1 ||
        fail "test_gpt2_cuda.sh; see trainer.txt"
    say "trainer    $(tail -n 1 "$report/trainer.txt")"
else say "trainer    no time was left"; fi

# ---- memory errors and races
for tool in memcheck racecheck; do
    if ! command -v compute-sanitizer >/dev/null; then say "$tool   compute-sanitizer is not installed"
    elif [ "$(left)" -lt 40 ]; then say "$tool   no time was left"
    else
        timeout "$(($(left) / 2))" compute-sanitizer --tool $tool --error-exitcode 9 $gpu --data dev/data/tales.txt --layers 2 --heads 2 \
            --channels 128 --context 80 --batch 2 --steps 2 --eval-tokens 200 --tokenizer bytes >"$report/$tool.txt" 2>&1
        code=$?
        [ $code = 124 ] && say "$tool   not finished in time" || { [ $code = 0 ] || fail "$tool; see $tool.txt"; say "$tool   $(tail -n 1 "$report/$tool.txt")"; }
    fi
done
say "$failures failures, $((SECONDS - began)) seconds; the report is in $report"
[ $failures = 0 ]
