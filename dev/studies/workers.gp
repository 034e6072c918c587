# Pictures of workers.csv: what the model says against what was measured, then speedup by the number of machines.
# Called by workers.sh with csv, picture, machines and networks.
set terminal pngcairo size 560 * (1 + words(machines)),560 font 'sans,11'
set output picture
set multiplot layout 1,1 + words(machines)
set grid
pairs(filter) = sprintf("< awk -F, '{ k = $2 $5 $6 $8 } $1 == \"measured\" { x[k] = $9 } $1 == \"predicted\" && %s && k in x { print x[k], $9 }' %s", filter, csv)
set datafile separator whitespace
set logscale xy
set title 'a step on this machine: the model against the measurement'
set xlabel 'measured, ms'
set ylabel 'the model, ms'
set key top left
plot pairs("$5 == 2 && $6 == \"data\"") with points pt 7 lc 1 title '2 workers, data (fitted)', \
     pairs("$5 == 2 && $6 == \"diloco\"") with points pt 5 lc 2 title '2 workers, DiLoCo', \
     pairs("$5 == 4 && $6 == \"data\"") with points pt 6 lc 1 title '4 workers, data', \
     pairs("$5 == 4 && $6 == \"diloco\"") with points pt 4 lc 2 title '4 workers, DiLoCo', \
     x with lines lc 'gray' title 'equal'
set datafile separator comma
set logscale xy 2
set xlabel 'workers'
set ylabel 'speedup, GPT-2 124M, 1,024 micro-batches of 1,024 tokens'
set xrange [1:1024]
set yrange [1:1024]
of(machine, network, mode) = sprintf("$1 == \"scaling\" && $2 == \"%s on %s\" && $6 == \"%s\"", machine, network, mode)
curve(machine, network, mode) = sprintf("< awk -F, '%s { if ($5 == 1) one = $9; print $5 \",\" one / $9 }' %s", of(machine, network, mode), csv)
do for [m=1:words(machines)] {
    machine = word(machines, m)
    set title machine.' (computed)'
    plot for [i=1:words(networks)] curve(machine, word(networks, i), 'data') with linespoints lc i lw 2 pt 7 title word(networks, i).', data', \
         for [i=1:words(networks)] curve(machine, word(networks, i), 'diloco') with linespoints lc i lw 2 dt 2 pt 6 title word(networks, i).', DiLoCo', \
         x with lines lc 'gray' title 'all of them'
}
