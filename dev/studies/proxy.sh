#!/usr/bin/env bash
# Two losses (arXiv 2302.03542): gradients of the objective are dear, those of a proxy cheap; how many of the dear
# ones does a run need to AdamW's last loss if each is followed by several steps on a proxy? The objective is the text
# but for its last tenth, on which all are validated. Two proxies, tokenized alike:
#   noisy      the same text with one word in five replaced by another of its length: close to the objective
#   written    as much text that a small model wrote by itself, which had learnt from the objective's in 2000 steps: its
#              labels are the small model's, not the objective's
# A step is one gradient of the objective; the picture's axis counts those. After each come 4 steps on the proxy, the
# best of 2, 4, 8. Every one of them repeats the noise of g_t. With the noisy proxy, which is the objective's token
# for token, most of that can be taken away (arXiv 2206.00395): both gradients of the correction are of one batch, and
# it is averaged over the steps; then come 8 steps (one seed of an older build, twice as wide: 2.16 instead of 2.28
# with 4). Beside them, as many steps on the proxy alone, by AdamW as it is best on the objective. FULL=1 takes 400
# gradients of 48 sequences, of a model twice as wide, instead of 100 of 12.
#
# Neither pairs nor an average are enough by themselves: with the noisy proxy AdamW's loss was reached with 30% fewer
# gradients in pairs, and not at all averaged (one seed, one rate). A third proxy, the text's words in another order,
# of which what words are made of can be learnt and no more, brought AdamW's loss with 24.3% fewer, and an average made
# it worse, 2.60 instead of 2.49: it lags behind x. AdamW has to be tuned in warmup and beta1: by its rate alone, with
# 200 gradients, it ended where runs with the noisy proxy were with 46% fewer. (All of an older build.)
. dev/studies/driver.sh
length 100 400
sequences=${full:+48}
sequences=${sequences:-12}
common --steps $steps --eval-tokens 20480 --tokenizer bytes --channels $width --accumulate $((sequences / 12)) \
    --val "$runs/valid.txt"
bytes=$(wc -c <"$data") tenth=$((bytes / 10))

# with_noise: standard input with one word in five replaced by another of its length
with_noise() {
    awk '
        function draw(n) { state = state * 16807 % 2147483647; return state % n }
        BEGIN { state = 1 }
        { text[NR] = $0; for (i = 1; i <= NF; i++) { n = length($i); word[n, ++words[n]] = $i } }
        END {
            for (row = 1; row <= NR; row++) {
                for (rest = text[row]; match(rest, /[^ \t]+/); rest = substr(rest, RSTART + RLENGTH)) {
                    this = substr(rest, RSTART, RLENGTH)
                    if (draw(100) < 20) this = word[RLENGTH, 1 + draw(words[RLENGTH])]
                    printf "%s%s", substr(rest, 1, RSTART - 1), this
                }
                print rest
            }
        }'
}
if [ ! "$report" ]; then
    head -c $((bytes - tenth)) "$data" >"$runs/train.txt"
    tail -c $tenth "$data" >"$runs/valid.txt"
    with_noise <"$runs/train.txt" | head -c $((bytes - tenth)) >"$runs/noisy.txt" # awk may end the last line
    model "small model" "${shared[@]}" --data "$runs/train.txt" --layers 2 --heads 2 --channels 64 --optimizer muon \
        --lr 4e-3 --muon-lr 2e-2 --steps "${STEPS:-2000}"
    run_queue "$study, the small model"
    make -s decode_ppd || die "decode_ppd does not compile"
    if [ ! "$runs/written.txt" -nt "$model_dir/model.bin" ]; then
        "${DECODE:-./decode_ppd}" run --model "$model_dir" --prompt "$(tr '\n' ' ' <"$runs/train.txt" | head -c 32)" \
            --temperature 1 --tokens $((bytes - tenth)) >"$runs/written.tmp" 2>"$runs/writing" || die "$(tail -n 1 "$runs/writing")"
        grep -q "^$((bytes - tenth)) tokens in " "$runs/writing" || die "stopped; the same command goes on"
        mv "$runs/written.tmp" "$runs/written.txt" || die "cannot write $runs/written.txt"
    fi
fi

warmups=$((steps / 16)),$((steps / 8)),$((steps / 4)),$((steps / 2)),$((3 * steps / 4))
grid="lr=5e-4,1e-3,2e-3,4e-3,8e-3,1.6e-2 warmup=$warmups"
method AdamW "lr=2e-3,4e-3,8e-3,1.6e-2,3.2e-2 beta1=0.5,0.6,0.7,0.8,0.9 warmup=$warmups" --data "$runs/train.txt"
for proxy in noisy written; do method "with $proxy proxy" "$grid" --data "$runs/train.txt" --proxy "$runs/$proxy.txt"; done
method "paired and averaged" "${grid% *} proxy-average=0.8,0.9,0.95,0.97" --data "$runs/train.txt" --proxy "$runs/noisy.txt" --proxy-paired \
    --proxy-steps 8 --warmup $((steps / 4))
tune
# alone PROXY NUMBER: as many steps on it alone
alone() { method "$1 proxy alone ($2)" "" $(best AdamW) --data "$runs/$1.txt" --steps $(($2 * steps)); }
alone noisy 4
alone written 4
alone noisy 8
measure 1 2 3

# proxy_claims METHOD ALONE WHAT
proxy_claims() {
    claim "At least 50% fewer gradients, of $sequences sequences each, than tuned AdamW needs to its final loss, with a $3" \
        "fewer" "$(fewer "$1" AdamW)" "$(holds "$(saved "$1" AdamW) >= 50")"
    claim "Runs with the $3 end below as many steps on it alone (ours)" "-" \
        "$(against "$1" "$2")" "$(at_most "$1" "$2")"
}
table AdamW
for proxy in noisy written; do proxy_claims "with $proxy proxy" "$proxy proxy alone (4)" "$proxy proxy"; done
proxy_claims "paired and averaged" "noisy proxy alone (8)" "noisy proxy whose correction is paired and averaged (2206.00395)"
picture
