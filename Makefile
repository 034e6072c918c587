# `make` builds, `make demo` shows everything in five minutes, `make test` checks it. README.md says more.
#
#   CC=clang        another compiler
#   ARCH=generic    for every machine of this kind, not just for this one (native)
#   BLAS=1          matrix products by the installed OpenBLAS instead of ours
#   OPENMP=         one thread

ifeq ($(origin CC),default)
CC := $(if $(shell command -v gcc),gcc,cc)
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
ifdef BLAS
FLAGS += -DUSE_BLAS
LIBS += -lopenblas
endif
TRAINER = train_gpt2.c optim.h dev/unicode_tables.h
TESTS = test/test_gpt2 test/test_optim test/test_tokenizer test/test_files test/test_decode

all: train_gpt2 decode_ppd dev/data/tales.txt

train_gpt2: $(TRAINER)
	$(CC) $(FLAGS) $< -o $@ $(LIBS)

decode_ppd: decode_ppd.c $(TRAINER)
	$(CC) $(FLAGS) $< -o $@ $(LIBS)

dev/data/tales: dev/data/tales.c
	$(CC) $(WARNINGS) -O2 $< -o $@ -lm

dev/data/tales.txt: dev/data/tales
	dev/data/tales --bytes 2000000 --out $@

dev/convex: dev/convex.c optim.h
	$(CC) $(FLAGS) $< -o $@ -lm

dev/bench/bench: dev/bench/bench.c $(TRAINER)
	$(CC) $(FLAGS) $< -o $@ $(LIBS)

dev/bench/bench_blas: dev/bench/bench.c $(TRAINER)
	$(CC) $(FLAGS) -DUSE_BLAS $< -o $@ $(LIBS) -lopenblas

test/test_decode: decode_ppd.c

test/test_%: test/test_%.c test/check.h $(TRAINER)
	$(CC) $(FLAGS) $< -o $@ $(LIBS)

# From nothing to a student that a teacher has taught, and text from both.
DATA ?= dev/data/tales.txt
demo: all
	bash dev/demo.sh $(DATA)

# A picture of runs' log.csv: make plot RUNS="runs/a runs/b" [PLOT=plot.png]
plot:
	bash dev/plot.sh $(or $(PLOT),plot.png) $(RUNS)

# Every check, in a few minutes; with FULL=1 those that take longer too. test/run.sh says what runs.
test: all $(TESTS) dev/convex
	CC="$(CC)" FLAGS="$(FLAGS)" LIBS="$(LIBS)" bash test/run.sh

test-full: all $(TESTS) dev/convex
	FULL=1 CC="$(CC)" FLAGS="$(FLAGS)" LIBS="$(LIBS)" bash test/run.sh

# README's table of speed, for this machine.
bench: dev/bench/bench
	bash dev/bench/bench.sh

clean:
	rm -rf build train_gpt2 decode_ppd dev/data/tales dev/data/tales.txt dev/convex dev/bench/bench dev/bench/bench_blas $(TESTS)

.PHONY: all demo plot test test-full bench clean
