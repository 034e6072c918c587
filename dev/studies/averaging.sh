#!/usr/bin/env bash
# What averaging the iterates is worth: Generalized Primal Averaging (arXiv 2512.17131) over AdamW and over Muon against
# its bases, single-worker DiLoCo (2311.08105), Schedule-Free (2405.15682) and Prodigy (2306.06101), each tuned, with the
# same steps. Asked: how many steps fewer does each need to the final loss of AdamW, tuned in rate, beta1 and schedule.
# FULL=1: 1000 steps instead of 500.
. dev/studies/driver.sh
steps=500
[ "$full" ] && steps=1000
eval_every=$((steps / 20))
common --steps $steps --eval-tokens 20480

method "AdamW" "lr=2e-3,4e-3,8e-3,1.6e-2,3.2e-2 beta1=0.7,0.8,0.9 schedule=linear,cosine"
method "DiLoCo" "lr=2e-3,4e-3,8e-3,1.6e-2 outer-lr=0.5,0.7,0.9" --optimizer diloco --schedule linear
method "Schedule-Free" "lr=2e-3,4e-3,8e-3,1.6e-2,3.2e-2" --optimizer schedule-free --beta2 0.99 --schedule constant
method "Prodigy" "" --optimizer prodigy
method "GPA" "lr=4e-3,8e-3,1.6e-2,3.2e-2 beta1=0.5,0.7,0.8 mu-x=0.97,0.98,0.99" --optimizer gpa --schedule linear --mu-y 0.6
method "Muon" "muon-lr=1e-2,2e-2,4e-2 lr=4e-3,8e-3,1.6e-2" --optimizer muon --schedule linear
method "GPA over Muon" "muon-lr=2e-2,4e-2,8e-2 lr=4e-3,8e-3,1.6e-2 mu-x=0.95,0.97,0.98" --optimizer gpa --base muon --schedule linear --mu-y 0.6
tune
measure 1 2 3

table "AdamW"
claim "GPA over AdamW: fewer steps than tuned AdamW to its final loss" "24.22%" "$(saved GPA AdamW)%" "$(holds "$(saved GPA AdamW) >= 24.22")"
picture
