#!/usr/bin/env bash
# The GPU's trainer as a user runs it, beside the CPU's: the same log, files that both read, resume, a teacher, errors.
#   test/test_gpt2_cuda.sh [GPU_TRAINER [CPU_TRAINER [GPU_TRAINER_FOR_MPIRUN]]]
# GPU_TRAINER is the GPU's trainer built for a CPU (test/cuda_on_cpu.h) or for a GPU; the third one has USE_NCCL=1.
set -u
unset CDPATH # cd would search it, and print where it went
cd "$(dirname "$0")/.." || exit 1
gpu=$(realpath "${1:-./test/test_train_gpt2_cuda}") cpu=$(realpath "${2:-./train_gpt2}") nccl=${3:+$(realpath "$3")} here=$PWD
. test/lib.sh
export OMP_NUM_THREADS=1
ldd "$gpu" | grep -q cublas || unset CUDA_VISIBLE_DEVICES # the GPUs of a CPU are others
for i in $(seq 60); do
    echo "Once there was a fox who had $i stones. Every day it gave $((i * 7 % 11)) of them away, and found $((i % 5)) more."
done >"$work/text.txt"
options="--data $work/text.txt --layers 2 --heads 2 --channels 16 --context 16 --batch 2 --lr 1e-2"
cd "$work" || exit 1

# two logs, but for the time: numbers that differ by at most a share of $3
logs_agree() {
    awk -F, -v most="$3" 'NR == FNR { line[FNR] = $0; next }
        { n = split(line[FNR], a, ",")
          if (n != NF) bad = 1
          for (i = 1; i <= NF; i++) if (i != 3 && a[i] != $i && ((a[i] == "") != ($i == "") || (a[i] - $i)^2 > most^2 * $i^2)) bad = 1 }
        END { exit bad || FNR < 3 || length(line) != FNR }' "$1/log.csv" "$2/log.csv"
}

"$cpu" $options --steps 8 --eval-every 4 --out c >c.txt
"$gpu" $options --steps 8 --eval-every 4 --f32 --out g >g.txt
ok "f32: another log than train_gpt2's" logs_agree c g 2e-5
"$gpu" $options --steps 8 --eval-every 4 --f32 --out twice >/dev/null
ok "the same run ends in other bits" cmp g/model.bin twice/model.bin
"$gpu" $options --steps 8 --eval-every 4 --out b >/dev/null
ok "bf16: another log than train_gpt2's" logs_agree c b 2e-2
"$cpu" --data text.txt --model g --steps 0 >read.txt
ok "train_gpt2 finds another loss in the GPU's model" [ "$(tail -n 1 read.txt)" = "$(tail -n 1 g.txt)" ]
"$gpu" --data text.txt --model c --steps 0 --f32 --export-hf hf >read.txt
ok "the GPU finds another loss in train_gpt2's model" [ "$(tail -n 1 read.txt)" = "$(tail -n 1 c.txt)" ]
"$cpu" --data text.txt --model hf --steps 0 >read.txt
ok "the exported folder has another loss" [ "$(tail -n 1 read.txt)" = "$(tail -n 1 c.txt)" ]

# cut after a few steps, by a signal
"$gpu" $options --steps 8 --eval-every 4 --f32 --out r --save-every 3 >r.txt &
pid=$!
await rows 2 r/log.csv
kill $pid
wait $pid
"$gpu" $options --steps 8 --eval-every 4 --f32 --out r --save-every 3 --resume >r.txt
ok "a resumed run ends in other bits" cmp g/model.bin r/model.bin
ok "a resumed run has another log" logs_agree g r 0
refuses 1 "another run" "$gpu" $options --steps 9 --f32 --out r --resume
ok "train_gpt2 goes on with a run in float32" "$cpu" $options --steps 8 --eval-every 4 --out r --resume
refuses 1 "another run: 'floats" "$cpu" $options --steps 8 --eval-every 4 --out b --resume

cp c/log.csv "$work/reference.csv"
tr e a <text.txt >changed.txt
for student in "--proxy text.txt --proxy-steps 2 --proxy-eta 5" "--schedule refined:reference.csv" "--distill soft" \
    "--val text.txt --proxy changed.txt --proxy-paired --proxy-average 0.5" \
    "--optimizer iam-adam" "--optimizer iam-adam --teacher-cache losses" "--optimizer gpa --accumulate 2" \
    "--optimizer muon" "--student-from c --layers 1 --freeze wte,h.0.ln* --clip 0.1"; do
    name=${student##*[ :]}
    rates="--teacher c --steps 4"
    grep -q iam <<<"$student" && rates="--teacher c --steps 4 --lr-cap 0.1"
    given=$options
    grep -q iam <<<"$student" && given=${options% --lr *}
    "$cpu" $given $rates $student --out "c_$name" >c.txt
    "$gpu" $given $rates $student --f32 --out "g_$name" >g.txt
    ok "$student: another log than train_gpt2's" logs_agree "c_$name" "g_$name" 1e-3
    ok "$student: another end than train_gpt2's" cmp -s <(tail -n 2 c.txt | cut -c 1-40) <(tail -n 2 g.txt | cut -c 1-40)
done
taught="${options% --lr *} --optimizer iam-adam --lr-cap 0.1 --steps 4 --f32"
"$gpu" $taught --teacher c --teacher-cache of_gpu --out kept >/dev/null
"$gpu" $taught --teacher-cache of_gpu --out from_losses >/dev/null
ok "another end from the teacher's losses" cmp kept/model.bin from_losses/model.bin
ok "another log from the teacher's losses" logs_agree kept from_losses 0
"$gpu" $options --steps 2 --sample-every 1 --seed 3 >sample.txt
ok "samples" [ "$(grep -c '^--- sample' sample.txt)" = 2 ]

refuses 1 "multiple of 8" "$gpu" $options --channels 20
refuses 1 "more --accumulate" "$gpu" $options --batch 40000
refuses 1 "no file" "$gpu" --data nothing.txt
refuses 2 "no option" "$gpu" $options --stesp 3
refuses 2 "needs --teacher" "$gpu" --data text.txt --optimizer sps
refuses 1 "cannot" "$gpu" $options --out text.txt/here
refuses 1 "not a number" "$gpu" $options --lr 1e30 --clip 0 --steps 20
if ldd "$gpu" | grep -q cublas; then skip "a GPU without memory: a real one has it"
else
    refuses 1 "smaller model or --batch" env CUDA_ON_CPU_MEMORY=40000000 "$gpu" $options --batch 2000
    refuses 1 "smaller model or --batch" env CUDA_ON_CPU_MEMORY=58000000 "$gpu" $options --channels 256 # the optimizer
fi

# several processes: the losses of one, checkpoints for any number
if [ "$nccl" ] && command -v mpirun >/dev/null; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    on() { mpirun --oversubscribe -n "$@"; }
    shared="--data text.txt --layers 2 --heads 2 --channels 16 --context 16 --batch 1 --steps 6 --eval-every 3 --accumulate 6 --f32 --lr 1e-3"
    without_bytes() { cut -d, -f 1-8 "$1/log.csv" >"$1/log" && mv "$1/log" "$1/log.csv"; }
    "$gpu" $shared --out one >/dev/null
    on 3 "$nccl" $shared --workers data --out three >three.txt
    # 6 gradients there and parameters back; 3 points of evaluation and 2 moments gathered
    ok "the bytes that three processes send" grep -q "^sent  *0.337" three.txt
    without_bytes three
    ok "three processes: another log than one's" logs_agree one three 1e-5
    bf16="${shared/--f32/} --lr 1e-2"
    "$gpu" $bf16 --out one_bf16 >/dev/null
    on 2 "$nccl" $bf16 --workers data --out two_bf16 >/dev/null
    without_bytes two_bf16
    ok "two processes, bf16: another log than one's" logs_agree one_bf16 two_bf16 3e-3
    # kill_saved NAME COMMAND...: kills a run, or its processes (mpirun cleans up after them), when it has saved
    kill_saved() {
        rm -f "$work"/pid.*
        "${@:2}" --out "$1" --save-every 2 >/dev/null 2>&1 &
        await [ -f "$1/state.bin" ]
        kill -KILL $(cat "$work"/pid.*)
        wait $! 2>/dev/null
    }
    resumes() { "$@" --resume | grep '^resumed  *at step' | grep -v -q 'step 40'; }
    long="${shared/--steps 6/--steps 40} --accumulate 2"
    averaged="--proxy text.txt --proxy-average 0.5"
    for how in "--optimizer adamw" "--optimizer gpa" "$averaged"; do "$gpu" $long $how --out "whole_${how##* }" >/dev/null; done
    kill_saved two on 2 "${known[@]}" "$nccl" $long --workers data
    ok "one process goes on from what two left" resumes "$gpu" $long --out two
    without_bytes two
    ok "resumed by one process: another log" logs_agree whole_adamw two 1e-5
    kill_saved proxied on 2 "${known[@]}" "$nccl" $long $averaged --workers data
    ok "one process goes on from what two left, with a proxy" resumes "$gpu" $long $averaged --out proxied
    without_bytes proxied
    ok "resumed by one process, with a proxy: another log" logs_agree whole_0.5 proxied 1e-5
    kill_saved one_gpa "${known[@]}" "$gpu" $long --optimizer gpa
    ok "two processes go on from what one left" resumes on 2 "$nccl" $long --optimizer gpa --workers data --out one_gpa
    without_bytes one_gpa
    ok "resumed by two processes: another log" logs_agree whole_gpa one_gpa 1e-5
    if [ -x "$here/train_gpt2_mpi" ]; then
        on 2 "$here/train_gpt2_mpi" $shared --workers diloco --inner-steps 2 --out c_diloco >/dev/null
        on 2 "$nccl" $shared --workers diloco --inner-steps 2 --out g_diloco >/dev/null
        without_bytes c_diloco; without_bytes g_diloco
        ok "DiLoCo: another log than train_gpt2_mpi's" logs_agree c_diloco g_diloco 1e-4
    fi
    refused() { on 2 "$nccl" $shared "${@:2}" 2>&1 | grep -q "^error: .*$1"; } # mpirun has more to say
    ok "processes that are not told how to share" refused "need --workers"
    ok "compression" refused "for CPUs" --workers diloco --compression int8
    if ! ldd "$gpu" | grep -q cublas; then
        began=$(date +%s)
        CUDA_ON_CPU_GPUS=1 ok "more processes than GPUs" refused "no GPU number 1" --workers data
        ok "is said at once" [ $(($(date +%s) - began)) -lt 10 ] # so long whoever dies waits for the others
    fi
fi

"$gpu" --help >help.txt
ok "--help" grep -q -- "--f32" help.txt
cd "$here" || exit 1
finish
