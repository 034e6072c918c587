#!/usr/bin/env bash
# The trainer as a user runs it: what it writes, resuming, distillation, refused input. $1 names the program; $KILLS is
# how many random moments a run is killed at.
set -u
. "$(dirname "$0")/lib.sh"
train=${1:-./train_gpt2}
kills=${KILLS:-5}
export OMP_NUM_THREADS=1

bottles >"$work/text.txt"
small=(--data "$work/text.txt" --layers 2 --heads 2 --channels 32 --context 16 --batch 4 --lr 1e-2 --eval-every 20)
# Two logs agree in all but the seconds.
same_log() { diff <(cut -d, -f1,2,4- "$1/log.csv") <(cut -d, -f1,2,4- "$2/log.csv"); }
untuned=(--data "$work/text.txt" --layers 2 --heads 2 --channels 32 --context 16 --batch 4)
same_run() { cmp "$1/model.bin" "$2/model.bin" && same_log "$1" "$2"; }
rates() { # DIR STEP...: those of these steps
    local dir=$1 step
    shift
    for step; do awk -F, -v step="$step" '$1 == step { printf "%s ", $7 }' "$dir/log.csv"; done
}

# ---- what a run leaves
ok "a run" "$train" "${small[@]}" --steps 60 --out "$work/a"
cp "$work/last" "$work/a.out"
ok "the last line is the final loss" grep -qE '^final val loss [0-9]+\.[0-9]{4}$' <(tail -n 1 "$work/a.out")
ok "log.csv's header" [ "$(head -n 1 "$work/a/log.csv")" = step,tokens,seconds,train_loss,val_loss,teacher_loss,lr,grad_norm ]
ok "a row for each step" [ "$(wc -l <"$work/a/log.csv")" = 61 ]
ok "validation every 20 steps and at the end" [ "$(awk -F, 'NR > 1 && $5 != ""' "$work/a/log.csv" | wc -l)" = 3 ]
ok "the loss falls" awk -F, 'NR == 2 { first = $4 } { last = $4 } END { exit !(last < first - 0.5) }' "$work/a/log.csv"
ok "tokens are counted" [ "$(tail -n 1 "$work/a/log.csv" | cut -d, -f2)" = 3840 ]
ok "warmup of a twentieth, and a cosine" [ "$(rates "$work/a" 1 60)" = "0.00333333 7.59242e-06 " ]
for file in model.bin state.bin tokenizer.txt; do ok "$file is there" [ -s "$work/a/$file" ]; done
ok "no temporary file stays" [ -z "$(find "$work/a" -name '*.tmp')" ]
for closed in "<&- >&-" "<&- >&- 2>&-"; do # their numbers are not to be the log's
    rm -rf "$work/closed"
    bash -c "exec \"\$@\" $closed" _ "$train" "${small[@]}" --steps 60 --out "$work/closed" >/dev/null 2>&1
    ok "$closed: exit 1, for nothing can be printed" [ $? = 1 ]
    ok "the log of a run with $closed" same_log "$work/closed" "$work/a"
done
if SHELL=/bin/sh script -qec true /dev/null >/dev/null 2>&1 </dev/null; then # a terminal: too long a line is cut
    command=$(printf '%q ' "$train" "${small[@]}" --steps 60)
    for kind in xterm dumb; do
        SHELL=/bin/sh TERM=$kind script -qec "$command" /dev/null >"$work/terminal.$kind" </dev/null
    done
    ok "progress on a terminal" grep -q $'\r\033\[K\033\[?7lstep 60/60 .* tokens/s | .*\033\[?7h' \
        "$work/terminal.xterm"
    ok "on a simple one" [ "$(grep -c '^step [0-9]' "$work/terminal.dumb")" = 10 ]
    command=$(printf '%q ' "$train" "${small[@]}" --steps 1000000 --out "$work/tty")
    SHELL=/bin/sh script -qec "echo \$\$ >$(printf %q "$work/pid"); exec $command" /dev/null >"$work/tty.txt" </dev/null &
    await rows 1 "$work/tty/log.csv"
    kill -INT "$(cat "$work/pid")"
    wait $!
    ok "a signal is answered" grep -q '^stopping; once more' "$work/tty.txt"
    ok "and the run says how to go on" grep -q 'with --resume goes on' "$work/tty.txt"
else skip "progress on a terminal (no script -c, of util-linux)"; fi
ok "--steps 0 evaluates what it is given" "$train" "${small[@]}" --model "$work/a" --steps 0
ok "and finds the same loss" diff <(tail -n 1 "$work/last") <(tail -n 1 "$work/a.out")
ok "--eval-tokens" "$train" "${small[@]}" --model "$work/a" --steps 0 --eval-tokens 16
ok "are fewer, of another loss" [ "$(tail -n 1 "$work/last")" != "$(tail -n 1 "$work/a.out")" ]
head -c 9000 "$work/text.txt" >"$work/part1.txt" && tail -c +9001 "$work/text.txt" >"$work/part2.txt"
ok "the text in two files" "$train" "${small[@]}" --data "$work/part?.txt" --steps 60 --out "$work/parts"
ok "is the text" same_run "$work/a" "$work/parts"
ok "--steps 0 saves what it was given" "$train" "${small[@]}" --model "$work/a" --steps 0 --out "$work/copy"
ok "the same model" cmp "$work/a/model.bin" "$work/copy/model.bin"
ok "--export-hf" "$train" "${small[@]}" --model "$work/a" --steps 0 --export-hf "$work/hf"
ok "which is read again" "$train" "${small[@]}" --model "$work/hf" --steps 0
ok "and gives the same loss" diff <(tail -n 1 "$work/last") <(tail -n 1 "$work/a.out")
# 256 characters, far more than the context, from a model of one line and from one that was never trained
printf 'abcdefgh\n%.0s' {1..2000} >"$work/lines.txt"
sampled=("$train" "${small[@]}" --data "$work/lines.txt" --steps 100 --sample-every 100)
ok "samples of text" "${sampled[@]}"
cp "$work/last" "$work/sample"
ok "the sample is printed" grep -q -- '--- sample at step 100' "$work/sample"
ok "and is like the text" [ "$(grep -cx abcdefgh "$work/sample")" -ge 20 ]
ok "samples of an average that stays" "${sampled[@]}" --optimizer gpa --mu-x 1
ok "are not" [ "$(grep -cx abcdefgh "$work/last")" = 0 ]
ok "without --data" "$train" --layers 1 --heads 2 --channels 16 --context 16 --batch 1 --steps 1 --eval-tokens 64
ok "it is the tales" grep -q '^data  *1800531 training tokens, 200060 for validation' "$work/last"
ok "--init-std" "$train" "${small[@]}" --init-std 0.06 --steps 0 --out "$work/wide"
ok "and GPT-2's" "$train" "${small[@]}" --steps 0 --out "$work/usual"
ok "of which it is the threefold" awk '{ if ($2 != 0) { n++; if ($1 / $2 > 2.999 && $1 / $2 < 3.001) threefold++; else if ($1 != 1 || $2 != 1) bad++ } }
    END { print n, threefold, bad; exit !(threefold > 1000 && !bad) }' <(paste <(od -An -v -tf4 -w4 -j1024 "$work/wide/model.bin") <(od -An -v -tf4 -w4 -j1024 "$work/usual/model.bin"))
for from in --model --student-from; do
    refuses 2 "init-std is for a new model" "$train" "${small[@]:0:2}" $from "$work/usual" --init-std 0.06
done
ok "tokenizer bytes" "$train" "${small[@]}" --tokenizer bytes --steps 3
ok "sequences shorter than the context" "$train" "${small[@]}" --seq-len 8 --steps 3
ok "--help" "$train" --help
ok "--help, whatever comes behind it" "$train" --help --optimizer gpa
for name in adamw sgd gpa sps iam iam-adam; do ok "--help $name" "$train" --help "$name"; done
ok "Schedule-Free needs no schedule" "$train" "${small[@]}" --optimizer schedule-free --steps 40 --out "$work/free"
ok "and gets none" [ "$(tail -n 1 "$work/free/log.csv" | cut -d, -f7)" = 0.01 ]
for how in constant,0.01 "cosine --final-lr 0.5,0.0051903" "linear --final-lr 0.5,0.005625" \
    "wsd --final-lr 0.5,0.0075"; do
    IFS=, read -r schedule rate <<<"$how"
    ok "schedule $schedule" "$train" "${small[@]}" --steps 10 --warmup 2 --schedule $schedule --out "$work/scheduled"
    ok "schedule $schedule: the rates" [ "$(rates "$work/scheduled" 1 2 10)" = "0.005 0.01 $rate " ]
done

# ---- the same bits for any number of threads, and for a batch given in pieces up to rounding
for threads in 2 3; do
    ok "$threads threads" env OMP_NUM_THREADS=$threads "$train" "${small[@]}" --steps 60 --out "$work/t$threads"
    ok "$threads threads give the same bits" same_run "$work/a" "$work/t$threads"
done
ok "accumulation" "$train" "${small[@]}" --batch 2 --accumulate 2 --steps 60 --out "$work/acc"
agree() { # LOG LOG: every step's loss and gradient norm, to a thousandth
    awk -F, 'function off(a, b) { return a - b > 1e-3 * b || b - a > 1e-3 * b }
        NR == FNR { loss[FNR] = $4; norm[FNR] = $8; rows = FNR; next }
        FNR > 1 { bad += off($4, loss[FNR]) || off($8, norm[FNR]) }
        END { exit bad || FNR != rows || rows < 2 }' "$1" "$2"
}
ok "learns the same" agree "$work/a/log.csv" "$work/acc/log.csv"
ok "of as many tokens" [ "$(tail -n 1 "$work/acc/log.csv" | cut -d, -f2)" = 3840 ]
once=("${untuned[@]}" --optimizer sgd --schedule constant --warmup 0 --steps 2)
ok "a step that is not clipped" "$train" "${once[@]}" --lr 1 --clip 0 --out "$work/long_step"
ok "a step half as long" "$train" "${once[@]}" --lr 0.5 --clip 0 --out "$work/short_step"
norm=$(awk -F, '$1 == 1 { print $8 }' "$work/long_step/log.csv")
for clipped in "2 long_step" "0.5 short_step"; do
    read -r share same <<<"$clipped"
    ok "clipped at $share of its norm" "$train" "${once[@]}" --lr 1 --out "$work/clipped_step" \
        --clip "$(awk -v n="$norm" -v s="$share" 'BEGIN { print n * s }')"
    ok "is that step" agree "$work/$same/log.csv" "$work/clipped_step/log.csv"
done

# ---- what cannot move the model does not: clipping to nothing, an average that stays at its beginning
ok "before the first step" "$train" "${untuned[@]}" --steps 0 --out "$work/start"
start_loss=$(tail -n 1 "$work/last")
ok "before that of another seed" "$train" "${untuned[@]}" --steps 0 --seed 5 --out "$work/seed5"
ok "is another model" bash -c "! cmp -s '$work/start/model.bin' '$work/seed5/model.bin'"
ok "clipped to nothing" "$train" "${untuned[@]}" --steps 20 --optimizer sgd --lr 1 --clip 1e-9
ok "the model stays" [ "$(tail -n 1 "$work/last")" = "$start_loss" ]
ok "GPA whose average stays" "$train" "${untuned[@]}" --steps 40 --optimizer gpa --mu-x 1 --weight-decay 0 \
    --out "$work/stays" --export-hf "$work/stays.hf"
ok "is evaluated at the average" [ "$(tail -n 1 "$work/last")" = "$start_loss" ]
for saved in stays stays.hf; do
    ok "which is what is saved in $saved" "$train" "${untuned[@]:0:2}" --model "$work/$saved" --steps 0
    ok "too" [ "$(tail -n 1 "$work/last")" = "$start_loss" ]
done

# ---- killed, interrupted, resumed: ends as if nothing had happened
long=("${small[@]}" --steps 300 --save-every 1 --eval-every 100)
ok "an unbroken run" "$train" "${long[@]}" --out "$work/whole"
ok "resuming a finished run changes nothing" "$train" "${long[@]}" --out "$work/whole" --resume
ok "its model on less data" "$train" "${small[@]}" --model "$work/whole" --steps 0 --eval-tokens 50
tail -n 1 "$work/last" >"$work/less"
ok "the run on less data" "$train" "${long[@]}" --out "$work/whole" --resume --eval-tokens 50
ok "is validated on what is given now" diff "$work/less" <(tail -n 1 "$work/last")
RANDOM=7
for ((i = 0; i < kills; i++)); do
    rm -rf "$work/killed"
    for attempt in 1 2; do
        "$train" "${long[@]}" --out "$work/killed" --resume >/dev/null 2>&1 &
        sleep "0.$(printf %02d $((RANDOM % 40 + 5)))"
        kill -9 $! 2>/dev/null
        wait $! 2>/dev/null
    done
    ok "resumed after kill -9" "$train" "${long[@]}" --out "$work/killed" --resume
    ok "kill $i: the same bits as the unbroken run" same_run "$work/whole" "$work/killed"
    ok "its seconds go on" awk -F, 'NR > 2 && $3 < last { bad = 1 } { last = $3 } END { exit bad }' "$work/killed/log.csv"
done
signals="INT TERM HUP" as_usual=(env --default-signal=HUP) # nohup has it ignored
"${as_usual[@]}" true 2>/dev/null || { signals="INT TERM" as_usual=(env) && skip "SIGHUP (env knows no --default-signal)"; }
for signal in $signals; do
    rm -rf "$work/stopped"
    "${as_usual[@]}" "$train" "${long[@]}" --save-every 0 --steps 100000 --out "$work/stopped" >"$work/stopped.out" 2>&1 &
    await rows 1 "$work/stopped/log.csv"
    kill -s $signal $!
    wait $!
    code=$?
    ok "SIG$signal: exit 0" [ $code = 0 ]
    ok "SIG$signal: says how to go on" grep -q 'with --resume goes on' "$work/stopped.out"
    ok "SIG$signal: a checkpoint" [ -s "$work/stopped/state.bin" ]
done
(trap '' HUP; exec "$train" "${small[@]}" --steps 1000000 --out "$work/nohup") >/dev/null 2>&1 &
await rows 1 "$work/nohup/log.csv"
kill -HUP $!
ok "under nohup it goes on" await rows $(($(wc -l <"$work/nohup/log.csv") + 50)) "$work/nohup/log.csv"
kill $!
wait $!
ok "a run anew in its place" "$train" "${small[@]}" --steps 1 --out "$work/stopped"
ok "says what it replaces" grep -q '^replaces   the checkpoint .*stopped/state.bin' "$work/last"
"$train" "${small[@]}" --steps 10000000 --sample-every 1 >"$work/lost.out" 2>&1 &
await grep -qs -- '^--- sample' "$work/lost.out"
kill -INT $!
wait $!
ok "without --out it says that nothing is saved" grep -q 'without --out nothing is saved' "$work/lost.out"
"$train" "${long[@]}" --save-every 0 --steps 40 --out "$work/unread" 2>/dev/null | head -n 1 >"$work/out"
ok "a run whose progress nobody reads is saved" [ -s "$work/unread/state.bin" ]
if [ -w /dev/full ]; then
    refuses 1 "cannot write all of the output" bash -c 'exec "$@" >/dev/full' _ "$train" "${small[@]}" --steps 1
    refuses 1 "cannot write all of the output" bash -c 'exec "$@" >/dev/full' _ "$train" --help
else skip "full disks under the output (there is no /dev/full)"; fi
for i in 1 2 3 4 5 6 7 8; do for k in 1 2 3 4 5 6 7 8 9; do cat "$work/text.txt"; done; done >"$work/long.txt"
"$train" "${untuned[@]}" --layers 12 --val "$work/long.txt" --steps 0 --out "$work/slow" >/dev/null 2>&1 &
await [ -s "$work/slow/log.csv" ]
kill -INT $!
sleep 2.1
kill -INT $!
wait $!
ok "a second signal, seconds later, ends what does not look at the first" [ $? = 130 ]
"$train" "${untuned[@]}" --steps 100000 --save-every 0 --out "$work/twice" >/dev/null 2>&1 &
await rows 1 "$work/twice/log.csv"
kill -INT $! && kill -TERM $!
wait $!
ok "one of the same moment does not" [ $? = 0 ]
ok "there is a checkpoint" [ -s "$work/twice/state.bin" ]
# norms of 1, then of 2, and one that the median leaves out, stretched to twice as many steps: Adam weights them by
# 1/norm, SGD by its square, and the rate is that weight times what is left of all weights
head -n 1 "$work/a/log.csv" >"$work/refined.csv"
awk 'BEGIN { for (i = 1; i <= 20; i++) print i ",64,0,1,,,0.01," (i == 5 ? 9 : 1 + (i > 10)) }' >>"$work/refined.csv"
for how in "adamw,0.01 0.00655172 0.000775862 0" "sgd,0.01 0.00583333 0.000234375 0"; do
    IFS=, read -r optimizer expected <<<"$how"
    ok "a schedule refined from a run's log" "$train" "${small[@]}" --optimizer $optimizer --steps 40 \
        --schedule "refined:$work/refined.csv" --out "$work/refined"
    ok "$optimizer anneals to zero by it" [ "$(rates "$work/refined" 1 11 31 40)" = "$expected " ]
done
refuses 1 "log.csv" "$train" "${small[@]}" --schedule "refined:$work/text.txt" --steps 40
refuses 1 "missing" "$train" "${small[@]}" --schedule "refined:$work/missing/log.csv" --steps 40
sed 2d "$work/refined.csv" >"$work/part.csv"
refuses 1 "row 1 is not of step 1" "$train" "${small[@]}" --schedule "refined:$work/part.csv" --steps 40
ok "prodigy" "$train" "${small[@]:0:12}" --optimizer prodigy --schedule constant --warmup 0 --steps 5 --out "$work/found"
ok "the log has the rate of the step that was taken" [ "$(rates "$work/found" 1)" = "1e-06 " ]

# ---- every optimizer resumes to the same bits, and so does a run with a proxy, or with several epochs of both
tr e a <"$work/text.txt" >"$work/changed.txt"
head -c 60 "$work/text.txt" >"$work/few.txt" # three sequences, so that the first step begins the second epoch
for optimizer in sgd gpa muon diloco schedule-free prodigy dadapt-adam resetting dog dowg adgd "adamw --proxy $work/text.txt" \
    "adamw --data $work/few.txt --proxy $work/few.txt" \
    "adamw --val $work/text.txt --proxy $work/changed.txt --proxy-paired --proxy-average 0.5"; do
    ok "$optimizer" "$train" "${untuned[@]}" --optimizer $optimizer --steps 40 --out "$work/o"
    rm -rf "$work/p"
    "$train" "${untuned[@]}" --optimizer $optimizer --steps 40 --save-every 1 --out "$work/p" >/dev/null 2>&1 &
    await [ -e "$work/p/state.bin" ]
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
    ok "$optimizer, resumed" "$train" "${untuned[@]}" --optimizer $optimizer --steps 40 --save-every 1 --out "$work/p" --resume
    ok "$optimizer: the same bits" same_run "$work/o" "$work/p"
    [ "$optimizer" != gpa ] || ok "gpa's mu_x comes from the steps: 1 - 15/40" grep -qa '^mu-x 0.625$' "$work/o/state.bin"
    [ "$optimizer" != gpa ] || ok "its rate from the width: 1/32" grep -qa '^lr 0.03125$' "$work/o/state.bin"
    [ "$optimizer" != gpa ] || ok "its schedule: linear, to a tenth, after a fifth of warmup" \
        test "$(grep -acE '^(schedule linear|warmup 8|final-lr 0.1000.*)$' "$work/o/state.bin")" = 3
    [ "$optimizer" != gpa ] || ok "its rates by that" [ "$(rates "$work/o" 1 8 40)" = "0.00390625 0.03125 0.00400391 " ]
done
ok "gpa with rates of one's own" "$train" "${small[@]}" --optimizer gpa --final-lr 0.5 --warmup 2 --steps 10 --out "$work/rated"
ok "has these" [ "$(rates "$work/rated" 1 2 10)" = "0.005 0.01 0.005625 " ]
ok "gpa over SGD" "$train" "${untuned[@]}" --optimizer gpa --base sgd --steps 10 --out "$work/rated"
ok "has SGD's rate" [ "$(rates "$work/rated" 2)" = "0.1 " ]
ok "gpa from a model" "$train" "${small[@]:0:2}" --model "$work/a" --optimizer gpa --steps 10 --out "$work/rated"
ok "has the usual rate" [ "$(rates "$work/rated" 2)" = "0.001 " ]
ok "nothing set" "$train" --data "$work/text.txt" --steps 0 --eval-tokens 64 --out "$work/defaults"
ok "is this" [ "$(grep -acxE 'layers 4|heads 4|channels 128|context 64|batch 12|accumulate 1|seed 1337|optimizer adamw|schedule cosine|final-lr 0|grad-norm l2|clip 1|distill loss|temperature 2|soft-weight 0.5|proxy-steps 4|proxy-average 0|proxy-eta 0' "$work/defaults/state.bin")" = 18 ]
ok "gpa with another schedule" "$train" "${untuned[@]}" --optimizer gpa --schedule cosine --steps 40 --out "$work/o"
ok "then it ends at 0" test "$(grep -acE '^(schedule cosine|final-lr 0)$' "$work/o/state.bin")" = 2
env -u GOMP_SPINCOUNT -u OMP_WAIT_POLICY "$train" "${small[@]}" --steps 100000 --out "$work/busy" >/dev/null 2>&1 &
busy=$!
await [ -s "$work/busy/log.csv" ]
[ ! -r /proc/$busy/environ ] || ok "its threads spin briefly" grep -qzx GOMP_SPINCOUNT=10000 /proc/$busy/environ
refuses 1 "another run is writing" "$train" "${small[@]}" --steps 5 --out "$work/busy"
kill $busy
wait $busy 2>/dev/null

# ---- distillation
ok "a teacher" "$train" "${small[@]}" --steps 150 --channels 64 --out "$work/teacher"
teacher_loss=$(sed -n 's/^final val loss //p' "$work/last")
student=(--data "$work/text.txt" --layers 1 --heads 2 --channels 32 --context 16 --batch 4 --teacher "$work/teacher" --steps 40)
for optimizer in sps iam iam-adam "iam --base muon"; do
    ok "distil with $optimizer" "$train" "${student[@]}" --optimizer $optimizer --out "$work/$optimizer"
    ok "$optimizer logs the teacher's loss" awk -F, 'NR > 1 && $6 == "" { bad = 1 } END { exit bad }' "$work/$optimizer/log.csv"
    ok "$optimizer learns" awk -F, 'NR == 2 { first = $4 } { last = $4 } END { exit !(last < first) }' "$work/$optimizer/log.csv"
done
ok "a student of other heads" "$train" "${student[@]}" --optimizer iam-adam --heads 4 --out "$work/heads"
ok "which is another" eval '! same_log "$work/iam-adam" "$work/heads"'
ok "the teacher in Hugging Face's form" "$train" "${small[@]:0:2}" --model "$work/teacher" --steps 0 --export-hf "$work/teacher.hf"
ok "teaches" "$train" "${student[@]}" --optimizer iam-adam --teacher "$work/teacher.hf" --out "$work/taught"
ok "the same" same_run "$work/iam-adam" "$work/taught"
ok "a student from that form" "$train" "${small[@]:0:2}" --student-from "$work/teacher.hf" --layers 1 --steps 0 --out "$work/one_layer"
ok "starts as one from the run does" "$train" "${small[@]:0:2}" --student-from "$work/teacher" --layers 1 --steps 0 --out "$work/one"
ok "with the same weights" cmp "$work/one/model.bin" "$work/one_layer/model.bin"
ok "a clipped student" "$train" "${student[@]}" --optimizer sps --clip 1e-3 --out "$work/clipped"
ok "is told that it is not" grep -q '^clip  *none: ' "$work/last"
ok "and has the same bits" cmp "$work/sps/model.bin" "$work/clipped/model.bin"
bottles | tac >"$work/proxy.txt"
ok "one step on a proxy" "$train" "${small[@]}" --steps 60 --tokenizer bytes --proxy "$work/proxy.txt" --proxy-steps 1 --out "$work/proxied"
ok "and none" "$train" "${small[@]}" --steps 60 --tokenizer bytes --out "$work/unproxied"
ok "are one" agree "$work/unproxied/log.csv" "$work/proxied/log.csv"
proxied=("$train" "${small[@]}" --tokenizer bytes --steps 1 --proxy-steps 2 --proxy)
ok "a first correction" "${proxied[@]}" "$work/proxy.txt" --out "$work/proxied"
ok "has nothing to be averaged with" "${proxied[@]}" "$work/proxy.txt" --proxy-average 0.9 --out "$work/averaged"
ok "and is the same" agree "$work/proxied/log.csv" "$work/averaged/log.csv"
proxied=("$train" "${small[@]}" --steps 6 --proxy "$work/text.txt" --proxy-paired --val)
ok "a proxy that is the data" "${proxied[@]}" "$work/text.txt" --out "$work/paired"
ok "needs no correction" "${proxied[@]}" "$work/text.txt" --proxy-average 0.9 --out "$work/averaged"
ok "so there is none to average" same_run "$work/paired" "$work/averaged"
words=("$train" --data "$work/text.txt" --val "$work/text.txt" --model "$work/a" --batch 4 --schedule constant --warmup 0 --eval-tokens 64)
ok "four steps" "${words[@]}" --seed 1338 --steps 4 --out "$work/four"
ok "four on a proxy that is the data" "${words[@]}" --proxy "$work/text.txt" --proxy-paired --proxy-steps 4 --steps 1 --out "$work/on_proxy"
ok "are the same" cmp "$work/four/model.bin" "$work/on_proxy/model.bin"
pulled=("$train" "${small[@]}" --tokenizer bytes --steps 3 --proxy "$work/proxy.txt")
ok "a proxy, no pull" "${pulled[@]}" --out "$work/not_pulled"
ok "hardly any" "${pulled[@]}" --proxy-eta 1e9 --out "$work/pulled"
ok "is the same" agree "$work/not_pulled/log.csv" "$work/pulled/log.csv"
for how in "proxy-eta 1e-3" "proxy-average 0.9"; do
    ok "--$how" "${pulled[@]}" --$how --out "$work/pulled"
    ok "is not" eval '! agree "$work/not_pulled/log.csv" "$work/pulled/log.csv"'
done
refuses 1 "proxy-paired: the proxy has" "${proxied[@]:0:$((${#proxied[@]} - 1))}"
refuses 2 "proxy does not go with iam" "$train" "${student[@]}" --optimizer iam --proxy "$work/text.txt"
ok "adamw beside a teacher" "$train" "${student[@]}"
ok "says that the teacher is for the log" grep -q '^teacher  *for the log alone' "$work/last"
ok "hard labels" "$train" "${student[@]}" --lr 1e-2 --out "$work/hard"
ok "soft labels" "$train" "${student[@]}" --distill soft --lr 1e-2 --out "$work/soft"
ok "says how far the student is from the teacher" awk -v loss="$teacher_loss" '
    function off(a, b) { return a - b > 2e-4 || b - a > 2e-4 }
    /^teacher val loss/ { teacher = $4 + 0; further = $8 } /^final val loss/ { own = $4 }
    END { exit off(teacher, loss) || off(own - teacher, further) }' "$work/last"
ok "soft labels teach something else" bash -c "! cmp -s '$work/hard/model.bin' '$work/soft/model.bin'"
# a teacher that is its own student: there is nothing to learn from its labels, the text's part of the gradient is left
own=("$train" "${small[@]:0:2}" --model "$work/teacher" --teacher "$work/teacher" --batch 4 --steps 1)
for n in 3 1; do
    ok "its own teacher, $n micro-batches" "${own[@]}" --accumulate $n --out "$work/own"
    ok "has its loss" awk -F, 'FNR == 2 { exit $4 != $6 }' "$work/own/log.csv"
done
for weight in 0.25 1; do
    ok "soft labels of its own, $weight" "${own[@]}" --distill soft --soft-weight $weight --out "$work/own_soft"
    ok "leave what they do not weigh, and the loss" awk -F, -v weight=$weight '
        function off(a, b) { return a - b > 1e-4 || b - a > 1e-4 }
        NR == FNR { loss = $4; norm = $8; next }
        FNR == 2 { good = !off($4, loss) && !off($8, (1 - weight) * norm) }
        END { exit !good }' "$work/own/log.csv" "$work/own_soft/log.csv"
done
for temperature in 1 2 100 1000; do # the higher, the nearer to a limit
    ok "temperature $temperature" "$train" "${student[@]}" --steps 1 --distill soft --soft-weight 1 \
        --temperature $temperature --out "$work/warm$temperature"
done
ok "has its norm of the gradient" awk -F, 'FNR == 2 { norm[++n] = $8 }
    END { exit !(norm[2] > 1.2 * norm[1] && norm[3] < 1.05 * norm[4] && norm[4] < 1.05 * norm[3]) }' \
    "$work"/warm{1,2,100,1000}/log.csv
ok "a teacher in bf16" "$train" "${student[@]}" --lr 1e-2 --teacher-weights bf16 --out "$work/bf16"
ok "has nearly the same losses" awk -F, 'NR == FNR { loss[$1] = $6; next }
    FNR > 1 { far += $6 < 0.98 * loss[$1] || $6 > 1.02 * loss[$1]; other += $6 != loss[$1] }
    END { exit far || !other }' "$work/hard/log.csv" "$work/bf16/log.csv"
refuses 2 "needs --teacher" "$train" "${small[@]:0:2}" --optimizer iam

# ---- the teacher's losses from a file: the same bits as from the teacher
yes "äöü ßéè" | head -n 200 >"$work/umlauts.txt"
cached=(--data "$work/text.txt" --layers 1 --heads 2 --channels 32 --context 16 --batch 4 --optimizer iam-adam)
taught=("${cached[@]}" --teacher "$work/teacher" --teacher-cache "$work/losses")
ok "a run that keeps the teacher's losses" "$train" "${taught[@]}" --steps 40 --out "$work/c1"
ok "the same bits as without" same_run "$work/iam-adam" "$work/c1"
ok "a run from these losses" "$train" "${cached[@]}" --teacher-cache "$work/losses" --steps 40 --out "$work/c2"
ok "the same bits without a teacher" same_run "$work/iam-adam" "$work/c2"
"$train" --data "$work/umlauts.txt" --tokenizer bytes --context 16 --seq-len 6 --batch 2 --steps 3 --optimizer iam-adam \
    --teacher-cache "$work/asked" >/dev/null 2>&1
ok "texts for another's model are UTF-8" iconv -f utf-8 -t utf-16 "$work/asked"
ok "and one each" [ "$(grep -c '^# [123] ".*"$' "$work/asked")" = 6 ]
{ echo "teacher losses 1"; printf 'teacher %0120d\n' 1; tail -n +3 "$work/losses"; } >"$work/named"
refuses 1 "name, in the second line, has more than" "$train" "${cached[@]}" --teacher-cache "$work/named" --steps 40
refuses 1 "lacks the loss of step 41" "$train" "${cached[@]}" --teacher-cache "$work/losses" --steps 60
ok "a longer run" "$train" "${taught[@]}" --steps 60 --out "$work/c3"
ok "adds only what is missing" [ "$(grep -c '^[0-9]* ' "$work/losses")" = 60 ]
cp "$work/losses" "$work/copied"
ok "another optimizer" "$train" "${cached[@]}" --teacher-cache "$work/losses" --optimizer adamw --lr 1e-2 --steps 60
ok "leaves the file alone" cmp "$work/losses" "$work/copied"
rm -rf "$work/c4" "$work/losses"
"$train" "${taught[@]}" --steps 400 --save-every 20 --out "$work/c4" >/dev/null 2>&1 &
await [ -e "$work/c4/state.bin" ]
kill -9 $! 2>/dev/null
wait $! 2>/dev/null
ok "resumed after kill -9" "$train" "${taught[@]}" --steps 400 --save-every 20 --out "$work/c4" --resume
ok "its list of losses" "$train" "${cached[@]}" --teacher-cache "$work/losses" --steps 400 --out "$work/c5"
ok "gives the same run" same_run "$work/c4" "$work/c5"
{ head -n 4 "$work/losses"; for i in {1..40}; do echo "$i 99"; done; } >"$work/worse"
ok "a student before its first step" "$train" "${cached[@]:0:12}" --steps 0 --out "$work/unmoved"
for optimizer in sps iam iam-adam "iam --base muon"; do
    ok "$optimizer, from a teacher that knows less" "$train" "${cached[@]}" --optimizer $optimizer --teacher-cache "$work/worse" \
        --steps 40 --out "$work/still"
    ok "$optimizer stays where it is" cmp "$work/unmoved/model.bin" "$work/still/model.bin"
done
{ head -n 4 "$work/losses" && echo '# a remark' && tail -n +200 "$work/losses" | tac; } >"$work/holes"
ok "holes are filled, in any order" "$train" "${taught[@]}" --teacher-cache "$work/holes" --steps 400 --out "$work/c6"
ok "with the same losses" diff <(tail -n +5 "$work/losses") <(tail -n +6 "$work/holes" | sort -n)
for i in 1 2 3 4; do # several runs may begin one list
    for run in 1 2 3; do "$train" "${taught[@]}" --teacher-cache "$work/begun" --steps 3 >"$work/begun.$run" 2>&1 & done
    wait
    ok "three runs begin a list, all end" [ "$(cat "$work"/begun.? | grep -c '^final val loss')" = 3 ]
    ok "and all losses are there" [ "$(grep -c '^[1-3] ' "$work/begun")" -ge 3 ]
    rm -f "$work"/begun*
done
for line in "7" "7 x" "7 nan" "7 -1" "7 1 1" "0 1" "1.5 1" "x"; do
    { cat "$work/losses" && echo "$line"; } >"$work/wrong"
    refuses 1 "'$line' is not a step and its loss" "$train" "${cached[@]}" --teacher-cache "$work/wrong"
done
refuses 1 "cannot add" bash -c 'ulimit -f 1; exec "$@"' _ "$train" "${taught[@]}" --teacher-cache "$work/cut" --steps 400
ok "a full disk leaves some" grep -q '^2 ' "$work/cut"
ok "and whole lines" diff <(head -n "$(wc -l <"$work/cut")" "$work/losses") "$work/cut"
refuses 1 "seed 1337, .*seed 5" "$train" "${cached[@]}" --teacher-cache "$work/losses" --seed 5
refuses 1 "batch 4, .*batch 2" "$train" "${cached[@]}" --teacher-cache "$work/losses" --batch 2
refuses 1 "accumulate 1. there.*accumulate 2" "$train" "${cached[@]}" --teacher-cache "$work/losses" --accumulate 2
refuses 1 "seq-len 16, .*seq-len 8" "$train" "${cached[@]}" --teacher-cache "$work/losses" --seq-len 8
refuses 1 "another run: 'data" "$train" "${cached[@]}" --teacher-cache "$work/losses" --tokenizer bytes
refuses 1 "another run: 'teacher" "$train" "${taught[@]}" --teacher "$work/a"
refuses 1 "another run: 'teacher" "$train" "${taught[@]}" --teacher-weights bf16
refuses 1 "not a list" "$train" "${cached[@]}" --teacher-cache "$work/text.txt"
truncate -s -3 "$work/copied"
refuses 1 "ends within a line" "$train" "${cached[@]}" --teacher-cache "$work/copied"
refuses 2 "only its losses" "$train" "${taught[@]}" --distill soft
# losses from elsewhere: the program writes the texts, somebody adds what he measured
refuses 1 "each step's text" "$train" "${cached[@]}" --teacher-cache "$work/api" --steps 5
ok "a text for each sequence of each step" [ "$(grep -c '^# [1-5] ".*"$' "$work/api")" = 20 ]
refuses 1 "lacks the loss of step 1" "$train" "${cached[@]}" --teacher-cache "$work/api" --steps 5
while IFS= read -r text; do # step 3's four
    printf %b "$text" >"$work/window.txt"
    "$train" --data "$work/text.txt" --model "$work/teacher" --val "$work/window.txt" --steps 0 | sed -n 's/^final val loss //p'
done < <(sed -n 's/^# 3 "\(.*\)"$/\1/p' "$work/api") >"$work/measured"
ok "these texts have the step's loss" awk 'NR == FNR { sum += $1; n++; next } $1 == 3 { off = sum / n - $2; found = 1 }
    END { exit !(found && n == 4 && off < 1e-4 && off > -1e-4) }' "$work/measured" "$work/losses"
grep '^[1-5] ' "$work/losses" >>"$work/api"
sed -i 's/^teacher ?/teacher an API/' "$work/api"
ok "a run from an API's losses" "$train" "${cached[@]}" --teacher-cache "$work/api" --steps 5 --out "$work/c7"
ok "the losses are these" diff <(awk -F, 'NR > 1 { print $6 }' "$work/c7/log.csv") <(awk '/^[1-5] / { printf "%.6f\n", $2 }' "$work/api")
refuses 1 "belongs to another run: 'teacher an API'" "$train" "${taught[@]}" --steps 5 --out "$work/c7" --resume --teacher-cache "$work/losses"

# ---- a student that starts from every second layer; tensors that stay
ok "five layers" "$train" "${small[@]}" --layers 5 --steps 3 --out "$work/five"
ok "every second of them" "$train" "${small[@]:0:2}" --student-from "$work/five" --steps 0 --out "$work/three"
ok "makes three" grep -q '^model      3 layers, 2 heads, 32 channels' "$work/last"
ok "two of them, and a shorter context" "$train" "${small[@]:0:2}" --student-from "$work/five" --layers 2 --context 8 --steps 0
ok "are what is made" grep -q '^model      2 layers, 2 heads, 32 channels, context 8,' "$work/last"
refuses 1 "has 32, and its student can have no other" "$train" "${small[@]}" --student-from "$work/five" --channels 64
refuses 1 "no more" "$train" "${small[@]}" --student-from "$work/five" --layers 6
refuses 2 "give one" "$train" "${small[@]}" --student-from "$work/five" --model "$work/five"
ok "frozen tensors" "$train" "${small[@]:0:2}" --model "$work/three" --freeze 'wte,h.[02].*' --optimizer gpa --steps 20 --out "$work/frozen"
ok "wte stays" cmp -n $((1024 + 128 * 32 * 4)) "$work/three/model.bin" "$work/frozen/model.bin"
ok "not all stays" bash -c "! cmp '$work/three/model.bin' '$work/frozen/model.bin'"
plan() { awk '$1 == "memory" { print $NF }' "$work/last"; } # MB of the optimizer
ok "few trained tensors" "$train" "${small[@]}" --channels 512 --steps 1 --freeze 'wte,wpe,h.*'
ok "take little memory" [ "$(plan)" -lt 2 ]
refuses 1 "nothing to train" "$train" "${small[@]}" --freeze '*'
refuses 2 "--freeze has more than 1000 bytes" "$train" "${small[@]}" --freeze "$(yes wpe, | head -n 300 | tr -d '\n')wpe"
refuses 1 "fcww: no tensor" "$train" "${small[@]}" --freeze 'wte,fcww'
refuses 1 "the teacher knows" "$train" "${student[@]}" --tokenizer bytes
refuses 1 "the teacher's context" "$train" "${student[@]}" --context 32
tr 'a-z' 'b-za' <"$work/text.txt" >"$work/shifted.txt" # as many characters, others
ok "a teacher of other characters" "$train" "${small[@]}" --data "$work/shifted.txt" --steps 1 --out "$work/shifted"
refuses 1 "other tokens than the student" "$train" "${student[@]}" --tokenizer chars --teacher "$work/shifted"
refuses 1 "other tokens than --tokenizer" "$train" --data "$work/text.txt" --tokenizer chars --model "$work/shifted"
refuses 1 "other tokens than --tokenizer" "$train" --data "$work/text.txt" --tokenizer chars --student-from "$work/shifted"
grep -v hanging "$work/text.txt" >"$work/fewer.txt"
for from in --model --student-from --teacher; do
    ok "$from, a text of fewer characters" "$train" --data "$work/fewer.txt" $from "$work/a" --context 16 --steps 0 --out "$work/fewer"
    ok "has the tokenizer that is there" cmp "$work/a/tokenizer.txt" "$work/fewer/tokenizer.txt"
done
ok "the same characters once more" "$train" "${small[@]:0:2}" --tokenizer chars --model "$work/teacher" --steps 0
cp "$work/text.txt" "$work/notes[1].txt"
ok "a file named like a pattern" "$train" "${small[@]}" --data "$work/notes[1].txt" --steps 1

# ---- refused
refuses 2 "unexpected argument" "$train" text.txt
refuses 2 "no option" "$train" "${small[@]}" --colour 3
refuses 2 "out of range" "$train" "${small[@]}" --optimizer prodigy --slice-p 2e19
refuses 1 "would replace the log" "$train" "${small[@]}" --schedule "refined:$work/a/log.csv" --out "$work/../$(basename "$work")/a"
refuses 1 "would replace $work/a" "$train" "${small[@]}" --teacher "$work/a" --out "$work/a"
refuses 1 "would replace $work/a/model.bin" "$train" "${small[@]:0:2}" --student-from "$work/a/model.bin" --out "$work/a/."
refuses 1 "hf would replace $work/hf" "$train" "${small[@]:0:2}" --student-from "$work/hf" --export-hf "$work/hf"
refuses 1 "has a model.bin, which would be read" "$train" "${small[@]:0:2}" --model "$work/a" --export-hf "$work/a"
refuses 1 "hf, which --resume reads" "$train" "${small[@]:0:2}" --model "$work/hf" --export-hf "$work/hf" --out "$work/x"
for idle in "schedule wsd" "warmup 5" "final-lr 0.1"; do
    refuses 2 "--${idle% *} does not go with an optimizer that has no rate" "$train" "${small[@]:0:12}" --optimizer dowg --$idle
done
mkdir "$work/alone" && cp "$work/a/model.bin" "$work/alone/"
ok "a model without a checkpoint" "$train" "${small[@]}" --steps 1 --out "$work/alone"
ok "is said to be replaced" grep -q '^replaces   .*alone/model.bin, once' "$work/last"
printf 'chars\nab\377' >"$work/alone/tokenizer.txt"
refuses 1 "not UTF-8 at byte 8: it is damaged" "$train" "${small[@]:0:2}" --model "$work/alone" --tokenizer bytes
names=$(printf 'h.0.ln_1.weight,%.0s' {1..20})
ok "a long value" "$train" "${small[@]}" --steps 1 --freeze "${names}h.0.ln_1.bias" --out "$work/long"
refuses 1 "ln_1.bias' there, '.*ln_2.bias' here" "$train" "${small[@]}" --steps 1 --freeze "${names}h.0.ln_2.bias" --out "$work/long" --resume
for idle in proxy-paired "proxy-steps 2" "proxy-eta 1" "proxy-average 0.5"; do
    refuses 2 "${idle% *} goes with --proxy" "$train" "${small[@]}" --$idle
done
refuses 2 "soft-weight goes with --distill soft" "$train" "${small[@]}" --teacher "$work/a" --soft-weight 0.3
refuses 2 "not with diloco" "$train" "${small[@]}" --workers diloco --proxy "$work/text.txt"
refuses 2 "temperature goes with --distill soft" "$train" "${small[@]}" --teacher "$work/a" --temperature 2
refuses 2 "warmup does not go with a refined" "$train" "${small[@]}" --schedule "refined:$work/a/log.csv" --warmup 9
refuses 1 "cannot make the folder" "$train" "${small[@]}" --steps 1000000 --export-hf "$work/text.txt/hf"
refuses 2 "lr takes a number, not 'fast'" "$train" "${small[@]}" --lr fast
refuses 2 "dataset x.txt is no option" "$train" "${small[@]}" --dataset x.txt
refuses 2 "mu-x" "$train" "${small[@]}" --mu-x 0.9
ok "an option's range may have no end" "$train" "${small[@]}" --steps 1 --optimizer prodigy --growth-rate inf
refuses 1 "needs its merges" "$train" "${small[@]}" --tokenizer gpt2
refuses 1 "Not a directory" "$train" "${small[@]}" --out "$work/text.txt/run"
refuses 2 "needs a value; see" "$train" --steps
for value in --resume --help; do refuses 2 "needs a value; see" "$train" "${small[@]}" --steps 3 --out $value; done
refuses 2 "needs a value, or is no option" "$train" --verbose
refuses 2 "steps=5: a value stands behind a space" "$train" --steps=5 --layers 1
refuses 2 "out is empty" "$train" "${small[@]}" --steps 3 --out ""
refuses 2 "with a constant schedule" "$train" "${small[@]}" --schedule constant --final-lr 0.5
refuses 2 "whole number" "$train" --steps many
refuses 2 "whole number" "$train" --steps 1.5
refuses 2 "between" "$train" --layers 0
refuses 2 "out of range" "$train" --beta1 1.5
refuses 2 "no optimizer" "$train" --optimizer adamax
refuses 2 "no schedule" "$train" --schedule exponential
refuses 2 "does not go with" "$train" --base muon
refuses 2 "takes one of loss|soft" "$train" --distill hard
refuses 2 "takes one of bytes|chars|gpt2" "$train" --tokenizer words
refuses 2 "needs --out" "$train" --resume
refuses 1 "heads" "$train" "${small[@]}" --heads 5
refuses 1 "no file matches" "$train" --data "$work/missing.txt" --out "$work/not"
ok "no folder stays" [ ! -e "$work/not" ]
mkdir "$work/folder"
refuses 1 "folder" "$train" --data "$work/folder"
: >"$work/empty.txt"
refuses 1 "empty" "$train" --data "$work/empty.txt"
printf 'short' >"$work/short.txt"
refuses 1 "has 65 tokens; give a longer text, or shorter" "$train" --data "$work/short.txt"
refuses 1 "" "$train" --data "$work/text.txt" --out "$work/text.txt/run"
refuses 1 "" "$train" --data "$work/text.txt" --model "$work/text.txt"
refuses 1 "" "$train" --data "$work/text.txt" --model "$work/missing"
printf 'h\351llo' >"$work/latin1.txt"
refuses 1 "UTF-8" "$train" --data "$work/latin1.txt"
head -c 3000 "$work/a/model.bin" >"$work/cut.bin"
refuses 1 "" "$train" --data "$work/text.txt" --model "$work/cut.bin"
refuses 1 "not a number" "$train" "${small[@]}" --steps 200 --clip 0 --optimizer sgd --lr 1e30
refuses 1 "not a number.*; lower --muon-lr and --lr" "$train" "${small[@]}" --optimizer muon --muon-lr 1e39 --warmup 0
untuned_step=(--warmup 0 --clip 0 --optimizer sgd --lr 1e39)
refuses 1 "after step 1 .* not a number" "$train" "${small[@]}" --steps 1 "${untuned_step[@]}"
refuses 1 "after step 1 .* not a number" "$train" "${small[@]}" --steps 5 "${untuned_step[@]}" --eval-every 0 --save-every 1 --out "$work/nan"
ok "which leaves no model" [ ! -e "$work/nan/model.bin" ]
# more memory than there is: Linux would promise it, and kill the program that uses it
[ ! -r /proc/meminfo ] || refuses 1 "are left; use a smaller model or batch" "$train" "${small[@]}" --channels 1024 \
    --context 1024 --batch 262144
refuses 1 "umlauts.txt: the character" "$train" "${small[@]}" --model "$work/a" --val "$work/umlauts.txt"
refuses 1 "latin1.txt is not UTF-8" "$train" "${small[@]}" --model "$work/a" --val "$work/latin1.txt"
refuses 1 "no part of the training data has 17 tokens" "$train" "${small[@]}" --data "$work/short.txt"
refuses 1 "no part of the validation data has 2 tokens" "$train" "${small[@]}" --data "$work/text.txt" --val <(printf g)
refuses 1 "a has 2, and it can have no other" "$train" "${small[@]}" --model "$work/a" --layers 3
refuses 1 "cannot open" "$train" "${small[@]}" --merges "$work/missing"
refuses 2 "merges goes with --tokenizer gpt2" "$train" "${small[@]}" --merges "$work/missing" --tokenizer bytes
refuses 2 "box-low is above" "$train" "${untuned[@]}" --optimizer adproxgd --box-low 1 --box-high 0
refuses 2 "lr-cap -0.5 is out of range" "$train" "${untuned[@]}" --optimizer iam-adam --lr-cap -0.5
refuses 1 "is too large; --accumulate" "$train" --data "$work/text.txt" --layers 1 --heads 1 --channels 1 --context 2048 --batch 1048576
refuses 2 "save-every needs --out" "$train" "${small[@]}" --save-every 5
refuses 2 "teacher-weights goes with --teacher" "$train" "${small[@]}" --teacher-weights bf16
mkdir -p "$work/hf_full/model.safetensors.new.tmp" # nothing can be written there: said before the first step
refuses 1 "cannot write" "$train" "${small[@]}" --steps 100000000 --export-hf "$work/hf_full"
# an error takes nothing away: the model in --out stays until there is another
cp -r "$work/a" "$work/kept"
refuses 1 "not a number" "$train" "${small[@]}" --steps 9 --clip 0 --optimizer sgd --lr 1e38 --model "$work/kept" --out "$work/kept"
refuses 1 "no part of the proxy has 17 tokens" "$train" "${small[@]}" --proxy "$work/short.txt" --model "$work/kept" --out "$work/kept"
refuses 1 "make room" bash -c 'ulimit -f 8; exec "$@"' _ "$train" "${small[@]}" --steps 1 --model "$work/kept" --out "$work/kept"
for file in model.bin tokenizer.txt; do ok "$file stays" cmp "$work/a/$file" "$work/kept/$file"; done
# a first save that comes no further than the model, or the state: what --resume ends with is the same
kept=("$train" "${small[@]}" --steps 3 --model "$work/kept" --out "$work/kept")
blocks=$(($(wc -c <"$work/a/model.bin") / 1024 + 2)) # room for the model, not for a state
refuses 1 "state.bin.tmp.* make room.*so far is .*kept/model.new" bash -c 'ulimit -f $0; exec "$@"' $blocks "${kept[@]}"
ok "the model that it began with stays" cmp "$work/a/model.bin" "$work/kept/model.bin"
mkdir "$work/kept/tokenizer.txt.tmp"
refuses 1 "cannot write .*tokenizer" "${kept[@]}"
rmdir "$work/kept/tokenizer.txt.tmp"
ok "--resume takes up the new model" "${kept[@]}" --resume
ok "of the last step" grep -q '^resumed    at step 3 of 3' "$work/last"
ok "unbroken" "$train" "${small[@]}" --steps 3 --model "$work/a" --out "$work/unbroken"
ok "is the same model" cmp "$work/unbroken/model.bin" "$work/kept/model.bin"
# an export over another one: it stays where there is no room; where it breaks off later, no new weights stand beside
# the old tokenizer
exported=("$train" "${small[@]}" --steps 0 --model)
ok "an export" "${exported[@]}" "$work/a" --export-hf "$work/hf_over"
refuses 1 "make room" bash -c 'ulimit -f 8; exec "$@"' _ "${exported[@]}" "$work/whole" --export-hf "$work/hf_over"
ok "the older one stays" "${exported[@]}" "$work/hf_over"
mkdir "$work/hf_over/tokenizer.json.tmp"
refuses 1 "cannot write" "${exported[@]}" "$work/whole" --export-hf "$work/hf_over"
refuses 1 "neither model.bin nor config.json" "${exported[@]}" "$work/hf_over"
for part in cut wrong changed; do
    rm -rf "$work/broken"
    cp -r "$work/whole" "$work/broken"
    [ $part = cut ] && truncate -s -100 "$work/broken/state.bin"
    [ $part = wrong ] && printf 'WHATEVER' | dd of="$work/broken/state.bin" conv=notrunc status=none
    [ $part = changed ] && printf 'x' | dd of="$work/broken/state.bin" bs=1 seek=20000 conv=notrunc status=none
    refuses 1 "state.bin" "$train" "${long[@]}" --out "$work/broken" --resume
done
cp -r "$work/whole" "$work/logless" && rm "$work/logless/log.csv"
ok "a run goes on without its log" "$train" "${long[@]}" --out "$work/logless" --resume
ok "and writes another" grep -q '^step,' "$work/logless/log.csv"
mkdir "$work/nameless" && cp "$work/whole/model.bin" "$work/nameless"
ok "a model without a tokenizer" "$train" "${small[@]:0:2}" --model "$work/nameless" --steps 0
ok "takes the text's characters, and says so" grep -q '^tokenizer  .*/nameless has none' "$work/last"
refuses 1 "belongs to another run" "$train" "${long[@]}" --out "$work/whole" --resume --seed 8
refuses 1 "belongs to another run" "$train" "${long[@]}" --out "$work/whole" --resume --beta1 0.5
head -c 8000 "$work/text.txt" >"$work/other.txt"
tr a-z A-Z <"$work/text.txt" >"$work/upper.txt" # other characters, the same numbers
refuses 1 "belongs to another run: 'tokenizer" "$train" "${long[@]}" --data "$work/upper.txt" --out "$work/whole" --resume
refuses 1 "another run: 'data " "$train" "${long[@]}" --data "$work/other.txt" --out "$work/whole" --resume
for other in "steps 301" "batch 2" "accumulate 2" "seq-len 8" "init-std 0.03" "schedule linear" "warmup 9" "final-lr 0.5" "grad-norm l1" "clip 0.5"; do
    refuses 1 "another run: '${other% *} " "$train" "${long[@]}" --out "$work/whole" --resume --$other
done
refuses 1 "belongs to another run" "$train" "${long[@]}" --data "$work/other.txt" --tokenizer chars --out "$work/whole" --resume
from=("${small[@]}" --steps 2 --eval-every 0 --out "$work/from" --model)
cp -r "$work/a" "$work/a.copy"
ok "from a model" "$train" "${from[@]}" "$work/a"
refuses 1 "another run: 'model " "$train" "${from[@]}" "$work/a.copy" --resume
# the data is the proxy, too; then both are another text
same=("${small[@]}" --val "$work/text.txt" --steps 2 --out "$work/same")
cp "$work/text.txt" "$work/both.txt"
ok "a text that is its own proxy" "$train" "${same[@]}" --data "$work/both.txt" --proxy "$work/both.txt"
refuses 1 "another run: 'proxy-paired " "$train" "${same[@]}" --data "$work/both.txt" --proxy "$work/both.txt" --proxy-paired --resume
head -c 9000 "$work/text.txt" >"$work/both.txt"
refuses 1 "belongs to another run" "$train" "${same[@]}" --data "$work/both.txt" --proxy "$work/both.txt" --resume
# a schedule refined from the log that the run itself overwrites
ok "--grad-norm l1" "$train" "${small[@]}" --steps 60 --grad-norm l1 --out "$work/l1"
ok "is another number, of the same run" awk -F, 'NR == FNR { l2[$1] = $8; loss[$1] = $4; next }
    FNR > 1 && ($8 < 3 * l2[$1] || $4 != loss[$1]) { bad = 1 } END { exit bad }' "$work/a/log.csv" "$work/l1/log.csv"
refuses 2 "takes one of l1|l2" "$train" --grad-norm l3
refuses 2 "grad-norm needs --out" "$train" "${small[@]}" --grad-norm l1
refined=("${small[@]}" --schedule "refined:$work/norms.csv" --out "$work/refined")
cp "$work/a/log.csv" "$work/norms.csv"
ok "a refined schedule" "$train" "${refined[@]}" --steps 30 --save-every 10
head -n 12 "$work/a/log.csv" >"$work/norms.csv"
refuses 1 "belongs to another run: 'refined" "$train" "${refined[@]}" --steps 30 --save-every 10 --resume
ok "a refined schedule of one step" "$train" "${small[@]}" --schedule "refined:$work/a/log.csv" --steps 1 --out "$work/one"
ok "whose rate is not 0" [ "$(tail -n 1 "$work/one/log.csv" | cut -d, -f7)" = 0.01 ]
token_shard() { # llm.c's token file of N tokens, from awk alone
    awk -v n="$2" 'function le(x, bytes,  i) { for (i = 0; i < bytes; i++) { printf "%c", x % 256; x = int(x / 256) } }
        BEGIN { le(20240520, 4); le(1, 4); le(n, 4); for (i = 3; i < 256; i++) le(0, 4); for (i = 0; i < n; i++) le(i * i % 90, 2) }' >"$1"
}
export LC_ALL=C
token_shard "$work/one.bin" 3000
token_shard "$work/two.bin" 2000
shards=(--data "$work/[ot]*.bin" --layers 1 --heads 2 --channels 16 --context 16 --batch 4)
cp -r "$work/a" "$work/shards"
mkdir "$work/hf_shards" && cp "$work/hf/tokenizer.json" "$work/hf/tokenizer.txt" "$work/hf_shards"
ok "token shards by a pattern" "$train" "${shards[@]}" --steps 3 --eval-tokens 64 --out "$work/shards" --export-hf "$work/hf_shards"
ok "another model's tokenizer is gone" [ "$(cd "$work/hf_shards" && ls | tr '\n' ' ')" = "config.json generation_config.json model.safetensors " ]
ok "no tokenizer of an earlier run stays" [ ! -e "$work/shards/tokenizer.txt" ]
ok "nor is one exported" [ -z "$(ls "$work/hf_shards" | grep token)" ]
printf '\1' | dd of="$work/one.bin" bs=1 seek=1024 conv=notrunc status=none # its first token
refuses 1 "another run: 'data " "$train" "${shards[@]}" --steps 3 --eval-tokens 64 --out "$work/shards" --resume
token_shard "$work/one.bin" 3000
refuses 1 "no tokenizer" "$train" "${shards[@]}" --steps 3 --val "$work/text.txt"
refuses 2 "sample-every needs a tokenizer" "$train" "${shards[@]}" --steps 3 --sample-every 1
mkdir "$work/merged" && : >"$work/merged/merges.txt"
refuses 1 "merged has a merges.txt, and these" "$train" "${shards[@]}" --steps 3 --out "$work/merged"
refuses 2 "are token shards" "$train" "${shards[@]}" --steps 3 --tokenizer chars
refuses 1 "one.bin is of tokens; a pattern of such files ends in .bin" "$train" "${small[@]}" --data "$work/[ot]*.bi*" --tokenizer bytes
refuses 1 "holds token" "$train" "${shards[@]:0:2}" --steps 3 --model "$work/a"
if [ -x dev/data/tokenize ]; then # and shards of a text
    printf '#version: 0.2\nb o\nbo t\nt l\n' >"$work/vocab.bpe"
    tokenize=(dev/data/tokenize --merges "$work/vocab.bpe")
    ok "tokenize" "${tokenize[@]}" --out "$work/new/s" --shard-tokens 9000 "$work/text.txt" "$work/short.txt"
    ok "counts tokens" grep -q ' in 3 shards' "$work/last"
    ok "its shards are data" "$train" --data "$work/new/s_*.bin" "${shards[@]:2}" --merges "$work/vocab.bpe" --steps 3
    refuses 1 "is there already" "${tokenize[@]}" --out "$work/new/s" "$work/text.txt"
    ok "shards of a name like a pattern" "${tokenize[@]}" --out "$work/new/s[1]" "$work/text.txt"
    refuses 1 "is there already" "${tokenize[@]}" --out "$work/new/s[1]" "$work/text.txt"
    refuses 1 "cannot open" "${tokenize[@]}" --out "$work/t" "$work/text.txt" "$work/missing"
    refuses 1 "cannot write" bash -c 'ulimit -f 8; exec "$@"' _ "${tokenize[@]}" --out "$work/t" "$work/text.txt"
    ok "and leaves nothing" [ -z "$(ls "$work"/t_* 2>/dev/null)" ]
    mkdir "$work/t_000002.bin.tmp"
    refuses 1 "cannot write" "${tokenize[@]}" --out "$work/t" --shard-tokens 1000 "$work/text.txt"
    ok "nor some of its shards" [ "$(cd "$work" && echo t_*)" = t_000002.bin.tmp ]
    mkfifo "$work/pipe"
    "${tokenize[@]}" --out "$work/u" --shard-tokens 4000000 "$work/pipe" >"$work/out" 2>"$work/err" &
    exec 7>"$work/pipe"
    for i in {1..10}; do cat "$work/long.txt"; done >&7 # it reads 16 MB before it writes
    await [ -e "$work/u_000001.bin" ]
    kill -INT $!
    cat "$work/long.txt" >&7 2>/dev/null
    exec 7>&-
    wait $!
    ok "stopped, it leaves no shards" [ -z "$(ls "$work"/u_* 2>/dev/null)" ]
    refuses 2 "are needed" "${tokenize[@]}" "$work/text.txt"
    refuses 2 "no option" "${tokenize[@]}" --input "$work/text.txt"
    refuses 2 "takes 1 to" "${tokenize[@]}" --shard-tokens 0
fi
# shards that change while they are read: larger tokens, and none
for how in "count=2000 conv=notrunc" "count=0"; do
    token_shard "$work/one.bin" 3000
    "$train" "${shards[@]}" --steps 100000000 --eval-every 0 --out "$work/changing" >"$work/out" 2>"$work/err" &
    await rows 1 "$work/changing/log.csv"
    tr '\0' '\377' </dev/zero | dd of="$work/one.bin" bs=2 seek=512 $how iflag=fullblock status=none
    wait $!
    ok "changed shards, $how: exit 1" [ $? = 1 ]
    ok "and a line" [ "$(grep -c '^error: .* while .* read; put' "$work/err")" = 1 ]
    rm -rf "$work/changing"
done
token_shard "$work/one.bin" 3000
truncate -s -7 "$work/two.bin"
refuses 1 "promises" "$train" "${shards[@]}" --steps 3
printf 'abcdefgh' | dd of="$work/one.bin" conv=notrunc status=none
refuses 1 "not a token file" "$train" "${shards[@]}" --steps 3

# ---- a full disk (a limit on file sizes stands for it): the last good checkpoint stays, and no half-written file
cat >"$work/full.sh" <<'END'
ulimit -f 60
exec "$@"
END
rm -rf "$work/full"
"$train" "${long[@]}" --out "$work/full" >/dev/null 2>&1 &
await [ -e "$work/full/state.bin" ]
kill -9 $! 2>/dev/null
wait $! 2>/dev/null
cp -r "$work/full" "$work/before"
refuses 1 "write" bash "$work/full.sh" "$train" "${long[@]}" --out "$work/full" --resume
ok "the checkpoint is the one from before" cmp "$work/before/state.bin" "$work/full/state.bin"
ok "no half-written file stays" [ -z "$(find "$work/full" -name '*.tmp')" ]
ok "with room again it goes on" "$train" "${long[@]}" --out "$work/full" --resume
ok "to the same end" same_run "$work/whole" "$work/full"
finish
