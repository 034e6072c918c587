#!/usr/bin/env bash
# Learning-rate schedules for AdamW, each with its own best rate: is linear decay at or below cosine, and is the schedule
# refined from a run's gradient norms at or below linear (arXiv 2310.07831)? And Schedule-Free (2405.15682): one run,
# stopped anywhere, against cosine runs of that very length. FULL=1: 2000 steps instead of 500.
. dev/studies/driver.sh
length 500 2000
quarter=$((steps / 4 / eval_every * eval_every)) # where Schedule-Free is measured, too
[ $quarter -gt 0 ] || die "STEPS is at least 4" 2
common --steps $steps --eval-tokens 20480
rates=lr=1e-3,2e-3,4e-3,8e-3,1.6e-2,3.2e-2

for schedule in constant cosine wsd; do method $schedule "$rates" --schedule $schedule; done
method linear "$rates" --schedule linear --grad-norm l1
method "Schedule-Free" "$rates" --optimizer schedule-free --beta2 0.99 --schedule constant
tune
# What refines the schedule is the log of the best run with linear decay, its l1 norms, as the paper has it for Adam; the
# seed is the one that tuned. With l2 norms in their place, at 4e-3: 2.147 in mean of 8 seeds, with l1 2.138, linear 2.136.
method refined "$rates" --schedule "refined:$(folder linear "$(point_of linear)" $tune_seed)/log.csv"
for stop in $quarter $((2 * quarter)) $((3 * quarter)); do
    method "cosine ($stop steps)" "" --schedule cosine $(best cosine) --steps $stop
done
tune
measure 1 2 3

table cosine
claim "Linear decay ends at or below cosine" "yes" "$(against linear cosine)" "$(at_most linear cosine)"
claim "The refined schedule ends at or below linear decay" "yes" "$(against refined linear)" "$(at_most refined linear)"
worst=-100 gaps=
for stop in $quarter $((2 * quarter)) $((3 * quarter)) $steps; do
    cosine="cosine ($stop steps)"
    [ $stop = $steps ] && cosine=cosine
    gap=$(awk "BEGIN { printf \"%+.3f\", $(mean_of Schedule-Free $stop) - $(mean_of "$cosine") }")
    gaps="$gaps${gaps:+, }$gap" worst=$(awk "BEGIN { print ($gap > $worst ? $gap : $worst) }")
done
claim "One Schedule-Free run is within 0.02 of cosine runs of 1/4, 1/2, 3/4 and all of its steps" "ahead of them" "$gaps" "$(holds "$worst <= 0.02")"
picture
