# train_gpt2: `make` builds, `make demo` shows everything, `make test` checks it. README.md says more.
#
#   CC=clang        another compiler
#   ARCH=generic    for any machine of this kind, not just this one (native)
#   BLAS=1          matrix products by an installed BLAS (OpenBLAS) instead of ours
#   OPENMP=         without threads

CC ?= gcc
ARCH ?= native
DEFAULT_CC := $(if $(filter default,$(origin CC)),$(if $(shell command -v gcc),gcc,cc),$(CC))
override CC := $(DEFAULT_CC)

works = $(shell echo 'int main(void){return 0;}' | $(CC) $(1) -x c - -o /dev/null 2>/dev/null && echo '$(1)')
OPENMP := $(call works,-fopenmp)
NATIVE := $(if $(filter native,$(ARCH)),$(firstword $(call works,-march=native) $(call works,-mcpu=native)),$(if $(filter-out generic,$(ARCH)),-march=$(ARCH)))
WIDE := $(if $(NATIVE),$(call works,-mprefer-vector-width=512))

CFLAGS ?= -O3
ALL_CFLAGS = -std=gnu11 -Wall -Wextra $(CFLAGS) -fno-math-errno -fno-trapping-math $(NATIVE) $(WIDE) $(OPENMP)
LDLIBS = -lm
ifdef BLAS
ALL_CFLAGS += -DUSE_BLAS
LDLIBS += -lopenblas
endif

TRAINER = train_gpt2.c optim.h dev/unicode_tables.h

all: train_gpt2 dev/data/tales.txt

train_gpt2: $(TRAINER)
	$(CC) $(ALL_CFLAGS) $< -o $@ $(LDLIBS)

dev/data/tales: dev/data/tales.c
	$(CC) $(ALL_CFLAGS) $< -o $@ $(LDLIBS)

dev/data/tales.txt: dev/data/tales
	dev/data/tales --bytes 2000000 --out $@

.PHONY: all
