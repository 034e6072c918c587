#!/usr/bin/env bash
# What averaging the iterates is worth: Generalized Primal Averaging (arXiv 2512.17131) over AdamW and Muon against its
# bases, single-worker DiLoCo (2311.08105), Schedule-Free (2405.15682) and Prodigy (2306.06101), with the same steps.
# AdamW, GPA and the two Muons are tuned in three or four options, DiLoCo and Schedule-Free in their rate (the race
# tunes them in more, and has Schedule-Free level with GPA), Prodigy in nothing (its setting is that of
# learning-rate-free.sh). How many steps fewer does each need to the final loss of AdamW, tuned in rate, beta1,
# schedule and final rate? FULL=1: 1000 steps of a model twice as wide instead of 300, without Prodigy and the Muons
# (the race has these). Then shorter runs, with FULL=1 longer ones and large batches, as they were tuned but for the
# rate, which is tuned anew.
. dev/studies/driver.sh
length 300 1000
[ $steps -ge 2 ] || die "STEPS is at least 2" 2
common --eval-tokens 20480 --channels $width

# A method a line: its name, what is tuned, the rate first, and its options. The search begins at the middles of the
# lists, near where searches from other beginnings ended with models twice as wide, for every method alike.
methods() {
    cat <<END
AdamW|lr=1e-3,2e-3,4e-3,8e-3,1.6e-2,3.2e-2 beta1=0.5,0.6,0.7,0.8,0.9,0.95 schedule=linear,wsd,cosine final-lr=0,0.1,0.2|
GPA with nothing set||--optimizer gpa
GPA|lr=4e-3,8e-3,1.2e-2,1.6e-2,2.4e-2,3.2e-2 beta1=0.1,0.2,0.4,0.5,0.6,0.8 final-lr=0,0.1,0.2,0.3,0.4,0.6|--optimizer gpa
DiLoCo|lr=5e-4,1e-3,2e-3,4e-3,8e-3,1.6e-2|--optimizer diloco --schedule linear --beta1 0.8
Schedule-Free|lr=4e-3,8e-3,1.6e-2,3.2e-2,6.4e-2,0.128|--optimizer schedule-free --beta2 0.99 --schedule constant --weight-decay 0.1 --warmup $((steps / 5))
Prodigy||--optimizer prodigy --d0 1e-3 --d-coef 5.6 --beta1 0.7 --beta2 0.95 --weight-decay 0.03 --bias-correction 1 --safeguard-warmup 1 --schedule wsd --warmup $((steps / 10))
Muon|muon-lr=1e-2,2e-2,3e-2,4e-2,8e-2 lr=4e-3,8e-3,1.2e-2,1.6e-2,2.4e-2,3.2e-2 final-lr=0,0.1,0.2|--optimizer muon --schedule linear --beta1 0.8
GPA over Muon|muon-lr=2e-2,4e-2,8e-2,0.12,0.16 muon-momentum=0.5,0.6,0.7,0.8,0.9,0.95 final-lr=0,0.1,0.2,0.3,0.4,0.6|--optimizer gpa --base muon --lr 1.2e-2
END
}

# compare REGEX: those methods.
compare() {
    local label grid own
    while IFS='|' read -r label grid own; do method "$label" "$grid" $own --steps $steps; done < <(methods | grep -E "^($1)\|")
}

# again REGEX SUFFIX OPTIONS...: those methods once more, each rate from a quarter to four times the best.
again() {
    local which=$1 of=$2 label grid own rate
    shift 2
    while IFS='|' read -r label grid own; do
        rate=${grid%%=*}
        [ ! "$grid" ] || grid=$rate=$(point_of "$label" | tr ' ' '\n' | sed -n "s/^$rate=//p" |
            awk '{ printf "%g,%g,%g,%g,%g", $1 / 4, $1 / 2, $1, 2 * $1, 4 * $1 }')
        method "$label$of" "$grid" $own $(best "$label" | sed "s/--$rate [^ ]*//") "$@"
    done < <(methods | grep -E "^($which)\|")
}

# claims SUFFIX WHERE
claims() {
    claim "GPA needs at least 24.22% fewer steps than tuned AdamW to its final loss, $2" "24.22% (a later version: 8.71%)" "$(fewer "GPA$1" "AdamW$1")" "$(holds "$(saved "GPA$1" "AdamW$1") >= 24.22")"
    set_nothing "$1" "$2"
}
set_nothing() {
    claim "GPA with nothing set, not even the rate, ends at or below tuned AdamW, $2" "-" \
        "$(against "GPA with nothing set$1" "AdamW$1")" "$(at_most "GPA with nothing set$1" "AdamW$1")"
}
below() { claim "GPA ends below $1, whose rate alone is tuned, $steps steps of 12 sequences" "yes" "$(against GPA "$1")" "$(at_most GPA "$1")"; }

if [ ! "$full" ]; then
    compare ".*"
    tune
    again "AdamW|GPA with nothing set" " (half the steps)" --steps $((steps / 2))
else
    longer="AdamW|GPA with nothing set|GPA"
    compare "$longer|DiLoCo|Schedule-Free"
    tune
    again "$longer" " (twice the steps)" --steps $((2 * steps))
    again "$longer" " (batch 48)" --steps $((steps / 2)) --batch 48
fi
tune
measure 1 2 3
table AdamW
claims "" "$steps steps of 12 sequences"
below DiLoCo
below Schedule-Free
if [ ! "$full" ]; then
    claim "GPA over Muon ends below Muon by more than either's deviation (ours), $steps steps of 12 sequences" "-" \
        "$(against "GPA over Muon" Muon)" "$(A="GPA over Muon" B=Muon curves '
            less = final(B) - final(A)
            print (final(B) < 1e20 && less > deviation(A) && less > deviation(B) ? "yes" : "no")')"
    set_nothing " (half the steps)" "$((steps / 2)) steps of 12 sequences"
else
    claims " (twice the steps)" "$((2 * steps)) steps of 12 sequences"
    claims " (batch 48)" "$((steps / 2)) steps of 48 sequences"
fi
picture
