#!/usr/bin/env bash
# Federated training as a user runs it: convergence with delays and attackers, the same numbers from threads
# and from ranks of MPI, clients that send NaN or nothing, refused input. $FEDERATED and $FEDERATED_MPI name
# the programs.
set -u
. "$(dirname "$0")/lib.sh"
federated=${FEDERATED:-./dev/federated}
federated_mpi=${FEDERATED_MPI:-./dev/federated_mpi}
export OMP_NUM_THREADS=1

# loss LOW HIGH COMMAND...: the final mean loss lies between.
loss() {
    local low=$1 high=$2
    shift 2
    "$@" >"$work/run" 2>&1 || { cat "$work/run"; return 1; }
    tail -n 1 "$work/run"
    awk -v low="$low" -v high="$high" '/^final mean loss/ { x = $4 + 0; found = 1 }
        END { exit !(found && x >= low && x <= high) }' "$work/run"
}
convex() { "$federated" --convex --eval-every 0 "$@"; }

# ---- the convex problem: FFGG finds the exact solution, whatever local steps, delays and attackers do
ok "FFGG" loss 0 1e-11 convex --rounds 300
ok "five local steps" loss 0 1e-11 convex --rounds 300 --local-steps 5
ok "the mean of their gradients" loss 0 1e-11 convex --rounds 300 --local-steps 5 --mean-gradient
ok "where no w suits all, too" loss 0 1e-11 convex --rounds 300 --local-steps 5 --mean-gradient --misfit 1
still=(convex --rounds 20 --local-steps 3 --client-lr 1e-30) # b stands still: the four are the same
end_of() { "$@" | grep '^final mean loss'; }
same_end() { [ "$1" ] && [ "$2" ] && [ "$1" = "$2" ]; }
other_end() { [ "$1" ] && [ "$2" ] && [ "$1" != "$2" ]; }
ok "is the last one where b stands still" same_end "$(end_of "${still[@]}")" "$(end_of "${still[@]}" --mean-gradient)"
moving=("${still[@]:0:5}")
ok "and another where b moves" other_end "$(end_of "${moving[@]}")" "$(end_of "${moving[@]}" --mean-gradient)"
ok "asynchronous, delays up to 20 rounds" loss 0 1e-11 convex --rounds 300 --delay 20 --async 1
for aggregate in median trimmed geometric-median clipping; do
    ok "buckets, $aggregate" loss 0 1e-11 convex --rounds 300 --attackers 0.2 --bucket 2 \
        --aggregate $aggregate
done
for attack in sign-flip noise little; do
    for aggregate in median trimmed geometric-median clipping; do
        ok "40% $attack, $aggregate" loss 0 1e-11 convex --rounds 400 --attackers 0.4 --attack $attack \
            --aggregate $aggregate
    done
done
ok "20% attackers and delays" loss 0 1e-11 convex --rounds 400 --attackers 0.2 --aggregate geometric-median \
    --delay 20 --async 10
read -ra example <<<"$("$federated" --help | sed -n 's/^ *[^ ]*federated \(--convex.*--async [0-9]*\)$/\1/p')"
ok "--help's example of attackers and delays" loss 0 1e-11 "$federated" "${example[@]}"
ok "has stale answers" grep -q 'stale 0.[1-9].* at most [1-9]' "$work/run"
ok "the mean does not survive them" loss 1 inf convex --rounds 300 --attackers 0.2 --attack noise
ok "FedAvg stalls" loss 1 inf convex --rounds 300 --method fedavg --local-steps 5
same_loss() { same_end "$(end_of convex --rounds 20 $1)" "$(end_of convex --rounds 20 $2)"; }
ok "who names the usual optimizers changes nothing" same_loss "" "--server-optimizer sgd --client-optimizer sgd"
ok "nor with FedAvg" same_loss "--method fedavg" "--method fedavg --server-optimizer sgd"
ok "another has its own rate, which is not ours" same_loss "--server-optimizer prodigy" \
    "--server-optimizer prodigy --server-lr 1"
ok "nor is the clients'" same_loss "--client-optimizer adamw --client-lr 1e-3" "--client-optimizer adamw"
ok "clipped to nothing nobody moves" same_loss "--clip 1e-12" "--client-lr 1e-30 --server-lr 1e-30"
other_loss() { other_end "$(end_of convex --rounds 20 $1)" "$(end_of convex --rounds 20 $2)"; }
ok "a rate that falls is another" other_loss "--rounds 3" "--rounds 3 --schedule linear"
ok "the rate of fine-tuning counts" other_loss "--rounds 2 --finetune 3 --finetune-lr 0.1" "--rounds 2 --finetune 3 --finetune-lr 0.2"
ok "an average is evaluated where it is" other_loss "--server-optimizer schedule-free-sgd --server-lr 0.1" \
    "--server-optimizer schedule-free-sgd --server-lr 0.1 --server-beta1 0.5"
ok "a client alone does not find it" loss 0.1 inf convex --rounds 300 --method local --local-steps 5
ok "where no w suits all, synchronous FFGG is exact" loss 0 1e-11 convex --rounds 300 --misfit 1
ok "but not with delays" loss 1e-4 inf convex --rounds 300 --misfit 1 --delay 20 --async 1
ok "and local steps on w drift" loss 1e-4 inf convex --rounds 300 --misfit 1 --method fedavg --private b \
    --local-steps 5

# ---- clients that fail
ok "a client that sends NaN is not listened to" loss 0 1e-11 convex --rounds 300 --attackers 0.05 --attack nan
ok "and counted" grep -q '300 refused' "$work/run"
ok "one that never answers is given up" loss 0 1e-11 convex --rounds 300 --attackers 0.05 --attack silent \
    --deadline 3
ok "and counted" grep -q '300 given up' "$work/run"
ok "neither fills a bucket" loss 0 1e-11 convex --rounds 300 --attackers 0.3 --attack nan --bucket 2
ok "asynchronous, too" loss 0 1e-11 convex --rounds 300 --attackers 0.2 --attack silent --deadline 10 \
    --async 1 --delay 5
refuses 1 "never answers" "$federated" --convex --attackers 0.05 --attack silent
refuses 1 "anything usable\|not a number" "$federated" --convex --max-clients 2 --method fedavg \
    --client-lr 1e30
refuses 1 "diverges" "$federated" --convex --client-lr 1e4

# ---- texts: speakers who share a grammar, each with words of their own; the same as books
awk -v play="$work/play.txt" -v books="$work/books.txt" '
    BEGIN {
        split("sword crown anchor sail apple plough drum flute stone brick silk wool", word)
        for (i = 0; i < 1500; i++) {
            who = i % 6
            line = ""
            for (j = 0; j < 3; j++) {
                k = int(i * 7919 % 1009 / 4) + j * 3
                line = line "the " word[2 * who + 1 + k % 2] " is " (k % 5 < 2 ? "near" : "far")
                line = line (j < 2 ? " and " : ".")
            }
            print "SPEAKER " who ":\n" line "\n" >play
            printf "B%c%d:%d %s\n", 97 + who, i, j, line >books
        }
    }'
text=(--data "$work/play.txt" --channels 16 --context 16 --eval-every 20 --seed 4)
ok "speakers" "$federated" "${text[@]}" --rounds 40 --out "$work/a"
cp "$work/last" "$work/a.out"
ok "six of them" grep -q '^clients    6,' "$work/a.out"
header=round,time,steps,bytes_up,bytes_down,stale_mean,stale_max,refused,missed,mean_loss,worst_loss
ok "log.csv's header" [ "$(head -n 1 "$work/a/log.csv")" = $header ]
ok "a row at the start and every 20 rounds" [ "$(wc -l <"$work/a/log.csv")" = 4 ]
ok "the worst loss is the largest" awk -F, 'FILENAME ~ /clients/ && FNR > 1 { n++; sum += $4; if ($4 > most) most = $4 }
    FILENAME ~ /log/ { mean = $10; worst = $11 }
    END { exit !(most > sum / n && (most / worst - 1) ^ 2 < 1e-8 && (sum / n / mean - 1) ^ 2 < 1e-8) }' "$work/a/log.csv" "$work/a/clients.csv"
ok "each client's loss" [ "$(grep -cE '^SPEAKER [0-5],[0-9]+,0,[0-9.]+$' "$work/a/clients.csv")" = 6 ]
shared=$(sed -n 's/^parameters \([0-9]*\) shared.*/\1/p' "$work/a.out")
ok "bytes are counted: a head of 24 and 4 for each shared number, 6 clients, 40 rounds" \
    awk -F, -v n="$shared" 'END { exit !($4 == 240 * (24 + 4 * n) && $5 == $4) }' "$work/a/log.csv"
ok "books" "$federated" --data "$work/books.txt" --clients books "${text[@]:2}" --rounds 40 \
    --out "$work/books"
ok "six of them, too" [ "$(grep -cE '^B[a-f],' "$work/books/clients.csv")" = 6 ]
printf %s "$(head -n 59 "$work/play.txt")" >"$work/act1.txt" # without the line's end and the empty line behind it
tail -n +61 "$work/play.txt" >"$work/act2.txt"
ok "a play in two files" "$federated" "${text[@]}" --rounds 40 --data "$work/act?.txt" --out "$work/acts"
ok "has the same speakers and speeches" diff "$work/a/clients.csv" "$work/acts/clients.csv"
sed 's/$/\r/' "$work/play.txt" >"$work/crlf.txt"
ok "lines that end in CR LF" "$federated" --data "$work/crlf.txt" "${text[@]:2}" --rounds 40 \
    --out "$work/crlf"
ok "are the same lines" cmp "$work/a/log.csv" "$work/crlf/log.csv"
OMP_NUM_THREADS=1 ok "one thread" "$federated" "${text[@]}" --rounds 40 --out "$work/t1"
OMP_NUM_THREADS=3 ok "three threads" "$federated" "${text[@]}" --rounds 40 --out "$work/t3"
ok "give the same numbers" cmp "$work/t1/log.csv" "$work/t3/log.csv"
ok "asynchronous" "$federated" "${text[@]}" --rounds 40 --delay 5 --async 1 --out "$work/async"
ok "staleness is logged" awk -F, 'END { exit !($6 > 0.5 && $7 >= 3) }' "$work/async/log.csv"
ok "late answers are counted when they come" awk -F, -v n="$shared" '
    NR > 1 && $4 != int(6 * $1 + 0.5) * (24 + 4 * n) { bad = 1 } END { exit bad }' "$work/async/log.csv"
for method in fedavg local; do
    ok "$method" "$federated" "${text[@]}" --rounds 40 --method $method --local-steps 2 --client-lr 1e-2 \
        --finetune 10 --out "$work/$method"
done
ok "local sends nothing" awk -F, 'END { exit !($4 == 0 && $5 == 0) }' "$work/local/log.csv"
for server in muon gpa schedule-free; do
    ok "server $server" "$federated" "${text[@]}" --rounds 5 --server-optimizer $server
done
# learns RUN: the first loss, at the start, is half a nat above the last
learns() { awk -F, 'NR == 2 { first = $10 } END { exit !($10 < first - 0.5) }' "$1/log.csv"; }
for run in a books local fedavg; do ok "$run learns" learns "$work/$run"; done
ok "a model of the trainer's" ./train_gpt2 --data "$work/play.txt" --layers 2 --heads 2 --channels 16 --context 16 \
    --batch 4 --steps 200 --lr 1e-2 --eval-every 0 --out "$work/known"
ok "is where all begin" "$federated" --data "$work/play.txt" --model "$work/known" --rounds 1 --out "$work/from"
ok "and better than a new one after 40 rounds" awk -F, 'FNR == 2 { if (NR > FNR) exit !($10 < last) } { last = $10 }' \
    "$work/a/log.csv" "$work/from/log.csv"
ok "bytes" "$federated" "${text[@]}" --tokenizer bytes --rounds 1
ok "are 256 tokens" grep -q ' 256 tokens$' "$work/last"

# ---- MPI's ranks
if command -v mpirun >/dev/null && [ -x "$federated_mpi" ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
    export OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1
    mpi() { timeout 60 mpirun -n "$@"; }
    same() { # same NAME OPTIONS...: one process and three ranks write the same log
        ok "$1, one process" "$federated" "${@:2}" --out "$work/one"
        ok "$1, three ranks" mpi 3 "$federated_mpi" "${@:2}" --out "$work/ranks"
        ok "$1, the same numbers" cmp "$work/one/log.csv" "$work/ranks/log.csv"
        ok "$1, the same clients" cmp "$work/one/clients.csv" "$work/ranks/clients.csv"
    }
    same "synchronous" "${text[@]}" --rounds 20 --finetune 5
    same "asynchronous, late answers given up" "${text[@]}" --rounds 20 --delay 9 --async 2 --deadline 6
    same "attackers" --convex --rounds 50 --delay 5 --async 6 --attackers 0.2 --attack little \
        --aggregate trimmed
    real=("$federated_mpi" --convex --rounds 400 --clock real --async 1) # some lost where a rank has to wait
    ok "in the order of arrival" loss 0 1e-8 mpi 4 "${real[@]}"
    ok "a rank that never answers" loss 0 1e-8 mpi 3 "${real[@]}" --attackers 0.05 --attack silent \
        --deadline 0.05
    # a rank that stands still for 2.6 deadlines: all its clients are given up, asked again, and then answer
    rm "$work/out" # a refused run's has a round 0, too
    timeout 60 mpirun -n 2 "${known[@]}" "$federated_mpi" "${text[@]}" --rounds 1000000 --eval-every 0 \
        --clock real --async 1 --deadline 1 >"$work/out" 2>&1 &
    run=$!
    await grep -qs '^round 0' "$work/out"
    rank=$(cat "$work/pid.1")
    ok "a rank stands still" kill -STOP "$rank"
    sleep 2.6
    kill -CONT "$rank"
    sleep 1.5
    ok "it is waited for" kill -0 $run
    kill $run 2>/dev/null
    wait $run
    mpi 2 "$federated_mpi" --data "$work/none" >/dev/null 2>"$work/err"
    ok "bad input ends all ranks" [ $? = 1 ]
    ok "with one line" [ "$(grep -c '^error: no file matches' "$work/err")" = 1 ]
    ok "--help, said once" mpi 2 "$federated_mpi" --help
    ok "and no more" [ "$(grep -c '^federated: ' "$work/last")" = 1 ]
    mpi 4 "$federated_mpi" --convex --max-clients 2 >/dev/null 2>"$work/err"
    ok "no more ranks than clients" grep -q '^error: .* for 2 clients and the server' "$work/err"
else
    skip "clients as MPI's ranks (mpirun, or make federated_mpi)"
fi

# ---- refused
refuses 2 "no option" "$federated" --convex --attacker 0.1
refuses 2 "needs a value" "$federated" --rounds
refuses 2 "give a text" "$federated"
refuses 2 "takes one of" "$federated" --convex --aggregate mode
refuses 2 "takes one of" "$federated" --convex --attack bribe
refuses 2 "attack goes with --attackers" "$federated" --convex --attack noise
refuses 2 "trim goes with --aggregate trimmed" "$federated" --convex --trim 0.1
refuses 1 "of 20 clients is none" "$federated" --convex --attackers 0.02
refuses 2 "real needs MPI" "$federated" --convex --clock real
refuses 2 "clients is for texts" "$federated" --convex --clients books
refuses 2 "misfit is for --convex" "$federated" --data "$work/play.txt" --misfit 1
refuses 2 "dowg has none" "$federated" --convex --async 1 --server-optimizer dowg
refuses 2 "is for --method ffgg" "$federated" --convex --method fedavg --mean-gradient
refuses 2 "local, whose clients send nothing" "$federated" --convex --method local --aggregate median
refuses 2 "local, which has no server" "$federated" --convex --method local --server-optimizer muon
refuses 2 "half of the buckets" "$federated" --convex --attackers 0.25 --bucket 2
refuses 1 "only 20 clients" "$federated" --convex --async 21
refuses 1 "usable in 5 rounds" "$federated" --convex --deadline 0.5 --rounds 5
refuses 2 "trains nothing with --method fedavg" "$federated" --convex --method fedavg --local-steps 0
refuses 2 "not between" "$federated" --convex --attackers 2
refuses 2 "no optimizer" "$federated" --convex --server-optimizer newton
refuses 2 "no option of sgd" "$federated" --convex --server-beta1 0.9
refuses 2 "needs a teacher" "$federated" --convex --server-optimizer iam
for name in gpa schedule-free dog prodigy resetting diloco; do
    refuses 2 "$name remembers" "$federated" --convex --method fedavg --client-optimizer $name
done
refuses 1 "matches no tensor" "$federated" --convex --private 'h.*'
refuses 1 "private and others shared" "$federated" --convex --private '*'
refuses 1 "would be attackers" "$federated" --convex --attackers 1
refuses 1 "two honest clients" "$federated" --convex --max-clients 1
refuses 1 "two honest clients" "$federated" --convex --max-clients 3 --attackers 0.67
refuses 1 "no file matches" "$federated" --data "$work/none"
refuses 1 "no speakers" "$federated" --data "$work/books.txt"
printf 'A:\nhello\000there\n' >"$work/zero.txt"
refuses 1 "zero byte" "$federated" --data "$work/zero.txt"
refuses 1 "no books" "$federated" --data "$work/play.txt" --clients books
refuses 1 "min-bytes" "$federated" --data "$work/play.txt" --min-bytes 1000000
refuses 1 "too few" "$federated" --data "$work/play.txt" --context 20000
refuses 1 "cannot make the folder" "$federated" --convex --out /dev/null/run
ok "--help" "$federated" --help
finish
