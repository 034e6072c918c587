# Draws the study's CSV: gnuplot -e "csv='federated.csv'; out='federated.png'" dev/studies/federated.gp
set terminal pngcairo size 1400,1000 font 'sans,10'
set output out
set datafile separator ','
set grid
set key outside below
set multiplot layout 2,2

curve(run) = sprintf("< awk -F, 'index($0, \"%s,mean,\") == 1 && $6 == \"\"' \"%s\"", run, csv)
convex = "'FFGG, 5 local steps' '40% attackers, median' 'asynchronous, delays to 20' 'local' 'FedAvg' \
    'misfit: asynchronous' 'misfit: FFGG'"
run(i) = word("'exact,convex,FFGG,misfit 0 steps 5' 'attack,convex,median,misfit 0 sign-flip 0.4' \
    'delay,convex,asynchronous,misfit 0 delay 20' 'exact,convex,local,misfit 0 steps 5' \
    'exact,convex,FedAvg,misfit 0 steps 5' 'delay,convex,asynchronous,misfit 1 delay 20' \
    'exact,convex,FFGG,misfit 1 steps 5'", i)
set title 'convex problem: loss above the solution'
set xlabel 'rounds'
set logscale y
set format y '10^{%T}'
set yrange [1e-14:1e3]
plot for [i=1:7] curve(run(i)) using 7:11 with lines lw 2 dt 1 + (i > 5) title word(convex, i)
unset logscale y
set format y '%g'

methods = "'local' 'FedAvg' 'FedAvg fine-tuned' 'FFGG norms' 'FFGG MLP'"
method(i) = word(methods, i)
set title 'speakers: mean validation loss of the clients'
set yrange [*:3.2]
plot for [i=1:5] curve('text,speakers,'.method(i).',best') using 7:11 \
    with linespoints lw 2 ps 0.4 title method(i)

set title "speakers: each client's loss, the hardest first"
set xlabel 'client'
set yrange [*:*]
clients(m) = \
    sprintf("< awk -F, '/^text,speakers,%s,best,mean,/ && $6 != \"\"' \"%s\" | sort -t, -k11,11gr", m, csv)
plot for [i=1:5] clients(method(i)) using 0:11 with linespoints lw 2 ps 0.6 title method(i)

set title 'speakers: FFGG with sign-flipping attackers, mean over the honest clients'
set xlabel 'attackers, %'
aggregators = 'mean median trimmed geometric-median clipping'
attacked(a) = sprintf("< awk -F, '/^attack,speakers,%s,sign-flip 0[.24]*,/ { split($4, s, \" \"); \
    print 100 * s[2] \",\" $11 }' \"%s\" | sort -g", a, csv)
set xrange [-5:45]
set yrange [*:6]
plot for [i=1:5] attacked(word(aggregators, i)) using 1:2 with linespoints lw 2 title word(aggregators, i)
unset multiplot
