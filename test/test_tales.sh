#!/usr/bin/env bash
# Tests dev/data/tales: the entropy it prints against its own oracle, and what it refuses.
# usage: test/test_tales.sh      (the program is $TALES, or ./dev/data/tales)
TALES=${TALES:-./dev/data/tales}
passed=0 failed=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

check() {   # check NAME CONDITION...: the condition is a command
    if "${@:2}"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $1"; fi
}
# holds 'EXPRESSION': awk's arithmetic
holds() { awk "BEGIN { exit !($1) }"; }
# refuses STATUS WORDS ARGUMENTS...: exits with STATUS and one line on stderr, "error: " with WORDS in it
refuses() {
    "$TALES" "${@:3}" >"$tmp/stdout" 2>"$tmp/stderr"
    [ $? = "$1" ] && [ "$(wc -l <"$tmp/stderr")" -eq 1 ] && grep -q "^error: .*$2" "$tmp/stderr"
}

[ -x "$TALES" ] || { echo "FAILED: $TALES is not there; build it first"; echo "0 passed, 1 failed"; exit 1; }

# The printed entropy is what the oracle measures, within 3 standard errors, and that is at most 1%.
"$TALES" --out "$tmp/text" 2>"$tmp/said"
check "writes the default corpus" [ -s "$tmp/text" ]
check "leaves nothing else" [ "$(ls "$tmp" | tr '\n' ' ')" = "said text " ]
entropy=$(sed -n 's/.*entropy of the grammar \([0-9.]*\) nats.*/\1/p' "$tmp/said")
"$TALES" --score "$tmp/text" >"$tmp/score"
scored=$(sed -n 's/^\([0-9.]*\) nats per character .*/\1/p' "$tmp/score")
error=$(sed -n 's/.*(standard error \([0-9.]*\)).*/\1/p' "$tmp/score")
check "an entropy is printed (${entropy:-none})" holds "${entropy:-0} > 0.3 && ${entropy:-0} < 0.8"
check "oracle ${scored:-none}, grammar ${entropy:-none}, standard error ${error:-none}" \
    holds "(${scored:-9} - ${entropy:-0}) ^ 2 <= (3 * ${error:-0} + 0.0001) ^ 2"
check "the tolerance is at most 1%" holds "3 * ${error:-9} < 0.01 * ${entropy:-0}"
check "every tale has one derivation" grep -q "one derivation each" "$tmp/score"
size=$(wc -c <"$tmp/text")
printed=$(sed 's/,//g; s/ characters.*//' "$tmp/said")
check "the default is 2,000,000 characters and the rest of a tale" holds "$size >= 2000000 && $size < 2002500"
check "the size is printed" [ "$size" -eq "$printed" ]
alphabet=$(fold -w1 <"$tmp/text" | sort -u | wc -l)
check "a small alphabet ($alphabet)" holds "$alphabet >= 40 && $alphabet <= 63"
check "plain ASCII" eval '! LC_ALL=C grep -q "[^ -~]" "$tmp/text"'

# Seeds and sizes.
text_of() { "$TALES" --bytes 100000 "$@" 2>/dev/null | cksum; }
check "the same seed gives the same text" [ "$(text_of --seed 7)" = "$(text_of --seed 7)" ]
check "another seed gives another" [ "$(text_of --seed 7)" != "$(text_of --seed 8)" ]
check "the default seed is 1337" [ "$(text_of)" = "$(text_of --seed 1337)" ]
# Every machine and compiler tells the same; whoever changes the grammar changes this number.
check "the text of a seed is the one that it was elsewhere" [ "$(text_of --seed 1337)" = "1478681537 100490" ]
for n in 1 5000 123456; do
    size=$("$TALES" --bytes $n 2>/dev/null | wc -c)
    check "--bytes $n is honoured ($size)" holds "$size >= $n && $size < $n + 2500"
done
"$TALES" --bytes 20000 >"$tmp/small" 2>/dev/null
check "a shorter text begins a longer one" cmp -s -n "$(wc -c <"$tmp/small")" "$tmp/small" "$tmp/text"

# The oracle refuses what the grammar cannot make.
inside="the text ends inside a tale"
head -c 15000 "$tmp/text" >"$tmp/cut"
check "a text cut in the middle is refused" refuses 1 "cut: byte 15000: $inside" --score "$tmp/cut"
head -c $(($(wc -c <"$tmp/small") - 1)) "$tmp/small" >"$tmp/cut"
check "a text without its last newline is refused" refuses 1 "$inside" --score "$tmp/cut"
sed '5s/[aeiou]/y/3' "$tmp/small" >"$tmp/changed"
check "a changed letter is refused" refuses 1 "changed: byte [0-9]*: no tale goes on" --score "$tmp/changed"
tr a-y b-z <"$tmp/small" >"$tmp/changed"
check "another text is refused" refuses 1 "byte [0-9]*: no tale" --score "$tmp/changed"
head -c 5000 /dev/urandom >"$tmp/noise"
check "noise is refused" refuses 1 "noise: byte" --score "$tmp/noise"
# A hero who changes her name in the middle: every word is the grammar's, the tale is not.
awk 'BEGIN { RS = "" }
     match($0, /(called|named) [A-Z][a-z]+/) {
         split(substr($0, RSTART, RLENGTH), hero, " ")
         rest = substr($0, RSTART + RLENGTH)
         if (sub("\\. " hero[2] " ", (hero[2] == "Otto" ? ". Ned " : ". Otto "), rest)) {
             print substr($0, 1, RSTART + RLENGTH - 1) rest "\n"; exit
         }
     }' "$tmp/text" >"$tmp/renamed"
check "there is a tale whose hero can be renamed" [ -s "$tmp/renamed" ]
check "a tale that forgets its hero is refused" refuses 1 "renamed: byte" --score "$tmp/renamed"
: >"$tmp/empty"
check "an empty text is refused" refuses 1 "empty: is empty" --score "$tmp/empty"
check "a missing text is refused" refuses 1 "none: cannot read" --score "$tmp/none"
check "a directory is refused" refuses 1 "cannot read" --score "$tmp"

# The command line.
check "an unknown option" refuses 2 "no such option" --byte 3
check "a missing value" refuses 2 "value is missing" --bytes
check "a number that is none" refuses 2 "not a whole number" --bytes 12k
check "a number below its range" refuses 2 "not a whole number" --bytes 0
check "a number beyond its range" refuses 2 "not a whole number" --seed 99999999999999999999
check "a folder that is not there" refuses 1 "cannot write" --out "$tmp/none/text"
check "a folder in place of a file" refuses 1 "cannot write" --out "$tmp"
if [ -w /dev/full ]; then check "a full disk" refuses 1 "No space" --out /dev/full; fi
(ulimit -f 100; trap '' XFSZ; refuses 1 "File too large" --out "$tmp/big")
check "a file that gets too large" [ $? = 0 ]
check "no part of it is left" eval '! ls "$tmp"/big* >/dev/null 2>&1'
cp "$tmp/small" "$tmp/kept"
(ulimit -f 100; trap '' XFSZ; refuses 1 "File too large" --out "$tmp/kept")
check "the file that was there is kept" cmp -s "$tmp/small" "$tmp/kept"
check "--help" eval '"$TALES" --help | grep -q -- --score'

echo "$passed passed, $failed failed"
[ $failed = 0 ]
