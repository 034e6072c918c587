#!/usr/bin/env bash
# Two losses (arXiv 2302.03542): gradients of the objective are dear, those of a proxy cheap; how many of the dear ones
# does a run need to AdamW's last loss if each is followed by several steps on a proxy? Two proxies, tokenized alike:
#   noisy      the training part of the text with one word in five replaced by another of it: close to the objective
#   shuffled   the same words in another order: what a word is made of can be learnt from it, and no more
# PROXY=FILE adds a third. Neither proxy has seen the text's last tenth, on which all are validated. A step is one
# gradient of the objective; the picture's axis counts those. After each come 4 steps on the proxy, the best of 2, 4, 8.
# Beside them, as many steps on the proxy alone, by AdamW as it is best on the objective.
# FULL=1 takes 400 gradients of 48 sequences instead of 120 of 12.
#
# Every step on the proxy repeats the noise of g_t. Tried: instead of g_t - h_t its average over the steps, 0.9 of what it
# was: with the noisy proxy AdamW's loss is reached with 52% fewer gradients (one seed), with the shuffled one never.
# AdamW has to be tuned in warmup and beta1: by its rate alone, with 200 gradients, it ended where runs with a proxy were
# with 46% and 42% fewer.
. dev/studies/driver.sh
length 120 400
sequences=12
common --steps $steps --eval-tokens 20480 --tokenizer bytes
if [ "$full" ]; then sequences=48 shared+=(--accumulate 4); fi

# change_words PERCENT: of the text's first 85%, so many words are exchanged for others of it; 100 shuffles all.
change_words() {
    head -c $(($(wc -c <"$data") * 85 / 100)) "$data" | LC_ALL=C awk -v percent="$1" '
        function draw(n) { state = state * 16807 % 2147483647; return state % n }
        BEGIN { state = 1 }
        { text[NR] = $0; for (i = 1; i <= NF; i++) word[++words] = $i }
        END {
            for (row = 1; row <= NR; row++) {
                n = split(text[row], here, " ")
                for (i = 1; i <= n; i++) printf "%s%s", (draw(100) < percent ? word[1 + draw(words)] : here[i]), (i < n ? " " : "")
                print ""
            }
        }'
}
change_words 20 >"$runs/noisy.txt"
change_words 100 >"$runs/shuffled.txt"

warmups=$((steps / 16)),$((steps / 8)),$((steps / 4)),$((steps / 2))
grid="lr=5e-4,1e-3,2e-3,4e-3,8e-3 warmup=$warmups"
method AdamW "lr=2e-3,4e-3,8e-3,1.6e-2 beta1=0.7,0.8,0.9 warmup=$warmups"
for proxy in noisy shuffled; do method "with $proxy proxy" "$grid" --proxy "$runs/$proxy.txt"; done
[ ! "${PROXY:-}" ] || method "with $(basename "$PROXY")" "$grid" --proxy "$PROXY"
tune
tail -c $(($(wc -c <"$data") / 10)) "$data" >"$runs/valid.txt"
for proxy in noisy shuffled; do
    method "$proxy proxy alone" "" $(best AdamW) --data "$runs/$proxy.txt" --val "$runs/valid.txt" --steps $((4 * steps))
done
measure 1 2 3

table AdamW
for proxy in noisy shuffled; do
    claim "At least 50% fewer gradients, of $sequences sequences each, than tuned AdamW needs to its final loss, with a $proxy proxy" \
        "fewer" "$(fewer "with $proxy proxy" AdamW)" "$(holds "$(saved "with $proxy proxy" AdamW) >= 50")"
    claim "Runs with the $proxy proxy end below as many steps on it alone (ours)" "-" \
        "$(against "with $proxy proxy" "$proxy proxy alone")" "$(holds "$(mean_of "with $proxy proxy") <= $(mean_of "$proxy proxy alone")")"
done
picture
