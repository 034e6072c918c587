#!/usr/bin/env bash
# A student that reads nothing of its teacher but the loss on each batch: the rows of the paper's table (arXiv
# 2504.01898), Adam and SGD with the best constant rate and with warmup and the best cosine, against SPS*, IAM and
# IAM-Adam with nothing set (lambda 4 and a cap on their steps are ours; a row has the paper's IAM-Adam), and IAM over
# Muon (ours); beside them AdamW tuned in more than the paper's, and soft labels, which read all probabilities. Two
# teachers. FULL=1: 1000 steps instead of 400, and a second student.
. dev/studies/driver.sh
length 400 1000
common --steps $steps --eval-tokens 20480

teacher_is=(--optimizer muon --schedule linear --lr 8e-3 --muon-lr 2e-2 --eval-tokens 20480)
model "teacher 1" "${teacher_is[@]}" --layers 4 --channels 128 --steps $((2 * steps))
teachers[1]=$model_dir
model "teacher 2" "${teacher_is[@]}" --layers 4 --channels 256 --steps $((2 * steps))
teachers[2]=$model_dir
run_queue "$study, teachers"

# rows SUFFIX OPTIONS...: the table for one student
rows() {
    local of=$1 k name
    shift
    method "Adam constant$of" "lr=5e-4,1e-3,2e-3,4e-3,8e-3" --weight-decay 0 --schedule constant --warmup 0 "$@"
    method "Adam warmup and cosine$of" "lr=2e-3,4e-3,8e-3,1.6e-2,3.2e-2" --weight-decay 0 "$@"
    method "AdamW tuned$of" "lr=2e-3,4e-3,8e-3,1.6e-2,3.2e-2 beta1=0.6,0.7,0.8,0.9 schedule=linear,wsd,cosine warmup=$((steps / 20)),$((steps / 10)),$((steps / 5))" "$@"
    method "SGD constant$of" "lr=0.125,0.25,0.5,1,2,4,8" --optimizer sgd --schedule constant --warmup 0 "$@"
    method "SGD warmup and cosine$of" "lr=0.25,0.5,1,2,4,8,16" --optimizer sgd "$@"
    for k in 1 2; do
        for name in sps iam iam-adam; do method "$name (teacher $k)$of" "" --optimizer $name --teacher "${teachers[$k]}" "$@"; done
        method "the paper's iam-adam (teacher $k)$of" "" --optimizer iam-adam --lambda 9 --lr-cap 0 --teacher "${teachers[$k]}" "$@"
        method "IAM over Muon (teacher $k)$of" "" --optimizer iam --base muon --teacher "${teachers[$k]}" "$@"
        method "soft labels (teacher $k)$of" "lr=2e-3,4e-3,8e-3,1.6e-2,3.2e-2" --distill soft --teacher "${teachers[$k]}" "$@"
    done
}

# claims SUFFIX WHO
claims() {
    local k cosine="Adam warmup and cosine$1" tuned="AdamW tuned$1"
    for k in 1 2; do
        claim "The paper's IAM-Adam (lambda 9, no cap), nothing set, is within 0.01 of Adam with warmup and cosine, its rate tuned, $2, teacher $k" "at or below it" \
            "$(against "the paper's iam-adam (teacher $k)$1" "$cosine")" "$(holds "$(mean_of "the paper's iam-adam (teacher $k)$1") <= $(mean_of "$cosine") + 0.01")"
        claim "IAM-Adam, nothing set (with our lambda and cap), is within 0.01 of Adam with warmup and cosine, its rate tuned, $2, teacher $k" "at or below it" \
            "$(against "iam-adam (teacher $k)$1" "$cosine")" "$(holds "$(mean_of "iam-adam (teacher $k)$1") <= $(mean_of "$cosine") + 0.01")"
        claim "IAM-Adam, nothing set, ends at or below AdamW tuned in rate, beta1, schedule and warmup, $2, teacher $k" "-" \
            "$(against "iam-adam (teacher $k)$1" "$tuned")" "$(holds "$(mean_of "iam-adam (teacher $k)$1") <= $(mean_of "$tuned")")"
        claim "IAM over Muon (ours), nothing set, ends at or below AdamW tuned so, $2, teacher $k" "-" \
            "$(against "IAM over Muon (teacher $k)$1" "$tuned")" "$(holds "$(mean_of "IAM over Muon (teacher $k)$1") <= $(mean_of "$tuned")")"
        claim "IAM, nothing set, ends at or below tuned SGD with a schedule, $2, teacher $k" "yes" \
            "$(against "iam (teacher $k)$1" "SGD warmup and cosine$1")" "$(holds "$(mean_of "iam (teacher $k)$1") <= $(mean_of "SGD warmup and cosine$1")")"
        claim "IAM over Muon (ours), nothing set, ends 0.10 below IAM-Adam, $2, teacher $k" "-" \
            "$(against "IAM over Muon (teacher $k)$1" "iam-adam (teacher $k)$1")" "$(holds "$(mean_of "IAM over Muon (teacher $k)$1") <= $(mean_of "iam-adam (teacher $k)$1") - 0.10")"
    done
}

rows "" --layers 3
[ "$full" ] && rows " (2 layers)" --layers 2 --channels 96
tune
measure 1 2 3

table "Adam warmup and cosine"
claims "" "a student of 3 layers"
if [ "$full" ]; then claims " (2 layers)" "a student of 2 layers"; fi
picture
