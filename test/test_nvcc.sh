#!/usr/bin/env bash
# Compiles train_gpt2.cu with nvcc, without a GPU: no warning, and no kernel that spills registers to memory; with FULL=1
# links it, too.
#   test/test_nvcc.sh [-v] [ARCH...]       default: sm_80; -v prints registers and shared memory of each kernel
set -u
unset CDPATH # cd would search it, and print where it went
cd "$(dirname "$0")/.." || exit 1
verbose=
[ "${1:-}" = -v ] && verbose=1 && shift
. test/lib.sh
command -v nvcc >/dev/null || { skip "nvcc is not installed"; finish; exit; }
mkdir -p build
[ $# -gt 0 ] || set -- sm_80
nccl=
if echo '#include <nccl.h>' | nvcc -x cu -E - >/dev/null 2>&1; then nccl=-DUSE_NCCL; fi
for arch in "$@"; do
    output=build/nvcc_$arch.txt
    nvcc -std=c++17 -O3 --extended-lambda -Xcompiler -Wall,-Wextra -Xptxas -v $nccl \
        -gencode "arch=compute_${arch#sm_},code=$arch" -c train_gpt2.cu -o "build/train_gpt2_$arch.o" >"$output" 2>&1
    code=$?
    rm -f "build/train_gpt2_$arch.o"
    # ptxas says for each kernel: Compiling entry function 'NAME', N bytes spill stores, Used N registers, N bytes smem
    table=$(awk -v q="'" '
        /Compiling entry function/ { split($0, part, q); name = part[2] }
        /spill stores/ { for (i = 1; i <= NF; i++) if ($i == "spill") { spilled += $(i - 2) } }
        /Used [0-9]+ registers/ {
            match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5); shared = 0
            if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH) + 0
            printf "%4d registers %6d bytes shared %4d spilled  %s\n", registers, shared, spilled, name
            spilled = 0 }' "$output" | c++filt | sed -E 's/\(.*//; s/ void / /; s/__nv_bfloat16/bf16/g')
    warnings=$(grep -c -E 'warning|error' "$output")
    spills=$(awk '$6 > 0' <<<"$table")
    kernels=$(grep -c registers <<<"$table")
    if [ $code = 0 ] && [ "$warnings" = 0 ]; then passed=$((passed + 1))
    else failed=$((failed + 1)) && echo "FAILED: $arch: nvcc ended with $code and warned:" && grep -E -A 3 'warning|error' "$output" | head -n 20; fi
    if [ -z "$spills" ] && [ "$kernels" -gt 20 ]; then passed=$((passed + 1))
    else failed=$((failed + 1)) && echo "FAILED: $arch: of $kernels kernels these spill registers:" && echo "$spills"; fi
    echo "$arch: $kernels kernels, $(sort -n <<<"$table" | tail -n 1 | sed 's/  */ /g') has the most registers"
    [ -n "$verbose" ] && grep -v optim_ <<<"$table" | sort -k 7
done
if [ "${FULL:-}" ]; then # the program, as make links it, in a folder of its own
    rm -rf build/linked && mkdir build/linked && ln -s "$PWD"/{Makefile,train_gpt2.c,train_gpt2.cu,optim.h,dev,test} build/linked
    if make -s -C build/linked CUDA_ARCH=80 train_gpt2cu && ldd build/linked/train_gpt2cu | grep -q libcublasLt; then
        passed=$((passed + 1))
    else failed=$((failed + 1)) && echo "FAILED: make train_gpt2cu"; fi
    rm -rf build/linked
fi
finish
