#!/usr/bin/env bash
# The whole suite, called by `make test` and `make test-full` with CC, FLAGS and LIBS. Each test prints a closing line
# `N passed, N failed[, N skipped]`; they are added up. What needs a package that is missing here is counted as skipped.
#   GPT2_MERGES=FILE   GPT-2's vocab.bpe (dev/data/gpt2.sh fetches it): without it, its checks are skipped
#   GOLDEN=DIR         more golden files of the formats in test/golden
#   FULL=1             longer: thousands of damaged files, more kills
set -u
cd "$(dirname "$0")/.."
full=${FULL:-}
mkdir -p build
total_passed=0 total_failed=0 total_skipped=0

# run NAME COMMAND...
run() {
    local name=$1 start=$SECONDS line
    shift
    "$@" >build/output 2>&1
    local code=$?
    line=$(tail -n 1 build/output)
    if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed(,\ ([0-9]+)\ skipped)?$ ]]; then
        total_passed=$((total_passed + BASH_REMATCH[1]))
        total_failed=$((total_failed + BASH_REMATCH[2]))
        total_skipped=$((total_skipped + ${BASH_REMATCH[4]:-0}))
        if [ "${BASH_REMATCH[2]}" != 0 ]; then sed 's/^/    /' build/output | head -n 40; fi
    else # it did not come to its end
        total_failed=$((total_failed + 1))
        line="exit code $code"
        tail -n 20 build/output | sed 's/^/    /'
    fi
    printf '%-44s %s  (%d s)\n' "$name" "$line" $((SECONDS - start))
}

skip() {
    total_skipped=$((total_skipped + 1))
    printf '%-44s skipped: %s\n' "$1" "$2"
}

# variant NAME "COMPILER FLAGS" SOURCE [RUN_WITH...] [-- ARGUMENTS...]: builds a test another way and runs it.
variant() {
    local name=$1 compiler=$2 source=$3
    shift 3
    local launcher=() binary=build/${name//[^a-zA-Z0-9]/_}
    while [ $# -gt 0 ] && [ "$1" != -- ]; do launcher+=("$1") && shift; done
    [ $# -gt 0 ] && shift
    # a warning fails the build
    if ! $compiler -Werror $source -o "$binary" $LIBS >build/output 2>&1; then
        total_failed=$((total_failed + 1))
        printf '%-44s does not compile\n' "$name"
        head -n 10 build/output | sed 's/^/    /'
        return
    fi
    run "$name" ${launcher[@]+"${launcher[@]}"} "$binary" "$@"
}

plain="-std=gnu11 -Wall -Wextra -Wno-unknown-pragmas" # built without OpenMP, unless it is asked for
sanitize="$plain -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000} # as train_gpt2 sets it for itself: waiting threads leave the cores to others
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
merges=${GPT2_MERGES:+--merges $GPT2_MERGES}
more_models=() more_trajectories=()
if [ -n "${GOLDEN:-}" ]; then
    for dir in "$GOLDEN"/*/; do [ -f "$dir/state.bin" ] && more_models+=("${dir%/}"); done
    for file in "$GOLDEN"/*.txt; do grep -q '^golden 1' "$file" && more_trajectories+=("$file"); done
fi

# ---- the model and its kernels, built in every way
run "model" test/test_gpt2
[ ${#more_models[@]} -gt 0 ] && run "model, more golden files" test/test_gpt2 "${more_models[@]}"
# (without AVX-512 GCC says that other compilers may return such vectors otherwise: not where all is static)
variant "model, vectors of 16" "$CC $FLAGS -DVEC=16 -Wno-psabi" test/test_gpt2.c
variant "model, vectors of 4" "$CC $FLAGS -DVEC=4" test/test_gpt2.c
variant "model, no -march" "$CC $plain -O2" test/test_gpt2.c
variant "model, ASan and UBSan" "$CC $sanitize" test/test_gpt2.c
if [ "$CC" != clang ]; then other=clang; else other=gcc; fi
if command -v $other >/dev/null; then
    variant "model, $other" "$other $plain -O3 -march=native -fno-math-errno -fno-trapping-math" test/test_gpt2.c
else skip "model, $other" "$other is not installed"; fi
if printf '#include <cblas.h>\nint main(void) { return 0; }\n' | $CC -x c - -o build/blas -lopenblas 2>/dev/null; then
    LIBS="$LIBS -lopenblas" variant "model, BLAS=1" "$CC $FLAGS -DUSE_BLAS -DNO_THREAD_CHECK" test/test_gpt2.c
else skip "model, BLAS=1" "OpenBLAS is not installed (libopenblas-dev)"; fi
if command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null; then
    LIBS="-lm -static" variant "model, NEON under qemu" "aarch64-linux-gnu-gcc $plain -O2 -fopenmp" test/test_gpt2.c qemu-aarch64
else skip "model, NEON under qemu" "gcc-aarch64-linux-gnu and qemu-user are not installed"; fi

# ---- the GPU's trainer, on a CPU; and compiled for GPUs where nvcc is
if command -v g++ >/dev/null; then
    kernels=test/test_gpt2_cuda nccl=
    if command -v mpirun >/dev/null && command -v mpicxx >/dev/null; then
        kernels=${kernels}_nccl nccl=test/test_train_gpt2_cuda_nccl
    else skip "CUDA on a CPU, two processes" "Open MPI is not installed"; fi
    if make -s test/test_train_gpt2_cuda >build/output 2>&1 &&
        make -s ${nccl:+USE_NCCL=1 USE_MPI=1} $kernels $nccl >build/output 2>&1; then
        run "CUDA on a CPU" $kernels
        [ -z "$nccl" ] || run "CUDA on a CPU, two processes" mpirun --oversubscribe -n 2 $kernels
        run "CUDA on a CPU, the trainer" bash test/test_gpt2_cuda.sh ./test/test_train_gpt2_cuda ./train_gpt2 $nccl
    else
        total_failed=$((total_failed + 1))
        echo "CUDA on a CPU does not compile"
        head -n 10 build/output
    fi
    if [ "$full" ] && make -s NCCL=_asan SHIM="g++ -g -fno-omit-frame-pointer -fsanitize=address" build/shim_asan.o; then
        LIBS="build/shim_asan.o -lstdc++ $LIBS" variant "CUDA on a CPU, ASan" "$CC $sanitize -DCUDA_ON_CPU" test/test_gpt2_cuda.c
    fi
else skip "CUDA on a CPU" "g++ is not installed"; fi
if command -v nvcc >/dev/null; then run "CUDA compiled by nvcc" bash test/test_nvcc.sh $([ "$full" ] && echo sm_75 sm_80 sm_86 sm_89 sm_90 sm_100 sm_120)
else skip "CUDA compiled by nvcc" "nvcc is not installed"; fi

# ---- optimizers
run "optimizers" test/test_optim
[ ${#more_trajectories[@]} -gt 0 ] && run "optimizers, more golden files" test/test_optim "${more_trajectories[@]}"
variant "optimizers, ASan and UBSan" "$CC $sanitize -fopenmp" test/test_optim.c
if command -v $other >/dev/null; then variant "optimizers, $other" "$other $plain -O2" test/test_optim.c; else skip "optimizers, $other" "$other is not installed"; fi
user() { variant "optim.h alone, $1" "$2" test/optim_user.c bash -c '"$1" && echo "1 passed, 0 failed"' _; }
user "C" "$CC $FLAGS"
user "C without OpenMP" "$CC $plain -O2"
if command -v g++ >/dev/null; then
    user "C++" "g++ -x c++ -std=c++17 -Wall -Wextra -O2 -fopenmp"
    user "C++ without OpenMP" "g++ -x c++ -std=c++17 -Wall -Wextra -O2"
else skip "optim.h alone, C++" "g++ is not installed"; fi

# ---- files and tokenizers
run "tokenizers" test/test_tokenizer $merges
[ -n "${GOLDEN:-}" ] && [ -f "$GOLDEN/bpe_cases.txt" ] && run "tokenizers, more cases" test/test_tokenizer $merges "$GOLDEN/bpe_cases.txt"
variant "tokenizers, ASan and UBSan" "$CC $sanitize" test/test_tokenizer.c -- $merges
run "files" test/test_files
variant "files, ASan and UBSan" "$CC $sanitize" test/test_files.c -- --mutations "$([ "$full" ] && echo 10000 || echo 300)"
run "LIBSVM files" test/test_convex
variant "LIBSVM files, ASan and UBSan" "$CC $sanitize" test/test_convex.c -- --mutations "$([ "$full" ] && echo 10000 || echo 300)"
if python3 -c 'import transformers, torch' 2>/dev/null; then run "transformers, there and back" python3 test/test_transformers.py
else skip "transformers, there and back" "python3 cannot import transformers and torch"; fi

# ---- decoding
run "decoding" test/test_decode "${more_models[@]}"
variant "decoding, vectors of 8" "$CC $FLAGS -DVEC=8" test/test_decode.c -- --mutations 10
variant "decoding, no -march" "$CC $plain -O2" test/test_decode.c -- --mutations 10
variant "decoding, ASan and UBSan" "$CC $sanitize" test/test_decode.c -- --mutations "$([ "$full" ] && echo 3000 || echo 100)"
if command -v $other >/dev/null; then
    variant "decoding, $other" "$other $plain -O3 -march=native -fno-math-errno -fno-trapping-math" test/test_decode.c -- --mutations 10
fi

# ---- federated training
command -v mpicc >/dev/null && { make -s dev/federated_mpi >build/output 2>&1 || head -n 10 build/output; }
run "federated, what is sent" test/test_federated
if [ "$full" ]; then variant "federated, ASan and UBSan" "$CC $sanitize" test/test_federated.c; fi
run "federated" bash test/test_federated.sh

# ---- programs as a user runs them
run "the corpus and its oracle" bash test/test_tales.sh
run "downloads" bash test/test_download.sh
KILLS=$([ "$full" ] && echo 50 || echo 5) run "training" bash test/test_train.sh
if command -v mpicc >/dev/null && command -v mpirun >/dev/null; then
    if make -s train_gpt2_mpi >build/output 2>&1; then run "workers" bash test/test_workers.sh
    else
        total_failed=$((total_failed + 1))
        echo "train_gpt2_mpi does not compile"
        head -n 10 build/output
    fi
else skip "workers" "MPI is not installed (libopenmpi-dev, openmpi-bin)"; fi
run "decode_ppd" bash test/test_decode.sh
run "studies" bash test/test_studies.sh
if [ "$full" ]; then
    make -s dev/bench/bench
    run "the benchmark's step" bash -c 'dev/bench/bench step small 0.1 && echo "1 passed, 0 failed"'
fi
if $CC $sanitize train_gpt2.c -o build/train_gpt2_sanitized -lm 2>/dev/null; then
    TRAIN=build/train_gpt2_sanitized KILLS=2 run "training, ASan and UBSan" bash test/test_train.sh
fi

if [ $total_skipped -gt 0 ]; then echo "$total_passed passed, $total_failed failed, $total_skipped skipped"
else echo "$total_passed passed, $total_failed failed"; fi
[ $total_failed = 0 ]
