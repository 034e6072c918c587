# What every study shares, whether driver.sh trains for it or not: where results go, trainings side by side, and the
# claims, NAME.md, which is a section of the project's README. finish_claims ends it.
set -u
export LC_ALL=C # numbers have points, for awk, sort and printf
cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) # those that this process may use
die() { echo "error: $1" >&2; exit "${2:-1}"; }
study=$(basename "$0" .sh)
full=${FULL:-} report=${REPORT:-}
[ "$full" != 0 ] || full=
[ "$report" != 0 ] || report=
results=${RESULTS:-dev/studies/results}
if [ "${STEPS:-}${EXTRA:-}" ] && [ "$study" != race ]; then results=${RESULTS:-runs/studies/results}; fi # a trial
result=$results/$study${full:+-full} # NAME.csv, NAME.txt, NAME.md, NAME.png without their endings
csv=$result.csv
[ ! "$report" ] || [ -r "$csv" ] || die "$csv is not there yet; call the study without REPORT"
jobs=${JOBS:-$cores}
[[ $jobs =~ ^[1-9][0-9]*$ ]] || die "JOBS takes a whole number, not '$jobs'" 2
[[ ${STEPS:-1} =~ ^[1-9][0-9]*$ ]] || die "STEPS takes a whole number, not '$STEPS'" 2
mkdir -p "$results" || die "cannot make $results"

# ---- trainings side by side, in folders below $runs
make_runs() { # and keeps others out of it
    mkdir -p "$runs" || die "cannot make $runs"
    if [ ! "$report" ] && command -v flock >/dev/null; then
        { exec 9>"$runs/lock" && flock -n 9; } || die "this study is running already, in $runs"
    fi
}

queue=() # their folders, where `run_one` of the study makes DIR/loss by DIR's command

# run_queue WHAT: all that is queued, $jobs at a time.
run_queue() {
    export runs queue_length=${#queue[@]} queue_start
    [ $queue_length -gt 0 ] || return
    echo "$1: $queue_length trainings"
    queue_start=$(date +%s)
    : >"$runs/finished"
    export -f run_one run_failed run_finished
    rm -f "$runs/failed"
    printf '%s\0' "${queue[@]}" | xargs -0 -n 1 -P "$jobs" bash -c 'run_one "$1"' _ 2>/dev/null ||
        die "$(cat "$runs/failed" 2>/dev/null || echo "stopped; the same command goes on")"
    queue=()
}
# How run_one ends. run_failed DIR: what DIR/output ends with will be the study's error; 255 makes xargs stop.
run_failed() {
    tail -n 1 "$1/output" | sed 's/^error: //' >"$1/failed" && mv "$1/failed" "$runs/failed"
    return 255
}
# run_finished DIR LOSS
run_finished() {
    local finished left
    echo "$2" >"$1/loss.tmp" && mv "$1/loss.tmp" "$1/loss"
    echo >>"$runs/finished"
    finished=$(wc -l <"$runs/finished")
    left=$((($(date +%s) - queue_start) * (queue_length - finished) / finished))
    printf '%3d of %d, %d:%02d left   %-64s %s\n' "$finished" $queue_length $((left / 60)) $((left % 60)) "$(basename "$1")" "$2"
}

holds() { awk "BEGIN { print ($1 ? \"yes\" : \"no\") }"; } # holds "1.83 <= 1.89 + 0.03": yes or no

# claim WHAT PAPER HERE yes|no: a row.
claims=0 claims_held=0 claim_rows=
claim() {
    local held="**no**"
    [ -n "$3" ] && [[ $4 = yes || $4 = no ]] || die "no result for the claim: $1"
    claims=$((claims + 1))
    [ "$4" = no ] || held=yes claims_held=$((claims_held + 1))
    claim_rows+="| $1 | $2 | $3 | $held |"$'\n'
    printf '\n%s\n    the paper: %s; here: %s; held: %s\n' "$1" "$2" "$3" "$4"
}
finish_claims() { # the study's command is the first line of its CSV
    {
        printf '### %s: %d of %d hold\n\n' "$(basename "$result")" $claims_held $claims
        printf '`%s`, [picture](dev/studies/results/%s.png)' "$(sed -n '1s/^# //p' "$csv")" "$(basename "$result")"
        [ ! -f "$result.txt" ] || printf ', [table](dev/studies/results/%s.txt)' "$(basename "$result")"
        printf '\n\n'
        printf '| claim | paper | here | held |\n|---|---|---|---|\n%s\n' "$claim_rows"
    } >"$result.md.tmp" && mv "$result.md.tmp" "$result.md" || die "cannot write $result.md"
}

# draw ARGUMENTS...: gnuplot's, for NAME.png. Ends the study: says where its results are.
draw() {
    local ending
    if ! command -v gnuplot >/dev/null; then echo "no picture: gnuplot is not installed (package gnuplot-nox)"
    else gnuplot "$@" || die "gnuplot cannot draw $result.png"; fi
    echo
    for ending in csv txt md png; do [ ! -f "$result.$ending" ] || echo "$result.$ending"; done
}
