#!/usr/bin/env bash
# Two losses (arXiv 2302.03542): gradients of the objective are dear, those of a proxy cheap; how many of the dear ones
# does a run need to AdamW's last loss if each is followed by several steps on a proxy? Two proxies, tokenized alike:
#   noisy      the training part of the text with one word in five replaced by another of it: close to the objective
#   shuffled   the same words in another order: what a word is made of can be learnt from it, and no more
# PROXY=FILE adds a third. Neither proxy has seen the text's last tenth, on which all are validated. A step is one
# gradient of the objective; the picture's axis counts those. After each come 4 steps on the proxy, the best of 2, 4, 8.
# FULL=1: 1000 gradients instead of 200, and the number of proxy steps is tuned. (A run of half as many gradients, with a
# schedule of its own, does not come as far as the run of 200 does in its first half: 2.51 against AdamW's 2.48.)
. dev/studies/driver.sh
length 200 1000
common --steps $steps --eval-tokens 20480 --tokenizer bytes

# change_words PERCENT: of the text's first 85%, so many words are exchanged for others of it; 100 shuffles all.
change_words() {
    head -c $(($(wc -c <"$data") * 85 / 100)) "$data" | LC_ALL=C awk -v percent="$1" '
        function draw(n) { state = state * 16807 % 2147483647; return state % n }
        BEGIN { state = 1 }
        { text[NR] = $0; for (i = 1; i <= NF; i++) word[++words] = $i }
        END {
            for (row = 1; row <= NR; row++) {
                n = split(text[row], here, " ")
                for (i = 1; i <= n; i++) printf "%s%s", (draw(100) < percent ? word[1 + draw(words)] : here[i]), i < n ? " " : ""
                print ""
            }
        }'
}
change_words 20 >"$runs/noisy.txt"
change_words 100 >"$runs/shuffled.txt"

grid="lr=5e-4,1e-3,2e-3,4e-3 proxy-steps=$([ "$full" ] && echo 2,4,8 || echo 4)"
method AdamW lr=5e-4,1e-3,2e-3,4e-3,8e-3
for proxy in noisy shuffled; do method "with $proxy proxy" "$grid" --proxy "$runs/$proxy.txt"; done
[ ! "${PROXY:-}" ] || method "with $(basename "$PROXY")" "$grid" --proxy "$PROXY"
tune
measure 1 2 3

table AdamW
for proxy in noisy shuffled; do
    claim "At least 50% fewer gradients of the objective than tuned AdamW needs to its final loss, with a $proxy proxy" \
        "fewer" "$(fewer "with $proxy proxy" AdamW)" "$(holds "$(saved "with $proxy proxy" AdamW) >= 50")"
done
picture
