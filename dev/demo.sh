#!/usr/bin/env bash
# `make demo [DATA=text.txt]`: a teacher learns a text, a smaller student learns from the teacher's loss without any
# learning rate, and both write; finally the teacher writes the same text with several tokens a pass, and is measured.
# Runs go to runs/teacher, runs/student and runs/ahead. Called from the project's folder.
set -eu
trap 'exit 130' INT TERM # a trainer that is stopped ends well: the next stage is not to begin
export LC_ALL=C # numbers have points, for awk, sort and printf
data=$1
start=$SECONDS
small=(--data "$data" --context 64 --batch 12 --eval-tokens 40000)

say() { printf '\n== %s\n\n' "$1"; }
# draw RUN...: validation losses as a few lines of text.
draw() {
    for run in "$@"; do awk -F, -v run="$run" 'NR > 1 && $5 != "" { print run, $1, $5 }' "$run/log.csv"; done | awk '
        { if (!($1 in mark)) { mark[$1] = substr("TS", ++runs, 1); name[runs] = $1 }
          run[NR] = $1; step[NR] = $2; loss[NR] = $3
          if ($2 > last) last = $2; if (NR == 1 || $3 < low) low = $3; if ($3 > high) high = $3 }
        END { for (i = 1; i <= NR; i++) {
                  row = int(11 * (high - loss[i]) / (high - low + 1e-9) + 0.5); column = int(60 * step[i] / last)
                  at = row "," column; taken = at in cell; cell[at] = taken ? "*" : mark[run[i]] }
              for (row = 0; row < 12; row++) {
                  line = ""; for (c = 0; c <= 60; c++) line = line (((row "," c) in cell) ? cell[row "," c] : " ")
                  printf "%7.3f |%s\n", high - row * (high - low) / 11, line }
              printf "        +%s step %d\n", substr("------------------------------------------------------------", 1, 60), last
              for (r = 1; r <= runs; r++) printf "        %s = %s\n", mark[name[r]], name[r] }'
}

say "1  The text: $data"
[ "$data" = dev/data/tales.txt ] && dev/data/tales --score "$data"
head -c 600 "$data"
printf ' ...\n'

say "2  A teacher: 4 layers, 192 wide, Muon with warmup and cosine"
./train_gpt2 "${small[@]}" --layers 4 --channels 192 --optimizer muon --lr 4e-3 --muon-lr 4e-2 --muon-momentum 0.9 \
    --steps 1000 --eval-every 100 --sample-every 1000 --out runs/teacher

say "3  A student: 3 layers, 128 wide. IAM over Muon reads the teacher's loss on each batch, and needs no learning rate"
./train_gpt2 "${small[@]}" --layers 3 --channels 128 --optimizer iam --base muon --teacher runs/teacher --steps 1200 \
    --eval-every 100 --sample-every 1200 --out runs/student

say "4  Validation loss"
draw runs/teacher runs/student
if ! command -v gnuplot >/dev/null; then
    printf '\nmake plot RUNS="runs/teacher runs/student" draws them as a picture once gnuplot-nox is installed\n'
elif picture=$(bash dev/plot.sh runs/demo.png runs/teacher runs/student); then
    printf '\ncurves: %s\n' "$picture"
fi
# A model of this size looks ahead only if it is trained to: the teacher goes on with its prompt for some steps, and its
# loss stays. One prompt, since this model's weights stay in a cache, where every further row of a pass costs.
say "5  Several tokens a pass: the teacher, trained on together with a prompt token that guesses the token after the next"
./decode_ppd train --model runs/teacher --data "$data" --joint --deep --prompts 1 --cuts 48 --batch 8 --steps 200 \
    --prompt-weight 0.1 --out-model runs/ahead --out runs/ahead.ppd
prompt=$(awk 'NF { print (NF > 2 ? $1 " " $2 " " $3 : $1); exit }' <"$data")
for with in "" "--ppd runs/ahead.ppd" "--ppd runs/ahead.ppd --ngram"; do
    printf '\n-- decode_ppd run --model runs/ahead %s\n' "$with"
    ./decode_ppd run --model runs/ahead $with --prompt "$prompt" --tokens 400 >runs/ahead.now
    if [ -z "$with" ]; then cat runs/ahead.now && mv runs/ahead.now runs/ahead.txt
    elif cmp -s runs/ahead.now runs/ahead.txt; then echo "the same text"
    else echo "error: another text" >&2 && exit 1; fi
done
rm -f runs/ahead.now
printf '\n-- decode_ppd bench --model runs/ahead --ppd runs/ahead.ppd\n'
./decode_ppd bench --model runs/ahead --ppd runs/ahead.ppd --data "$data" --tokens 200 >runs/ahead.bench
sed -n '/ identical$/,/^$/p' runs/ahead.bench
printf '\nThe demo took %d:%02d.\n' $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60))
