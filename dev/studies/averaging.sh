#!/usr/bin/env bash
# What averaging the iterates is worth: Generalized Primal Averaging (arXiv 2512.17131) over AdamW and over Muon against
# its bases, single-worker DiLoCo (2311.08105), Schedule-Free (2405.15682) and Prodigy (2306.06101), each tuned, with the
# same steps. How many steps fewer does each need to the final loss of AdamW, tuned in rate, beta1 and schedule?
# FULL=1: 1000 and 2000 steps instead of 500, and batches of 48.
. dev/studies/driver.sh
length 500 1000
common --eval-tokens 20480

# defaults SUFFIX OPTIONS...: tuned AdamW, and GPA as it comes
defaults() {
    local of=$1
    shift
    method "AdamW$of" "lr=2e-3,4e-3,8e-3,1.6e-2,3.2e-2 beta1=0.6,0.7,0.8,0.9,0.95 schedule=linear,cosine,wsd final-lr=0,0.1" "$@"
    method "GPA with nothing set$of" "" --optimizer gpa "$@"
}

# compare SUFFIX OPTIONS...: every method, with these options beside its own.
compare() {
    local of=$1
    defaults "$@"
    shift
    method "DiLoCo$of" "lr=1e-3,2e-3,4e-3,8e-3,1.6e-2,3.2e-2" --optimizer diloco --schedule linear --beta1 0.8 "$@"
    method "Schedule-Free$of" "lr=1e-3,2e-3,4e-3,8e-3,1.6e-2,3.2e-2" --optimizer schedule-free --beta2 0.99 --schedule constant "$@"
    method "Prodigy$of" "" --optimizer prodigy --d-coef 8 --beta2 0.99 --weight-decay 0.1 --warmup $((steps / 5)) "$@"
    method "GPA$of" "lr=4e-3,8e-3,1.2e-2,1.6e-2,2.4e-2 beta1=0.5,0.6,0.7,0.8,0.9 mu-x=0.94,0.96,0.97,0.98,0.985,0.99 final-lr=0,0.1,0.2,0.3" --optimizer gpa --schedule linear --mu-y 0.6 "$@"
    method "Muon$of" "muon-lr=1e-2,2e-2,3e-2,4e-2,8e-2 lr=4e-3,8e-3,1.2e-2,1.6e-2 final-lr=0,0.1" --optimizer muon --schedule linear --beta1 0.8 "$@"
    method "GPA over Muon$of" "muon-lr=1e-2,2e-2,3e-2,4e-2,8e-2 muon-momentum=0.8,0.9,0.95 mu-x=0.92,0.94,0.96,0.97,0.98,0.99 final-lr=0,0.1,0.2,0.3" --optimizer gpa --base muon --schedule linear --lr 1.2e-2 --mu-y 0.6 "$@"
}

# set_nothing SUFFIX WHERE
set_nothing() {
    claim "GPA with nothing set, not even the rate, ends at or below tuned AdamW, $2" "-" \
        "$(against "GPA with nothing set$1" "AdamW$1")" "$(holds "$(mean_of "GPA with nothing set$1") <= $(mean_of "AdamW$1")")"
}

# claims SUFFIX WHERE
claims() {
    claim "GPA needs fewer steps than tuned AdamW to its final loss, $2" "24.22%" "$(fewer "GPA$1" "AdamW$1")" "$(holds "$(saved "GPA$1" "AdamW$1") >= 24.22")"
    set_nothing "$1" "$2"
    claim "GPA ends below single-worker DiLoCo, $2" "yes" "$(against "GPA$1" "DiLoCo$1")" "$(holds "$(mean_of "GPA$1") < $(mean_of "DiLoCo$1")")"
    claim "GPA ends below Schedule-Free, $2" "yes" "$(against "GPA$1" "Schedule-Free$1")" "$(holds "$(mean_of "GPA$1") < $(mean_of "Schedule-Free$1")")"
    claim "GPA over Muon needs fewer steps than Muon (ours), $2" "-" "$(fewer "GPA over Muon$1" "Muon$1")" "$(holds "$(saved "GPA over Muon$1" "Muon$1") > 0")"
}

if [ ! "$full" ]; then
    half=$((steps / 2))
    compare "" --steps $steps
    defaults " ($half steps)" --steps $half
    tune
    measure 1 2 3
    table AdamW
    set_nothing " ($half steps)" "$half steps of 12 sequences"
    claims "" "$steps steps of 12 sequences"
else
    for steps in 1000 2000; do compare " ($steps steps)" --steps $steps; done
    steps=500
    compare " (batch 48)" --steps $steps --batch 48
    tune
    measure 1 2 3
    for steps in 1000 2000; do
        table "AdamW ($steps steps)"
        claims " ($steps steps)" "$steps steps of 12 sequences"
    done
    table "AdamW (batch 48)"
    claims " (batch 48)" "500 steps of 48 sequences"
fi
picture
