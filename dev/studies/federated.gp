# Draws the study's CSV: gnuplot -e "csv='federated.csv'; out='federated.png'" dev/studies/federated.gp
set terminal pngcairo size 1400,1000 font 'sans,10'
set output out
set datafile separator ','
set grid
set key outside right
rows(part, split, method, setting) = sprintf("< awk -F, '$1 == \"%s\" && $2 == \"%s\" && $3 == \"%s\" && $4 == \"%s\" && $5 == 1 && $6 == \"\"' %s", part, split, method, setting, csv)
set multiplot layout 2,2

set title 'convex problem: loss above the solution'
set xlabel 'rounds'
set logscale y
set format y '10^{%T}'
set yrange [1e-14:1e3]
plot rows('exact', 'convex', 'FFGG', 'misfit 0 steps 5') using 7:11 with lines lw 2 title 'FFGG, 5 local steps', \
    rows('attack', 'convex', 'median', 'misfit 0 sign-flip 0.4') using 7:11 with lines lw 2 title '40% attackers, median', \
    rows('delay', 'convex', 'asynchronous', 'misfit 0 delay 20') using 7:11 with lines lw 2 title 'asynchronous, delays to 20', \
    rows('exact', 'convex', 'local', 'misfit 0 steps 5') using 7:11 with lines lw 2 title 'local', \
    rows('exact', 'convex', 'FedAvg', 'misfit 0 steps 5') using 7:11 with lines lw 2 title 'FedAvg', \
    rows('delay', 'convex', 'asynchronous', 'misfit 1 delay 20') using 7:11 with lines lw 1 dt 2 title 'misfit: asynchronous', \
    rows('exact', 'convex', 'FFGG', 'misfit 1 steps 5') using 7:11 with lines lw 1 dt 2 title 'misfit: FFGG'
unset logscale y
set format y '%g'

methods = "'local' 'FedAvg' 'FedAvg fine-tuned' 'FFGG norms' 'FFGG MLP'"
set title 'speakers: mean validation loss of the clients'
set yrange [*:3.2]
plot for [i=1:words(methods)] rows('text', 'speakers', word(methods, i), 'best') using 7:11 with linespoints lw 2 ps 0.4 title word(methods, i)

set title "speakers: each client's loss, the hardest first"
set xlabel 'client'
set yrange [*:*]
sorted(method) = sprintf("< awk -F, '$1 == \"text\" && $2 == \"speakers\" && $3 == \"%s\" && $5 == 1 && $6 != \"\"' %s | sort -t, -k11,11gr", method, csv)
plot for [i=1:words(methods)] sorted(word(methods, i)) using 0:11 with linespoints lw 2 ps 0.6 title word(methods, i)

set title 'speakers: FFGG with sign-flipping attackers'
set xlabel 'attackers, %'
aggregators = 'mean median trimmed geometric-median clipping'
attacked(a) = sprintf("< awk -F, '$1 == \"attack\" && $2 == \"speakers\" && $3 == \"%s\" && $4 ~ /^sign-flip/ && $6 == \"\" { split($4, s, \" \"); last[s[2]] = $11 } END { for (x in last) print 100 * x \",\" last[x] }' %s | sort -g", a, csv)
set xrange [-5:45]
set yrange [*:6]
plot for [i=1:words(aggregators)] attacked(word(aggregators, i)) using 1:2 with linespoints lw 2 title word(aggregators, i)
unset multiplot
