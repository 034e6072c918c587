#!/usr/bin/env bash
# decode_ppd as a user runs it: text from plain decoding and from PPD, training of prompts, resuming, refused input.
# $DECODE and $TRAIN name the programs.
set -u
. "$(dirname "$0")/lib.sh"
decode=${DECODE:-./decode_ppd} train=${TRAIN:-./train_gpt2}
export OMP_NUM_THREADS=1

bottles >"$work/text.txt"
small=(--data "$work/text.txt" --layers 2 --heads 2 --channels 32 --context 48 --batch 4 --lr 1e-2 --eval-every 0)
ok "a model" "$train" "${small[@]}" --steps 120 --out "$work/model"
ok "a draft" "$train" "${small[@]}" --layers 1 --steps 40 --out "$work/draft"
ok "another model" "$train" "${small[@]}" --channels 16 --steps 2 --out "$work/other"
ok "one more of the same shape" "$train" "${small[@]}" --steps 2 --seed 2 --out "$work/twin"
run=("$decode" run --model "$work/model")

# ---- plain decoding
text() { "${run[@]}" "$@" 2>"$work/speed"; }
text --prompt "12 green" --tokens 40 >"$work/plain"
ok "40 characters after the prompt" [ "$(wc -c <"$work/plain")" = 49 ]
ok "the last line tells the speed" grep -qE '^40 tokens in [0-9]+\.[0-9]{2} s, [0-9]+\.[0-9] tokens/s$' <(tail -n 1 "$work/speed")
ok "the same again" diff <(text --prompt "12 green" --tokens 40) "$work/plain"
ok "the same from three threads" diff <(OMP_NUM_THREADS=3 text --prompt "12 green" --tokens 40) "$work/plain"
ok "two lines, two texts" [ "$(printf '12 green\n\nhang\n' | text --tokens 5 | wc -l)" -ge 2 ]
ok "another seed, another text" bash -c '! diff -q "$1" "$2"' _ <(text --prompt 1 --temperature 1 --seed 1) <(text --prompt 1 --temperature 1 --seed 2)
ok "past the end of the context" [ "$(text --prompt 12 --tokens 200 | wc -c)" = 203 ]
ok "a prompt longer than the context" text --prompt "$(head -c 300 "$work/text.txt")" --tokens 3
refuses 2 "top-k needs a --temperature" "${run[@]}" --prompt 12 --top-k 4
refuses 2 "top-p needs a --temperature" "${run[@]}" --prompt 12 --top-p 0.9 --temperature 0
refuses 2 "typical accepts guesses" "${run[@]}" --prompt 12 --temperature 1 --typical
printf '1\n1\n' | text --temperature 1 --tokens 40 >"$work/two"
ok "the same line again is another text" bash -c '! cmp -s <(head -c 42 "$1") <(tail -c 42 "$1")' _ "$work/two"
ok "top-k 1 is greedy" diff <(text --prompt "12 green" --tokens 40 --temperature 1 --top-k 1) "$work/plain"
ok "a tiny top-p is greedy" diff <(text --prompt "12 green" --tokens 40 --temperature 1 --top-p 0.000001) "$work/plain"

ok "a folder in Hugging Face's form" "$train" --data "$work/text.txt" --model "$work/model" --steps 0 --export-hf "$work/hf"
ok "goes on alike" diff <("$decode" run --model "$work/hf" --prompt "12 green" --tokens 40 2>/dev/null) "$work/plain"

# ---- prompt tokens
tokens=(--data "$work/text.txt" --own-tokens 1000 --steps 40 --batch 2 --cuts 8 --save-every 10)
learns() { awk '/ [|] KL / { kl[++n] = $5 } END { exit !(kl[n] + kl[n - 1] < kl[1] + kl[2] - 0.5) }' "$1"; }
ok "train" "$decode" train --model "$work/model" "${tokens[@]}" --out "$work/p"
cp "$work/last" "$work/p.out"
ok "three vectors of 32" grep -q '^96 trained numbers' "$work/last"
ok "accuracies are printed" grep -q '^distance 3 ' "$work/p.out"
ok "prompts learn" learns "$work/p.out"
ok "no checkpoint stays, nor a lock" [ ! -e "$work/p.state" -a ! -e "$work/p.lock" ]
ok "copies, layers, maps" "$decode" train --model "$work/model" "${tokens[@]}" --prompts 2 --copies 3 --deep --rank 4 --out "$work/copies"
ok "2 x 3 vectors, for the input and each layer but the first, and 2 maps" grep -q '^896 trained numbers' "$work/last"
ok "heads" "$decode" train --model "$work/model" "${tokens[@]}" --heads --out "$work/heads"
ok "three matrices and biases" grep -q '^3168 trained numbers' "$work/last"
for how in "" "--schedule constant" "--final-lr 0.5" "--temperature 1" "--cuts 4" "--clip 1e-3"; do
    ok "train $how" "$decode" train --model "$work/model" "${tokens[@]}" --steps 10 --warmup 2 $how --out "$work/how"
    if [ ! "$how" ]; then mv "$work/how" "$work/plainly"; else ok "which changes them" eval '! cmp -s -n 432 "$work/how" "$work/plainly"'; fi
done
ok "the draft's" "$decode" train --model "$work/draft" "${tokens[@]}" --out "$work/draft.p"
ok "another optimizer" "$decode" train --model "$work/model" "${tokens[@]}" --optimizer prodigy --out "$work/prodigy"
ok "joint" "$decode" train --model "$work/model" "${tokens[@]}" --joint --lr 1e-3 --out "$work/joint.p" --out-model "$work/joint"
ok "prompts learn" learns "$work/last"
ok "the joint model's text" "$decode" run --model "$work/joint" --ppd "$work/joint.p" --prompt 12 --tokens 20
ok "prompts beside the model that is to be" "$decode" train --model "$work/model" "${tokens[@]}" --joint --steps 1 \
    --optimizer gpa --mu-x 0.9 --lr 1e-3 --warmup 10 --weight-decay 0 --out "$work/new/p" --out-model "$work/new"
# 1e-3, of which the first of ten steps of warmup takes a tenth, and the average, which is to be saved, a tenth of that
weights() { od -An -v -tf4 -w4 -j1024 "$1/model.bin"; }
ok "the model has moved by 1e-5" awk '
    { moved = $1 - $2; if (moved < 0) moved = -moved; if (moved > most) most = moved }
    END { print most; exit !(most > 0.9e-5 && most < 1.1e-5) }' <(paste <(weights "$work/model") <(weights "$work/new"))
ok "jointly, prompts move too" bash -c "! cmp -s -i 48 -n $((3 * 32 * 4)) '$work/new/p' '$work/joint.p'"
ok "no steps" "$decode" train --model "$work/model" "${tokens[@]}" --steps 0 --out "$work/begun"
ok "jointly, prompts of no weight" "$decode" train --model "$work/model" "${tokens[@]}" --joint --prompt-weight 0 --steps 1 \
    --out "$work/beside" --out-model "$work/beside.model"
ok "stay as they began" cmp -i 48 -n $((3 * 32 * 4)) "$work/begun" "$work/beside"
for rate in "" "--lr 3e-2"; do
    "$decode" train --model "$work/model" "${tokens[@]}" --optimizer schedule-free-sgd --steps 1 $rate --out "$work/free$rate" >"$work/last"
done
ok "the usual rate is schedule-free-sgd's, too" cmp -n $((40 + 3 * 32 * 4)) "$work/free" "$work/free--lr 3e-2"
refuses 2 "3 prompts of 16 copies do not fit a pass; 47 rows" "$decode" train --model "$work/model" "${tokens[@]}" --copies 16 --out "$work/x"
cp "$work/model/model.bin" "$work/before"
refuses 1 "for the prompts" "$decode" train --model "$work/model" "${tokens[@]}" --out "$work/model/model.bin"
refuses 1 "for the prompts" "$decode" train --model "$work/model/model.bin" "${tokens[@]}" --out "$work/model/model.bin"
cp "$work/text.txt" "$work/text.copy"
refuses 1 "for the prompts" "$decode" train --model "$work/model" "${tokens[@]}" --data "$work/text.copy" --out "$work/text.copy"
refuses 1 "for the prompts" "$decode" train --model "$work/model" "${tokens[@]}" --out "$work/model/tokenizer.txt"
ok "the text is as it was" cmp "$work/text.txt" "$work/text.copy"
refuses 2 "goes with --joint" "$decode" train --model "$work/model" "${tokens[@]}" --out "$work/x" --out-model "$work/not"
refuses 2 "prompt-weight goes with --joint" "$decode" train --model "$work/model" "${tokens[@]}" --out "$work/x" --prompt-weight 1
refuses 2 "does not go with sps" "$decode" train --model "$work/model" "${tokens[@]}" --joint --out "$work/x" --out-model "$work/not" \
    --optimizer sps
mkfifo "$work/pipe"
refuses 1 "is no file" "$decode" train --model "$work/model" "${tokens[@]}" --out "$work/pipe"
echo "my notes" >"$work/y.state"
echo theirs >"$work/z.lock"
refuses 1 "z.lock is something else" "$decode" train --model "$work/model" "${tokens[@]}" --out "$work/z"
ok "which stays" [ -s "$work/z.lock" ]
refuses 1 "y.state is something else" "$decode" train --model "$work/model" "${tokens[@]}" --out "$work/y"
refuses 1 "is a folder" "$decode" train --model "$work/model" "${tokens[@]}" --joint --out "$work/not" --out-model "$work/not"
ok "no folder stays" [ ! -e "$work/not" ]
ok "Polyak's steps are not clipped" "$decode" train --model "$work/model" "${tokens[@]}" --optimizer sps --clip 1e-6 --out "$work/sps"
refuses 2 "give --joint" "$decode" train --model "$work/model" "${tokens[@]}" --optimizer muon --out "$work/x"
refuses 2 "give --joint" "$decode" train --model "$work/model" "${tokens[@]}" --optimizer gpa --base muon --out "$work/x"
refuses 2 "not with --heads" "$decode" train --model "$work/model" "${tokens[@]}" --heads --deep --out "$work/x"
refuses 2 "not with --heads" "$decode" train --model "$work/model" "${tokens[@]}" --heads --rank 2 --out "$work/x"
refuses 1 "has 32 channels" "$decode" train --model "$work/model" "${tokens[@]}" --rank 33 --out "$work/x"
for name in model.bin tokenizer.txt; do
    refuses 1 "another file" "$decode" train --model "$work/model" "${tokens[@]}" --joint --out "$work/not/$name" --out-model "$work/not"
    ok "no folder stays" [ ! -e "$work/not" ]
done
for out in "$work/new/model.bin" "$work/new/../new/model.bin"; do
    refuses 1 "another file" "$decode" train --model "$work/model" "${tokens[@]}" --joint --out "$out" --out-model "$work/new"
done
ok "the model is as it was" cmp "$work/before" "$work/model/model.bin"
refuses 1 "is not a number; lower --lr" "$decode" train --model "$work/model" "${tokens[@]}" --steps 1 --lr 1e300 --warmup 0 --out "$work/x"
ok "nothing is written" [ ! -e "$work/x" ]

# ---- token shards, and models without a tokenizer
shard() { # TOKEN'S BYTE: 600 times that token
    printf '\210\330\064\001\1\0\0\0\130\2\0\0' && head -c 1012 /dev/zero
    head -c 1200 /dev/zero | tr '\0' "$1"
}
shard '\0' >"$work/known.bin" && shard '\377' >"$work/unknown.bin"
mkdir "$work/bare" && cp "$work/model/model.bin" "$work/bare"
prompts=("$decode" train --model "$work/model" --data "$work/text.txt" --out "$work/x")
bare=("$decode" train --model "$work/bare" --data "$work/known.bin" --out "$work/x")
refuses 1 "training text holds token 65535" "${prompts[@]}" --data "$work/unknown.bin"
refuses 1 "held-out text holds token 65535" "${prompts[@]}" --val "$work/unknown.bin"
refuses 1 "holds token 65535" "$decode" bench --model "$work/model" --data "$work/unknown.bin"
refuses 1 "no tokenizer" "${bare[@]}" --val "$work/text.txt"
mkdir "$work/nameless" && printf 'bytes\n' >"$work/nameless/tokenizer.txt" # of another run
ok "jointly, from shards, and one token of the model's own, which is made enough" timeout -s KILL 60 "${bare[@]}" --own-tokens 1 \
    --steps 1 --batch 1 --cuts 2 --save-every 0 --joint --out-model "$work/nameless"
ok "a model without a tokenizer" [ "$(ls "$work/nameless")" = model.bin ]
printf 'bytes\n' >"$work/bare/tokenizer.txt" # more than the model knows
refuses 1 "tokenizer has 256 tokens" "${bare[@]}"

for kind in f32 bf16 int8; do
    for sampling in "--temperature 0" "--temperature 0.8 --seed 4"; do
        text --prompt "7 green" --tokens 150 $sampling --weights $kind >"$work/expected"
        ok "$kind $sampling: plain" [ "$(wc -c <"$work/expected")" = 158 ]
        for with in "--ppd $work/p" "--ppd $work/p --tree 30" "--ppd $work/copies" "--ppd $work/heads" "--ppd $work/heads --ngram" "--ngram" "--ppd $work/p --ngram" "--draft $work/draft" \
            "--draft $work/draft --draft-ppd $work/draft.p" "--ppd $work/p --draft $work/draft --draft-ppd $work/draft.p"; do
            ok "$kind $sampling ${with//$work\//}: the same text" diff <(text --prompt "7 green" --tokens 150 $sampling --weights $kind $with) "$work/expected"
        done
    done
done
for with in "" "--ppd $work/p --tree 30" "--ppd $work/heads --tree 8" --ngram "--draft $work/draft"; do
    text --prompt "7 green" --tokens 150 $with >/dev/null
    least=1
    [[ $with != --draft* ]] || least=0.99 # how many it guesses is for the latencies to say
    ok "${with//$work\//}: tokens a pass" awk -v least="${with:+$least}" '/ tokens a pass/ { said = 1; more = $1 > least }
        END { exit !(least ? more : !said) }' "$work/speed"
done
typical=(--prompt "12 green" --tokens 150 --temperature 1 --ppd "$work/p" --tree 30)
text "${typical[@]}" >"$work/exact"
ok "typical acceptance" eval 'text "${typical[@]}" --typical >"$work/typical"'
ok "writes another text" eval '[ -s "$work/typical" ] && ! cmp -s "$work/exact" "$work/typical"'
ok "bench" "$decode" bench --model "$work/model" --ppd "$work/p" --heads-file "$work/heads" --draft "$work/draft" \
    --draft-ppd "$work/draft.p" --data "$work/text.txt" --texts 3 --tokens 40 --tree 42
cp "$work/last" "$work/benched"
ok "all methods write the same" grep -qx 'identical yes' "$work/benched"
ok "plain decoding is the measure" awk '/^plain / { gsub(/[()%]/, " ")
        right = $4 == $6 && $5 == $7 && $4 + $5 >= 1 && $8 == 0 && $9 == 0 && $11 == "yes" }
    END { exit !right }' "$work/benched"
ok "n-grams bring tokens" awk '/^n-gram / { gsub(/[()]/, " "); more = $6 > 1 || $7 > 1 } END { exit !more }' "$work/benched"
ok "what prompts add, in bytes and of the model" awk '$1 == "PPD" && $2 ~ /^[0-9]/ { gsub(/[()%]/, " "); right = $8 == 96 && $9 > 384 && $10 > 1 && $10 < 20 }
    END { exit !right }' "$work/benched"
ok "speedups are of the speeds" awk '/ identical$/ { methods = 1; next } methods && NF < 8 { methods = 0 }
    methods { rows++; rest = substr($0, 23); gsub(/[()%]/, " ", rest); split(rest, x, " ")
        for (l = 1; l <= 2; l++) { if (rows == 1) plain[l] = x[l]
            off = x[l] - x[l + 2] * plain[l]; if (off < 0) off = -off; bad += off > 0.006 * plain[l] + 0.1 } }
    END { exit !(rows == 10 && !bad) }' "$work/benched"
ok "trees of the size that was asked for" awk '/^PPD: / { predicted = $2 } /^tree of 42 rows/ && !seen++ { brings = $5 }
    $1 == "PPD" && $2 ~ /^[0-9]/ { gsub(/[()%]/, " "); more = $6 > 1 || $7 > 1 }
    END { exit !(more && predicted > 1 && predicted == brings) }' "$work/benched"
ok "three kinds of weights" awk '$1 == "f32" { four = $2 } $1 == "int8" { one = $2 } END { exit !(four == "0.1" && one == "0.0") }' "$work/benched"
ok "a bench of bytes" "$decode" bench --model "$work/model" --ppd "$work/p" --data "$work/text.txt" --texts 1 --tokens 20 --weights int8
ok "to which prompts add a larger share" awk '$1 == "PPD" && $2 ~ /^[0-9]/ { gsub(/[()%]/, " "); share[NR != FNR] = $10 }
    END { exit !(share[1] > 2 * share[0] && share[0] > 0) }' "$work/benched" "$work/last"
ok "a prediction for each kind of guess" [ "$(grep -cE '^(PPD|heads|the draft.s PPD): [0-9.]+ tokens a pass and speedup' "$work/benched")" = 3 ]

head -c 20000 "$work/text.txt" >"$work/less.txt"
# ---- resuming: the trained numbers are those of an unbroken run (latencies behind them are not)
for how in "--steps 400" "--steps 300 --joint --lr 1e-3 --out-model $work/learned"; do
    training=("$decode" train --model "$work/model" "${tokens[@]}" $how --out)
    env -u GOMP_SPINCOUNT -u OMP_WAIT_POLICY "${training[@]}" "$work/broken" >/dev/null 2>&1 &
    pid=$!
    await [ -e "$work/broken.state" ]
    elsewhere=
    [[ $how != *joint* ]] || elsewhere="--out-model $work/elsewhere"
    refuses 1 "another training is writing .*broken" "${training[@]}" "$work/broken" $elsewhere
    [ ! -r /proc/$pid/environ ] || ok "threads spin briefly" grep -qzx GOMP_SPINCOUNT=10000 /proc/$pid/environ
    kill -INT $pid
    wait $pid
    refuses 1 "lr" "${training[@]}" "$work/broken" --lr 1e-2 --resume
    refuses 1 "another run: 'data" "${training[@]}" "$work/broken" --data "$work/less.txt" --resume
    refuses 1 "another run: 'model" "${training[@]}" "$work/broken" --model "$work/twin" --resume
    ok "it goes on $how" "${training[@]}" "$work/broken" --resume
    ok "from a checkpoint" grep -q '^resumed    at step' "$work/last"
    [[ $how != *joint* ]] || mv "$work/learned/model.bin" "$work/learned/broken.bin"
    ok "unbroken $how" "${training[@]}" "$work/whole"
    ok "the same numbers" cmp -n $((40 + 3 * 32 * 4)) "$work/broken" "$work/whole"
    [[ $how != *joint* ]] || ok "the same model" cmp "$work/learned/broken.bin" "$work/learned/model.bin"
done

for try in 1 2 3 4 5; do # this machine may be so busy that it is too late
    rm -f "$work/ended"
    "$decode" train --model "$work/model" "${tokens[@]}" --steps 5 --save-every 100 --out "$work/ended" >/dev/null 2>&1 &
    await [ -e "$work/ended.state" -o -e "$work/ended" ]
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
    [ -e "$work/ended" ] || break
done
ok "killed after the last step, before its end" [ -e "$work/ended.state" -a ! -e "$work/ended" ]
ok "it ends" "$decode" train --model "$work/model" "${tokens[@]}" --steps 5 --save-every 100 --out "$work/ended" --resume
ok "without a step more" grep -q '^resumed    at step 5 of 5' "$work/last"
ok "the prompts are there" [ -s "$work/ended" -a ! -e "$work/ended.state" ]

# ---- interrupted
interrupt() { timeout --preserve-status -s INT "$@"; } # SECONDS COMMAND...
ok "while the model writes its own text" interrupt 1 "${prompts[@]}" --own-tokens 20000000
ok "stops at step 0" grep -qx 'stopped at step 0 of 600' "$work/last"
bench=("$decode" bench --model "$work/model" --data "$work/text.txt")
refuses 1 "stopped before" timeout --preserve-status -s INT 1 "${bench[@]}" --texts 1000000 --tokens 1000000
for seconds in 3 6 12 24; do # until the texts have begun
    interrupt $seconds "${bench[@]}" --texts 1000000 --tokens 10 >"$work/out" 2>&1 && break
done
ok "a bench tells of the texts that were written" grep -qE '^[1-9][0-9]{0,5} texts of 10 tokens' "$work/out"

# ---- refused
refuses 1 empty "${run[@]}"
refuses 2 "prompt is empty" bash -c 'echo 12 | exec "$@"' _ "${run[@]}" --prompt "" # it is not read
refuses 1 "cannot read the prompts" bash -c 'exec "$@" </' _ "${run[@]}"
refuses 1 "the prompt: the character Ω" "${run[@]}" --prompt "Ω"
refuses 1 "cannot open" "$decode" run --model "$work/none" --prompt 1
refuses 1 "cannot open" "${run[@]}" --ppd "$work/none" --prompt 1
refuses 1 "not a file of prompt tokens" "${run[@]}" --ppd "$work/text.txt" --prompt 1
refuses 2 "top-k does not go with --typical" "${run[@]}" --ppd "$work/p" --prompt 12 --temperature 1 --typical --top-k 4
refuses 1 "tree 48: with" "${run[@]}" --ppd "$work/heads" --tree 48 --prompt 1
cp -r "$work/draft" "$work/shifted" && tail -c +7 "$work/draft/tokenizer.txt" | tr a-y b-z | sed '1s/^/chars\n/' >"$work/shifted/tokenizer.txt"
refuses 1 "shifted has other tokens than" "${run[@]}" --draft "$work/shifted" --prompt 1
ok "a bench of --val alone" "$decode" bench --model "$work/model" --val "$work/text.txt" --tokens 4 --texts 1
ok "an optimizer's page" "$decode" train --help gpa
ok "has its options" grep -q mu-x "$work/last"
refuses 1 "32 channels" "$decode" run --model "$work/other" --ppd "$work/p" --prompt 1
refuses 1 "another model" "$decode" run --model "$work/twin" --ppd "$work/p" --prompt 1
cp "$work/p" "$work/wide" && printf '\20' | dd of="$work/wide" bs=1 seek=16 conv=notrunc 2>/dev/null
refuses 1 "3 prompts of 16 copies" "${run[@]}" --ppd "$work/wide" --prompt 1
head -c 300 "$work/p" >"$work/short"
refuses 1 "damaged" "${run[@]}" --ppd "$work/short" --prompt 1
cp -r "$work/model" "$work/nan" && printf '\0\0\300\177' | dd of="$work/nan/model.bin" bs=1 seek=40000 conv=notrunc 2>/dev/null
refuses 1 "not finite" "$decode" run --model "$work/nan" --prompt 1
refuses 2 "weights" "${run[@]}" --prompt 1 --weights f64
refuses 2 "no option of run" "${run[@]}" --prompt 1 --steps 4
refuses 2 "needs a value" "${run[@]}" --prompt
refuses 2 "needs --draft" "${run[@]}" --prompt 1 --draft-ppd "$work/draft.p"
refuses 2 "train, run" "$decode" paint
refuses 2 "command" "$decode"
refuses 2 "needs --model" "$decode" run --prompt 1
refuses 2 "needs --out" "$decode" train --model "$work/model" --data "$work/text.txt"
refuses 2 "no optimizer" "$decode" train --model "$work/model" "${tokens[@]}" --optimizer magic --out "$work/x"
refuses 2 "no option" "$decode" train --model "$work/model" "${tokens[@]}" --colour 3 --out "$work/x"
refuses 1 "seq-len" "$decode" train --model "$work/model" "${tokens[@]}" --seq-len 4 --out "$work/x"
long=("${prompts[@]}" --steps 1000000000 --own-tokens 0)
head -c 5 "$work/text.txt" >"$work/five"
refuses 1 "no part of the training text has 49 tokens" "${long[@]}" --data "$work/five"
refuses 1 "no part of the held-out text has" "${long[@]}" --val "$work/five"
refuses 1 "cannot write" "${long[@]}" --out "$work/no/such/place"
refuses 1 "x.state is a folder" bash -c 'mkdir "$0" && exec "$@"' "$work/x.state" "${long[@]}" --out "$work/x"
rmdir "$work/x.state"
refuses 2 "with a constant schedule" "${long[@]}" --schedule constant --final-lr 0.5
refuses 1 "other is a run of train_gpt2" "${long[@]}" --joint --out-model "$work/other"
refuses 1 "cannot make" "${long[@]}" --joint --out-model "$work/text.txt"
refuses 1 "is --model's" "${long[@]}" --joint --out-model "$work/other/../model"
refuses 1 "is --model's" "${long[@]}" --joint --model "$work/model/model.bin" --out-model "$work/model"
refuses 1 "change places" "${bench[@]}" --ppd "$work/heads" --heads-file "$work/p"
refuses 1 "change places" "${bench[@]}" --draft "$work/model" --draft-ppd "$work/heads"
refuses 2 "give one" "${run[@]}" --prompt 1 --ngram --draft "$work/draft"
refuses 2 "goes with --ppd" "${run[@]}" --prompt 1 --tree 8
refuses 1 "is not a number.*; lower --muon-lr and --lr" "${long[@]}" --joint --optimizer muon --muon-lr 1e39 \
    --warmup 0 --out-model "$work/wild"
ok "a model that sees one token" "$train" "${small[@]}" --context 1 --steps 2 --out "$work/one"
refuses 1 "no room for 3 prompts" "${long[@]}" --model "$work/one"
ok "has a bench" "$decode" bench --model "$work/one" --data "$work/text.txt" --tokens 4 --texts 1
ok "of numbers" bash -c '! grep -E "nan| 0\.0 .* 0%" "$1"' _ "$work/last"
single=("$decode" train --model "$work/model" "${tokens[@]}" --steps 1 --out "$work/single" --resume)
ok "nothing to resume: it begins" "${single[@]}"
ok "and says so" grep -q '^resumed    nothing: there is no .*/single.state, the run begins' "$work/last"
refuses 1 "is finished" "${single[@]}"

# ---- the study: its report from a CSV; with FULL=1 all of it, on a few steps
if [ -f dev/studies/driver.sh ]; then
    result=$work/decoding${FULL:+-full}
    mkdir "$work/study" && ln -s "$PWD"/* "$work/study" && rm -f "$work/study/runs" # what it trains stays there
    study() (cd "$work/study" && env RESULTS="$work" DATA="$work/text.txt" STEPS=6 DECODE="$decode" TRAIN="$train" "$@" bash dev/studies/decoding.sh)
    printf '%s\n' "# make study" model,part,name,measure,value together,method,PPD,speedup,2.60 together,predicted,PPD,speedup,2.50 \
        together,{method,loops},n-gram,tokens_per_s,300 "together,method,PPD + n-gram,speedup,2.40" \
        "together,"{method,loops}",PPD + n-gram,tokens_per_s,240" paper,loops,PPD,tokens_per_s,120 \
        paper,texts,bench,single,0 paper,texts,bench,loops,2 paper,loops,plain,tokens_per_s,100 \
        paper,predicted,PPD,speedup,1.00 paper,predicted,PPD,a_pass,1 frozen,method,PPD,added_mb,0.02 all,size,deep,trained,5000 \
        paper,method,plain,speedup,0.00 together,method,PPD,identical,yes together,loss,model,alone,1.5 together,loss,model,together,1.6 \
        together,texts,bench,single,1 together,texts,bench,loops,3 together,{method,loops},plain,tokens_per_s,100 \
        together,method,PPD,tokens_per_s,200 together,loops,PPD,tokens_per_s,300 together,loops,PPD,speedup,2.70 all,size,deep,percent,0.05 \
        {frozen,together},tree,PPD,{a_pass_1,ms_1,a_pass_4,ms_4,measured_4},1.5 >"$result.csv"
    ok "the study's report" study REPORT=1
    ok "a claim that held" grep -q 'trained with its prompts: speedup | 2.49 | 2.67 (2.70 on the texts that loop, 3 of 4) | yes' "$result.md"
    ok "a combination has PPD in it" grep -q 'combination with PPD: speedup (n-grams alone) | 2.49, PPD alone | 2.40 .*(3.00) | \*\*no' "$result.md"
    ok "texts that all loop are named, and a tree that guesses nothing" grep -q \
        "the paper's: speedup | 2.49 | 1.20, all texts loop, by no guesses: the best tree is a root | \*\*no" "$result.md"
    ok "memory is a share of the model's: 0.02 MB of 40" grep -q 'add, at most 0.1% .* | 0.0500% | yes' "$result.md"
    ok "the prediction's error, of all texts" grep -q 'within 10% (ours) | - | 7% | yes' "$result.md"
    echo together,predicted,heads,speedup,4 >>"$result.csv"
    printf '%s\n' together,{method,loops},heads,tokens_per_s,200 >>"$result.csv"
    ok "the study's report, with heads" study REPORT=1
    ok "which are predicted, too" grep -q 'within 10% (ours) | - | 100% | \*\*no' "$result.md"
    ok "a claim that did not" grep -q 'at most 0.01) | - | +0.1000 | \*\*no' "$result.md"
    if [ "${FULL:-}" ] && [ ! -r "${GPT2_MERGES:-}" ]; then
        skip "the study (GPT2_MERGES is not given)"
    elif [ "${FULL:-}" ]; then
        OMP_NUM_THREADS=2 ok "the study" study # of minutes, the last of which it is alone
        ok "has all methods" grep -q '^together,method,PPD + draft with PPD,identical,yes' "$result.csv"
    fi
fi
ok "no temporary file stays" [ -z "$(find "$work" -name '*.tmp')" ]
ok "--help" "$decode" --help
if [ -w /dev/full ]; then refuses 1 "cannot write all of the output" bash -c 'exec "$@" >/dev/full' _ "$decode" --help
else skip "a full disk under the output (there is no /dev/full)"; fi
if [ -w /dev/full ]; then refuses 1 "cannot write all of the output" timeout 20 bash -c 'exec "$@" >/dev/full' _ "${run[@]}" \
    --prompt 1 --tokens 100000000
else skip "text onto a full disk (there is no /dev/full)"; fi
finish
