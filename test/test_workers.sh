#!/usr/bin/env bash
# Training by several processes: the same bits for any number of them, DiLoCo, dying workers, other numbers at
# resume. $TRAIN names the plain program, $TRAIN_MPI the one built with MPI.
set -u
. "$(dirname "$0")/lib.sh"
train=${TRAIN:-./train_gpt2}
train_mpi=${TRAIN_MPI:-./train_gpt2_mpi}
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_pml=ob1 # does not look for fast networks, which takes twice as long as most runs here

bottles >"$work/text.txt"
small=(--data "$work/text.txt" --layers 2 --heads 2 --channels 32 --context 16 --batch 4 --eval-every 10)
by=(mpirun -q --oversubscribe --bind-to none -n) # N COMMAND...: by N processes, more than there are cores
mpi() { "${by[@]}" "$@"; }
# All but the seconds and the bytes sent, and the model.
cells() { cut -d, -f1,2,4-8 "$1/log.csv"; }
same_run() { cmp "$1/model.bin" "$2/model.bin" && diff <(cells "$1") <(cells "$2"); }
sent() { tail -n 1 "$work/$1/log.csv" | cut -d, -f9; }
val() { tail -n 1 "$work/$1/log.csv" | cut -d, -f5; }
near() { # X Y OFF: X is there, and not further from Y
    awk -v x="$1" -v y="$2" -v off="$3" \
        'BEGIN { print x, y, off; exit !(x != "" && x - y <= off && y - x <= off) }'
}

# ---- data: the same bits as one process without MPI, for 12 micro-batches (one sum of a worker's travels, or
# two) and 7
ok "one process" "$train" "${small[@]}" --accumulate 12 --steps 12 --out "$work/one"
for n in 1 2 3 4; do
    ok "$n workers" mpi $n "$train_mpi" "${small[@]}" --accumulate 12 --steps 12 --workers data \
        --out "$work/data$n"
    ok "$n workers: the same bits" same_run "$work/one" "$work/data$n"
done
ok "7 micro-batches" "$train" "${small[@]}" --accumulate 7 --steps 4 --out "$work/seven"
ok "7 workers" mpi 7 "$train_mpi" "${small[@]}" --accumulate 7 --steps 4 --workers data --out "$work/data7"
cp "$work/last" "$work/data7.out"
ok "7 workers: the same bits" same_run "$work/seven" "$work/data7"
ok "only worker 0 prints" [ "$(grep -c '^final val loss' "$work/data7.out")" = 1 ]
tr e a <"$work/text.txt" >"$work/changed.txt"
for how in "--optimizer iam-adam --teacher $work/one --layers 1" "--proxy $work/text.txt --proxy-steps 3" \
    "--val $work/text.txt --proxy $work/changed.txt --proxy-paired --proxy-average 0.5"; do
    ok "one process, $how" "$train" "${small[@]}" --accumulate 4 --steps 6 $how --out "$work/how"
    ok "two workers, $how" mpi 2 "$train_mpi" "${small[@]}" --accumulate 4 --steps 6 $how --workers data \
        --out "$work/how2"
    ok "the same bits" same_run "$work/how" "$work/how2"
done

taught=("${small[@]}" --accumulate 4 --steps 6 --optimizer iam-adam --layers 1 --teacher-cache "$work/losses")
ok "two workers keep a teacher's losses" mpi 2 "$train_mpi" "${taught[@]}" --teacher "$work/one" \
    --workers data --out "$work/kept"
words=$(cut -d' ' -f1 "$work/losses" | tr '\n' ' ')
ok "all of them, once" [ "$words" = "teacher teacher data order 1 2 3 4 5 6 " ]
ok "two workers, from these" mpi 2 "$train_mpi" "${taught[@]}" --workers data --out "$work/how"
ok "the same bits" same_run "$work/kept" "$work/how"
ok "one process, from these" "$train" "${taught[@]}" --out "$work/how"
ok "the same bits" same_run "$work/kept" "$work/how"

# worker 0 alone reads and writes: the other has a folder of its own, where the teacher is all there is
here=$(realpath "$train_mpi")
mkdir "$work/w0" "$work/w1"
apart=("$here" "${small[@]}" --accumulate 2 --steps 4 --layers 1 --optimizer iam-adam --workers data
    --teacher "$work/one" --teacher-cache losses --out run --export-hf hf)
for more in "" --resume; do
    ok "each in a folder of its own $more" "${by[@]}" 1 -wdir "$work/w0" "${apart[@]}" $more \
        : -n 1 -wdir "$work/w1" "${apart[@]}" $more
done
ok "worker 0's checkpoint is enough" grep -q '^resumed  *at step 4' "$work/last"
ok "only worker 0 writes" [ -s "$work/w0/hf/model.safetensors" -a -z "$(ls -A "$work/w1")" ]

# ---- what travels: 2 (N-1)/N numbers of 4 bytes for each parameter, a little more for slices of equal length
parameters=$(tr -d '\r' <"$work/data7.out" | sed -n 's/.*: \([0-9]*\) parameters$/\1/p')
ok "log.csv has the bytes" [ "$(head -n 1 "$work/data7/log.csv" | cut -d, -f8-)" = grad_norm,bytes_sent ]
ok "bytes of 7 workers" near "$(sent data7)" $((parameters * 49 / 7)) $((parameters / 7))
ok "bytes of one" [ "$(sent data1)" = 0 ]
ok "bytes as MPI counts them" env -u OMPI_MCA_pml mpirun -q --oversubscribe --bind-to none \
    --mca pml_monitoring_enable 1 --mca pml_monitoring_enable_output 3 \
    --mca pml_monitoring_filename "$work/counted" -n 3 "$train_mpi" "${small[@]}" --accumulate 12 --steps 9 \
    --workers data
ours=$(tr -d '\r' <"$work/last" | awk '/^sent / { print $2 }')
theirs=$(cat "$work"/counted.*.prof | awk '$1 == "E" { bytes += $4 } END { print bytes / 3e6 }')
ok "are ours" near "$theirs" "$ours" 0.002

# ---- DiLoCo
inner=(--accumulate 4 --inner-steps 5 --steps 20)
ok "DiLoCo without MPI" "$train" "${small[@]}" "${inner[@]}" --optimizer diloco --out "$work/plain"
ok "one worker" mpi 1 "$train_mpi" "${small[@]}" "${inner[@]}" --workers diloco --out "$work/diloco1"
ok "one worker: the same bits" same_run "$work/plain" "$work/diloco1"
for n in 2 4; do
    ok "$n workers" mpi $n "$train_mpi" "${small[@]}" "${inner[@]}" --workers diloco --out "$work/diloco$n"
    ok "$n workers learn" awk -F, 'NR == 11 { first = $5 } { last = $5 } END { exit !(last < first) }' \
        "$work/diloco$n/log.csv"
done
outer=$(awk -F, 'NR > 1 && $9 > 1000 { printf "%s ", $1 }' "$work/diloco2/log.csv")
ok "nothing travels between outer steps" [ "$outer" = "5 10 15 20 " ]
ok "fewer steps than inner ones" mpi 2 "$train_mpi" "${small[@]}" "${inner[@]}" --steps 3 --workers diloco \
    --out "$work/short"
ok "end with an outer one" awk -F, 'NR == 2 { first = $4 } { last = $5 } END { exit !(last < first - 0.1) }' \
    "$work/short/log.csv"
ok "evaluated between outer steps" mpi 2 "$train_mpi" "${small[@]}" --accumulate 2 --steps 10 --eval-every 4 \
    --workers diloco --inner-steps 10 --out "$work/met"
ok "where they met last" awk -F, '$1 == 4 { a = $5 } $1 == 8 { b = $5 } END { exit !(a != "" && a == b) }' \
    "$work/met/log.csv"
# An outer step of 1 without momentum after one step of SGD is SGD with the mean gradient. What travels in 8
# or 16 bits hardly changes that (without error feedback int8 would be off by 0.002).
sgd=(--accumulate 2 --steps 100 --clip 0 --lr 1 --seed 3)
as_sgd=("${sgd[@]}" --workers diloco --optimizer diloco --base sgd --inner-steps 1 --outer-lr 1
    --outer-momentum 0)
ok "SGD" "$train" "${small[@]}" "${sgd[@]}" --optimizer sgd --out "$work/sgd"
for how in none,0.0001,8 bf16,0.0003,4 int8,0.0006,2; do
    IFS=, read -r compression error bytes <<<"$how"
    ok "SGD as DiLoCo, $compression" mpi 2 "$train_mpi" "${small[@]}" "${as_sgd[@]}" \
        --compression $compression --out "$work/$compression"
    ok "SGD as DiLoCo, $compression, is SGD" near "$(val $compression)" "$(val sgd)" $error
    ok "$compression: bytes" near "$(sent $compression)" $((parameters * bytes / 2 * 21 / 20)) \
        $((parameters * bytes / 40))
done

# ---- a worker that dies: the run ends at once, with one line where worker 0 can still speak; others go on
long=("${small[@]}" --accumulate 6 --steps 150)
ok "an unbroken run" "$train" "${long[@]}" --out "$work/whole"
killed() { # NAME VICTIM OPTIONS...: kills a worker after the first checkpoint
    local name=$1 victim=$2 run start
    shift 2
    "${by[@]}" 3 "${known[@]}" "$train_mpi" "${long[@]}" "$@" --out "$work/$name" >"$work/out" 2>"$work/err" &
    run=$!
    await [ -e "$work/$name/state.bin" ]
    kill -9 "$(cat "$work/pid.$victim")"
    start=$SECONDS
    wait $run
    ok "killed worker $victim: the run fails" [ $? != 0 ]
    ok "killed worker $victim: within seconds" [ $((SECONDS - start)) -le 10 ]
    ok "and has not come to its end" [ "$(wc -l <"$work/$name/log.csv")" -lt 151 ]
}
killed data 1 --workers data --save-every 10
ok "with one line" [ "$(grep -c ^error "$work/err")" = 1 ]
ok "of ours" grep -q '^error: a worker died' "$work/err"
ok "2 workers go on after 3" mpi 2 "$train_mpi" "${long[@]}" --workers data --out "$work/data" --resume
ok "to the same bits" same_run "$work/whole" "$work/data"
frozen=(--workers diloco --inner-steps 5 --freeze 'wpe,h.0.*')
killed diloco 0 "${frozen[@]}" --save-every 5
at=$(wc -l <"$work/diloco/log.csv")
ok "2 of DiLoCo go on after 3" mpi 2 "$train_mpi" "${long[@]}" "${frozen[@]}" --out "$work/diloco" --resume
ok "from the same loss" awk -F, -v at="$at" \
    'NR == 2 { first = $4 } NR == at + 1 { again = $4 } END { exit !(again < first) }' "$work/diloco/log.csv"
ok "and learn" near "$(val diloco)" 0.8 0.4
apart=(--workers diloco --inner-steps 140 --lr 1e-2 --warmup 0)
killed between 1 "${apart[@]}" --save-every 10
ok "2 go on between outer steps" mpi 2 "$train_mpi" "${long[@]}" "${apart[@]}" --out "$work/between" --resume
from=$(tr -d '\r' <"$work/last" | sed -n 's/^resumed  *at step \([0-9]*\) .*/\1/p')
ok "from where they met" awk -F, -v from="$from" '$1 == 1 { first = $4 } $1 == from { before = $4 }
    $1 == from + 1 { again = $4 } END { exit !(before < first - 0.1 && again > (first + before) / 2) }' \
    "$work/between/log.csv"
"${by[@]}" 2 "${known[@]}" "$train_mpi" "${long[@]}" --steps 100000 --workers diloco --inner-steps 50 \
    --eval-every 0 --out "$work/asked" >"$work/out" 2>"$work/err" &
await rows 60 "$work/asked/log.csv"
kill -TERM "$(cat "$work/pid.1")"
wait $!
ok "a signal to one worker stops all" [ $? = 0 ]
ok "with a checkpoint" [ -s "$work/asked/state.bin" ]
ok "where they meet" [ $((($(wc -l <"$work/asked/log.csv") - 1) % 50)) = 0 ]
ok "the start" "$train" "${small[@]}" --steps 0 --out "$work/start"
ok "frozen tensors are as they were" cmp -i $((1024 + 128 * 128)) -n $((16 * 128)) "$work/start/model.bin" \
    "$work/diloco/model.bin"
ok "and did not travel" near "$(sent diloco)" $((4 * (parameters - 16 * 32 - 12704))) 5000
rm -rf "$work/stopped"
"${by[@]}" 2 "$train_mpi" "${long[@]}" --workers data --out "$work/stopped" >"$work/out" 2>"$work/err" &
await rows 5 "$work/stopped/log.csv"
kill -TERM $!
wait $!
ok "mpirun, asked to stop, leaves a checkpoint" [ -s "$work/stopped/state.bin" ]
cp -r "$work/stopped" "$work/wider"
ok "one process goes on after 2" "$train" "${long[@]}" --out "$work/stopped" --resume
ok "to the same bits" same_run "$work/whole" "$work/stopped"
ok "whose log has all columns" [ "$(awk -F, '{ print NF }' "$work/stopped/log.csv" | sort -u)" = 8 ]
sed -i 's/,[^,]*$//' "$work/wider/log.csv" # as if one process had begun it
ok "2 go on after one" mpi 2 "$train_mpi" "${long[@]}" --workers data --out "$work/wider" --resume
ok "whose log has a column more" [ "$(awk -F, '{ print NF }' "$work/wider/log.csv" | sort -u)" = 9 ]
ok "and the same rows" same_run "$work/whole" "$work/wider"

# ---- refused, with one line in all
refuses 2 "need --workers" "${by[@]}" 2 "$train_mpi" "${small[@]}" --accumulate 2
refuses 2 "cannot share" "${by[@]}" 2 "$train_mpi" "${small[@]}" --accumulate 3 --workers data
refuses 2 "data|diloco" "${by[@]}" 2 "$train_mpi" "${small[@]}" --accumulate 2 --workers fsdp
refuses 2 "base" "${by[@]}" 2 "$train_mpi" "${small[@]}" --accumulate 2 --workers diloco --optimizer muon
refuses 2 "a teacher's loss" "${by[@]}" 2 "$train_mpi" "${small[@]}" --accumulate 2 --workers diloco \
    --teacher-cache "$work/losses"
refuses 2 "compression" "${by[@]}" 2 "$train_mpi" "${small[@]}" --accumulate 2 --workers data \
    --compression int8
refuses 2 "make train_gpt2_mpi" "$train" "${small[@]}" --workers data
refuses 1 "not a number" "${by[@]}" 2 "$train_mpi" "${small[@]}" --accumulate 2 --workers data \
    --steps 99 --clip 0 --optimizer sgd --lr 1e30
one=("$train_mpi" "${small[@]}" --accumulate 2 --workers data)
refuses 1 "worker 1 has other" "${by[@]}" 1 "${one[@]}" : -n 1 "${one[@]}" --seed 8
refuses 1 "worker 1 has other" "${by[@]}" 1 "${one[@]}" --out "$work/data" --resume : -n 1 "${one[@]}"
refuses 1 "worker 1 has other" "${by[@]}" 1 "${one[@]}" --eval-every 1 : -n 1 "${one[@]}" --eval-every 2
refuses 1 "worker 1 has other" "${by[@]}" 1 "${one[@]}" : -n 1 "${one[@]}" --eval-tokens 64
refuses 1 "worker 1 has other" "${by[@]}" 1 "${one[@]}" --val "$work/text.txt" \
    : -n 1 "${one[@]}" --val "$work/changed.txt"
met=("$train_mpi" "${small[@]}" "${as_sgd[@]}")
refuses 1 "worker 1 has other" "${by[@]}" 1 "${met[@]}" : -n 1 "${met[@]}" --compression int8
refuses 1 "worker 1 has other" "${by[@]}" 1 "${one[@]}" --optimizer diloco \
    : -n 1 "$train_mpi" "${small[@]}" --accumulate 2 --workers diloco
refuses 1 "worker 1 has other" "${by[@]}" 1 "$train_mpi" "${taught[@]}" --workers data --teacher "$work/one" \
    : -n 1 "$train_mpi" "${taught[@]}" --workers data
refuses 1 "worker 1 has other" "${by[@]}" 1 "$train_mpi" "${taught[@]}" --optimizer adamw --workers data \
    : -n 1 "$train_mpi" "${small[@]}" --accumulate 4 --steps 6 --layers 1 --workers data
cp -r "$work/one" "$work/w0/m" && cp -r "$work/start" "$work/w1/m"
from=("$here" --data "$work/text.txt" --batch 4 --accumulate 2 --workers data --model m)
refuses 1 "worker 1 has other" "${by[@]}" 1 -wdir "$work/w0" "${from[@]}" : -n 1 -wdir "$work/w1" "${from[@]}"
# However long it takes until all are ended: worker 0 as on a busy machine.
echo '#include <mpi.h>
#include <unistd.h>
int MPI_Abort(MPI_Comm all, int status) { return sleep(2), PMPI_Abort(all, status); }' >"$work/slow.c"
ok "a slow MPI_Abort" mpicc -shared -fPIC "$work/slow.c" -o "$work/slow.so"
refuses 2 "cannot share" "${by[@]}" 1 -x LD_PRELOAD="$work/slow.so" "${one[@]}" --accumulate 3 \
    : -n 1 "${one[@]}" --accumulate 3
refuses 1 "no file matches" "${by[@]}" 1 "${one[@]}" : -n 1 "${one[@]}" --data "$work/missing.txt"
finish
