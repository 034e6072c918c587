#!/usr/bin/env bash
# The race: which optimizer reaches tuned AdamW's loss in the fewest steps?
#
#   make race TRACK=tales                                             the table, and AdamW's own row where it is missing
#   make race TRACK=tales ENTRY="--optimizer muon --lr 8e-3" STEPS=700 SEEDS=5 NAME="my muon"
#   make race TRACK=tales ENTRY="--optimizer muon" GRID="muon-lr=1e-2,2e-2,4e-2" STEPS=700 NAME=mine   tunes first
#   make race TRACK=tales REPORT=1                            the table alone
#
# Fixed: text, tokenizer, model (4 layers, 128 wide), batch (12 x 64 tokens), validation, one forward and one backward
# pass a step. An entry is free to choose its optimizer, all that the optimizer can be told, schedule, warmup, clipping
# and the initial weights' deviation (--init-std). TRACK is tales, or tinyshakespeare with DATA=FILE (dev/data/texts.sh
# fetches it).
#
# The target is the mean loss after $budget steps of AdamW, tuned in seven options, over 20 seeds; their standard
# deviation stands for that of every run. An entry passes where (target - mean) sqrt(seeds) is at least 3.09 of them:
# were it no better than the target, chance would let it pass once in a thousand times, or, as the target deviates,
# too, three times with 5 seeds and 25 times with 30. Its seeds are 1 to SEEDS, and its step count is the same for all;
# with more steps than AdamW it may pass, too, with a negative share of fewer. Other seeds tune AdamW's options, and
# with GRID the entry's (driver.sh's tune); `make race` of the same entry and GRID goes on where it was.
. "$(dirname "$0")/driver.sh"
budget=1000 adamw_seeds=20
track=${TRACK:-tales} seeds=${SEEDS:-5} steps=${STEPS:-$budget}
read -ra entry <<<"${ENTRY:-}"
grid=${GRID:-}
name=${NAME:-}

[ "$track" != tales ] || [ "$data" -ef dev/data/tales.txt ] ||
    die "the track tales has its own text; TRACK=tinyshakespeare takes DATA" 2
[ "$track" = tales ] || [ "$track" = tinyshakespeare ] || die "TRACK is tales or tinyshakespeare, not '$track'" 2
if [ ! "$report" ] && [ "$track" = tinyshakespeare ] && [ "$data_sum" != 1901475708 ]; then die "$data is not tinyshakespeare; dev/data/texts.sh fetches it, DATA=FILE names it" 2; fi
[ ! "${EXTRA:-}" ] || [ "$results" != dev/studies/results ] || die "EXTRA would change what is fixed; try it with RESULTS=DIR" 2
[[ $seeds =~ ^[1-9][0-9]*$ ]] || die "SEEDS takes a whole number, not '$seeds'" 2
runs=runs/studies/race/$track
mkdir -p "$runs"

# Whatever the trainer's help lists is fixed, but for these; what it does not list is the optimizer's own.
for word in ${entry[@]+"${entry[@]}"} $(for axis in $grid; do echo "--${axis%%=*}"; done); do
    case $word in
    --optimizer | --base | --schedule | --warmup | --final-lr | --clip | --init-std) ;;
    --*) "$train" --help | grep -q "^  $word " && die "the race fixes $word; an entry chooses its optimizer, schedule, warmup, clipping and --init-std" 2 ;;
    esac
done
[ -n "$name" ] || name=$(printf '%s ' ${entry[@]+"${entry[@]}"} | awk '{
    for (i = 1; i < NF; i++) if ($i == "--optimizer") name = $(i + 1); else if ($i == "--base") base = " over " $(i + 1) } END { print (name == "" ? "adamw" : name) base }')
[ "$name" != AdamW ] || die "AdamW's row is the target; give another NAME" 2
[[ $name != *,* && ${ENTRY:-} != *,* ]] || die "no comma in NAME and ENTRY" 2
[ ! "$grid" ] || [ ${#entry[@]} -gt 0 ] || die "GRID is what to tune of an ENTRY" 2
fixed=(--layers 4 --heads 4 --channels 128 --context 64 --batch 12 --tokenizer chars)

# enter NAME STEPS SEEDS OPTIONS...: trains, and puts its row into the table in place of an older one.
header="track,entry,steps,seeds,loss,deviation,memory_mb,options"
enter() {
    local name=$1 steps=$2 seeds=$3 seed dirs=() dir
    shift 3
    for ((seed = 1; seed <= seeds; seed++)); do
        dir=$(folder "$name" "$steps steps" $seed)
        dirs+=("$dir")
        enqueue "$dir" "${fixed[@]}" "$@" --steps "$steps" --seed $seed --eval-every 0 ${EXTRA:-}
    done
    run_queue "$name, $track"
    row=$(for dir in "${dirs[@]}"; do echo "$(cat "$dir/loss") $(awk '$1 == "memory" { print $2 }' "$dir/output")"; done | awk \
        -v head="$track,$name,$steps,$seeds" -v options="$*" '
        { loss = $1 == "inf" ? 1e30 : $1; sum += loss; square += loss * loss; memory = $2 }
        END {
            mean = sum / NR; v = NR > 1 ? (square - NR * mean * mean) / (NR - 1) : 0
            if (mean < 1e20) printf "%s,%.4f,%.4f,%s,%s\n", head, mean, sqrt(v < 0 ? 0 : v), memory, options
            else printf "%s,inf,,%s,%s\n", head, memory, options
        }')
    [ "$row" ] || die "no result of $name"
    { echo "$header"; { [ -f "$csv" ] && awk -F, -v t="$track" -v n="$name" 'NR > 1 && !($1 == t && $2 == n)' "$csv"; echo "$row"; } | sort -t, -s -k 1,1 -k 3,3n -k 5,5g; } >"$csv.tmp" &&
        mv "$csv.tmp" "$csv" || die "cannot write $csv"
    tail -q -n 1 "${dirs[@]/%//log.csv}" | awk -F, '{ s += $3 / $1 } END { printf "%.1f ms a step (the last validation included)\n", 1000 * s / NR }'
}

# AdamW's row is the target: a coordinate search over seven options, then 20 seeds.
if [ ! "$report" ] && ! grep -q "^$track,AdamW," "$csv" 2>/dev/null; then
    common "${fixed[@]}" --steps $budget
    method AdamW "lr=2e-3,4e-3,8e-3,1.6e-2,3.2e-2 beta1=0.6,0.7,0.8,0.9,0.95 beta2=0.95,0.98,0.99,0.995 weight-decay=0.03,0.1,0.3,1 warmup=25,50,100,200 schedule=linear,cosine,wsd clip=0.5,1,2"
    tune
    enter AdamW $budget $adamw_seeds $(best AdamW)
fi
if [ ! "$report" ] && [ ${#entry[@]} -gt 0 ]; then
    common "${fixed[@]}" --steps "$steps"
    method "$name" "$grid" "${entry[@]}"
    tune
    enter "$name" "$steps" "$seeds" "${entry[@]}" $(best "$name")
fi

grep -q "^$track,AdamW," "$csv" 2>/dev/null ||
    die "$csv has no row of AdamW on $track, which is the target; call the race without REPORT"

# The table of a track: who passes, in order of steps, then who does not; with the significance of the lead over the row
# above, if that has as many steps: (its mean - this mean) / deviation / sqrt(1/n + 1/m), with the largest of AdamW's
# deviation and theirs.
printf '\n'
awk -F, -v track="$track" '
    $1 == track && $2 == "AdamW" { target = $5; deviation = $6; full = $3 }
    $1 == track { rows++; name[rows] = $2; steps[rows] = $3; seeds[rows] = $4; loss[rows] = $5 == "inf" ? 1e30 : $5; own[rows] = $6 + 0; memory[rows] = $7; options[rows] = $8 }
    function largest(i,   d) { d = deviation + 1e-12; if (own[i] > d) d = own[i]; return own[above] > d ? own[above] : d }
    function show(i,   margin, verdict, reached, lead) {
        margin = (target - loss[i]) * sqrt(seeds[i]) / (deviation + 1e-12)
        verdict = name[i] == "AdamW" ? "target" : passes(i) ? "yes" : "no"
        reached = loss[i] < 1e20
        lead = above && reached && loss[above] < 1e20 && steps[above] == steps[i] ? sprintf("%+.1f", (loss[above] - loss[i]) / largest(i) / sqrt(1 / seeds[i] + 1 / seeds[above])) : ""
        printf "%-24s %6d %7s %6d %9s %8s %-7s %8s %7s  %s\n", name[i], steps[i], sprintf("%.1f%%", 100 * (1 - steps[i] / full)), seeds[i],
            reached ? sprintf("%.4f", loss[i]) : "diverged", reached ? sprintf("%.1f", margin) : "", verdict, lead, memory[i], options[i]
        above = i
    }
    function passes(i) { return (target - loss[i]) * sqrt(seeds[i]) >= 3.09 * deviation }
    END {
        printf "%s: the target is %.4f, AdamW after %d steps; a run deviates by %.4f\n\n", track, target, full, deviation
        printf "%-24s %6s %7s %6s %9s %8s %-7s %8s %7s  %s\n", "entry", "steps", "fewer", "seeds", "loss", "margin", "passes", "lead", "MB", "options"
        for (i = 1; i <= rows; i++) if (passes(i)) show(i)
        for (i = 1; i <= rows; i++) if (!passes(i)) show(i)
    }' "$csv"
