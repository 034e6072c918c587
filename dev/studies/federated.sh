#!/usr/bin/env bash
# Partially personalized federated learning (FFGG, arXiv 2305.18285; dev/federated.c) against training alone,
# FedAvg and FedAvg with fine-tuning, on the same clients, with as many gradients of each client (those of the
# fine-tuning come on top):
#   exact     a convex problem whose solution is known, for which it is overpersonalized; and one for which it
#             is not (with as many local steps; FFGG takes one gradient more)
#   text      20 speakers of a play; 10 speakers and 10 books at most: each client's validation loss, rounds and
#             bytes to a loss
#   attack    0, 20 and 40% attackers of each kind (on text, unless FULL=1, of two kinds), every aggregator
#   delay     answers up to 20 rounds late, synchronous and asynchronous
# On text the optimizer, FFGG's server's and the others' clients', is Muon, but for the parts attack and delay: with
# AdamW all methods end 0.1 or more higher. Its rate and momentum are the best of four or five pairs for each method, on
# two seeds that are not used again: on one alone, rates win at which others fail.
#
# On text both of a round's gradients serve w in FedAvg, so they do in FFGG, which sends their mean
# (--mean-gradient); "FFGG last" is the paper's own form, which sends the second alone.
#
# There a gradient is mostly noise, and attackers hide in it: of 20 gradients with mean mu, 8 of which are
# sent times -10, a median or geometric median keeps about (12 - 8) / (12 + 8/10) = 0.31 mu, with as much
# noise as the mean of the 12 honest ones has. So 40% of attackers cost rounds, and want lower rates: for part
# attack the server's is chosen with them there, and the claim says what 4 times the rounds bring.
#
#   DATA=FILE      a play, lines `NAME:` over speeches (default data/tinyshakespeare.txt, which
#                  dev/data/texts.sh fetches)
#   BOOKS=FILE     lines `Ge1:1 In the beginning`, as in kjv.txt, which dev/data/texts.sh fetches (default: none,
#                  and the speakers stay among themselves)
#   FULL=1         1500 rounds instead of 400, and on text all attackers: hours instead of ten minutes
#   STEPS=N        so many rounds: a trial, whose results go to runs/studies/results
#   JOBS=2         runs at a time, of one thread each (default: one for each core)
#   REPORT=1       no runs: tables, claims and picture once more from the CSV that is there
#   RESULTS=DIR    where federated.csv, federated.md (the claims) and federated.png go, federated-full with FULL=1
unset CDPATH # cd would search it, and print where it went
cd "$(dirname "$0")/../.." || exit 1
. dev/studies/claims.sh
[ ! "${EXTRA:-}" ] || die "EXTRA is for other studies" 2
set -f # patterns of tensors are words, too
play=${DATA:-data/tinyshakespeare.txt} books=${BOOKS:-}
runs=runs/studies/federated${full:+-full}${STEPS:+-trial}
rounds=400 convex_rounds=600 seeds="1 2 3" tune_seeds="0 11"
[ ! "$full" ] || rounds=1500
[ ! "${STEPS:-}" ] || rounds=$STEPS convex_rounds=$STEPS
make_runs

# ---- runs
program=dev/federated
rows=$runs/rows
norms='h.*.ln_*,ln_f.*'
splits=speakers
[ "$books" ] && splits="speakers both"
on() { # the options of a split
    case $1 in
    speakers) echo "--data $play --clients speakers --max-clients 20 --rounds $rounds" ;;
    both) echo "--data $runs/both.txt --clients speakers --max-clients 20 --rounds $rounds" ;;
    *) echo "--convex --rounds $convex_rounds" ;;
    esac
}
# of METHOD: its options; a client takes two gradients a round with every one of them.
of() {
    case $1 in
    local) echo "--method local --local-steps 2" ;;
    FedAvg*) echo "--method fedavg --local-steps 2" ;;
    "FFGG norms") echo "--private $norms --mean-gradient" ;;
    "FFGG last") echo "--private $norms" ;;
    FFGG*) echo "--private $norms,h.1.mlp.* --mean-gradient" ;;
    esac
}
# rates METHOD: those to choose from, for Muon its rate and momentum; of the server in FFGG, else of the clients.
# FFGG wants less momentum than FedAvg (0.9 is best, but with private MLPs among speakers
# 0.95), so their pairs differ.
rates() {
    case $1 in
    local) echo 0.005/0.95 0.01/0.95 0.02/0.95 0.01/0.9 ;;
    attacked) echo 5e-3 1e-2 2e-2 ;;
    FedAvg*) echo 0.04/0.95 0.08/0.95 0.16/0.95 0.08/0.9 0.08/0.98 ;;
    *) echo 0.04/0.9 0.08/0.9 0.16/0.9 0.08/0.8 0.08/0.95 ;;
    esac
}
# with METHOD RATE: the options that set it; the rate of what is no matrix goes with Muon's
with() {
    case $1 in
    FFGG*) echo "--server-optimizer muon --server-muon-lr ${2%/*} --server-muon-momentum ${2#*/}" \
        "--server-lr $(times 0.5 "${2%/*}") --client-lr 3e-3" ;;
    attacked) echo "--server-lr $2 --client-lr 3e-3" ;; # AdamW: private tensors that go after every turn of w
    *) echo "--client-optimizer muon --client-muon-lr ${2%/*} --client-muon-momentum ${2#*/}" \
        "--client-lr $(times 2 "${2%/*}")" ;;
    esac
}
times() { awk -v a="$1" -v b="$2" 'BEGIN { print a * b }'; }
# folder PART SPLIT METHOD SETTING SEED
folder() { printf '%s/%s' "$runs" "$(echo "$1 $2 $3 $4 $5" | tr -cs 'a-zA-Z0-9.\n-' '_')"; }

# add PART SPLIT METHOD SETTING SEED OPTIONS...: queues a run, unless it was finished by the same command and program on
# the same texts.
add() {
    local dir command
    dir=$(folder "$1" "$2" "$3" "$4" "$5")
    printf '%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" "$5" >>"$rows"
    command="$program $(on "$2") --seed $5 ${*:6} --out $dir"$'\n'"# texts $texts, program $program_sum"
    [ -f "$dir/loss" ] && [ "$(cat "$dir/command")" = "$command" ] && return
    mkdir -p "$dir" && rm -f "$dir/loss" && printf '%s\n' "$command" >"$dir/command" || die "cannot make $dir"
    queue+=("$dir")
}

# A run, called by run_queue: its last mean and worst loss, both inf where it diverged.
run_one() {
    local command loss
    read -ra command <"$1/command"
    OMP_NUM_THREADS=1 "${command[@]}" >"$1/output" 2>&1
    loss=$(sed -n 's/^final mean loss //p' "$1/output" | sed 's/.* fine-tuning //; s/, worst / /')
    ! grep -q 'the run diverges' "$1/output" || loss="inf inf"
    [ "$loss" ] || { run_failed "$1"; return; }
    run_finished "$1" "$loss"
}

# tune SPLIT METHOD VALUE OPTIONS...: runs from which a value is chosen; best SPLIT METHOD [VALUE...]: of its
# rates, or these, that with the lowest mean loss.
tune() {
    local seed
    for seed in $tune_seeds; do add tune "$1" "$2" "$3" $seed "${@:4}" --eval-every 0; done
}
best() {
    local split=$1 method=$2 value seed
    shift 2
    for value in ${*:-$(rates "$method")}; do
        for seed in $tune_seeds; do cat "$(folder tune "$split" "$method" "$value" $seed)/loss"; done |
            awk -v value=$value '/inf/ { sum = 1e38 } { sum += $1 } END { print sum, value }'
    done | sort -g | head -n 1 | cut -d ' ' -f 2
}

if [ ! "$report" ]; then
    make -s dev/federated || die "dev/federated does not compile"
    program_sum=$(cksum <$program | cut -d ' ' -f 1)
    [ -r "$play" ] || [ "${DATA:-}" ] || bash dev/data/texts.sh tinyshakespeare
    [ -r "$play" ] || die "$play cannot be read; give a play with DATA=FILE"
    [ ! "$books" ] || [ -r "$books" ] || die "$books cannot be read; BOOKS=FILE is a text as dev/data/texts.sh kjv fetches"
    [[ $play != *[[:space:]]* ]] || die "'$play': give a name without spaces" 2
    texts=$(cat "$play" ${books:+"$books"} | cksum | cut -d ' ' -f 1)
    : >"$rows"
    if [ "$books" ]; then # ten speakers who say most, and at most ten books of 30 kB, as speakers
        {
            awk 'BEGIN { RS = ""; FS = "\n" } $1 ~ /:$/ { n[$1] += length($0); text[$1] = text[$1] $0 "\n\n" }
                END { for (i = 0; i < 10; i++) {
                    most = ""
                    for (who in n) if (most == "" || n[who] > n[most]) most = who
                    printf "%s", text[most]
                    delete n[most] } }' "$play"
            awk 'match($1, /^[0-9]?[A-Za-z]+/) {
                    book = substr($1, 1, RLENGTH)
                    sub(/^[^ ]* /, "")
                    if (!(book in n)) order[++count] = book
                    if (n[book] >= 30000) next
                    n[book] += length($0)
                    text[book] = text[book] "BOOK " book ":\n" $0 "\n\n" }
                END { for (i = 1; i <= count; i++)
                    if (n[order[i]] >= 30000 && k++ % 4 == 0 && taken++ < 10) printf "%s", text[order[i]]
                }' "$books"
        } >"$runs/both.txt"
    fi

    # exact: local steps, then attackers and delays
    for misfit in 0 1; do
        for steps in 1 5 20; do
            set -- "misfit $misfit steps $steps" 1 --local-steps $steps --misfit $misfit
            add exact convex FFGG "$@"
            add exact convex FedAvg "$@" --method fedavg
            add exact convex "FedAvg of w" "$@" --method fedavg --private b
            add exact convex local "$@" --method local
        done
        for aggregate in mean median trimmed geometric-median clipping; do
            for attack in sign-flip noise little; do
                for share in 0 0.2 0.4; do
                    [ $share$attack = 0noise ] || [ $share$attack = 0little ] && continue
                    add attack convex $aggregate "misfit $misfit $attack $share" 1 \
                        --attackers $share --attack $attack --aggregate $aggregate --misfit $misfit
                done
            done
        done
        for delay in 0 5 10 20; do
            set -- "misfit $misfit delay $delay" 1 --delay $delay --misfit $misfit
            add delay convex synchronous "$@"
            add delay convex asynchronous "$@" --async 1
        done
    done

    # text: each method's rate, then three seeds
    for split in $splits; do
        for method in local FedAvg "FFGG norms" "FFGG last" "FFGG MLP"; do
            for rate in $(rates "$method"); do
                tune $split "$method" $rate $(of "$method") $(with "$method" $rate)
            done
        done
    done
    attacked="$(of "FFGG MLP") --attackers 0.4 --aggregate geometric-median"
    for rate in $(rates attacked); do tune speakers attacked $rate $attacked $(with attacked $rate); done
    run_queue "$study, rates"
    for split in $splits; do
        for fraction in 0.001 0.003 0.01 0.03 0.1; do
            tune $split "FedAvg fine-tuned" $fraction $(of FedAvg) $(with FedAvg $(best $split FedAvg)) \
                --finetune 100 --finetune-lr $fraction
        done
    done
    run_queue "$study, rates of fine-tuning"
    for split in $splits; do
        for seed in $seeds; do
            for method in local FedAvg "FFGG norms" "FFGG last" "FFGG MLP"; do
                rate=$(best $split "$method")
                add text $split "$method" best $seed $(of "$method") $(with "$method" $rate)
            done
            add text $split "FedAvg fine-tuned" best $seed $(of FedAvg) $(with FedAvg $(best $split FedAvg)) \
                --finetune 100 --finetune-lr $(best $split "FedAvg fine-tuned" 0.001 0.003 0.01 0.03 0.1)
        done
    done
    attacked="$(of "FFGG MLP") $(with attacked $(best speakers attacked))"
    for delay in 5 20; do
        add delay speakers synchronous "delay $delay" 1 $attacked --delay $delay
        add delay speakers asynchronous "delay $delay" 1 $attacked --delay $delay --async 1
    done
    attacked+=" --eval-every 0"
    for aggregate in mean median trimmed geometric-median clipping; do
        for attack in sign-flip ${full:+noise little}; do
            for share in 0 0.2 0.4; do
                [ $share$attack = 0noise ] || [ $share$attack = 0little ] && continue
                add attack speakers $aggregate "$attack $share" 1 $attacked \
                    --attackers $share --attack $attack --aggregate $aggregate
            done
        done
        [ $aggregate = mean ] || add attack speakers $aggregate "sign-flip 0.4 long" 1 $attacked \
            --attackers 0.4 --aggregate $aggregate --rounds $((4 * rounds))
    done
    # nobody listens to NaN: what the honest clients reach by themselves
    add attack speakers mean "nan 0.4" 1 $attacked --attackers 0.4 --attack nan
    run_queue "$study, the runs"

    # One CSV. Every run has a row with its seed: its last losses, after --finetune. What a table or the
    # picture shows besides are means over the seeds: a curve of losses, and every client's last one.
    {
        echo "# make study NAME=federated${DATA:+ DATA=$(basename "$DATA")}${books:+ BOOKS=FILE}${full:+ FULL=1}${STEPS:+ STEPS=$STEPS}"
        echo "part,split,method,setting,seed,client,round,time,megabytes,stale,mean_loss,worst_loss"
        while IFS=$'\t' read -r part split method setting seed; do
            dir=$(folder "$part" "$split" "$method" "$setting" "$seed") clients=/dev/null
            [ "$part" = text ] && [ -f "$dir/clients.csv" ] && clients=$dir/clients.csv # of what did not diverge
            awk -F, -v run="$part,$split,$method,$setting" -v seed="$seed" -v loss="$(cat "$dir/loss")" '
                FNR > 1 && FILENAME ~ /clients/ { print run ",mean," $1 ",,,,," $4 ","; next }
                FNR > 1 { # but for text, every other row is enough
                    at = sprintf(",%.6g,%s,%.6g,%s,", $1, $2, ($4 + $5) / 1e6, $6)
                    if (!/nan/ && (run ~ /^text/ || FNR % 2 == 0)) print run ",mean," at $10 "," $11 }
                END { sub(" ", ",", loss); print run "," seed "," at loss }' "$dir/log.csv" "$clients"
        done <"$rows" | awk -F, -v OFS=, '
            function drawn() {
                return $1 == "text" || /^delay,speakers/ || /^delay,convex,(a|.*fit 0).* delay 20,/ ||
                    /^exact,convex,FFGG,.* steps 5,/ || /^exact,convex,(local|FedAvg),misfit 0 steps 5,/ ||
                    /^attack,convex,median,misfit 0 sign-flip 0.4,/ }
            $5 != "mean" { print; next }
            !drawn() { next }
            { key = $1 FS $2 FS $3 FS $4 FS $5 FS $6
              row = key FS ($6 == "" ? $7 : "")
              if (!n[row]++) order[++count] = row
              key_of[row] = key
              for (i = 7; i <= 12; i++) if ($i != "") { sum[row, i] += $i; there[row, i] = 1 } }
            END { for (r = 1; r <= count; r++) {
                row = order[r]
                printf "%s", key_of[row]
                for (i = 7; i <= 12; i++)
                    printf ",%s", there[row, i] ? sprintf("%.6g", sum[row, i] / n[row]) : ""
                print "" } }'
    } >"$csv.tmp" && mv "$csv.tmp" "$csv" || die "cannot write $csv"
fi

# ---- what came out, from the CSV alone
# report PROGRAM: awk that knows the last losses, means over the seeds
report() {
    awk -F, '
        function inf(x) { return x ~ /^inf/ ? 1e38 : x + 0 }
        NR <= 2 { next }
        { key = $1 "," $2 "," $3 "," $4 }
        $5 != "mean" {
            if (!seeds[key]++) order[++keys] = key
            sum[key] += inf($11); sum_worst[key] += inf($12); stale[key] = $10
            next
        }
        $6 != "" { client[$2 "," $3 "," $6] = $11; clients[$2 "," $6] = 1; next }
        { k = ++points[key]; loss[key, k] = inf($11); round[key, k] = $7; time[key, k] = $8; mb[key, k] = $9 }
        function final(key) { return seeds[key] ? sum[key] / seeds[key] : "" }
        function worst(key) { return seeds[key] ? sum_worst[key] / seeds[key] : "" }
        function reach(key, level,   k) { # rounds, time, megabytes until the loss; 0: never
            for (k = 1; k <= points[key] && loss[key, k] > level;) k++
            reached_rounds = round[key, k]; reached_time = time[key, k]; reached_mb = mb[key, k]
            return k <= points[key]
        }
        function name(key) { gsub(/,/, "  ", key); return key }
        function say(ok) { printf "|%s", ok ? "yes" : "no" }
        END { '"$1"' }' "$csv" || die "the report of $csv fails"
}
# claimed WHAT PAPER PROGRAM: a claim; the awk program prints what came out here, and says whether it held.
claimed() {
    local here
    here=$(report "$3")
    claim "$1" "$2" "${here%|*}" "${here##*|}"
}

printf '\nThe convex problem: last loss (half the mean square of predictions less those of the solution)\n'
report 'printf "%-52s %12s %12s\n", "", "overpersonal.", "misfit 1"
    for (i = 1; i <= keys; i++) if (order[i] ~ /,convex,.*misfit 0/) {
        other = order[i]
        sub(/misfit 0/, "misfit 1", other)
        printf "%-52s %12.2g %12.2g\n", name(order[i]), final(order[i]), final(other)
    }'
printf '\nText: validation loss in nats per character, mean over clients and seeds, and the worst client;
rounds and MB (up and down) to the loss of local training\n'
report 'for (i = 1; i <= keys; i++) if (order[i] ~ /^text/) {
        split(order[i], part, ",")
        r = reach(order[i], final("text," part[2] ",local,best"))
        printf "%-32s %8.4f %8.4f   %s\n", part[2] ", " part[3], final(order[i]), worst(order[i]),
            r ? sprintf("%.0f rounds, %.1f MB", reached_rounds, reached_mb) : "not reached"
    }'
printf '\nText, attackers and delays: last loss; staleness, and time to 0.2 above the loss without delays\n'
report 'for (i = 1; i <= keys; i++) if (order[i] ~ /^(attack|delay),speakers/) {
        printf "%-60s %10.4g", name(order[i]), final(order[i])
        if (points[order[i]]) {
            r = reach(order[i], final("attack,speakers,mean,sign-flip 0") + 0.2)
            printf "   %5.1f   %s", stale[order[i]], r ? sprintf("%.0f", reached_time) : "not reached"
        }
        print ""
    }'

claimed "FFGG finds the exact solution with 1, 5 and 20 local steps whether or not one w suits all (largest loss); \
FedAvg, b private too, does with 5 and 20 only where one does (largest; smallest where none does)" yes '
    least = 1e38
    for (i = 1; i <= keys; i++) {
        x = final(order[i])
        if (order[i] ~ /^exact,convex,FFGG,misfit/ && x > most) most = x
        if (order[i] ~ /^exact,convex,FedAvg of w,misfit 0/ && x > suits) suits = x
        if (order[i] ~ /^exact,convex,FedAvg of w,misfit 1 steps (5|20)/ && x < least) least = x
    }
    printf("%.1e; %.1e; %.1e", most, suits, least)
    say(most < 1e-8 && suits < 1e-8 && least > 1e-6)'
claimed "FFGG is exact with 20% and 40% attackers, for every robust aggregator and attack (largest loss); the \
mean is not under sign-flip and noise (smallest)" yes '
    broken = 1e38
    for (i = 1; i <= keys; i++) if (order[i] ~ /^attack,convex,.*misfit 0.* 0\.[24]$/) {
        x = final(order[i])
        if (order[i] !~ /,mean,/) { if (x > most) most = x }
        else if (order[i] ~ /sign-flip|noise/ && x < broken) broken = x
    }
    printf("%.1e; %.2g", most, broken)
    say(most < 1e-8 && broken > 1)'
claimed "FFGG is exact with answers up to 20 rounds late, asynchronous (loss; time to 1e-8 against waiting for \
all)" yes '
    late = "delay,convex,asynchronous,misfit 0 delay 20"
    ok = reach(late, 1e-8)
    t = reached_time
    sync = "delay,convex,synchronous,misfit 0 delay 20"
    waits = reach(sync, 1e-8)
    printf("%.1e; %.0f against %s", final(late), t, waits ? sprintf("%.0f", reached_time) : "never")
    say(ok && final(late) < 1e-8 && points[sync] && (!waits || t < reached_time))'
claimed "Where no w suits all (misfit 1), synchronous FFGG is exact, unequal delays and attackers leave an error \
(losses: FFGG; delays; 20% sign-flip, median)" yes '
    f = final("exact,convex,FFGG,misfit 1 steps 1")
    d = final("delay,convex,asynchronous,misfit 1 delay 20")
    a = final("attack,convex,median,misfit 1 sign-flip 0.2")
    printf("%.1e; %.1e; %.1e", f, d, a)
    say(f < 1e-8 && d > 1e-6 && a > 1e-6)'
for split in $(cut -d, -f2 "$csv" | grep -E '^(speakers|both)$' | sort -ru); do
    keys='f = "text,'$split',FFGG norms,best"; l = "text,'$split',local,best"; a = "text,'$split',FedAvg,best"'
    claimed "On text, $split: FFGG's mean and worst client loss (private: layer norms; the \
mean of a round's gradients is sent) are below local training's and FedAvg's" yes "$keys"'
        last = f
        sub(/norms/, "last", last)
        printf("mean %.3f against %.3f and %.3f, worst %.3f against %.3f and %.3f", final(f), final(l), final(a),
            worst(f), worst(l), worst(a))
        printf("; the last gradient alone: %.3f, %.3f", final(last), worst(last))
        say(final(f) < final(l) && final(f) < final(a) && worst(f) < worst(l) && worst(f) < worst(a))'
    claimed "On text, $split: FFGG is below FedAvg, fine-tuned or not, whichever is better" yes "$keys"'
        tuned = a
        sub(/FedAvg/, "FedAvg fine-tuned", tuned)
        if (final(tuned) < final(a)) a = tuned
        printf("mean %.3f against %.3f, worst %.3f against %.3f", final(f), final(a), worst(f), worst(a))
        say(final(f) < final(a) && worst(f) < worst(a))'
    claimed "On text, $split: every client is better off with FFGG than alone" yes '
        for (c in clients) {
            split(c, part, ",")
            if (part[1] != "'$split'") continue
            n++
            better += client["'$split',FFGG norms," part[2]] < client["'$split',local," part[2]]
        }
        printf("%d of %d", better, n)
        say(n && better == n && final("text,'$split',FFGG norms,best") < 1e20)'
done
claimed "On text, 40% sign-flipping attackers cost rounds, not the loss, with a robust aggregator (the honest \
clients alone; the best aggregator in as many rounds; in 4 times as many; the mean)" "it converges" '
    alone = final("attack,speakers,mean,nan 0.4")
    best = best_long = 1e38
    for (i = 1; i <= keys; i++) if (order[i] ~ /^attack,speakers,.*sign-flip 0.4/ && order[i] !~ /,mean,/) {
        split(order[i], part, ",")
        x = final(order[i])
        if (order[i] ~ /long$/) { if (x < best_long) { best_long = x; who = part[3] } }
        else if (x < best) best = x
    }
    hurt = final("attack,speakers,mean,sign-flip 0.4")
    printf("%.3f; %.3f; %.3f (%s); %.3g", alone, best, best_long, who, hurt)
    say(best_long <= alone && hurt > best)'
finish_claims

draw -e "csv='$csv'; out='$result.png'" dev/studies/federated.gp
