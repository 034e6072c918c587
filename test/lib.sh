# What the tests in bash share: counting, and the closing line that the suite reads. Sourced.
passed=0 failed=0 skipped=0
[ "${FULL:-}" != 0 ] || unset FULL
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

# A text of 25 kB without any file: numbers and words.
bottles() {
    awk 'BEGIN {
        for (i = 0; i < 900; i++)
            printf "%d green bottles, %s\n", i * 7919 % 1000, i % 3 ? "hanging" : "on the wall"
    }'
}

# ok MESSAGE COMMAND...: the command must succeed.
ok() {
    local message=$1
    shift
    if "$@" >"$work/current" 2>&1; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAILED: $message"
        tail -n 5 "$work/current"
    fi
    mv "$work/current" "$work/last" # a check may read what the one before it printed
}

# await COMMAND...: until it succeeds; half a minute without is a failure.
await() {
    local i
    for ((i = 0; i < 1500; i++)); do "$@" && return; sleep 0.02; done
    failed=$((failed + 1))
    echo "FAILED: not within half a minute: $*"
}
# "${known[@]}" COMMAND...: the command, or a rank of mpirun's, whose process is in $work/pid.RANK.
known=(sh -c 'echo $$ >"$0.${OMPI_COMM_WORLD_RANK:-0}" && exec "$@"' "$work/pid")
rows() { [ -e "$2" ] && [ "$(wc -l <"$2")" -gt "$1" ]; } # N LOG: it has more than N rows

# refuses CODE PATTERN COMMAND...: the command must print one line on stderr, `error: ...PATTERN...`, and exit with
# CODE, within 20 seconds.
refuses() {
    local code=$1 pattern=$2
    shift 2
    timeout 20 "$@" >"$work/out" 2>"$work/err" </dev/null
    local got=$?
    if [ $got = "$code" ] && [ "$(wc -l <"$work/err")" = 1 ] && grep -q "^error: .*$pattern" "$work/err"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: exit $got ($code expected), stderr (error: ...$pattern... expected): $*"
        head -n 3 "$work/err"
    fi
}

skip() { skipped=$((skipped + 1)) && echo "skipped: $1"; } # WHAT AND WHY

finish() {
    echo "$passed passed, $failed failed$([ $skipped = 0 ] || echo ", $skipped skipped")"
    [ $failed = 0 ]
}
