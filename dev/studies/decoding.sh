#!/usr/bin/env bash
# What parallel prompt decoding (arXiv 2405.18628) is worth on this machine, against plain decoding of the same text:
# prompts for the frozen model, as the paper has them and with a vector for every layer; a model that was trained on
# together with its prompts; independent heads (Medusa, 2401.10774) trained as long; n-grams; a smaller draft model.
# Two pictures: tokens a pass and latency by tree size, and the speedup of every method.
#
# By default a model of 3 million parameters on the tales. FULL=1 is the paper's case, a model whose weights do not fit
# in a cache: 34 million parameters, 8 layers, GPT-2's tokens, two hours on two cores (OMP_NUM_THREADS is yours; whatever
# is finished is kept, what was interrupted goes on):
#   dev/data/texts.sh kjv && dev/data/texts.sh tinyshakespeare && dev/data/gpt2.sh 124M
#   { head -c 3963970 data/kjv.txt && head -c 1003854 data/tinyshakespeare.txt
#     tail -c +3963971 data/kjv.txt && tail -c +1003855 data/tinyshakespeare.txt; } >data/both.txt
#   make study NAME=decoding FULL=1 DATA=data/both.txt GPT2_MERGES=data/gpt2-124M/vocab.bpe
# The last tenth of either text is at the end, where the trainer takes what it holds out.
#
# To look further ahead has a price. By an older build: trained so with FULL=1 from the middle of its training on, at
# the rates of its own (3e-3 and 3e-2, 500 steps alone, 500 with the prompts), it guesses the next tokens but one, two,
# three right 77, 61 and 55% of the time instead of 47, 34 and 24, and makes 2.08 tokens a pass instead of 1.81; but
# its loss is 0.20 above that of 1000 steps alone, and its text loops less, so that with n-grams it is only 1.62 times
# as fast as plain decoding. And by a later build, with a weight of 1 instead of the 0.2 of then, the study's 500 steps
# make 2.02 tokens a pass instead of 1.88, but end 0.030 above as many alone, at 4.690, instead of 0.064 below.
. dev/studies/driver.sh
[ ! "${EXTRA:-}" ] || die "EXTRA is for trainings of one kind; here are several" 2
decode=${DECODE:-./decode_ppd}
if [ "$full" ]; then
    [ "$report" ] || [ -r "${GPT2_MERGES:-}" ] || die "FULL=1 needs GPT-2's merges: GPT2_MERGES=vocab.bpe (dev/data/gpt2.sh fetches it)"
    text_options=(--tokenizer gpt2 --merges "${GPT2_MERGES:-}" --context 256)
    muon=(--optimizer muon --muon-momentum 0.9)
    model=(--layers 8 --heads 6 --channels 384 --batch 4 "${muon[@]}" --lr 3e-3 --muon-lr 3e-2 --steps "${STEPS:-1000}")
    draft=(--layers 2 --heads 3 --channels 192 --batch 4 "${muon[@]}" --lr 4e-3 --muon-lr 4e-2 --steps "${STEPS:-700}")
    own_tokens=$((${STEPS:-400} * 150))
    prompts=(--steps "${STEPS:-400}" --batch 2 --own-tokens $own_tokens)
    joint=(--steps "${STEPS:-500}" --batch 4) joint_rates=("${muon[@]}" --lr 2e-3 --muon-lr 1e-2)
    reading=(--cuts 48 --own-tokens $own_tokens)
    texts=16 text_tokens=128
    weight=0.5 # of the prompts' loss, in a model that is trained with them
else
    text_options=(--context 64)
    model=(--layers 4 --heads 4 --channels 256 --batch 12 --lr 2e-3 --steps "${STEPS:-1000}")
    draft=(--layers 2 --heads 4 --channels 64 --batch 12 --lr 4e-3 --steps "${STEPS:-1000}")
    prompts=(--steps "${STEPS:-400}")
    joint=(--steps "${STEPS:-300}" --batch 8) joint_rates=(--lr 5e-4)
    reading=(--cuts 32 --own-tokens 20000)
    texts=32 text_tokens=200
    weight=0.2
fi
[ ! "${STEPS:-}" ] || texts=2 text_tokens=32 # a trial

# ---- stages: each writes a file of its own, once
# stage FILE COMMAND...: unless FILE is there, made by the same command and program; its output goes to FILE.log. Before
# the first one, when stages is not known yet, it is only counted.
now=0 stages=
stage() {
    local file=$1 command program=$train_sum words=()
    now=$((now + 1))
    [ "$stages" ] || return 0
    shift
    for word; do [[ $word = "$file" || $word = "${file}_model" ]] || words+=("${word%_model}"); done # a model: who made it
    [[ " $* " != *" $decode "* ]] || program=$decode_sum
    command="# text $data_sum, program $program$(sums_of "${words[@]}")"$'\n'"$(printf '%q ' "$@")"
    [ -f "$file.done" ] && [ "$(cat "$file.done")" = "$command" ] && return
    rm -f "$file.done"
    [ "$(cat "$file.command" 2>/dev/null)" = "$command" ] || rm -rf "$file" "$file.state"
    printf '%s\n' "$command" >"$file.command"
    echo "$study, $now of $stages: $(basename "$file")"
    "$@" 2>&1 | tee "$file.log.tmp" | tr '\r' '\n' | sed 's/\x1b\[K//g' | grep -vE '^$' | sed 's/^/    /'
    [ "${PIPESTATUS[0]}" = 0 ] || die "$(tail -n 1 "$file.log.tmp" | sed 's/^error: //')"
    grep -q '^stopped at step' "$file.log.tmp" && die "stopped; the same command goes on"
    mv "$file.log.tmp" "$file.log"
    printf '%s\n' "$command" >"$file.done"
}
# trained NAME OPTIONS...: a model.   guesses NAME MODEL OPTIONS...: its prompts or heads. Both resume.
trained() {
    stage "$runs/$1" "$train" --data "$data" "${text_options[@]}" "${@:2}" --eval-every 250 --eval-tokens 50000 \
        --save-every 100 --out "$runs/$1" --resume
}
guesses() {
    stage "$runs/$1" bash -c 'if [ -f "$1.state" ]; then set -- "$@" --resume; fi; exec "${@:2}"' _ "$runs/$1" \
        "$decode" train --model "$runs/$2" --data "$data" "${@:3}" --out "$runs/$1"
}
# measured NAME OPTIONS...: what `bench` says. Not resumed: speeds are of one moment.
measured() { stage "$runs/$1" "$decode" bench --data "$data" --texts $texts --tokens $text_tokens "${@:2}"; }

all_stages() {
    trained model "${model[@]}" && trained draft "${draft[@]}"
    guesses prompts model "${prompts[@]}" --temperature 1 # learn the model's distribution, as the paper's do
    guesses deep model "${prompts[@]}" --deep
    guesses heads model "${prompts[@]}" --heads
    guesses draft_deep draft "${prompts[@]}" --deep
    guesses together model --joint --deep "${reading[@]}" "${joint[@]}" "${joint_rates[@]}" --prompt-weight $weight \
        --out-model "$runs/together_model"
    trained continued --model "$runs/model" "${joint[@]}" "${joint_rates[@]}" --warmup 20 # on as many tokens, alone
    guesses together_heads together_model --heads "${reading[@]}" "${joint[@]}" # as long as the prompts
    drafted=(--draft "$runs/draft" --draft-ppd "$runs/draft_deep")
    measured paper_bench --model "$runs/model" --ppd "$runs/prompts" --heads-file "$runs/heads" "${drafted[@]}"
    measured frozen_bench --model "$runs/model" --ppd "$runs/deep" --heads-file "$runs/heads" "${drafted[@]}"
    measured together_bench --model "$runs/together_model" --ppd "$runs/together" --heads-file "$runs/together_heads" "${drafted[@]}"
    for size in 1 2 3 4 6 9 13 19; do # the length that trees of each size really have, in held-out text
        stage "$runs/tree_$size" bash -c 'tail -c $(($(wc -c <"$1") / 10)) "$1" | head -c 60000 | tail -n 12 | cut -c 1-40 | grep . | "${@:2}" --tree '$size' >/dev/null' \
            _ "$data" "$decode" run --model "$runs/together_model" --ppd "$runs/together" --tokens $((text_tokens < 100 ? text_tokens : 100))
    done
}

if [ ! "$report" ]; then
    make -s decode_ppd || die "decode_ppd does not compile"
    decode_sum=$(sum_of "$decode")
    all_stages
    stages=$now now=0
    all_stages
    {
        printf '%s\nmodel,part,name,measure,value\n' "$(command_line)"
        for model in paper frozen together; do
            awk -v model=$model '
                function put(part, name, measure, value) { print model "," part "," name "," measure "," value }
                /^(f32|bf16|int8) / { put("kind", $1, "tokens_per_s", $4); put("kind", $1, "share_of_bandwidth", $6 + 0) }
                / of them loop / { put("texts", "bench", "single", $1 - $9); put("texts", "bench", "loops", $9) }
                /identical$/ { methods = 1; next }
                methods && NF < 8 { methods = 0 }
                methods { # of texts that do not loop, and that do
                    name = substr($0, 1, 22); sub(/ +$/, "", name)
                    rest = substr($0, 23); gsub(/[()]/, " ", rest); split(rest, x, " ")
                    put("method", name, "tokens_per_s", x[1]); put("method", name, "speedup", x[3]); put("method", name, "a_pass", x[5])
                    put("loops", name, "tokens_per_s", x[2]); put("loops", name, "speedup", x[4]); put("loops", name, "a_pass", x[6])
                    put("method", name, "trained", x[7]); put("method", name, "added_mb", x[8] / 1e6); put("method", name, "identical", x[10])
                }
                / predicted$/ { of = $0; sub(/:.*/, "", of); put("predicted", of, "speedup", $(NF - 1)); put("predicted", of, "a_pass", tau($0)) }
                /^distance / { put("accuracy", of, "top1_" $2, $4); put("accuracy", of, "top5_" $2, $6); put("accuracy", of, "top10_" $2, $8) }
                /^tree of / { put("tree", of, "a_pass_" $3, $5); put("tree", of, "ms_" $3, $(NF - 3)); put("tree", of, "speedup_" $3, $NF) }
                function tau(line) { sub(/.*: /, "", line); return line + 0 }' "$runs/${model}_bench.log"
        done
        for size in 1 2 3 4 6 9 13 19; do
            awk -v size=$size '/tokens a pass/ { print "together,tree,PPD,measured_" size "," $1 }' "$runs/tree_$size.log"
        done
        for stage in deep heads together; do
            awk -v stage=$stage '/trained numbers/ { print "all,size," stage ",trained," $1; print "all,size," stage ",percent," $4 + 0 }' "$runs/$stage.log"
        done
        awk -v weight=$weight '/^val loss.*after/ { print "together,loss,prompts,weight," weight "\ntogether,loss,model,together," $3 }' "$runs/together.log"
        awk '/^final val loss/ { print "together,loss,model,alone," $4 }' "$runs/continued.log"
    } >"$csv.tmp" && mv "$csv.tmp" "$csv" || die "cannot write $csv"
fi

# ---- what came out, from the CSV alone
# value MODEL PART NAME MEASURE
value() { awk -F, -v key="$1,$2,$3,$4" '$1 "," $2 "," $3 "," $4 == key { print $5 }' "$csv"; }
ratio() { awk -v a="${1:-0}" -v b="${2:-0}" 'BEGIN { printf("%.6g", (b > 0 ? a / b : 0)) }'; }
# overall MODEL METHOD tokens_per_s|a_pass: of all texts, those that loop and those that do not, which are as long
overall() {
    for kind in method loops; do
        echo "$(value "$1" texts bench ${kind/method/single}) $(value "$1" $kind "$2" "$3")"
    done | awk '$1 > 0 && $2 > 0 { texts += $1; spent += $1 / $2 } END { printf("%.6g", (spent > 0 ? texts / spent : 0)) }'
}
speedup() { ratio "$(overall "$1" "$2" tokens_per_s)" "$(overall "$1" plain tokens_per_s)"; } # MODEL METHOD
methods=$(awk -F, '$2 == "method" && $4 == "speedup" && !seen[$3]++ { print $3 }' "$csv")
names=("paper:PPD, the paper's" "frozen:PPD, a vector a layer" "together:model trained with its prompts")

printf '\n%-24s' ""
for name in "${names[@]}"; do printf '%42s' "${name#*:}"; done
printf '\n'
while IFS= read -r method; do
    printf '%-24s' "$method"
    for name in "${names[@]}"; do
        cell=-
        [ ! "$(value "${name%%:*}" method "$method" speedup)" ] ||
            cell=$(printf '%.2f x, %.2f a pass' "$(speedup "${name%%:*}" "$method")" "$(overall "${name%%:*}" "$method" a_pass)")
        printf '%42s' "$cell"
    done
    printf '\n'
done <<<"$methods"
printf '\naccuracy (top-1, top-10) at distance 1, 2, 3\n'
for row in "paper PPD" "frozen PPD" "frozen heads" "together PPD" "together heads"; do
    read -r model of <<<"$row"
    [ "$(value $model accuracy $of top1_1)" ] || continue
    printf '%-24s' "$row"
    for d in 1 2 3; do printf '%8s %5s' "$(value $model accuracy $of top1_$d)" "$(value $model accuracy $of top10_$d)"; done
    printf '\n'
done

# looped MODEL METHOD: how many texts loop, and what METHOD has there
looped() {
    local loops single
    loops=$(value "$1" texts bench loops) single=$(value "$1" texts bench single)
    if [ "${single:-0}" = 0 ]; then echo ", all texts loop"
    elif [ "${loops:-0}" != 0 ]; then echo " ($(value "$1" loops "$2" speedup) on the texts that loop, $loops of $((loops + single)))"; fi
}
read -r best best_method < <(grep '^PPD +' <<<"$methods" | while IFS= read -r method; do echo "$(speedup together "$method") $method"; done | sort -g | tail -n 1)
different=$(awk -F, '$4 == "identical" { rows++; bad += $5 != "yes" } END { print rows ? bad + 0 : "nothing was compared" }' "$csv")
far() { awk -v a="$(value "$1" accuracy PPD top1_$2)" -v b="$(value "$1" accuracy heads top1_$2)" 'BEGIN { printf("%+.0f%%", (b > 0 ? 100 * (a / b - 1) : 0)) }'; }
# of what guesses: a tree of one row is plain decoding. The heads' trees are planned and predicted alike.
error=$(for name in "${names[@]}"; do
    for of in PPD heads; do
        [ "$(value "${name%%:*}" predicted $of a_pass)" = 1 ] ||
            echo "$(value "${name%%:*}" predicted $of speedup) $(speedup "${name%%:*}" $of)"
    done
done | awk '$1 > 0 && $2 > 0 { n++; e = 100 * ($1 > $2 ? $1 / $2 - 1 : $2 / $1 - 1); if (e > largest) largest = e }
    END { if (n) printf("%.6g", largest) }')
draft_gain=$(ratio "$(overall frozen "draft with PPD" tokens_per_s)" "$(overall frozen draft tokens_per_s)")
claim "Every method writes what plain decoding writes" "yes" "$([ "$different" = 0 ] && echo yes || echo no)" "$([ "$different" = 0 ] && echo yes || echo no)"
for name in "${names[@]}"; do
    x=$(speedup "${name%%:*}" PPD)
    root=
    [ "$(value "${name%%:*}" predicted PPD a_pass)" != 1 ] || root=", by no guesses: the best tree is a root"
    claim "Parallel prompt decoding, ${name#*:}: speedup" "2.49" "$(printf %.2f "$x")$(looped "${name%%:*}" PPD)$root" "$(holds "$x >= 2.49")"
done
claim "The best combination with PPD: speedup (n-grams alone)" "2.49, PPD alone" \
    "$(printf %.2f "${best:-0}")$(looped together "${best_method:-}") ($(printf %.2f "$(speedup together n-gram)"))" "$(holds "${best:-0} >= 2.49")"
claim "Guesses 2 and 3 tokens further, against independent heads (of as many steps, after the model's)" "+28%" \
    "frozen $(far frozen 2) and $(far frozen 3); together $(far together 2) and $(far together 3)" \
    "$(holds "$(far together 2 | tr -d '%+') >= 28 && $(far together 3 | tr -d '%+') >= 28")"
root=
[ "$(value frozen predicted "the draft's PPD" a_pass)" != 1 ] || root=", by no guesses: its best tree is a root"
claim "A draft that itself decodes with prompts, against the draft alone" "1.22" "$(printf %.2f "$draft_gain")$root" "$(holds "$draft_gain >= 1.22")"
claim "Prediction of the speedup, the largest error of prompts' and heads' trees, within 10% (ours)" "-" "$([ "$error" ] && printf '%.0f%%' "$error" || echo "every tree is a root")" "$(holds "${error:-100} <= 10")"
claim "Trained numbers, at most 0.1% of the model (ours)" "0.0002% of 7B" "$(value all size deep percent)%" "$(holds "$(value all size deep percent) <= 0.1")"
memory=$(awk -v mb="$(value frozen method PPD added_mb)" -v n="$(value all size deep trained)" -v percent="$(value all size deep percent)" \
    'BEGIN { printf "%.4f", (n > 0 ? 100 * mb * 1e6 / (4 * n / (percent / 100)) : 0) }')
claim "Memory that prompts and trees add, at most 0.1% of the model's (ours)" "0.0004% of 7B" "$memory%" "$(holds "$memory <= 0.1")"
alone=$(value together loss model alone)
[ "$alone" ] || die "$csv is of an older form of this study; call it without REPORT"
x=$(value together loss model together)
claim "Training together, prompts of weight $(value together loss prompts weight), costs validation loss, against as many tokens alone (ours: at most 0.01)" "-" \
    "$(awk -v a="$x" -v b="$alone" 'BEGIN { printf "%+.4f", a - b }')" "$(holds "$x <= $alone + 0.01")"
finish_claims

points=$runs/points
for model in frozen together; do
    awk -F, -v model=$model '$1 == model && $2 == "tree" && $3 == "PPD" && (n = split($4, x, "_")) { rows = x[n]; size[rows]; what[rows, $4] = $5 }
        END { print "\"" model "\""; for (s = 1; s <= 64; s++) if (s in size) print s, what[s, "a_pass_" s], what[s, "ms_" s], what[s, "measured_" s]; print "\n" }' "$csv"
done >"$points"
while IFS= read -r method; do
    printf '"%s"' "$method"
    for name in "${names[@]}"; do printf ' %s' "$(speedup "${name%%:*}" "$method")"; done
    printf '\n'
done <<<"$methods" >"$points.methods"
draw - <<END
    set terminal pngcairo size 1000,900 font 'sans,11'
    set output '$result.png'
    set multiplot layout 2,1
    set grid
    set key left top
    set xlabel 'rows of a pass (tree of candidates and prompts)'
    set ylabel 'tokens a pass'
    set y2label 'ms a pass'
    set ytics nomirror
    set y2tics
    set y2range [0:*]
    plot '$points' index 0 using 1:2 with lines linewidth 2 title 'tokens a pass, frozen model, predicted', \
        '' index 1 using 1:2 with lines linewidth 2 title 'model trained with its prompts, predicted', \
        '' index 1 using 1:4 with points pointtype 7 title 'measured', \
        '' index 0 using 1:3 axes x1y2 with lines linewidth 2 dashtype 2 title 'ms a pass (right)'
    unset y2tics
    unset y2label
    unset xlabel
    set ylabel 'speedup against plain decoding'
    set yrange [0:*]
    set style data histograms
    set style fill solid 0.7
    set xtics rotate by -20
    plot for [i=2:$((${#names[@]} + 1))] '$points.methods' using i:xtic(1) title word("paper frozen together", i - 1), 1 with lines linecolor 'black' notitle
END
