#!/usr/bin/env bash
# dev/data/tales: the entropy it prints against its own oracle, and what it refuses. $TALES names the program.
set -u
. "$(dirname "$0")/lib.sh"
tales=${TALES:-./dev/data/tales}

# holds 'EXPRESSION': awk's arithmetic
holds() { awk "BEGIN { exit !($1) }"; }

# The printed entropy is what the oracle measures, within 3 standard errors, and that is at most 1%.
"$tales" --out "$work/text" 2>"$work/said"
ok "writes the default corpus" [ -s "$work/text" ]
ok "leaves nothing else" [ "$(ls "$work"/text*)" = "$work/text" ]
entropy=$(sed -n 's/.*entropy of the grammar \([0-9.]*\) nats.*/\1/p' "$work/said")
"$tales" --score "$work/text" >"$work/score"
scored=$(sed -n 's/^\([0-9.]*\) nats per character .*/\1/p' "$work/score")
error=$(sed -n 's/.*(standard error \([0-9.]*\)).*/\1/p' "$work/score")
ok "an entropy is printed (${entropy:-none})" holds "${entropy:-0} > 0.3 && ${entropy:-0} < 0.8"
ok "which is that of this grammar" [ "$entropy" = 0.3656 ]
ok "oracle ${scored:-none}, grammar ${entropy:-none}, standard error ${error:-none}" \
    holds "(${scored:-9} - ${entropy:-0}) ^ 2 <= (3 * ${error:-0} + 0.0001) ^ 2"
ok "the tolerance is at most 1%" holds "3 * ${error:-9} < 0.01 * ${entropy:-0}"
ok "every tale has one derivation" grep -q "one derivation each" "$work/score"
size=$(wc -c <"$work/text")
printed=$(sed 's/,//g; s/ characters.*//' "$work/said")
ok "the default is 2,000,000 characters and the rest of a tale" holds "$size >= 2000000 && $size < 2002500"
ok "the size is printed" [ "$size" -eq "$printed" ]
alphabet=$(fold -w1 <"$work/text" | sort -u | wc -l)
ok "a small alphabet ($alphabet)" holds "$alphabet >= 40 && $alphabet <= 63"
ok "plain ASCII" eval '! LC_ALL=C grep -q "[^ -~]" "$work/text"'

# Seeds and sizes.
text_of() { "$tales" --bytes 100000 "$@" 2>/dev/null | cksum; }
ok "the same seed gives the same text" [ "$(text_of --seed 7)" = "$(text_of --seed 7)" ]
ok "another seed gives another" [ "$(text_of --seed 7)" != "$(text_of --seed 8)" ]
ok "the default seed is 1337" [ "$(text_of)" = "$(text_of --seed 1337)" ]
# Every machine and compiler tells the same; whoever changes the grammar changes this number.
ok "the text of a seed is the one that it was elsewhere" [ "$(text_of --seed 1337)" = "1478681537 100490" ]
for n in 1 5000 123456; do
    size=$("$tales" --bytes $n 2>/dev/null | wc -c)
    ok "--bytes $n is honoured ($size)" holds "$size >= $n && $size < $n + 2500"
done
"$tales" --bytes 20000 >"$work/small" 2>/dev/null
ok "a shorter text begins a longer one" cmp -s -n "$(wc -c <"$work/small")" "$work/small" "$work/text"

# The oracle refuses what the grammar cannot make.
inside="the text ends inside a tale"
head -c 15000 "$work/text" >"$work/cut"
refuses 1 "cut: byte 15000: $inside" "$tales" --score "$work/cut"
head -c $(($(wc -c <"$work/small") - 1)) "$work/small" >"$work/cut"
refuses 1 "$inside" "$tales" --score "$work/cut"
sed '5s/[aeiou]/y/3' "$work/small" >"$work/changed"
refuses 1 "changed: byte [0-9]*: no tale goes on" "$tales" --score "$work/changed"
tr a-y b-z <"$work/small" >"$work/changed"
refuses 1 "byte [0-9]*: no tale" "$tales" --score "$work/changed"
head -c 5000 /dev/urandom >"$work/noise"
refuses 1 "noise: byte" "$tales" --score "$work/noise"
# A hero who changes her name in the middle: every word is the grammar's, the tale is not.
awk 'BEGIN { RS = "" }
     match($0, /(called|named) [A-Z][a-z]+/) {
         split(substr($0, RSTART, RLENGTH), hero, " ")
         rest = substr($0, RSTART + RLENGTH)
         if (sub("\\. " hero[2] " ", (hero[2] == "Otto" ? ". Ned " : ". Otto "), rest)) {
             print substr($0, 1, RSTART + RLENGTH - 1) rest "\n"; exit
         }
     }' "$work/text" >"$work/renamed"
ok "there is a tale whose hero can be renamed" [ -s "$work/renamed" ]
refuses 1 "renamed: byte" "$tales" --score "$work/renamed"
: >"$work/empty"
refuses 1 "empty: is empty" "$tales" --score "$work/empty"
refuses 1 "none: cannot read" "$tales" --score "$work/none"
refuses 1 "cannot read" "$tales" --score "$work"

# The command line.
for option in "--byte 3" --verbose; do refuses 2 "no such option" "$tales" $option; done
refuses 2 "value is missing" "$tales" --bytes
refuses 2 "not a whole number" "$tales" --bytes 12k
refuses 2 "not a whole number" "$tales" --bytes 0
refuses 2 "not a whole number" "$tales" --seed 99999999999999999999
refuses 1 "cannot write" "$tales" --out "$work/none/text"
refuses 1 "cannot write" "$tales" --out "$work"
if [ -w /dev/full ]; then refuses 1 "No space" "$tales" --out /dev/full; fi
limited=(bash -c 'ulimit -f 100; trap "" XFSZ; exec "$@"' _ "$tales")
refuses 1 "File too large" "${limited[@]}" --out "$work/big"
ok "no part of it is left" eval '! ls "$work"/big* >/dev/null 2>&1'
cp "$work/small" "$work/kept"
refuses 1 "File too large" "${limited[@]}" --out "$work/kept"
ok "the file that was there is kept" cmp -s "$work/small" "$work/kept"
refuses 2 "without other options" "$tales" --score "$work/small" --seed 5
"$tales" --bytes 1000000000 --out "$work/big" >/dev/null 2>&1 &
await [ -s "$work/big.tmp" ]
kill $!
wait $!
ok "stopped, it leaves nothing" eval '! ls "$work"/big* >/dev/null 2>&1'
ok "--help" eval '"$tales" --help | grep -q -- --score'

finish
