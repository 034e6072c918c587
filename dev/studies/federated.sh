#!/usr/bin/env bash
# Partially personalized federated learning (FFGG, arXiv 2305.18285; dev/federated.c) against training alone, FedAvg and
# FedAvg with fine-tuning, on the same clients, with as many gradients of each client:
#   exact     a convex problem whose solution is known, for which it is overpersonalized; and one for which it is not
#   text      20 speakers of a play; 10 speakers and as many books: each client's validation loss, rounds and bytes to a loss
#   attack    0, 20 and 40% attackers of each kind, every aggregator
#   delay     answers up to 20 rounds late, synchronous and asynchronous
# Rates are the best of three for each method, on a seed that is not used again.
#
#   DATA=FILE      a play, lines `NAME:` over speeches (default data/tinyshakespeare.txt; dev/data/texts.sh fetches it)
#   BOOKS=FILE     lines `Ge1:1 In the beginning` (default: none, and the speakers stay among themselves)
#   FULL=1         1500 rounds instead of 400, three seeds, and on text all attackers: hours instead of ten minutes
#   JOBS=2         runs at a time, of one thread each (default: one for each core)
#   REPORT=1       no runs: tables, claims and picture once more from the CSV that is there
#   RESULTS=DIR    where federated.csv, federated.md (the claims) and federated.png go
set -u
cd "$(dirname "$0")/../.." || exit 1
set -f # patterns of tensors are words, too
full=${FULL:-} results=${RESULTS:-dev/studies/results} jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
play=${DATA:-data/tinyshakespeare.txt} books=${BOOKS:-}
csv=$results/federated.csv runs=runs/studies/federated${full:+-full}
rounds=400 convex_rounds=600 seeds="1 2"
[ "$full" ] && rounds=1500 seeds="1 2 3"
die() { echo "error: $1" >&2; exit "${2:-1}"; }
mkdir -p "$results" "$runs" || die "cannot make $results and $runs"

# ---- runs
program=dev/federated
queue=$runs/queue rows=$runs/rows
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
    "FFGG norms") echo "--private $norms" ;;
    FFGG*) echo "--private $norms,h.1.mlp.*" ;;
    esac
}
# rates METHOD: those to choose from; a client's, or the server's of FFGG
rates() { if [ "$1" = local ]; then echo 2e-3 5e-3 1e-2; else echo 1e-2 2e-2 4e-2; fi; }
folder() { printf '%s/%s' "$runs" "$(echo "$1 $2 $3 $4 $5" | tr -cs 'a-zA-Z0-9.\n-' '_')"; } # PART SPLIT METHOD SETTING SEED

# add PART SPLIT METHOD SETTING SEED OPTIONS...: queues a run, unless it was finished by the same command.
add() {
    local dir command
    dir=$(folder "$1" "$2" "$3" "$4" "$5")
    printf '%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" "$5" >>"$rows"
    command="$program $(on "$2") --seed $5 ${*:6} --out $dir"
    [ -f "$dir/loss" ] && [ "$(cat "$dir/command")" = "$command" ] && return
    mkdir -p "$dir" && rm -f "$dir/loss" && printf '%s\n' "$command" >"$dir/command" && printf '%s\0' "$dir" >>"$queue"
}

# The last mean and worst loss of a run go to DIR/loss, inf where it diverged.
run_one() {
    local dir=$1 command
    read -ra command <"$dir/command"
    OMP_NUM_THREADS=1 "${command[@]}" >"$dir/output" 2>&1
    if grep -q 'the run diverges' "$dir/output"; then echo inf inf >"$dir/loss"
    else sed -n 's/^final mean loss \([^,]*\), worst \([^;]*\)\(; .* fine-tuning \([^,]*\), worst \(.*\)\)*$/\1 \2 \4 \5/p' "$dir/output" |
        awk '{ print(NF > 2 ? $3 " " $4 : $1 " " $2) }' >"$dir/loss"; fi
    [ -s "$dir/loss" ] || { tail -n 1 "$dir/output" >&2 && rm -f "$dir/loss" && return 255; }
    printf '%-66s %s\n' "$(basename "$dir")" "$(cat "$dir/loss")"
}
export -f run_one
run_all() {
    [ -s "$queue" ] && { xargs -0 -n 1 -P "$jobs" bash -c 'run_one "$1"' _ <"$queue" || die "stopped; the same command goes on"; }
    : >"$queue"
}
mean_of() { cut -d ' ' -f 1 "$(folder "$@")/loss"; }

# best SPLIT METHOD OPTION VALUE...: the value with the lowest mean loss, of runs of part `tune`.
best() {
    local split=$1 method=$2 value
    shift 3
    for value; do echo "$(mean_of tune "$split" "$method" "$value" 0) $value"; done | sort -g | head -n 1 | cut -d ' ' -f 2
}

if [ ! "${REPORT:-}" ]; then
    make -s dev/federated || die "dev/federated does not compile"
    [ -r "$play" ] || [ "${DATA:-}" ] || bash dev/data/texts.sh tinyshakespeare
    [ -r "$play" ] || die "$play cannot be read; give a play with DATA=FILE"
    : >"$queue" && : >"$rows"
    if [ "$books" ]; then # ten speakers who say most, and at most ten books of 30 kB, as speakers
        {
            awk 'BEGIN { RS = ""; FS = "\n" } $1 ~ /:$/ { n[$1] += length($0); text[$1] = text[$1] $0 "\n\n" }
                END { for (i = 0; i < 10; i++) { most = ""; for (who in n) if (most == "" || n[who] > n[most]) most = who
                        printf "%s", text[most]; delete n[most] } }' "$play"
            awk 'match($1, /^[0-9]?[A-Za-z]+/) { book = substr($1, 1, RLENGTH); sub(/^[^ ]* /, "")
                    if (!(book in n)) order[++count] = book
                    if (n[book] < 30000) { n[book] += length($0); text[book] = text[book] "BOOK " book ":\n" $0 "\n\n" } }
                END { for (i = 1; i <= count; i++) if (n[order[i]] >= 30000 && k++ % 4 == 0 && taken++ < 10) printf "%s", text[order[i]] }' "$books"
        } >"$runs/both.txt"
    fi

    # exact: local steps, then attackers and delays
    for misfit in 0 1; do
        for steps in 1 5 20; do
            add exact convex FFGG "misfit $misfit steps $steps" 1 --local-steps $steps --misfit $misfit
            add exact convex FedAvg "misfit $misfit steps $steps" 1 --method fedavg --local-steps $steps --misfit $misfit
            add exact convex "FedAvg of w" "misfit $misfit steps $steps" 1 --method fedavg --private b --local-steps $steps --misfit $misfit
            add exact convex local "misfit $misfit steps $steps" 1 --method local --local-steps $steps --misfit $misfit
        done
        for aggregate in mean median trimmed geometric-median clipping; do
            for attack in sign-flip noise little; do
                for share in 0 0.2 0.4; do
                    [ $share$attack = 0noise ] || [ $share$attack = 0little ] && continue
                    add attack convex $aggregate "misfit $misfit $attack $share" 1 --attackers $share --attack $attack --aggregate $aggregate --misfit $misfit
                done
            done
        done
        for delay in 0 5 10 20; do
            add delay convex synchronous "misfit $misfit delay $delay" 1 --delay $delay --misfit $misfit
            add delay convex asynchronous "misfit $misfit delay $delay" 1 --delay $delay --async 1 --misfit $misfit
        done
    done

    # text: each method's rate, then three seeds
    for split in $splits; do
        for method in local FedAvg; do
            for rate in $(rates $method); do add tune $split $method $rate 0 $(of $method) --client-lr $rate --eval-every 0; done
        done
        for method in "FFGG norms" "FFGG MLP"; do
            for rate in $(rates FFGG); do add tune $split "$method" $rate 0 $(of "$method") --server-lr $rate --client-lr 1e-2 --eval-every 0; done
        done
    done
    run_all
    for split in $splits; do
        rate=$(best $split FedAvg rate $(rates FedAvg))
        for fraction in 0.03 0.1 0.3; do
            add tune $split "FedAvg fine-tuned" $fraction 0 $(of FedAvg) --client-lr $rate --finetune 100 --finetune-lr $fraction --eval-every 0
        done
    done
    run_all
    for split in $splits; do
        for seed in $seeds; do
            for method in local FedAvg; do add text $split $method best $seed $(of $method) --client-lr $(best $split $method rate $(rates $method)); done
            add text $split "FedAvg fine-tuned" best $seed $(of FedAvg) --client-lr $(best $split FedAvg rate $(rates FedAvg)) \
                --finetune 100 --finetune-lr $(best $split "FedAvg fine-tuned" rate 0.03 0.1 0.3)
            for method in "FFGG norms" "FFGG MLP"; do
                add text $split "$method" best $seed $(of "$method") --server-lr $(best $split "$method" rate $(rates FFGG)) --client-lr 1e-2
            done
        done
    done
    rate="--rounds $((rounds / 4)) --server-lr $(best speakers "FFGG MLP" rate $(rates FFGG)) --client-lr 1e-2"
    for aggregate in mean median trimmed geometric-median clipping; do
        for attack in sign-flip ${full:+noise little}; do
            for share in 0 0.2 0.4; do
                [ $share$attack = 0noise ] || [ $share$attack = 0little ] && continue
                add attack speakers $aggregate "$attack $share" 1 $(of "FFGG MLP") $rate --attackers $share --attack $attack --aggregate $aggregate
            done
        done
    done
    for delay in 5 20; do
        add delay speakers synchronous "delay $delay" 1 $(of "FFGG MLP") $rate --delay $delay
        add delay speakers asynchronous "delay $delay" 1 $(of "FFGG MLP") $rate --delay $delay --async 1
    done
    run_all

    # one CSV: what every log has measured, the last row with --finetune's loss, and each client's loss
    {
        echo "part,split,method,setting,seed,client,round,time,megabytes,stale,mean_loss,worst_loss"
        while IFS=$'\t' read -r part split method setting seed; do
            dir=$(folder "$part" "$split" "$method" "$setting" "$seed")
            awk -F, -v head="$part,$split,$method,$setting,$seed" -v loss="$(cat "$dir/loss")" '
                NR > 1 { row = head ",," $1 "," $2 "," ($4 + $5) / 1e6 "," $6; if (!/nan/) print row "," $10 "," $11 }
                END { sub(" ", ",", loss); print row "," loss }' "$dir/log.csv"
            if [ "$part" = text ]; then
                awk -F, -v head="$part,$split,$method,$setting,$seed" 'NR > 1 { print head "," $1 ",,,,," $4 "," }' "$dir/clients.csv"
            fi
        done <"$rows"
    } >"$csv.tmp" && mv "$csv.tmp" "$csv" || die "cannot write $csv"
fi
[ -r "$csv" ] || die "$csv is not there yet; call the study without REPORT"

# ---- what came out, from the CSV alone
# report PROGRAM: awk that knows the final losses, means over the seeds
report() {
    awk -F, '
        function mean(key) { return many[key] ? sum[key] / many[key] : "" }
        function inf(x) { return x ~ /^inf/ ? 1e38 : x + 0 }
        NR > 1 && $6 == "" {
            key = $1 "," $2 "," $3 "," $4
            if (!(key in at)) { at[key] = 1; order[++keys] = key }
            last[key "," $5] = inf($11); worst_last[key "," $5] = inf($12); stale[key] = $10
            if (!((key "," $5) in seen)) { seen[key "," $5] = 1; seeds[key] = seeds[key] " " $5 }
            k = ++count[key "," $5]; loss[key "," $5, k] = inf($11); rounds[key "," $5, k] = $7; time[key "," $5, k] = $8; mb[key "," $5, k] = $9
        }
        NR > 1 && $6 != "" && $11 != "" { client[$2 "," $3 "," $6] += $11; clients[$2 "," $6] = 1; byclient[$2 "," $3 "," $6]++ }
        function final(key,   s, n, i, x) { n = split(seeds[key], s, " "); for (i = 1; i <= n; i++) x += last[key "," s[i]]; return n ? x / n : "" }
        function worst(key,   s, n, i, x) { n = split(seeds[key], s, " "); for (i = 1; i <= n; i++) x += worst_last[key "," s[i]]; return n ? x / n : "" }
        function reach(key, level,   s, n, i, k, r, t, m) { # rounds, time, megabytes until the loss; "": never with some seed
            n = split(seeds[key], s, " ")
            for (i = 1; i <= n; i++) {
                for (k = 1; k <= count[key "," s[i]]; k++) if (loss[key "," s[i], k] <= level) break
                if (k > count[key "," s[i]]) return 0
                r += rounds[key "," s[i], k] / n; t += time[key "," s[i], k] / n; m += mb[key "," s[i], k] / n
            }
            reached_rounds = r; reached_time = t; reached_mb = m
            return 1
        }
        END { '"$1"' }' "$csv" || die "the report of $csv fails"
}
claims=0
# claim WHAT PAPER HERE yes|no
claim() {
    [ -n "$3" ] && [[ $4 = yes || $4 = no ]] || die "no result for the claim: $1"
    [ $claims = 0 ] && : >"$results/federated.md.tmp"
    claims=1
    printf '| %s | %s | %s | %s | `make study NAME=federated%s%s`, [picture](dev/studies/results/federated.png) |\n' \
        "$1" "$2" "$3" "$4" "$(grep -q '^text,both' "$csv" && echo ' BOOKS=FILE')" "${full:+ FULL=1}" >>"$results/federated.md.tmp"
    printf '\n%s\n    the paper: %s; here: %s; held: %s\n' "$1" "$2" "$3" "$4"
}
# say WHAT PAPER "HERE|yes": a claim from what an awk program prints
say() { claim "$1" "$2" "${3%|*}" "${3##*|}"; }

printf '\nThe convex problem: final loss (half the mean square error of predictions against those of the solution)\n'
report 'printf "%-52s %12s %12s\n", "", "overpersonal.", "misfit 1"
    for (i = 1; i <= keys; i++) if (order[i] ~ /,convex,.*misfit 0/) {
        other = order[i]; sub(/misfit 0/, "misfit 1", other); name = order[i]; sub(/misfit 0 /, "", name); gsub(/,/, "  ", name)
        printf "%-52s %12.2g %12.2g\n", name, final(order[i]), final(other) }'
printf '\nText: validation loss in nats per character, mean over clients and seeds, and the worst client; rounds and MB (up and down) to the loss of local training\n'
report 'for (i = 1; i <= keys; i++) if (order[i] ~ /^text/) {
        split(order[i], part, ","); name = part[2] ", " part[3]
        r = reach(order[i], final("text," part[2] ",local,best"))
        printf "%-32s %8.4f %8.4f   %s\n", name, final(order[i]), worst(order[i]), r ? sprintf("%.0f rounds, %.1f MB", reached_rounds, reached_mb) : "not reached" }'
printf '\nText, attackers and delays, a quarter of the rounds: final loss, staleness, and time to 0.2 above the loss without either\n'
report 'for (i = 1; i <= keys; i++) if (order[i] ~ /^(attack|delay),speakers/) {
        name = order[i]; gsub(/,/, "  ", name); r = reach(order[i], final("attack,speakers,mean,sign-flip 0") + 0.2)
        printf "%-60s %10.4g   %5.1f   %s\n", name, final(order[i]), stale[order[i]], r ? sprintf("%.0f", reached_time) : "not reached" }'

say "FFGG finds the exact solution with 1, 5 and 20 local steps, where FedAvg stalls (largest loss; FedAvg's smallest)" "yes" "$(report '
    least = 1e38
    for (i = 1; i <= keys; i++) { if (order[i] ~ /^exact,convex,FFGG,misfit 0/ && final(order[i]) > most) most = final(order[i])
        if (order[i] ~ /^exact,convex,FedAvg,misfit 0/ && final(order[i]) < least) least = final(order[i]) }
    printf("%.1e; %.2g|%s", most, least, most < 1e-8 && least > 1 ? "yes" : "no")')"
say "FFGG is exact with 20% and 40% attackers, for every robust aggregator and attack (largest loss); the mean does not (largest)" "yes" "$(report '
    for (i = 1; i <= keys; i++) if (order[i] ~ /^attack,convex,.*misfit 0.* 0\.[24]$/) {
        if (order[i] ~ /,mean,/) { if (final(order[i]) > broken) broken = final(order[i]) } else if (final(order[i]) > most) most = final(order[i]) }
    printf("%.1e; %.2g|%s", most, broken, most < 1e-8 && broken > 1 ? "yes" : "no")')"
say "FFGG is exact with answers up to 20 rounds late, asynchronous (loss; time to 1e-8 against waiting for all)" "yes" "$(report '
    a = "delay,convex,asynchronous,misfit 0 delay 20"; b = "delay,convex,synchronous,misfit 0 delay 20"
    ok = reach(a, 1e-8); t = reached_time; reach(b, 1e-8)
    printf("%.1e; %.0f against %.0f|%s", final(a), t, reached_time, ok && t < reached_time ? "yes" : "no")')"
say "Where no w suits all (misfit 1), synchronous FFGG is exact, delays and attackers leave an error (losses: FFGG; delays; 20% sign-flip, median)" "yes" "$(report '
    f = final("exact,convex,FFGG,misfit 1 steps 1"); d = final("delay,convex,asynchronous,misfit 1 delay 20"); a = final("attack,convex,median,misfit 1 sign-flip 0.2")
    printf("%.1e; %.1e; %.1e|%s", f, d, a, f < 1e-8 && d > 1e-6 && a > 1e-6 ? "yes" : "no")')"
for split in $(cut -d, -f2 "$csv" | grep -E '^(speakers|both)$' | sort -ru); do
    say "On text, $split: FFGG's mean and worst client loss (private: layer norms, the last block's MLP) are below local training's and FedAvg's" "yes" "$(report '
        f = "text,'$split',FFGG MLP,best"; l = "text,'$split',local,best"; a = "text,'$split',FedAvg,best"
        printf("mean %.3f against %.3f and %.3f, worst %.3f against %.3f and %.3f|%s", final(f), final(l), final(a), worst(f), worst(l), worst(a),
            final(f) < final(l) && final(f) < final(a) && worst(f) < worst(l) && worst(f) < worst(a) ? "yes" : "no")')"
    say "On text, $split: FFGG is below FedAvg with fine-tuning" "yes" "$(report '
        f = "text,'$split',FFGG MLP,best"; a = "text,'$split',FedAvg fine-tuned,best"
        printf("mean %.3f against %.3f, worst %.3f against %.3f|%s", final(f), final(a), worst(f), worst(a), final(f) < final(a) && worst(f) < worst(a) ? "yes" : "no")')"
    say "On text, $split: every client is better off with FFGG than alone" "yes" "$(report '
        for (c in clients) { split(c, part, ","); if (part[1] != "'$split'") continue
            n++; if (client["'$split',FFGG MLP," part[2]] < client["'$split',local," part[2]]) better++ }
        printf("%d of %d|%s", better, n, better == n ? "yes" : "no")')"
done
say "On text, a robust aggregator keeps 40% sign-flipping attackers from doing harm (loss without any; with, best robust; with, mean)" "yes" "$(report '
    none = final("attack,speakers,mean,sign-flip 0"); best = 1e38; hurt = final("attack,speakers,mean,sign-flip 0.4")
    for (i = 1; i <= keys; i++) if (order[i] ~ /^attack,speakers,.*sign-flip 0.4/ && order[i] !~ /,mean,/ && final(order[i]) < best) { best = final(order[i]); split(order[i], part, ",") }
    printf("%.3f; %.3f (%s); %.3g|%s", none, best, part[3], hurt, best < none + 0.05 && hurt > best ? "yes" : "no")')"
mv "$results/federated.md.tmp" "$results/federated.md"

if command -v gnuplot >/dev/null; then
    gnuplot -e "csv='$csv'; out='$results/federated.png'" dev/studies/federated.gp || die "gnuplot cannot draw $results/federated.png"
else echo "no picture: gnuplot is not installed (package gnuplot-nox)"; fi
printf '\n%s\n%s\n%s\n' "$csv" "$results/federated.md" "$results/federated.png"
