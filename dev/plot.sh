#!/usr/bin/env bash
# Draws the log.csv of one or several runs into one picture: dev/plot.sh PICTURE.png RUN...
# Above: training loss (smoothed) thin, validation loss thick, a teacher's loss on the same batches (smoothed) dotted.
# Below: the rate of every step, so the schedule as it was taken, or what a method without a schedule chose.
set -u
export LC_ALL=C # numbers have points, for awk, sort and printf
die() { echo "error: $1" >&2; exit "${2:-1}"; }
[ $# -ge 2 ] || die 'give the runs to draw: make plot RUNS="runs/a runs/b"' 2
command -v gnuplot >/dev/null || die "gnuplot is not installed; the package gnuplot-nox brings it"
picture=$1
shift
points=$(mktemp -d) || exit 1
trap 'rm -rf "$points"' EXIT

smooth='NR > 1 && $c != "" { s = s == "" ? $c : 0.95 * s + 0.05 * $c; if ($1 > 30) print $1, s }'
plots=() rates=() colour=0
for run in "$@"; do
    log=$run/log.csv
    [ -r "$log" ] || die "$log cannot be read; is $run the --out folder of a run?"
    [[ $(head -n 1 "$log") == step,tokens,seconds,* ]] || die "$log is not the log.csv of a run of train_gpt2"
    colour=$((colour + 1)) title=${run//\'/\'\'}
    awk -F, -v c=4 "$smooth" <"$log" >"$points/$colour.train"
    awk -F, 'NR > 1 && $5 != "" { print $1, $5 }' <"$log" >"$points/$colour.val"
    awk -F, -v c=6 "$smooth" <"$log" >"$points/$colour.teacher"
    awk -F, 'NR > 1 && $7 != "" { print $1, $7 }' <"$log" >"$points/$colour.rate"
    [ -s "$points/$colour.rate" ] && rates+=("'$points/$colour.rate' with lines lc $colour lw 2 title '$title'")
    [ -s "$points/$colour.train" ] && plots+=("'$points/$colour.train' with lines lc $colour lw 1 title '$title, training'")
    [ -s "$points/$colour.val" ] && plots+=("'$points/$colour.val' with linespoints lc $colour lw 3 pt 7 title '$title, validation'")
    [ -s "$points/$colour.teacher" ] && plots+=("'$points/$colour.teacher' with lines lc $colour lw 2 dt 3 title '$title, its teacher'")
done
[ ${#plots[@]} -gt 0 ] || die "these runs have neither a validation nor 31 steps yet"
list() { local IFS=,; echo "$*"; }
below= top=1
if [ ${#rates[@]} -gt 0 ]; then # cdowg's runs have none
    top=0.7 below="set size 1,0.3
        set origin 0,0
        set ylabel 'rate'
        set yrange [0:*]
        plot $(list "${rates[@]}")"
fi
gnuplot <<END || die "gnuplot cannot draw $picture"
set terminal pngcairo noenhanced size 1000,800 font 'sans,11' # enhanced: a_b is a with an index
set output '$points/picture.png'
set multiplot
set lmargin at screen 0.09
set xrange [0:*]
set xlabel 'step'
set grid
set size 1,$top
set origin 0,1-$top
set ylabel 'loss, nats per token'
plot $(list "${plots[@]}")
$below
END
mv "$points/picture.png" "$picture" 2>/dev/null || die "cannot write $picture"
echo "$picture"
