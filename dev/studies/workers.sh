#!/usr/bin/env bash
# What more workers bring: time and bytes of a step with 1, 2 and 4 processes on this machine, --workers
# data and diloco; what a simple model says about them; and what it says about 1 to 1,024 machines on a
# network.
#
#   NETWORKS="NAME:GB/S:US ..."   a machine's link: bandwidth (each way), time that a message costs besides
#   MACHINES="NAME:GFLOP/S ..."   0: what this one reaches on all its cores; its update is taken to be faster
#                                 in proportion
#   STEPS=N                       so many steps a run, at least 6: a trial, whose results go to runs/studies/results
#   RESULTS=DIR                   where workers.csv, .md and .png go
#   REPORT=1                      no measurement: the rest once more from the CSV that is there
#
# The model: a step of n micro-batches takes (n/N) t_micro + t_update + what is left of the communication
# when the backward pass is over. For a layer of S bytes a worker sends 2 (N-1) messages with 2 (N-1)/N S
# bytes (train_gpt2.c, chapter 10); layers follow each other on the link, each when its gradient is there,
# the embeddings last. DiLoCo sends as much once in H steps, with no backward pass to hide behind, and takes
# t_outer for the outer step. On this machine N workers of one thread share P cores and one memory:
# everything takes c max(1, N/P) times as long, a link's bandwidth is an N-th of the memory's, and nothing
# is hidden. t_micro and t_update come from runs of one worker; c, t_outer, the memory's bandwidth and a
# message's time from runs of two; the runs of four test them all.
unset CDPATH # cd would search it, and print where it went
unset FULL   # this study has no long form
cd "$(dirname "$0")/../.." || exit 1
. dev/studies/claims.sh
[ ! "${EXTRA:-}${DATA:-}" ] || die "EXTRA and DATA are for other studies" 2
[ "${STEPS:-6}" -ge 6 ] || die "STEPS is at least 6, for some steps are not measured" 2
networks=${NETWORKS:-1-Gbit-Ethernet:0.125:50 10-Gbit-Ethernet:1.25:50 200-Gbit-InfiniBand:25:2}
machines=${MACHINES:-this-machine:0 100-TFLOP/s:100000}
new=$csv.tmp
work=
trap 'rm -rf ${work:+"$work"} "$new" "$new.rows"' EXIT
inner=5 # H of what is measured; 32 for what is computed

if [ ! "$report" ]; then
    command -v mpirun >/dev/null || die "mpirun is not installed (packages libopenmpi-dev, openmpi-bin)"
    make -s train_gpt2_mpi dev/data/tales.txt || die "train_gpt2_mpi does not compile"
    export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    work=$(mktemp -d) || exit 1

    # run NAME LAYERS CHANNELS STEPS WORKERS MODE MICRO_BATCHES: rows for the steps after which workers meet
    # (of data's, all) and for the others: the lower quartile of the times, for other programs only ever make
    # a step longer. MPI counts the bytes, too.
    run() {
        local name=$1 layers=$2 channels=$3 steps=${STEPS:-$4} n=$5 mode=$6 micro=$7 meet=1 counted
        local counting=(--mca pml_monitoring_enable 1 --mca pml_monitoring_enable_output 3
            --mca pml_monitoring_filename "$work/sent")
        local model=(--data dev/data/tales.txt --heads 4 --layers "$layers" --channels "$channels" --batch 2
            --accumulate "$micro" --steps "$steps" --eval-every 0 --eval-tokens 128 --workers "$mode")
        [ "$mode" = data ] || meet=$inner model+=(--inner-steps $inner)
        rm -rf "$work"/*
        mpirun -q --oversubscribe --bind-to none "${counting[@]}" -n "$n" ./train_gpt2_mpi "${model[@]}" \
            --out "$work/run" >"$work/output" 2>"$work/errors" ||
            { message=$(sed -n 's/^error: //p' "$work/errors" | head -n 1) && die "${message:-$(tail -n 1 "$work/errors")}"; }
        counted=$(cat "$work"/sent*.prof 2>/dev/null |
            awk '$1 == "E" { bytes += $4 } END { printf "%.0f", bytes }')
        tr -d '\r' <"$work/output" | awk -F, -v head="$name,$layers" -v tail="$n,$mode,$micro" -v meet=$meet \
            -v steps="$steps" -v counted="$counted" -v n="$n" '
            function quartile(x, count,   i, j, t) {
                for (i = 2; i <= count; i++)
                    for (j = i; j > 1 && x[j] < x[j - 1]; j--) { t = x[j]; x[j] = x[j - 1]; x[j - 1] = t }
                return x[int((count + 3) / 4)]
            }
            FILENAME == "-" { words = split($0, word, " ") }
            FILENAME == "-" && / parameters$/ { head = head "," word[words - 1] }
            FILENAME == "-" && /^sent / && counted > 0 {
                printf "sent,%s,%s,run,,%.0f\n", head, tail, word[2] * 1e6
                printf "counted,%s,%s,run,,%.0f\n", head, tail, counted / n
            }
            FILENAME == "-" { next }
            { ms = 1000 * ($3 - before); before = $3 }
            $1 > 3 && $1 < steps { # the first steps meet their memory, the last one validates
                if ($1 % meet == 0) { met[++mets] = ms; bytes = $9 } else alone[++alones] = ms
            }
            END {
                printf "measured,%s,%s,%s,%.2f,%.0f\n", head, tail, "meet", quartile(met, mets), bytes
                if (alones) printf "measured,%s,%s,%s,%.2f,0\n", head, tail, "alone", quartile(alone, alones)
            }' - "$work/run/log.csv" >>"$new" || die "cannot write $new"
    }
    printf '# make study NAME=workers%s\n# cores %d\n' "${STEPS:+ STEPS=$STEPS}" $cores >"$new"
    echo part,model,layers,parameters,workers,mode,micro_batches,step,ms,bytes >>"$new"
    now=0
    for model in "small 4 128 100" "middle 4 256 50" "large 6 384 30"; do
        now=$((now + 1))
        echo "measuring, $now of 3: ${model% *}, ${STEPS:-${model##* }} steps"
        run $model 1 data 1
        run $model 1 data 4
        for n in 2 4; do run $model $n data 4 && run $model $n diloco 4; done
    done
else
    grep -v -E '^(predicted|scaling|# two at once)' "$csv" >"$new"
fi

# ---- the model, and what it says: rows predicted and scaling
awk -F, -v networks="$networks" -v machines="$machines" '
    /^# cores/ { split($0, word, " "); cores = word[3] }
    $1 == "measured" {
        if (!($2 in P)) { order[++models] = $2; L[$2] = $3; P[$2] = $4 }
        ms[$2, $5, $6, $7, $8] = $9
    }
    # bytes a worker sends, and the messages
    function sent(n, m) { return 2 * (n - 1) / n * 4 * P[m] }
    function messages(n, m) { return 2 * (n - 1) * (L[m] + 1) }
    function slower(n) { return (n > 1 ? contention : 1) * (n > cores ? n / cores : 1) }
    function alone(n, m) { return (4 / n * micro[m] + update[m]) * slower(n) }
    function meeting(n, m) { return message * messages(n, m) + per_byte * n * sent(n, m) }
    function meeting_diloco(n, m) { return meeting(n, m) + outer * P[m] * slower(n) }
    function row(m, n, mode, step, t, bytes) {
        printf "predicted,%s,%d,%d,%d,%s,4,%s,%.2f,%.0f\n", m, L[m], P[m], n, mode, step, t, bytes
    }
    # ms of a step of GPT-2 124M, 1024 micro-batches of 1024 tokens, on n machines
    function step124(n, mode,   t, ready, free, l, layers, layer, rest) {
        layers = 12; layer = 12 * 768 * 768 * 4; rest = (50257 + 1024) * 768 * 4
        t = 1024 / n * micro124 + update124
        if (n == 1) return t
        if (mode == "diloco") return t + (layers * link_ms(n, layer) + link_ms(n, rest) + outer124) / 32
        ready = free = -2 / 3 * micro124       # the last backward pass begins; 0: it is over
        for (l = 0; l < layers; l++) {
            ready += 2 / 3 * micro124 / layers
            free = (free > ready ? free : ready) + link_ms(n, layer)
        }
        return t + (free > 0 ? free : 0) + link_ms(n, rest)
    }
    function link_ms(n, bytes) {
        return 2 * (n - 1) * latency / 1e3 + 2 * (n - 1) / n * bytes / bandwidth / 1e6
    }
    END {
        for (i = 1; i <= models; i++) {
            m = order[i]
            micro[m] = (ms[m, 1, "data", 4, "meet"] - ms[m, 1, "data", 1, "meet"]) / 3
            update[m] = ms[m, 1, "data", 1, "meet"] - micro[m]
            if (update[m] < 0) update[m] = 0
            ideal = (2 * micro[m] + update[m]) * (cores < 2 ? 2 : 1)
            contention += log(ms[m, 2, "diloco", 4, "alone"] / ideal) / models
            # least squares for message and per_byte, each residual relative to what is measured
            y = ms[m, 2, "data", 4, "meet"] - ms[m, 2, "diloco", 4, "alone"]
            w = 1 / ms[m, 2, "data", 4, "meet"]; a = messages(2, m) * w; b = 2 * sent(2, m) * w; y *= w
            aa += a * a; ab += a * b; bb += b * b; ay += a * y; by += b * y
        }
        det = aa * bb - ab * ab
        message = (ay * bb - by * ab) / det; per_byte = (by * aa - ay * ab) / det
        if (message < 0) { message = 0; per_byte = by / bb }
        if (per_byte < 0) { per_byte = 0; message = ay / aa }
        contention = exp(contention)
        for (i = 1; i <= models; i++) {
            m = order[i]
            w = 1 / ms[m, 2, "diloco", 4, "meet"]; a = P[m] * slower(2) * w
            y = (ms[m, 2, "diloco", 4, "meet"] - ms[m, 2, "diloco", 4, "alone"] - meeting(2, m)) * w
            oo += a * a; oy += a * y
        }
        outer = oy > 0 ? oy / oo : 0
        for (i = 1; i <= models; i++) for (n = 2; n <= 4; n += 2) {
            m = order[i]
            row(m, n, "data", "meet", alone(n, m) + meeting(n, m), sent(n, m))
            row(m, n, "diloco", "alone", alone(n, m), 0)
            row(m, n, "diloco", "meet", alone(n, m) + meeting_diloco(n, m), sent(n, m))
        }
        big = order[models]
        here = cores * (6 * P[big] + 6 * L[big] * 384 * 64) * 128 / micro[big] / 1e6
        printf "# two at once: %.2f times as long; a message %.3f ms, ", contention, message
        printf "memory %.2f GB/s, ", (per_byte > 0 ? 1e-6 / per_byte : 0)
        printf "outer step %.2f ns a parameter; this machine %.0f GFLOP/s\n", 1e6 * outer, here
        machine_count = split(machines, machine, " ")
        network_count = split(networks, network, " ")
        for (i = 1; i <= machine_count; i++) for (j = 1; j <= network_count; j++) {
            split(machine[i], part, ":")
            name = part[1]; gflops = part[2] > 0 ? part[2] : here
            micro124 = (6 * 123653376 + 6 * 12 * 768 * 1024) * 1024 / gflops / 1e6
            update124 = update[big] / P[big] * 124439808 * here / gflops
            outer124 = outer * 124439808 * here / gflops
            split(network[j], part, ":"); bandwidth = part[2]; latency = part[3]
            for (n = 1; n <= 1024; n *= 2) for (k = 0; k < 2; k++)
                printf "scaling,%s on %s,12,124439808,%d,%s,1024,,%.3f,%.0f\n", name, part[1], n,
                    (k ? "diloco" : "data"), step124(n, k ? "diloco" : "data"),
                    2 * (n - 1) / n * 4 * 124439808 / (k ? 32 : 1)
        }
    }' "$new" >"$new.rows" && cat "$new.rows" >>"$new" && mv "$new" "$csv" || die "cannot write $csv"
rm -f "$new.rows"

# ---- in words
awk -F, '
    $1 == "measured" || $1 == "predicted" {
        key = $2 "," $5 "," $6 "," $7 "," $8
        if ($1 == "measured") { order[++rows] = key; ms[key] = $9; bytes[key] = $10 }
        else { model_ms[key] = sprintf("%.1f", $9); model_bytes[key] = $10 }
    }
    $1 == "scaling" { if (!seen[$2]++) network[++networks] = $2; step[$2, $6, $5] = $9 }
    /^# two at once/ { sub(/^# /, ""); fitted = $0 }
    END {
        printf "\n%-7s %7s %-7s %13s %-6s %10s %10s %12s %12s\n", "", "workers", "", "micro-batches", "",
            "ms", "the model", "bytes", "the model"
        for (i = 1; i <= rows; i++) {
            split(order[i], c, ",")
            printf "%-7s %7d %-7s %13d %-6s %10.1f %10s %12d %12s\n", c[1], c[2], c[3], c[4], c[5],
                ms[order[i]], model_ms[order[i]], bytes[order[i]], model_bytes[order[i]]
        }
        printf "%s\n\nGPT-2 124M, 1,024 micro-batches of 1,024 tokens: speedup (H = 32)\n%-44s", fitted, ""
        for (n = 1; n <= 1024; n *= 4) printf "%8d", n
        print ""
        for (i = 1; i <= networks; i++) for (k = 0; k < 2; k++) {
            mode = k ? "diloco" : "data"
            printf "%-36s %-7s", network[i], mode
            one = step[network[i], mode, 1]
            for (n = 1; n <= 1024; n *= 4) printf "%8.1f", one / step[network[i], mode, n]
            print ""
        }
    }' "$csv"

# scales NETWORK MODE: the most workers that keep half of the ideal speedup
scales() { awk -F, -v network="$1" -v mode="$2" '$1 == "scaling" && $2 == network && $6 == mode {
    if ($5 == 1) one = $9; if (one / $9 / $5 >= 0.5) most = $5 } END { print most }' "$csv"; }
# off COLUMN WORKERS: by how many percent the model is off, at most
off() { awk -F, -v column="$1" -v workers="$2" '
    { key = $2 "," $5 "," $6 "," $8 }
    $1 == "measured" { x[key] = $column }
    $1 == "predicted" && $5 == workers && x[key] > 0 {
        d = 100 * ($column / x[key] - 1)
        if (d < 0) d = -d
        if (d > most) most = d
    }
    END { printf "%.1f\n", most }' "$csv"; }
counted() { awk -F, '
    $1 == "sent" { ours = $10 }
    $1 == "counted" { d = ours / $10 - 1; d = d < 0 ? -d : d; if (d > most) most = d; n++ }
    END { if (n) printf "%.4f\n", 100 * most; else print "-" }' "$csv"; }
bytes=$(off 10 4) time=$(off 9 4) own=$(counted)
claim "a worker sends 2 (N-1)/N numbers a parameter each time they meet" - "off by at most $bytes%" \
    "$(holds "$bytes < 2")"
[ "$own" = - ] || claim "bytes_sent is what MPI counts" - "off by at most $own%" "$(holds "$own < 0.1")"
claim "the model, fitted to 1 and 2 workers, says the times of 4 within 25%" - "off by at most $time%" \
    "$(holds "$time <= 25")"
names() { for name; do printf '%s ' "${name%%:*}"; done; }
listed() { names "$@" | sed 's/ $//; s/ /, /g; s/-/ /g'; }
most= held=yes
for machine in $(names $machines); do
    for network in $(names $networks); do
        d=$(scales "$machine on $network" data) l=$(scales "$machine on $network" diloco)
        most+="$d / $l, "
        [ "$l" -ge "$d" ] || held=no
    done
    most="${most%, }; "
done
claim "124M (computed): DiLoCo keeps half of the ideal speedup up to at least as many workers as data does \
(data / DiLoCo; on $(listed $networks); $(listed $machines))" - "${most%; }" $held
finish_claims
draw -e "csv='$csv'; picture='$result.png'; networks='$(names $networks)'; \
    machines='$(names $machines)'" dev/studies/workers.gp
