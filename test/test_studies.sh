#!/usr/bin/env bash
# The studies' driver and the race on models that learn nothing in milliseconds: what they keep, skip, write and
# refuse; the optimizer of dev/studies/README.md enters the race; README's results are those in dev/studies/results.
. test/lib.sh
project=$PWD
mkdir "$work/run" && ln -s "$project/dev" "$project/train_gpt2" "$project/decode_ppd" "$work/run/"
head -c 20000 dev/data/tales.txt >"$work/text.txt"
cd "$work/run" || exit 1
tiny="--layers 1 --heads 1 --channels 8 --context 8 --batch 2 --eval-tokens 64 --tokenizer bytes"
study() { env -u FULL DATA="$work/text.txt" RESULTS="$work/results" STEPS=4 JOBS=2 EXTRA="$tiny" "$@"; }

names=(proxy)
[ "${FULL:-}" ] && names=(averaging schedules learning-rate-free distillation proxy)
for name in "${names[@]}"; do
    ok "$name runs" study bash dev/studies/$name.sh
    ok "$name: the best of each grid is marked" grep -q -- '<- best' "$work/last"
    ok "$name: a CSV" grep -q '^seed,' "$work/results/$name.csv"
    ok "$name: verdicts" grep -Eq '^\| .* \| (yes|\*\*no\*\*) \|$' "$work/results/$name.md"
    cp "$work/results/$name.md" "$work/claims"
    ok "$name again" study bash dev/studies/$name.sh
    ok "$name: finished trainings are kept" bash -c "! grep -q trainings '$work/last'"
    ok "$name: the report from the CSV alone" study REPORT=1 bash dev/studies/$name.sh
    ok "$name: the same verdicts" cmp "$work/claims" "$work/results/$name.md"
    if command -v gnuplot >/dev/null; then ok "$name: a picture" test -s "$work/results/$name.png"
    else skip "$name: a picture (gnuplot is not installed)"; fi
done
ok "8 steps on the proxy alone for each gradient" [ "$(grep -cE '^seed,noisy proxy alone \(8\),,[123],32,' "$work/results/proxy.csv")" = 3 ]

# ---- a trainer whose losses are known: 2 is best of two seeds, 4 has luck with one, and 64 diverges for one seed
cat >"$work/known" <<'END' && chmod +x "$work/known"
#!/bin/bash
while [ $# -gt 0 ]; do
    case $1 in --lr) lr=$2 ;; --seed) seed=$2 ;; --steps) steps=$2 ;; --out) out=$2 ;; esac
    shift
done
echo step,tokens,seconds,train_loss,val_loss >"$out/log.csv"
[ $lr$seed != 642 ] || { echo "error: the loss or its gradient is not a number at step 3"; exit 1; }
awk -v lr=$lr -v seed=$seed -v steps=$steps -v to="$out/log.csv" 'BEGIN {
    split("1.9 1.4 1.2 1.0 1.1 1.5 1.5", x, " ")
    loss = x[int(log(lr) / log(2) + 1.5)] + (seed < 10 ? seed / 10 : lr >= 4 && lr <= 16)
    print steps / 2 ",1,1,9," loss + 1 >>to; print steps ",1,1,9," loss >>to
    print "memory     7 MB\nfinal val loss " loss }'
END
cat >"$work/mini.sh" <<'END'
. dev/studies/driver.sh
length 4 8
common --steps $steps --val val.txt
method A "lr=1,2,4,8,16"
method B "" --lr 1 --steps 8
method C "" --lr 64
tune
measure 1 2 3
echo "known: $(mean_of A) $(saved A B) $(saved B A) $(saved A C) $(against C A) $(at_most C C) $(at_most A C) $(at_most B A)"
END
echo >val.txt
ok "a study of known losses" study env TRAIN="$work/known" bash "$work/mini.sh"
ok "its best of two seeds, steps, divergence" grep -qxF \
    'known: 1.6000 62.5 -100 -100 diverged against 1.600 ± 0.100 no yes no' "$work/last"
ok "the seeds that tune are not measured" awk -F, '$1 == "tune" { t[$4] } $1 == "seed" { s[$4] }
    END { for (x in s) if (x in t) exit 1 }' "$work/results/mini.csv"
ok "nor in the studies" [ "$(grep -lx 'measure 1 2 3' dev/studies/*.sh | wc -l)" = 5 ]
echo >>val.txt
ok "a file of its commands changes" study env TRAIN="$work/known" bash "$work/mini.sh"
ok "all is trained anew" grep -q trainings "$work/last"

if [ "${FULL:-}" ]; then # the others, with few steps: every command of theirs is accepted, and reports
    head -c 60000 "$project/dev/data/tales.txt" |
        awk '{ who = int(NR / 40) % 6 } who != last { print "\nP" who ":"; last = who } { print }' >"$work/play.txt"
    trial() { env -u FULL RESULTS="$work/results" JOBS=2 "$@" && test -s "$work/results/$name.csv" -a -s "$work/results/$name.md"; }
    for book in Aa Bb; do head -c 35000 "$project/dev/data/tales.txt" | sed "s/^/${book}1:1 /"; done >"$work/books.txt"
    name=federated-full && ok "$name" trial DATA="$work/play.txt" BOOKS="$work/books.txt" STEPS=4 FULL=1 bash dev/studies/federated.sh
    name=federated && ok "$name" trial DATA="$work/play.txt" STEPS=10 bash dev/studies/federated.sh
    name=convex && ok "$name" trial DATA="$work/text.txt" STEPS=20 bash dev/studies/convex.sh
    rate=$(awk -F, '$1 == "tune" && $2 == "speakers" && $3 == "FedAvg" { s[$4] += $11 }
        END { for (r in s) if (b == "" || s[r] < s[b]) b = r; sub("/.*", "", b); print b }' "$work/results/federated.csv")
    ok "the best rate is taken" grep -q -- "--client-muon-lr $rate " runs/studies/federated-trial/text_speakers_FedAvg_best_1/command
    name=decoding && ok "$name" trial DATA="$work/text.txt" STEPS=4 bash dev/studies/decoding.sh
    if command -v mpirun >/dev/null && command -v mpicc >/dev/null; then
        make -s -C "$project" train_gpt2_mpi && ln -s "$project/train_gpt2_mpi" .
        name=workers && ok "$name" trial STEPS=6 bash dev/studies/workers.sh
    else skip "the study workers (Open MPI is not installed)"; fi
fi
cp train_gpt2 "$work/other_build" && echo >>"$work/other_build"
ok "another build" study env TRAIN="$work/other_build" STEPS=1 bash dev/studies/proxy.sh
ok "trains anew" grep -q trainings "$work/last"
ok "a trial" study env -u RESULTS FULL=0 TRAIN="$work/other_build" STEPS=1 bash dev/studies/proxy.sh
ok "leaves the results alone" test -s runs/studies/results/proxy.csv
ok "and the study's trainings" [ "$(ls runs/studies/proxy)" = text-trial ]
if command -v flock >/dev/null; then
    refuses 1 "this study is running already" flock runs/studies/proxy/text-trial/lock \
        env -u FULL DATA="$work/text.txt" STEPS=1 bash dev/studies/proxy.sh
    mkdir -p runs/studies/federated-trial
    refuses 1 "this study is running already" flock runs/studies/federated-trial/lock env -u FULL STEPS=1 bash dev/studies/federated.sh
else skip "two of one study (flock is not installed)"; fi
refuses 2 "EXTRA is for trainings" env EXTRA="--lr 1" bash dev/studies/convex.sh
refuses 2 "EXTRA is for trainings" env EXTRA="--lr 1" bash dev/studies/decoding.sh
refuses 2 "is for other studies" env EXTRA="--lr 1" bash dev/studies/federated.sh
refuses 2 "STEPS is at least 6" env STEPS=5 bash dev/studies/workers.sh
refuses 2 "are for other studies" env DATA="$work/text.txt" bash dev/studies/workers.sh
refuses 2 "STEPS is at least 4" env DATA="$work/text.txt" STEPS=3 bash dev/studies/schedules.sh
refuses 1 "cannot be read" env DATA=nowhere bash dev/studies/proxy.sh
for name in proxy convex workers federated; do refuses 1 "is not there yet" env RESULTS="$work/none" REPORT=1 bash dev/studies/$name.sh; done
ok "and leaves nothing" [ ! -e "$work/none" ]
for steps in 0 abc; do refuses 2 "STEPS takes a whole number, not '$steps'" env DATA="$work/text.txt" STEPS=$steps bash dev/studies/proxy.sh; done
for name in nothing driver "averaging schedules"; do
    make -s -C "$project" study NAME="$name" >"$work/out" 2>&1
    ok "make study NAME=$name names the studies" grep -q '^error: NAME is one of averaging ' "$work/out"
done
make -s -C "$project" demo DATA=/nope >"$work/out" 2>&1
ok "make demo of a text that is not there" grep -q '^error: /nope cannot be read' "$work/out"
refuses 1 "federated-full.csv is not there" env REPORT=1 FULL=1 RESULTS="$work/none" bash dev/studies/federated.sh

# ---- the demo, of few steps, with a text whose name has a space and a =, and whose lines are words
mkdir "$work/demo" && ln -s "$project/dev" "$work/demo/"
printf '#!/bin/sh\nexec "%s/train_gpt2" "$@" --channels 32 --steps 4 --eval-every 2 --sample-every 4\n' "$project" >"$work/demo/train_gpt2"
printf '#!/bin/sh\n[ "$1" != train ] || set -- "$@" --steps 2 --own-tokens 1000\nexec "%s/decode_ppd" "$@"\n' "$project" >"$work/demo/decode_ppd"
chmod +x "$work/demo/train_gpt2" "$work/demo/decode_ppd"
tr -s ' ' '\n' <"$work/text.txt" >"$work/demo/text=1 my.txt"
ok "the demo" bash -c 'cd "$1" && bash dev/demo.sh "text=1 my.txt" </dev/null' _ "$work/demo"
cp "$work/last" "$work/shown"
ok "the same text, with several tokens a pass" [ "$(grep -c '^the same text' "$work/shown")" = 2 ]
ok "and how many times as fast they are" grep -qE '^PPD  *[0-9].* yes$' "$work/shown"
for mark in T S; do ok "the curve of $mark" grep -qE "^ *[0-9.]+ \|.*$mark" "$work/shown"; done
printf '#!/bin/sh\nexec "%s/train_gpt2" "$@" --eval-every 0\n' "$project" >"$work/demo/train_gpt2"
rm -rf "$work/demo/runs"
set -m
(cd "$work/demo" && exec bash dev/demo.sh "text=1 my.txt") >"$work/out" 2>&1 &
await rows 2 "$work/demo/runs/teacher/log.csv"
kill -INT -- -$!
wait $!
ok "Ctrl-C ends the demo" [ $? = 130 ]
set +m
ok "and no stage follows" bash -c "! grep -q '^== 3' '$work/out'"

# ---- a picture of runs, one of which has no rate
if command -v gnuplot >/dev/null; then
    mkdir "$work/rateless" "$work/lr=it's 3"
    awk 'BEGIN { print "step,tokens,seconds,train_loss,val_loss,teacher_loss,lr,grad_norm"
                 for (i = 1; i <= 60; i++) print i ",1,1," 3 - i / 60 ",,,,1" }' >"$work/rateless/log.csv"
    cp "$work/rateless/log.csv" "$work/lr=it's 3"
    ok "runs of any name" bash -c 'cd "$1" && bash "$2/dev/plot.sh" named.png "$3" </dev/null' _ \
        "$work" "$project" "lr=it's 3"
    ok "their picture" [ "$(head -c 4 "$work/named.png" | tail -c 3)" = PNG ]
    mkdir "$work/strange" && echo round,seconds >"$work/strange/log.csv"
    refuses 1 "not the log.csv of a run of train_gpt2" bash "$project/dev/plot.sh" "$work/x.png" "$work/strange"
    ok "a run without rates" bash "$project/dev/plot.sh" "$work/rateless.png" "$work/rateless"
    ok "a picture" [ "$(head -c 4 "$work/rateless.png" | tail -c 3)" = PNG ]
    refuses 1 "cannot write" bash "$project/dev/plot.sh" "$work/nowhere/rateless.png" "$work/rateless"
else skip "a picture of runs (gnuplot is not installed)"; fi
mkdir "$work/bin" && for tool in bash awk mktemp rm cat; do ln -s "$(command -v $tool)" "$work/bin"; done
refuses 1 "the package gnuplot-nox" env PATH="$work/bin" bash "$project/dev/plot.sh" "$work/x.png" "$work/demo/runs/teacher"

# ---- dev/convex's CSV: into a pipe, not in its place; not over its data; and whole or not at all
mkfifo "$work/pipe"
cat "$work/pipe" >"$work/piped" &
dev/convex --optimizer gd --evaluations 5 --out "$work/whole.csv" >/dev/null
dev/convex --optimizer gd --evaluations 5 --out "$work/closed.csv" >&- 2>&-
ok "convex with its output closed" cmp "$work/whole.csv" "$work/closed.csv"
ok "convex into a pipe" dev/convex --optimizer gd --evaluations 5 --out "$work/pipe"
wait $!
ok "which stays one" [ -p "$work/pipe" ]
ok "and has the CSV" grep -q '^optimizer,lr,evaluations' "$work/piped"
printf '1 1:1 2:1\n-1 1:-1\n1 2:1\n-1 2:-1\n' >"$work/data.svm"
refuses 2 "is --data" bash -c 'cd "$1" && run/dev/convex --data data.svm --out ./data.svm' _ "$work"
dev/convex --evaluations 1000000 --out "$work/long.csv" >/dev/null 2>&1 &
await [ -e "$work/long.csv.tmp" ]
kill -INT $!
wait $!
ok "convex, stopped, leaves nothing" [ "$(ls "$work" | grep -c 'long.csv')" = 0 ]

# ---- what is built with other flags is built anew; this compiler says what it was told, and makes an empty file
mkdir "$work/make"
(cd "$project" && tar c Makefile decode_ppd.c train_gpt2.c optim.h dev/unicode_tables.h) | tar x -C "$work/make"
cat >"$work/cc" <<'END' && chmod +x "$work/cc"
#!/bin/sh
told=$*
while [ "$1" != -o ]; do shift; done
[ "$2" = /dev/null ] || echo "$told"
: >"$2"
END
built() { env -u MAKEFLAGS -u MFLAGS -u ARCH -u BLAS -u OPENMP -u CFLAGS make -s -C "$work/make" CC="$work/cc" decode_ppd "$@"; }
ok "make builds" [ "$(built)" ]
ok "make builds once" [ -z "$(built)" ]
ok "BLAS=0 is no other way" [ -z "$(built BLAS=0)" ]
ok "BLAS=1 is" grep -q -e -DUSE_BLAS <<<"$(built BLAS=1)"
ok "and builds once" [ -z "$(built BLAS=1)" ]
mpi() { env -u MAKEFLAGS -u MFLAGS make -s -C "$work/make" CC="$work/cc" train_gpt2_mpi MPICC="$work/$1"; }
for name in mpicc mpicc.other; do cp "$work/cc" "$work/$name"; done
ok "with MPI" [ "$(mpi mpicc)" ]
ok "once" [ -z "$(mpi mpicc)" ]
ok "anew with another MPI" [ "$(mpi mpicc.other)" ]
printf '#!/bin/sh\n[ "$1" != --list-gpu-code ] || printf "sm_80\\nsm_90\\n"\n' >"$work/nvcc" && chmod +x "$work/nvcc"
gpu() { env -u MAKEFLAGS -u MFLAGS make -n -C "$work/make" CC="$work/cc" NVCC="$work/nvcc" train_gpt2cu; }
touch "$work/make/train_gpt2.cu"
ok "of GPUs those that nvcc knows" grep -q -e 'arch=compute_90,code=sm_90' <<<"$(gpu)"
ok "and no others" [ -z "$(gpu | grep -e compute_100 -e compute_75)" ]
for flags in "" ARCH=generic OPENMP= CFLAGS=-g; do ok "built anew with '$flags'" [ "$(built $flags)" ]; done

# ---- the race, with the optimizer that the page adds
page=dev/studies/README.md
block() { awk -v n="$1" '/^```$/ { inside = 0 } inside; /^```c$/ { inside = ++count == n }' $page; }
block 1 >"$work/body" && block 2 >"$work/row"
mkdir "$work/dev" && cp dev/unicode_tables.h "$work/dev" && cp "$project/train_gpt2.c" "$work"
awk -v body="$work/body" -v row="$work/row" '
    function insert(file,   line) { while ((getline line <file) > 0) print line }
    /^#define OPTIM_ADAM_ / { insert(body) }
    { print }
    /^static const OptimRow optim_rows\[\] = \{/ { insert(row) }' "$project/optim.h" >"$work/optim.h"
if grep -q optim_step_signum "$project/optim.h"; then # by who followed the page
    skip "the page's optimizer: optim.h has it already"
    cp "$project/optim.h" "$work"
fi
ok "the page's optimizer compiles without warnings" bash -c "${CC:-gcc} -std=gnu11 -Wall -Wextra -Werror -O1 -fopenmp \
    '$work/train_gpt2.c' -o '$work/with_signum' -lm"
ok "its help" "$work/with_signum" --help signum
ok "its maths" grep -q 'sign(m)' "$work/last"
unset FULL NAME TRACK GRID SEEDS DATA STEPS # some systems have a NAME of their own
export RESULTS="$work/results" JOBS=2 TRAIN="$work/with_signum" EXTRA="$tiny"
ok "the race" env STEPS=3 SEEDS=2 ENTRY="--optimizer signum --lr 1e-3" bash dev/studies/race.sh
refuses 2 "AdamW's row is the target" env STEPS=3 NAME=AdamW ENTRY="--optimizer signum" bash dev/studies/race.sh
ok "a row of the table" grep -q '^tales,signum,3,2,' "$work/results/race.csv"
ok "the target's row" grep -q '^tales,AdamW,' "$work/results/race.csv"
ok "the race, tuned" env STEPS=3 SEEDS=2 NAME=tuned ENTRY="--optimizer signum" GRID="lr=1e-4,1e-3,1e-2" \
    bash dev/studies/race.sh
ok "its search" grep -q ' lr=1e-[234]   <- best$' "$work/last"
ok "its row has the rate" grep -q '^tales,tuned,3,2,.*,--optimizer signum --lr 1e-[234]$' "$work/results/race.csv"
ok "an entry whose weights end as no numbers" env STEPS=1 SEEDS=1 NAME=wild \
    ENTRY="--optimizer sgd --lr 1e39 --clip 0 --warmup 0" bash dev/studies/race.sh
ok "has diverged" grep -q '^tales,wild,1,1,inf,' "$work/results/race.csv"
for lost in 1 2; do echo "tales,lost $lost,3,2,inf,,38,--lr 1e9" >>"$work/results/race.csv"; done
REPORT=1 bash dev/studies/race.sh >"$work/lost"
ok "an entry that diverged has no lead, nor who comes after it" grep -qE '^lost 2 +3 +[0-9.]+% +2 +diverged +no +38 ' "$work/lost"
refuses 2 "the race fixes --batch" env ENTRY="--batch 64" bash dev/studies/race.sh
refuses 2 "the race fixes --batch" env ENTRY="--lr 1e-3" GRID="batch=4,8" bash dev/studies/race.sh
refuses 2 "GRID is what to tune" env GRID="lr=1,2" bash dev/studies/race.sh
ok "an entry of more steps than AdamW, which begins otherwise" env STEPS=1001 SEEDS=1 NAME=longer \
    ENTRY="--init-std 0.03" bash dev/studies/race.sh
ok "has taken more" grep -qE '^longer +1001 +-0\.1% ' "$work/last"
refuses 2 "TRACK is tales" env TRACK=moon bash dev/studies/race.sh
refuses 2 "the track tales has its own" env DATA="$work/text.txt" ENTRY="--lr 1e-3" bash dev/studies/race.sh
refuses 1 "no row of AdamW on tinyshakespeare" env REPORT=1 TRACK=tinyshakespeare bash dev/studies/race.sh

# ---- README's rows and the files they come from; the race's table on the page and its CSV; all from the CSVs alone
for csv in "$project"/dev/studies/results/*.csv; do
    name=$(basename "$csv" .csv)
    [ "$name" != race ] || continue
    mkdir -p "$work/the reports" && cp "$csv" "$work/the reports"
    full=
    [[ $name != *-full ]] || full=1
    ok "the report of $name" env -u EXTRA REPORT=1 ${full:+FULL=1} RESULTS="$work/the reports" bash "dev/studies/${name%-full}.sh"
    ok "is what $name.md says" cmp "$work/the reports/$name.md" "${csv%.csv}.md"
    [ ! -f "$work/the reports/$name.txt" ] || ok "and $name.txt" cmp "$work/the reports/$name.txt" "${csv%.csv}.txt"
done
# ---- what bench says of texts that loop and that do not is of as many as there are
for csv in "$project"/dev/studies/results/decoding*.csv; do
    ok "$(basename "$csv"): texts and speeds agree" awk -F, '
        $2 == "texts" { n[$1, $4 == "single" ? "method" : "loops"] = $5 }
        $3 == "plain" && $4 == "tokens_per_s" { rows++; if (($5 > 0) != (n[$1, $2] > 0)) bad = 1 }
        END { exit bad || rows != 6 }' "$csv"
done
cd "$project" || exit 1
unset RESULTS EXTRA
if [ "$(git status --porcelain dev/studies/results 2>/dev/null)" ]; then
    skip "README's rows: dev/studies/results holds results of your own"
    finish
    exit
fi
# ---- verdicts can be lost: flips NAME SED CLAIM...: with its CSV changed so, these claims are held no more
flips() {
    local name=$1 change=$2 claim
    shift 2
    mkdir -p "$work/flipped"
    sed -E "$change" "dev/studies/results/$name.csv" >"$work/flipped/$name.csv"
    (gnuplot() { :; } && export -f gnuplot && REPORT=1 RESULTS="$work/flipped" bash "dev/studies/$name.sh") >/dev/null 2>&1
    for claim; do
        ok "$name was: $claim" grep -q "^| $claim.* | yes |$" "dev/studies/results/$name.md"
        ok "$name, changed, is not" grep -q "^| $claim.* | \*\*no\*\* |$" "$work/flipped/$name.md"
    done
}
flips schedules 's/^(seed,Schedule-Free,[^,]*,[0-9],125,)[^,]*/\19/' "One Schedule-Free run"
flips federated 's/^(exact,convex,FFGG,misfit 1 steps 20,1,.*,)[^,]*,([^,]*)$/\11,\2/
    s/^(attack,convex,clipping,misfit 0 little 0.4,1,.*,)[^,]*,([^,]*)$/\11,\2/
    s/^(delay,convex,asynchronous,misfit 0 delay 20,1,.*,)[^,]*,([^,]*)$/\11,\2/
    s/^(text,speakers,FFGG norms,best,mean,GLOUCESTER,,,,,)[^,]*/\19/
    s/^(text,speakers,FFGG norms,best,1,.*,)[^,]*$/\19/' "FFGG finds the exact" "FFGG is exact with 20%" \
    "FFGG is exact with answers" "On text, speakers: every client" "On text, speakers: FFGG's mean"

for track in tinyshakespeare tales; do
    REPORT=1 TRACK=$track bash dev/studies/race.sh | grep -v '^$' | sed 's/^/    /; s/ *$//' >"$work/table"
    ok "the race's table, $track" grep -q ' AdamW .* target ' "$work/table"
    ok "$page has the race's table, $track" bash -c "! grep -vxF -f $page '$work/table'"
done
published=() # of a study that has a long run README has that
for file in dev/studies/results/*.md; do [ -f "${file%.md}-full.md" ] || published+=("$file"); done
for file in "${published[@]}"; do
    ok "README has the rows of $file" bash -c "! grep -vxF -f README.md $file"
done
# the algorithms' table: each place is a heading of optim.h, or a file
awk -F' [|] ' '/^\| algorithm / { here = 1; next } here && !/^\|/ { exit } here && !/---/ { sub(/ \|$/, ""); print $NF }' README.md |
    sed 's/; /\n/g; s/\\//g' >"$work/places"
ok "README says where the algorithms are" [ "$(wc -l <"$work/places")" -ge 14 ]
ok "which is there" bash -c 'while read -r place; do
    case $place in
        \`*) file=${place#?}; [ -f "${file%%\`*}" ] ;;
        *) grep -qF "// $place" optim.h ;;
    esac || { echo "$place"; exit 1; }
done <"$1"' _ "$work/places"
awk '/^### Notes/ { exit } /^## The papers/ { here = 1 } here && /^### / { inside = 1 } inside && NF' README.md >"$work/rows"
cat "${published[@]}" >"$work/claims"
ok "README has a table of each study" [ "$(grep -c '^### ' "$work/rows")" = ${#published[@]} ]
ok "README's rows are in dev/studies/results" bash -c "! grep -vxF -f '$work/claims' '$work/rows'"
finish
