# Draws dev/convex's CSV, suboptimality over gradients: gnuplot -e "csv='convex.csv'" dev/convex.gp
if (!exists("csv")) csv = 'convex.csv'
set terminal svg size 900,600
set output csv[1:strlen(csv)-4].'.svg'
set datafile separator ','
set logscale y
set format y '10^{%T}'
set xlabel 'gradients over all rows'
set ylabel 'F(w) - F*'
set key outside right
names = system("awk -F, 'NR > 1 && !seen[$1]++ { print $1 }' '".csv."'")
plot for [i=1:words(names)] csv using 3:(strcol(1) eq word(names, i) && $4 < 1e299 ? $4 : NaN) with lines linewidth 2 \
    linecolor 1 + (i - 1) % 8 dashtype 1 + (i - 1) / 8 title word(names, i)
