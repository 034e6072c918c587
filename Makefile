# `make` builds, `make demo` shows everything in minutes, `make test` checks it. README.md says more.
#
#   CC=clang        another compiler
#   ARCH=generic    for every machine of this kind, not just for this one (native)
#   BLAS=1          matrix products by the installed OpenBLAS instead of ours
#   OPENMP=         one thread
#   CUDA_ARCH=90    the GPUs that train_gpt2cu is for (else what nvcc knows of 75 80 86 89 90 100 120)

ifeq ($(origin CC),default)
CC := $(if $(shell command -v gcc 2>/dev/null),gcc,cc)
endif
ARCH ?= native
works = $(shell echo 'int main(void) { return 0; }' | $(CC) $(1) -x c - -o /dev/null 2>/dev/null && echo '$(1)')
OPENMP := $(call works,-fopenmp)
ifeq ($(ARCH),native)
MACHINE := $(or $(call works,-march=native),$(call works,-mcpu=native)) $(call works,-mprefer-vector-width=512)
else ifneq ($(ARCH),generic)
MACHINE := -march=$(ARCH)
endif

WARNINGS = -std=gnu11 -Wall -Wextra $(if $(OPENMP),,-Wno-unknown-pragmas)
OPTIMIZE = -O3 -fno-math-errno -fno-trapping-math $(MACHINE) $(OPENMP)
FLAGS = $(WARNINGS) $(OPTIMIZE) $(CFLAGS)
LIBS = -lm
ifeq ($(BLAS),1)
FLAGS += -DUSE_BLAS
LIBS += -lopenblas
endif
TRAINER = train_gpt2.c optim.h dev/unicode_tables.h build/flags
TESTS = test/test_gpt2 test/test_optim test/test_tokenizer test/test_files test/test_decode test/test_convex \
	test/test_federated

all: train_gpt2 decode_ppd dev/data/tales.txt

# build/NAME holds a variable: what programs were built with. Where that changes it is written anew, and they are built
# anew.
define stamp
ifneq ($$(shell cat build/$(1) 2>/dev/null),$$($(2)))
.PHONY: build/$(1)
endif
build/$(1):
	@mkdir -p build
	@printf '%s\n' '$$($(2))' >$$@
endef
COMMAND = $(strip $(CC) $(FLAGS) $(LIBS))
$(eval $(call stamp,flags,COMMAND))

train_gpt2: $(TRAINER)
	$(CC) $(FLAGS) $< -o $@ $(LIBS)

# Several processes: mpirun -n N ./train_gpt2_mpi --workers ...; mpicc calls the compiler that FLAGS are for.
MPICC ?= mpicc
$(eval $(call stamp,mpi,MPICC))

train_gpt2_mpi: $(TRAINER) build/mpi
	OMPI_CC="$(CC)" MPICH_CC="$(CC)" $(MPICC) $(FLAGS) -DUSE_MPI $< -o $@ $(LIBS)

decode_ppd: decode_ppd.c $(TRAINER)
	$(CC) $(FLAGS) $< -o $@ $(LIBS)

dev/data/tales: dev/data/tales.c
	$(CC) $(WARNINGS) -O2 $< -o $@ -lm

dev/data/tokenize: dev/data/tokenize.c $(TRAINER)
	$(CC) $(FLAGS) $< -o $@ $(LIBS)

dev/data/tales.txt: dev/data/tales
	dev/data/tales --bytes 2000000 --out $@

dev/convex: dev/convex.c optim.h build/flags
	$(CC) $(FLAGS) $< -o $@ -lm

dev/federated: dev/federated.c $(TRAINER)
	$(CC) $(FLAGS) $< -o $@ $(LIBS)

# The same with clients as MPI's ranks: mpirun -n 4 dev/federated_mpi ...
dev/federated_mpi: dev/federated.c $(TRAINER) build/mpi
	OMPI_CC="$(CC)" MPICH_CC="$(CC)" $(MPICC) $(FLAGS) -DFEDERATED_MPI $< -o $@ $(LIBS)

federated_mpi: dev/federated_mpi

dev/bench/bench: dev/bench/bench.c decode_ppd.c $(TRAINER)
	$(CC) $(FLAGS) $< -o $@ $(LIBS)

dev/bench/bench_blas: dev/bench/bench.c decode_ppd.c $(TRAINER)
	$(CC) $(FLAGS) -DUSE_BLAS $< -o $@ $(LIBS) -lopenblas

# The GPU's trainer is two objects: nvcc compiles train_gpt2.cu, $(CC) compiles train_gpt2.c, which includes its host
# part (GPT2_DEVICE). The tests compile the kernels for a CPU (test/cuda_on_cpu.h). Several GPUs: make USE_NCCL=1
# USE_MPI=1 train_gpt2cu, then mpirun -n N ./train_gpt2cu --workers data
NVCC ?= nvcc
ifndef CUDA_ARCH
CUDA_ARCH := $(patsubst sm_%,%,$(filter sm_75 sm_80 sm_86 sm_89 sm_90 sm_100 sm_120,\
	$(shell $(NVCC) --list-gpu-code 2>/dev/null)))
CUDA_ARCH := $(or $(CUDA_ARCH),80)
endif
NVCC_FLAGS = -std=c++17 -O3 --extended-lambda -Xcompiler -Wall,-Wextra \
	$(foreach a,$(CUDA_ARCH),-gencode arch=compute_$(a),code=sm_$(a)) \
	-gencode arch=compute_$(lastword $(CUDA_ARCH)),code=compute_$(lastword $(CUDA_ARCH))
NVCC_LIBS = -lcublasLt $(if $(OPENMP),-lgomp) $(LIBS)
COMPILE = $(CC)
ON_GPU = $(COMPILE) $(FLAGS) -DGPT2_DEVICE='"train_gpt2.cu"'
SHIM = $(CXX)
ifneq ($(filter 1,$(USE_NCCL) $(USE_MPI)),)
NCCL = _nccl# behind the names of what is built with it
NVCC_FLAGS += -DUSE_NCCL
NVCC_LIBS += -ccbin mpicxx -lnccl
COMPILE = OMPI_CC="$(CC)" MPICH_CC="$(CC)" mpicc
ON_GPU += -DUSE_MPI -DUSE_NCCL
SHIM = OMPI_CXX="$(CXX)" MPICH_CXX="$(CXX)" mpicxx -DUSE_NCCL
endif

# train_gpt2cu has one name with and without NCCL; build/nvcc differs, so it is made anew.
NVCC_COMMAND = $(strip $(NVCC) $(NVCC_FLAGS))
$(eval $(call stamp,nvcc,NVCC_COMMAND))

build/gpu$(NCCL).o: train_gpt2.cu optim.h build/nvcc
	$(NVCC) $(NVCC_FLAGS) -c $< -o $@

build/gpu_program$(NCCL).o: $(TRAINER) train_gpt2.cu
	$(ON_GPU) -c $< -o $@

build/gpu_test$(NCCL).o: test/test_gpt2_cuda.c $(TRAINER) train_gpt2.cu test/check.h test/golden.h
	$(ON_GPU) -c $< -o $@

build/shim_test$(NCCL).o: test/test_gpt2_cuda.c $(TRAINER) train_gpt2.cu test/check.h test/golden.h
	$(ON_GPU) -DCUDA_ON_CPU -c $< -o $@

build/shim$(NCCL).o: train_gpt2.cu optim.h test/cuda_on_cpu.h
	@mkdir -p build
	$(SHIM) -std=c++17 -O2 -Wall -Wextra -Wno-unknown-pragmas -fno-strict-aliasing -fopenmp-simd \
		-DLOGITS=16384 -DCLASSIFIER_THREADS=64 -include test/cuda_on_cpu.h -x c++ -c $< -o $@

train_gpt2cu: build/gpu$(NCCL).o build/gpu_program$(NCCL).o
	$(NVCC) $^ -o $@ $(NVCC_LIBS)

test/test_gpt2_cuda_gpu: build/gpu$(NCCL).o build/gpu_test$(NCCL).o
	$(NVCC) $^ -o $@ $(NVCC_LIBS)

test/test_gpt2_cuda$(NCCL): build/shim$(NCCL).o build/shim_test$(NCCL).o
	$(COMPILE) $(OPTIMIZE) $^ -o $@ -lstdc++ $(LIBS)

test/test_train_gpt2_cuda$(NCCL): build/shim$(NCCL).o build/gpu_program$(NCCL).o
	$(COMPILE) $(OPTIMIZE) $^ -o $@ -lstdc++ $(LIBS)

test/test_gpt2: test/golden.h
test/test_files: test/readers.h
test/test_decode: decode_ppd.c
test/test_tokenizer: dev/data/tokenize.c
test/test_convex: dev/convex.c
test/test_files test/test_convex: test/caught.h test/damaged.h
test/test_files test/test_convex test/test_tokenizer: test/forked.h
test/test_federated: dev/federated.c

test/test_%: test/test_%.c test/check.h $(TRAINER)
	$(CC) $(FLAGS) $< -o $@ $(LIBS)

# From nothing to a student that a teacher has taught, and text from both.
DATA ?= dev/data/tales.txt
demo: all
	@[ -r "$(DATA)" ] || { echo "error: $(DATA) cannot be read; give a text with DATA=FILE" >&2; exit 1; }
	bash dev/demo.sh "$(DATA)"

# A picture of runs' log.csv: make plot RUNS="runs/a runs/b" [PLOT=plot.png]
plot:
	bash dev/plot.sh "$(or $(PLOT),plot.png)" $(RUNS)

# One claim of the papers, from trainings to table and picture: make study NAME=averaging [DATA=text.txt] [FULL=1].
# dev/studies/README.md lists them.
STUDIES = $(filter-out claims driver race,$(basename $(notdir $(wildcard dev/studies/*.sh))))
study: train_gpt2 dev/data/tales.txt
	@[ "$(if $(word 2,$(NAME)),,$(filter $(STUDIES),$(NAME)))" ] || { echo "error: NAME is one of" $(STUDIES) >&2; exit 2; }
	bash dev/studies/$(NAME).sh

# An optimizer against all others: make race ENTRY="--optimizer gpa --lr 8e-3" NAME=mine STEPS=800 [TRACK=tales].
# Some systems have a NAME of their own in the environment.
race: train_gpt2 dev/data/tales.txt
	@NAME='$(if $(findstring command,$(origin NAME)),$(NAME))' bash dev/studies/race.sh

# Every check, in a few minutes; with FULL=1 those that take longer too. test/run.sh says what runs.
test:
	@$(MAKE) -s -j2 all $(TESTS) dev/convex dev/data/tokenize dev/federated
	@CC="$(CC)" FLAGS="$(FLAGS)" LIBS="$(LIBS)" bash test/run.sh

test-full:
	@$(MAKE) --no-print-directory test FULL=1

# README's table of speed, for this machine.
bench: dev/bench/bench
	bash dev/bench/bench.sh

clean:
	rm -rf build train_gpt2 train_gpt2_mpi train_gpt2cu decode_ppd dev/data/tales dev/data/tales.txt \
		dev/data/tokenize dev/convex dev/federated dev/federated_mpi dev/bench/bench dev/bench/bench_blas $(TESTS) \
		test/test_gpt2_cuda test/test_gpt2_cuda_nccl test/test_gpt2_cuda_gpu \
		test/test_train_gpt2_cuda test/test_train_gpt2_cuda_nccl

.PHONY: all federated_mpi demo plot study race test test-full bench clean
