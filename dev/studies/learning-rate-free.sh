#!/usr/bin/env bash
# Methods that need no learning rate, with nothing set, against AdamW and SGD with the best rate of a grid: Prodigy and
# Resetting (arXiv 2306.06101), D-Adaptation (2301.07733), DoG (2302.12022), DoWG and its coordinate-wise form
# (2305.16284). FULL=1: 2000 steps instead of 500.
. dev/studies/driver.sh
length 500 2000
common --steps $steps --eval-tokens 20480

method "AdamW" "lr=1e-3,2e-3,4e-3,8e-3,1.6e-2,3.2e-2 warmup=$((steps / 20)),$((steps / 5)),$((steps * 2 / 5)),$((steps * 3 / 5)) beta1=0.5,0.6,0.7,0.8,0.9 schedule=linear,wsd,cosine"
method "SGD" "lr=0.125,0.25,0.5,1,2,4,8" --optimizer sgd
# One setting of Prodigy for every run. Its estimate of the distance is too small here, as the gradients' noise
# stands in the denominator: --d-coef makes up for it. A rate that is found in a few steps wants a longer warmup, and
# AdamW's lower beta1 and schedule help here, too (tried with seeds 100 and 101).
method "prodigy (one setting)" "" --optimizer prodigy --d-coef 5.6 --beta1 0.7 --beta2 0.95 --weight-decay 0.1 \
    --bias-correction 1 --safeguard-warmup 1 --schedule wsd --warmup $((steps / 5))
for name in prodigy dadapt-adam resetting dowg cdowg; do method $name "" --optimizer $name; done
method dog "" --optimizer dog --schedule constant --warmup 0 # as published; the others read no schedule, or want one
tune
measure 1 2 3

table AdamW
tuned="AdamW, tuned in rate, warmup, beta1 and schedule"
# close LABEL WHAT PAPER: whether it is within 0.03 of tuned AdamW
close() { claim "$2, is within 0.03 of $tuned, $steps steps" "$3" "$(against "$1" AdamW)" "$(holds "$(mean_of "$1") <= $(mean_of AdamW) + 0.03")"; }
# below THIS OTHER WHAT PAPER: whether it ends at or below the other
below() { claim "$3, $steps steps" "$4" "$(against "$1" "$2")" "$(holds "$(mean_of "$1") <= $(mean_of "$2")")"; }
close prodigy "Prodigy, nothing set" "close to it"
close "prodigy (one setting)" "Prodigy with one setting for all runs (d-coef 5.6, beta1 0.7, warmup of a fifth, wsd)" "close to it"
close dadapt-adam "D-Adaptation, nothing set" "close to it"
close resetting "Resetting, nothing set" "close to it"
close cdowg "Coordinate-wise DoWG, nothing set" -
below prodigy dadapt-adam "Prodigy ends below D-Adaptation" yes
below resetting dadapt-adam "Resetting ends below D-Adaptation" yes
below dowg SGD "DoWG, nothing set, ends at or below tuned SGD" "close to it"
below dowg dog "DoWG ends at or below DoG" yes
picture
