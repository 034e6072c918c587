# Pictures of workers.csv: what the model says against what was measured, then speedup by the number of
# machines. Called by workers.sh with csv, picture, machines and networks.
set terminal pngcairo size 560 * (1 + words(machines)),560 font 'sans,11'
set output picture
set multiplot layout 1,1 + words(machines)
set grid
pairs(n, mode) = sprintf("< awk -F, '{ k = $2 $5 $6 $8 } $1 == \"measured\" { x[k] = $9 } \
    $1 == \"predicted\" && $5 == %d && $6 == \"%s\" && k in x { print x[k], $9 }' \"%s\"", n, mode, csv)
set datafile separator whitespace
set logscale xy
set title 'a step on this machine: the model against the measurement'
set xlabel 'measured, ms'
set ylabel 'the model, ms'
set key top left
plot pairs(2, "data") with points pt 7 lc 1 title '2 workers, data (fitted)', \
     pairs(2, "diloco") with points pt 5 lc 2 title '2 workers, DiLoCo', \
     pairs(4, "data") with points pt 6 lc 1 title '4 workers, data', \
     pairs(4, "diloco") with points pt 4 lc 2 title '4 workers, DiLoCo', \
     x with lines lc 'gray' title 'equal'
set datafile separator comma
set logscale xy 2
set xlabel 'workers'
set ylabel 'speedup, GPT-2 124M, 1,024 micro-batches of 1,024 tokens'
set xrange [1:1024]
set yrange [1:1024]
speedup(name, mode) = sprintf("< awk -F, '$1 == \"scaling\" && $2 == \"%s\" && $6 == \"%s\" { \
    if ($5 == 1) one = $9; print $5 \",\" one / $9 }' \"%s\"", name, mode, csv)
do for [m=1:words(machines)] {
    on = word(machines, m).' on '
    set title word(machines, m).' (computed)'
    plot for [i=1:words(networks)] speedup(on.word(networks, i), 'data') \
            with linespoints lc i lw 2 pt 7 title word(networks, i).', data', \
         for [i=1:words(networks)] speedup(on.word(networks, i), 'diloco') \
            with linespoints lc i lw 2 dt 2 pt 6 title word(networks, i).', DiLoCo', \
         x with lines lc 'gray' title 'all of them'
}
unset multiplot
