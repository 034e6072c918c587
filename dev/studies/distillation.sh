#!/usr/bin/env bash
# A student that reads nothing of its teacher but the loss on each batch: the rows of the paper's table (arXiv
# 2504.01898), Adam and SGD with the best constant rate and with warmup and the best cosine, against SPS*, IAM and
# IAM-Adam with nothing set (IAM-Adam's lambda of 4 and the cap on its steps are ours; a row has the paper's), and IAM
# over Muon (ours; its cap holds in nearly every step: what the teacher says hardly enters); beside them AdamW tuned in
# more than the paper's, and soft labels, which read all probabilities. Two teachers. FULL=1: 1000 steps instead of 250,
# models twice as wide, and a second student.
. dev/studies/driver.sh
length 250 1000
common --steps $steps --eval-tokens 20480

teacher_is=(--optimizer muon --schedule linear --lr 8e-3 --muon-lr 2e-2 --eval-tokens 20480)
model "teacher 1" "${teacher_is[@]}" --layers 4 --channels $width --steps $((2 * steps))
teachers[1]=$model_dir
model "teacher 2" "${teacher_is[@]}" --layers 4 --channels $((2 * width)) --steps $((2 * steps))
teachers[2]=$model_dir
run_queue "$study, teachers"

# rows SUFFIX OPTIONS...: the table for one student
rows() {
    local of=$1 k name
    shift
    method "Adam constant$of" "lr=5e-4,1e-3,2e-3,4e-3,8e-3" --weight-decay 0 --schedule constant --warmup 0 "$@"
    method "Adam warmup and cosine$of" "lr=2e-3,4e-3,8e-3,1.6e-2,3.2e-2" --weight-decay 0 "$@"
    method "AdamW tuned$of" "lr=2e-3,4e-3,8e-3,1.6e-2,3.2e-2 beta1=0.6,0.7,0.8,0.9 schedule=linear,wsd,cosine warmup=$((steps / 40)),$((steps / 20)),$((steps / 10)),$((steps / 5))" "$@"
    method "SGD constant$of" "lr=0.125,0.25,0.5,1,2,4,8" --optimizer sgd --schedule constant --warmup 0 "$@"
    method "SGD warmup and cosine$of" "lr=0.25,0.5,1,2,4,8,16" --optimizer sgd "$@"
    for k in 1 2; do
        for name in sps iam iam-adam; do method "$name (teacher $k)$of" "" --optimizer $name --teacher "${teachers[$k]}" "$@"; done
        method "the paper's iam-adam (teacher $k)$of" "" --optimizer iam-adam --lambda 9 --lr-cap 0 --teacher "${teachers[$k]}" "$@"
        method "IAM over Muon (teacher $k)$of" "" --optimizer iam --base muon --teacher "${teachers[$k]}" "$@"
        method "soft labels (teacher $k)$of" "lr=2e-3,4e-3,8e-3,1.6e-2,3.2e-2" --distill soft --teacher "${teachers[$k]}" "$@"
    done
}

# compare WHAT PAPER THIS OTHER MARGIN: a claim's row, THIS at or below OTHER plus MARGIN for all students and teachers;
# in the names of the two, K is the teacher's number.
compare() {
    local of k this other here="" held=yes
    for of in "${students[@]}"; do
        here+=${here:+; }
        [ ! "$full" ] || here+=$([ "$of" ] && echo 2 || echo 3)" layers: "
        for k in 1 2; do
            this=${3//K/$k}$of other=${4//K/$k}$of
            [ $k = 1 ] || here+=", "
            here+=$(against "$this" "$other")
            [ "$(at_most "$this" "$other" "$5")" = yes ] || held=no
        done
    done
    claim "$1" "$2" "$here" $held
}

students=("")
rows "" --layers 3 --channels $width
if [ "$full" ]; then
    students+=(" (2 layers)")
    rows " (2 layers)" --layers 2 --channels 96
fi
tune
measure 1 2 3

table "Adam warmup and cosine"
cosine="Adam warmup and cosine"
compare "The paper's IAM-Adam (lambda 9, no cap), nothing set, is within 0.01 of Adam with warmup and cosine, its rate tuned" \
    "at or below it" "the paper's iam-adam (teacher K)" "$cosine" "+ 0.01"
compare "IAM-Adam, nothing set (with our lambda and cap), is within 0.01 of Adam with warmup and cosine, its rate tuned" \
    "at or below it" "iam-adam (teacher K)" "$cosine" "+ 0.01"
compare "IAM-Adam, nothing set, ends at or below Adam with the best of five constant rates" \
    "yes" "iam-adam (teacher K)" "Adam constant" ""
compare "IAM-Adam, nothing set, ends at or below SGD with the best constant rate" \
    "yes" "iam-adam (teacher K)" "SGD constant" ""
compare "IAM-Adam, nothing set, ends at or below SGD with warmup and cosine, its rate tuned" \
    "yes" "iam-adam (teacher K)" "SGD warmup and cosine" ""
compare "IAM-Adam, nothing set, ends at or below AdamW tuned in rate, beta1, schedule and warmup" \
    "-" "iam-adam (teacher K)" "AdamW tuned" ""
compare "IAM over Muon (ours; its steps are the cap's, hardly the teacher's), nothing set, ends at or below AdamW tuned so" \
    "-" "IAM over Muon (teacher K)" "AdamW tuned" ""
compare "SPS\*, nothing set, ends at or below tuned SGD with a schedule" \
    "-" "sps (teacher K)" "SGD warmup and cosine" ""
compare "IAM, nothing set, ends at or below tuned SGD with a schedule" \
    "yes" "iam (teacher K)" "SGD warmup and cosine" ""
compare "IAM over Muon (ours), nothing set, ends 0.10 below IAM-Adam" \
    "-" "IAM over Muon (teacher K)" "iam-adam (teacher K)" "- 0.10"
compare "IAM-Adam, nothing set, ends at or below AdamW with the teacher's soft labels, its rate tuned" \
    "-" "iam-adam (teacher K)" "soft labels (teacher K)" ""
picture
