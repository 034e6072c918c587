#!/usr/bin/env bash
# Logistic regression, where the optimum is known to twelve digits (dev/convex.c): the methods that set their own step
# against gradient descent with the best constant rate. AdGD and AdProxGD (arXiv 2308.02261), DoWG (2305.16284), Prodigy
# and Resetting (2306.06101), SPS* (2504.01898), Schedule-Free (2405.15682), linear and refined schedules (2310.07831); and
# whether DoWG and normalized gradient descent stay at the edge of stability. Three data sets:
#   made       500 rows of 40 columns whose scales fall thirtyfold (dev/convex makes them)
#   letters    2000 places of the text: is the next character a vowel? The three characters before it, one-hot
#   separable  200 rows of 100 columns that a plane separates: the curvature falls as the loss does
# FULL=1: 3000 gradients instead of 300.
. dev/studies/driver.sh
[ ! "${EXTRA:-}" ] || die "EXTRA is for trainings; here are none" 2
length 300 3000 # here gradients
sets="made letters separable"

if [ ! "$report" ]; then
    make -s dev/convex || die "dev/convex does not compile"
    LC_ALL=C tr '\n' ' ' <"$data" | awk '
        BEGIN { for (i = 97; i < 123; i++) code[sprintf("%c", i)] = i - 96 }
        { text = tolower($0); n = length(text); step = int((n - 4) / 2000); if (step < 1) step = 1
          for (at = 1; at + 3 <= n && rows < 2000; at += step) {
              rows++
              row = index("aeiou", substr(text, at + 3, 1)) ? 1 : -1
              for (k = 0; k < 3; k++) row = row " " k * 27 + code[substr(text, at + k, 1)] + 1 ":1"
              print row } }' >"$runs/letters.svm"
    awk 'function uniform() { state = state * 16807 % 2147483647; return state / 2147483647 }
        BEGIN { state = 1
            for (i = 0; i < 200; i++) {
                row = ""; margin = 0
                for (j = 1; j <= 100; j++) { x = uniform() + uniform() - 1; margin += (j % 3 - 1) * x; row = row sprintf(" %d:%.6f", j, x) }
                print (margin > 0 ? 1 : -1) row } }' >"$runs/separable.svm"
    now=0 total=$((14 * $(wc -w <<<"$sets"))) # runs
    # run PART SET SEED OPTIONS...: every sixth measurement goes into the CSV, of batches every thirtieth, and the last
    run() {
        local part=$1 set=$2 seed=$3
        shift 3
        [ "$set" = made ] || set -- "$@" --data "$runs/$set.svm"
        now=$((now + 1))
        echo "$now of $total: $part, $set, seed $seed"
        OMP_NUM_THREADS=1 dev/convex --curvature 1 --evaluations "$steps" --seed "$seed" --out "$runs/one.csv" "$@" || die "stopped"
        awk -F, -v head="$part,$set" -v seed="$seed" '
            NR > 1 {
                if ($1 != last) { printf("%s", left); row = 0 }
                last = $1
                left = sprintf("%s,%s,%d,%s,%.6g,%.4g,%s\n", head, $1, seed, $2, $3, $4, $5 == "" ? "" : sprintf("%.3g", $5))
                if (row++ % (head ~ /^batches/ ? 30 : 6) == 0) { printf("%s", left); left = "" }
            }
            END { printf("%s", left) }' "$runs/one.csv" >>"$collected"
    }
    echo "part,set,optimizer,seed,lr,gradients,suboptimality,step_curvature" >"$collected.head"
    sed -n 1p "$collected" | cat - "$collected.head" >"$collected.tmp" && mv "$collected.tmp" "$collected"
    for set in $sets; do
        run smooth $set 1
        run prox $set 1 --l1 0.005
        for seed in 1 2 3; do
            for name in gd gd-linear gd-refined schedule-free-sgd; do run batches $set $seed --batch 16 --optimizer $name; done
        done
    done
    cp "$collected" "$csv.tmp" && mv "$csv.tmp" "$csv" || die "cannot write $csv"
fi

# of PART PROGRAM: awk that knows last(set, optimizer), and reaches(set, optimizer, level) in gradients
of() {
    awk -F, -v part="$1" -v sets="$sets" '
        function reaches(s, o, level,   k, f) { # on straight lines of the logarithm; 1e9: never
            for (k = 1; k <= count[s, o]; k++)
                if (gap[s, o, k] <= level) {
                    if (k == 1 || gap[s, o, k] <= 0) return at[s, o, k]
                    f = log(gap[s, o, k - 1] / level) / log(gap[s, o, k - 1] / gap[s, o, k])
                    return at[s, o, k - 1] + f * (at[s, o, k] - at[s, o, k - 1])
                }
            return 1e9
        }
        function at_gradients(s, o, g,   k) { for (k = 1; k < count[s, o] && at[s, o, k] < g; k++) continue; return gap[s, o, k] }
        function median(s, o,   k, m, i, j, t, v) { # of step times curvature, over the second half of a run
            for (k = int(count[s, o] / 2) + 1; k <= count[s, o]; k++) if (curved[s, o, k] != "") v[++m] = curved[s, o, k] + 0
            for (i = 2; i <= m; i++) for (j = i; j > 1 && v[j] < v[j - 1]; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
            return m ? v[int((m + 1) / 2)] : 0
        }
        function last(s, o,   seed, sum, seeds) { # in mean over the seeds
            for (seed = 1; seed <= 3; seed++) if ((s, o, seed) in final) { sum += final[s, o, seed]; seeds++ }
            return seeds ? sum / seeds : 1e9
        }
        $1 == part {
            if (!(($3) in known)) { known[$3] = 1; order[++methods] = $3 }
            if ($4 == 1) { k = ++count[$2, $3]; at[$2, $3, k] = $6 + 0; gap[$2, $3, k] = $7 + 0; curved[$2, $3, k] = $8 }
            final[$2, $3, $4] = $7 + 0; rate[$2, $3] = $5
        }
        END { n = split(sets, set, " "); '"$2"' }' "$csv"
}

printf '\nF - F* after %s gradients\n' "$(awk -F, '$1 == "smooth" && $6 > most { most = $6 + 0 } END { print most }' "$csv")"
of smooth 'printf "%-20s", ""; for (s = 1; s <= n; s++) printf "%20s", set[s]; print ""
    for (o = 1; o <= methods; o++) { printf "%-20s", order[o]; for (s = 1; s <= n; s++) printf "%20s", sprintf("%.1e%s", last(set[s], order[o]), rate[set[s], order[o]] == "" ? "" : " at " rate[set[s], order[o]]); print "" }'

half=$(awk -F, '$6 > most { most = $6 + 0 } END { print most / 2 }' "$csv")
# What each set has, joined: "0.45, never, 0.50".
# ratio PART A B: the gradients A needs to where B is after half of the budget, as a share of B's
ratio() {
    A=$2 B=$3 of "$1" 'for (s = 1; s <= n; s++) {
        level = at_gradients(set[s], ENVIRON["B"], '"$half"'); if (level < 1e-12) level = 1e-12
        r = reaches(set[s], ENVIRON["A"], level) / reaches(set[s], ENVIRON["B"], level)
        printf("%s%s", (s > 1 ? ", " : ""), (r > 1000 ? "never" : sprintf("%.5f", r))) }'
}
# ends PART A B: what A and B end with
ends() {
    A=$2 B=$3 of "$1" 'for (s = 1; s <= n; s++)
        printf("%s%.5e against %.5e", (s > 1 ? ", " : ""), last(set[s], ENVIRON["A"]), last(set[s], ENVIRON["B"]))'
}
# edge A: the median of step times curvature
edge() { A=$1 of smooth 'for (s = 1; s <= n; s++) printf("%s%.5f", (s > 1 ? ", " : ""), median(set[s], ENVIRON["A"]))'; }
# all "a, b, c" CONDITION: yes where it holds for every v
all() { echo "$1" | awk -F', ' '{ for (i = 1; i <= NF; i++) { split($i, side, " against "); v = $i == "never" ? 1e9 : side[1] + 0; w = side[2] + 0; if (!('"$2"')) bad = 1 } print (bad ? "no" : "yes") }'; }
# judged WHAT PAPER "a, b, c" CONDITION: a claim's row, its numbers cut to two or three digits
judged() { claim "$1" "$2" "$(sed -E 's/([0-9]\.[0-9])[0-9]*e/\1e/g; s/(\.[0-9][0-9])[0-9]{3}/\1/g' <<<"$3")" "$(all "$3" "$4")"; }

where="made, letters, separable"
for name in adgd dowg prodigy resetting sps; do
    case $name in
    adgd | sps) bound=1 words="fewer gradients than tuned gradient descent" paper=yes ;;
    *) bound=2 words="at most twice the gradients of tuned gradient descent" paper="close to it" ;;
    esac
    judged "$name needs $words ($where)" "$paper" "$(ratio smooth $name gd)" "v <= $bound"
done
judged "adproxgd needs fewer gradients than tuned proximal gradient descent, with l1 ($where)" "yes" "$(ratio prox adproxgd gd)" "v <= 1"
judged "Linear decay ends below a constant rate, F - F*, batches of 16 ($where)" "yes" "$(ends batches gd-linear gd)" "v < w"
judged "The refined schedule ends at or below linear decay, F - F*, batches of 16 ($where)" "yes" "$(ends batches gd-refined gd-linear)" "v <= w"
judged "Schedule-Free SGD ends at or below linear decay, F - F*, batches of 16 ($where)" "yes" "$(ends batches schedule-free-sgd gd-linear)" "v <= w"
for name in dowg ngd; do
    judged "$name trains at the edge of stability: step times curvature, median of the second half ($where)" "near 2" "$(edge $name)" "v > 1.5 && v < 2.5"
done

finish_claims
draw - <<END
        set terminal pngcairo size 1300,900 font 'sans,10'
        set output '$result.png'
        set datafile separator ','
        set grid
        set key outside right
        set multiplot layout 2,2
        set logscale y
        set format y '10^{%T}'
        set yrange [1e-14:1]
        set xlabel 'gradients over all rows'
        names = "gd ngd adproxgd dowg dog prodigy resetting sps gpa-sgd schedule-free-sgd"
        do for [set in "$sets"] {
            set title set.': F - F*'
            plot for [i=1:words(names)] '$csv' using 6:(strcol(1) eq 'smooth' && strcol(2) eq set && strcol(3) eq word(names, i) && \$7 > 0 ? \$7 : NaN) with lines linewidth 2 linecolor i dashtype 1 + i / 9 title word(names, i)
        }
        unset logscale y
        set format y '%g'
        set yrange [0:4]
        set title 'step length times largest curvature (separable)'
        names = "gd ngd adproxgd dowg dog"
        plot 2 with lines linecolor 'gray' title 'edge of stability', for [i=1:words(names)] '$csv' using 6:(strcol(1) eq 'smooth' && strcol(2) eq 'separable' && strcol(3) eq word(names, i) ? \$8 : NaN) with lines linewidth 2 linecolor i title word(names, i)
        unset multiplot
END
