# What every study in this folder shares; `make study NAME=averaging` runs dev/studies/averaging.sh, which sources this.
#
# A study says what to compare, and what to print of it:
#
#   . dev/studies/driver.sh
#   length 500 2000                                        $steps, the second with FULL=1
#   common --steps $steps --batch 12                       options of every run
#   method AdamW "lr=2e-3,4e-3,8e-3 schedule=cosine,linear"             LABEL "GRID" OPTIONS of its own ...
#   method GPA "lr=4e-3,8e-3,16e-3" --optimizer gpa
#   tune                                                   searches the grids, prints them, marks the best
#   measure 1 2 3                                          the best of each, with these seeds
#   table AdamW                                            losses, and steps to AdamW's loss
#   claim "GPA needs fewer steps" "24%" "$(fewer GPA AdamW)" "$(holds "$(saved GPA AdamW) >= 24")"
#   picture
#
# Every training goes to a folder of its own below runs/studies/, with text, program and command that made it, and is
# kept: a study that is called again, or was interrupted, goes on from there. What another build of the trainer made is
# made again.
#
#   DATA=FILE      the text (default: dev/data/tales.txt, which make writes)
#   FULL=1         an hour or more on two cores, instead of about ten minutes
#   JOBS=2         trainings at a time, of one thread each (default: one for each core)
#   STEPS=N        another length
#   EXTRA="..."    options behind those of every training; these two are trials, whose results go to runs/studies/results
#   REPORT=1       no training: table, claims and picture once more from the CSV that is there
#   RESULTS=DIR    where NAME.csv, NAME.txt (the table), NAME.md (the claims: rows of README's) and NAME.png go;
#                  NAME-full with FULL=1
. "${BASH_SOURCE%/*}/claims.sh"
data=${DATA:-dev/data/tales.txt}
train=${TRAIN:-./train_gpt2}
tune_seed=0 second_seed=100 # used for nothing but tuning

[ -r "$data" ] || die "$data cannot be read; give a text with DATA=FILE"
text=$(basename "$data" | sed 's/\..*//')
runs=runs/studies/$study/$text${full:+-full}
if [ "${STEPS:-}${EXTRA:-}" ] && [ "$study" != race ]; then runs+=-trial; fi # what is finished of the study stays
make_runs
sum_of() { local sum; { sum=$(cksum <"$1") && echo "${sum%% *}"; } 2>/dev/null; }
# of what the words of a command name: files, and runs, whose commands say what they are
sums_of() {
    local word named
    for word; do
        word=${word#refined:} word=${word%/log.csv}
        for named in "$word.command" "$word/command" "$word"; do [ -f "$named" ] && { printf ' %s' "$(sum_of "$named")"; break; }; done
    done
}
data_sum=$(sum_of "$data")
train_sum=$([ "$report" ] || sum_of "$train") || die "$train is not built; make builds it"

# The command that this study is, for the first line of its CSV.
command_line() {
    echo "# make study NAME=$study DATA=$(basename "$data")${full:+ FULL=1}${STEPS:+ STEPS=$STEPS}${EXTRA:+ EXTRA=\"$EXTRA\"}"
}

# ---- what to compare
labels=() grids=() options=() points=() tried=() finalists=() shared=()

# length DEFAULT FULL: sets steps, and how often to measure: 20 times. `width`, for who wants it, is the trainer's own
# number of channels with FULL=1, half of it without.
length() {
    steps=${STEPS:-${full:+$2}}
    steps=${steps:-$1}
    width=${full:+128}
    width=${width:-64}
    eval_every=$(((steps + 19) / 20))
}

# common OPTIONS...: of every run.
common() { shared=("$@"); }

# method LABEL "GRID" OPTIONS...: GRID is `option=value,value,... option=...`. A list of numbers ascends, the search
# begins at its middle and moves to neighbours; of other lists every value is tried. "" is nothing to tune.
method() {
    [[ $1 != *,* ]] || die "the name of a method is a cell of a CSV, without comma: $1"
    labels+=("$1") grids+=("$2") points+=("$(awk -v grid="$2" "$grid_functions"'BEGIN { middle() }')")
    shift 2
    options+=("$([ $# = 0 ] || printf '%q ' "$@")")
}

# of GRID at POINT ("lr=4e-3 schedule=linear"): its middle, the points beside it
grid_functions='
    function axes(   i, k, part) {
        dimensions = split(grid, part, " ")
        for (i = 1; i <= dimensions; i++) {
            name[i] = part[i]; sub(/=.*/, "", name[i]); sub(/[^=]*=/, "", part[i])
            count[i] = split(part[i], list, ","); numbers[i] = 1
            for (k = 1; k <= count[i]; k++) { value[i, k] = list[k]; if (list[k] !~ /^[-+.0-9]/) numbers[i] = 0 }
        }
    }
    function point(changed, k,   i, s) {
        for (i = 1; i <= dimensions; i++) s = s (i > 1 ? " " : "") name[i] "=" value[i, i == changed ? k : at[i]]
        return s
    }
    function read_point(text,   i, k, part) {
        split(text, part, " ")
        for (i = 1; i <= dimensions; i++)
            for (k = 1; k <= count[i]; k++) if (part[i] == name[i] "=" value[i, k]) at[i] = k
    }
    function middle(   i) {
        axes()
        for (i = 1; i <= dimensions; i++) at[i] = int((count[i] + 1) / 2)
        print point(0, 0)
    }
    function neighbours(text,   i, k) {
        axes(); read_point(text)
        for (i = 1; i <= dimensions; i++)
            for (k = 1; k <= count[i]; k++)
                if (k != at[i] && (!numbers[i] || (k - at[i]) ^ 2 == 1)) print point(i, k)
    }'

# ---- trainings
# folder LABEL SETTING SEED: where this training is.
folder() { printf '%s/%s' "$runs" "$(printf '%s %s seed %s' "$1" "$2" "$3" | tr -cs 'a-zA-Z0-9.=+\n-' '_')"; }

# enqueue DIR WORDS...: the training, unless it was finished, by the same command on the same text.
enqueue() {
    local dir=$1 command
    shift
    command="# text $data_sum, program $train_sum$(sums_of "$@")"$'\n'"OMP_NUM_THREADS=1 exec $(printf '%q ' "$train" --data "$data" "$@")--out $(printf '%q' "$dir") --resume"
    [ -f "$dir/loss" ] && [ "$(cat "$dir/command")" = "$command" ] && return
    if [ "$(cat "$dir/command" 2>/dev/null)" != "$command" ]; then # --resume would refuse the state of another
        rm -f "$dir/loss" "$dir/state.bin" "$dir/log.csv"
        mkdir -p "$dir" || die "cannot make $dir"
        printf '%s\n' "$command" >"$dir/command"
    fi
    queue+=("$dir")
}

# enqueue_method INDEX SETTING SEED EVAL_EVERY
enqueue_method() {
    local words
    eval "words=(${options[$1]} $(for pair in $2; do printf -- '--%s %q ' "${pair%%=*}" "${pair#*=}"; done))"
    enqueue "$(folder "${labels[$1]}" "$2" "$3")" ${shared[@]+"${shared[@]}"} ${words[@]+"${words[@]}"} \
        --eval-every "$4" --seed "$3" ${EXTRA:-}
}

# One training, called by run_queue. Its last loss is inf where it diverged.
run_one() {
    local loss
    bash "$1/command" >"$1/output" 2>&1
    loss=$(awk '/^final val loss/ { print $4 }' "$1/output")
    if [ -z "$loss" ] && grep -qE '^error: (the loss or its gradient|after step .*) is not a number' \
        "$1/output"; then loss=inf; fi
    [ "$loss" ] || { run_failed "$1"; return; }
    [ -f "$1/keep" ] || rm -f "$1/model.bin" "$1/state.bin"
    run_finished "$1" "$loss"
}

# model LABEL OPTIONS...: queues a training whose model stays; `model_dir` is where (a teacher's, say).
model() {
    model_dir=$(folder "$1" "" $tune_seed)
    shift
    [ "$report" ] && return
    mkdir -p "$model_dir" && : >"$model_dir/keep"
    enqueue "$model_dir" "$@" --eval-every 0 --seed $tune_seed ${EXTRA:-}
}

# ---- the search, and the seeds
tuned=0 measured=0 # so many of the methods were
collected=$runs/collected.csv
[ "$report" ] || printf '%s\npart,method,setting,seed,step,val_loss,memory_mb\n' "$(command_line)" >"$collected"

# collect PART INDEX SETTING SEED: what this training's log has measured, in the CSV.
collect() {
    local dir
    dir=$(folder "${labels[$2]}" "$3" "$4")
    awk -F, -v row="$1,${labels[$2]},$3,$4" -v loss="$(cat "$dir/loss")" \
        -v memory="$(awk '$1 == "memory" { print $2 }' "$dir/output")" '
        NR > 1 && $5 != "" { last = row "," $1 "," $5 "," memory; if (row !~ /^tune/) print last }
        NR > 1 { step = $1 }
        END { if (loss == "inf") print row "," step ",inf," memory; else if (row ~ /^tune/) print last }' "$dir/log.csv" >>"$collected"
}

# point_of LABEL: where a method is on its grid, "lr=4e-3"; best LABEL: the same as options, "--lr 4e-3".
point_of() {
    local i
    for ((i = 0; i < ${#labels[@]}; i++)); do [ "${labels[$i]}" != "$1" ] || printf '%s' "${points[$i]}"; done
}
best() { point_of "$1" | sed 's/\([^ =]*\)=/--\1 /g'; }

# beside INDEX: the point of a method, and those beside it.
beside() {
    printf '%s\n' "${points[$1]}"
    awk -v grid="${grids[$1]}" -v here="${points[$1]}" "$grid_functions"'BEGIN { neighbours(here) }'
}

# seeds_at INDEX POINT: the seeds that tune there: a finalist has two.
seeds_at() { echo $tune_seed; ! grep -Fqx -- "$2" <<<"${finalists[$1]:-}" || echo $second_seed; }

# loss_at INDEX POINT: in mean over them.
loss_at() {
    local seed
    for seed in $(seeds_at "$1" "$2"); do cat "$(folder "${labels[$1]}" "$2" $seed)/loss"; done |
        awk '{ sum += $1 == "inf" ? 1e30 : $1 } END { if (sum < 1e20) print sum / NR; else print "inf" }'
}

# in_order INDEX: of the points on standard input, loss and point, the best first.
in_order() {
    local point
    sort -u | while IFS= read -r point; do printf '%s\t%s\n' "$(loss_at "$1" "$point")" "$point"; done | sort -s -g -k 1,1
}

# Each method that has a grid: from its middle to the neighbour with the lowest loss, until none is lower. One seed's
# best is partly luck: the three best are tried with a second seed, and the lowest mean wins. So every point next to the
# best is tried; where it is at the grid's end, that is said.
tune() {
    local i point best before moved=1 round=0 searched=()
    [ "$report" ] && return
    for ((i = tuned; i < ${#labels[@]}; i++)); do [ ! "${grids[$i]}" ] || searched+=($i); done
    while [ $moved = 1 ]; do
        round=$((round + 1)) moved=0
        try_beside "$study, tuning, round $round"
        for i in ${searched[@]+"${searched[@]}"}; do
            best=$(beside $i | in_order $i | sed 1q | cut -f 2)
            [ "$best" = "${points[$i]}" ] || { points[$i]=$best && moved=1; }
        done
    done
    moved=1
    while [ $moved = 1 ]; do
        moved=0
        for i in ${searched[@]+"${searched[@]}"}; do
            best=$(printf '%s' "${tried[$i]}" | in_order $i | sed 3q | cut -f 2)
            before=${finalists[$i]:-}
            finalists[$i]=$(printf '%s\n' "${before:-$best}" "$best" | sort -u)
            [ "${finalists[$i]}" = "$before" ] || moved=1
            while IFS= read -r point; do enqueue_method $i "$point" $second_seed 0; done <<<"${finalists[$i]}"
        done
        run_queue "$study, the best with a second seed"
        for i in ${searched[@]+"${searched[@]}"}; do
            points[$i]=$(in_order $i <<<"${finalists[$i]}" | sed 1q | cut -f 2)
        done
        try_beside "$study, beside the best"
    done
    for i in ${searched[@]+"${searched[@]}"}; do show_grid $i; done
    tuned=${#labels[@]}
}

# try_beside WHAT: trains at the methods' points and beside them, for tune; moved=1 where one of them is new.
try_beside() {
    local i point
    for i in ${searched[@]+"${searched[@]}"}; do
        while IFS= read -r point; do
            grep -Fqx -- "$point" <<<"${tried[$i]:-}" && continue
            enqueue_method $i "$point" $tune_seed 0
            tried[$i]=${tried[$i]:-}$point$'\n' moved=1
        done < <(beside $i)
    done
    run_queue "$1"
}

# at_end CSV LABEL SETTING: says which numbers of the best setting are the largest or smallest that were tried: as what is
# beside it was tried, they are at the end of their list. (Zero has nothing below it.)
at_end() {
    awk -F, -v label="$2" -v best="$3" '
        $1 == "tune" && $2 == label {
            n = split($3, part, " ")
            for (i = 1; i <= n; i++) if (split(part[i], x, "=") == 2 && x[2] ~ /^[-+.0-9]/) {
                if (!(x[1] in low) || x[2] + 0 < low[x[1]]) low[x[1]] = x[2] + 0
                if (!(x[1] in high) || x[2] + 0 > high[x[1]]) high[x[1]] = x[2] + 0
            }
        }
        END {
            n = split(best, part, " ")
            for (i = 1; i <= n; i++)
                if (split(part[i], x, "=") == 2 && x[2] != 0 && low[x[1]] < high[x[1]] && (x[2] == low[x[1]] || x[2] == high[x[1]])) s = s " " part[i]
            if (s != "") print "    nothing was tried beyond it, " label ":" s
        }' "$1"
}

# show_grid INDEX: prints what the search tried, best first, and collects it.
show_grid() {
    local i=$1 point seed
    printf '\n%s\n' "${labels[$i]}"
    printf '%s' "${tried[$i]}" | sort -u | while IFS= read -r point; do
        for seed in $(seeds_at $i "$point"); do collect tune $i "$point" $seed; done
    done
    printf '%s' "${tried[$i]}" | in_order $i |
        awk -F'\t' -v best="${points[$i]}" '{ printf "    %-8s %s%s\n", $1, $2, ($2 == best ? "   <- best" : "") }'
    at_end "$collected" "${labels[$i]}" "${points[$i]}"
}

# measure SEED...: every method at its best point. Writes the CSV.
measure() {
    local i seed
    [ "$report" ] && return
    for ((i = measured; i < ${#labels[@]}; i++)); do
        for seed; do enqueue_method $i "${points[$i]}" "$seed" "$eval_every"; done
    done
    run_queue "$study, seeds $*"
    for ((i = measured; i < ${#labels[@]}; i++)); do
        for seed; do collect seed $i "${points[$i]}" "$seed"; done
    done
    measured=${#labels[@]}
    cp "$collected" "$csv.tmp" && mv "$csv.tmp" "$csv" || die "cannot write $csv"
}

# ---- what came out, from the CSV alone
# curves PROGRAM: awk that knows the measured losses, in mean over the seeds. Names of methods come as $A and $B.
curves() {
    awk -F, '
        function mean(m, s) { return many[m, s] < seeds[m] || sum[m, s] > 1e20 ? 1e30 : sum[m, s] / many[m, s] }
        function final(m) { return mean(m, last[m]) }
        function deviation(m,   n, v) {
            n = seeds[m]; v = square[m, last[m]] - n * final(m) ^ 2
            return n > 1 && v > 0 ? sqrt(v / (n - 1)) : 0
        }
        function show(m) { return final(m) > 1e20 ? "diverged" : sprintf("%.3f ± %.3f", final(m), deviation(m)) }
        function reaches(m, loss,   s, before, above) { # after so many steps, on straight lines between measurements; 0: never
            for (s = 1; s <= last[m]; s++) {
                if (!((m, s) in many)) continue
                if (mean(m, s) <= loss) return before ? before + (s - before) * (above - loss) / (above - mean(m, s)) : s
                before = s; above = mean(m, s)
            }
            return 0
        }
        function saved(m, than,   s) { # percent of the steps that another needs to its final loss; "": not reached
            if (final(than) > 1e20) return ""
            s = reaches(m, final(than))
            return s ? 100 * (1 - s / last[than]) : ""
        }
        $1 == "seed" {
            if (!($2 in last)) { order[++methods] = $2; setting[$2] = $3; memory[$2] = $7 }
            if (!(($2, $4) in seen)) { seen[$2, $4] = 1; seeds[$2]++ }
            loss = $6 == "inf" ? 1e30 : $6
            sum[$2, $5] += loss; square[$2, $5] += loss * loss; many[$2, $5]++
            if ($5 > last[$2]) last[$2] = $5 + 0
        }
        END {
            A = ENVIRON["A"]; B = ENVIRON["B"]
            if (A != "" && !(A in last)) { print "error: the CSV has no method " A >"/dev/stderr"; exit 1 }
            if (B != "" && !(B in last)) { print "error: the CSV has no method " B >"/dev/stderr"; exit 1 }
            '"$1"'
        }' "$csv" || die "the report of $csv fails"
}
mean_of() { A=$1 B= curves "printf \"%.4f\\n\", mean(A, ${2:-last[A]})"; } # mean_of METHOD [STEP]
saved() { A=$1 B=$2 curves 's = saved(A, B); print (s == "" ? -100 : s)'; } # 24.2: A has B's final loss after 24.2% fewer steps
fewer() { # the same in words, with both losses
    A=$1 B=$2 curves 's = saved(A, B); printf "%s (%s against %s)\n", (s == "" ? "not reached" : sprintf("%.1f%%", s)), show(A), show(B)'
}
at_most() { # at_most A B ["+ 0.03"]: yes, if A ends at or below B plus that; who diverged does not
    A=$1 B=$2 curves "print (final(A) < 1e20 && final(A) <= final(B) ${3:-} ? \"yes\" : \"no\")"
}
against() {
    A=$1 B=$2 curves 'd = final(A) - final(B); printf (d * d < 1e20 ? "%+.3f (%s against %s)" : "%.0s%s against %s") "\n", d, show(A), show(B)'
}

# table REFERENCE: all methods; "fewer" is what saved says of them. It is NAME.txt, too.
table() {
    local label setting rows
    printf '\n'
    rows=$(rows_of "$1") || exit 1
    sed 's/ *$//' <<<"$rows" >"$result.txt.tmp" && mv "$result.txt.tmp" "$result.txt" || die "cannot write $result.txt"
    cat "$result.txt"
    curves 'for (i = 1; i <= methods; i++) printf "%s\t%s\n", order[i], setting[order[i]]' |
        while IFS=$'\t' read -r label setting; do at_end "$csv" "$label" "$setting"; done
}
rows_of() { # REFERENCE: its text
    B=$1 curves '
        for (i = 1; i <= methods; i++) if (length(order[i]) > width) width = length(order[i])
        name = "%-" width "s "
        printf name "%-17s %-8s %-8s %s\n", "", "validation loss", "fewer", "memory", "setting"
        for (i = 1; i <= methods; i++) {
            m = order[i]
            fewer = saved(m, B)
            printf name "%-" (final(m) > 1e20 ? 17 : 18) "s %-8s %-8s %s\n", m, show(m), (fewer == "" ? "-" : sprintf("%.1f%%", fewer)), memory[m] " MB", setting[m]
        }'
    echo "fewer: steps, of whatever size, than $1 to its final loss; -: it is not reached"
}

# picture: validation loss over steps, mean of the seeds, up to 1.3 of the lowest. Ends the study.
picture() {
    local points=$runs/points
    finish_claims
    curves 'for (i = 1; i <= methods; i++) {
            print "\"" order[i] "\""
            for (s = 1; s <= last[order[i]]; s++) if ((order[i], s) in many && mean(order[i], s) < 1e20) print s, mean(order[i], s)
            print "\n"
        }' >"$points"
    draw - <<END
        set terminal pngcairo size 1000,$(curves 'print (methods > 28 ? 60 + 20 * methods : 620)') font 'sans,11'
        set output '$result.png'
        set encoding utf8
        set xlabel 'step'
        set ylabel 'validation loss, nats per token'
        set grid
        set key outside right maxcols 1
        set yrange [*:$(curves 'for (i = 1; i <= methods; i++) if (i == 1 || final(order[i]) < low) low = final(order[i]); print 1.3 * low')]
        plot for [i=0:$(curves 'print methods - 1')] '$points' index i with linespoints linewidth 2 pointsize 0.5 linecolor i + 1 dashtype 1 + i / 8 title columnheader(1)
END
}
