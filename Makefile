# make            builds ./median
# make test       builds and runs the tests
# make install    PREFIX=/usr/local DESTDIR=
# Every flag here is about speed or comfort. `cc *.c -lm` builds the same program, and both compute the same bits.

CC     = cc
CFLAGS = -O3
PREFIX = /usr/local

# What this compiler offers: does `$(CC) FLAG` compile an empty program?
offers = $(shell echo 'int main(void){return 0;}' > .try.c && $(CC) -Werror $(1) .try.c -o .try >/dev/null 2>&1 && echo $(1); rm -f .try .try.c)
EXTRA := $(call offers,-march=native) $(call offers,-fopenmp) $(call offers,-fno-math-errno)

SOURCES = median.c tensor.c test_median.c
HEADERS = median.h tensor.h

BUILD   = $(CC) $(CFLAGS) $(EXTRA) $(CPPFLAGS) $(SOURCES) $(LDFLAGS) -lm

median: $(SOURCES) $(HEADERS) Makefile
	$(BUILD) -o $@

test: median
	./median test

# The manual page is what the program says about itself.
PAGE = sed 's/\\/\\\\/g; s/-/\\-/g; s/^[.]/\\\&./'
COMMANDS = $$(./median --help | sed -n "s/^  \([a-z][a-z]*\) .*/\1/p")

median.1: median
	{ printf '.TH MEDIAN 1\n.SH NAME\nmedian \\- a small transformer that finds the median of a list\n.SH SYNOPSIS\n.nf\n'; \
	  ./median --help | $(PAGE); printf '.fi\n'; \
	  for c in $(COMMANDS); do printf '.SH %s\n.nf\n' $$c; ./median $$c --help | $(PAGE); printf '.fi\n'; done; } > $@

# Installed, the program finds its checkpoint from any folder.
install: median median.1
	mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/median
	$(BUILD) -DMEDIAN_MODEL='"$(PREFIX)/share/median/median.safetensors"' -o $(DESTDIR)$(PREFIX)/bin/median
	cp median.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	cp median.safetensors $(DESTDIR)$(PREFIX)/share/median/

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/median $(DESTDIR)$(PREFIX)/share/man/man1/median.1
	rm -f $(DESTDIR)$(PREFIX)/share/median/median.safetensors
	-rmdir $(DESTDIR)$(PREFIX)/share/median

clean:
	rm -f median median.exe median.1 a.out

.PHONY: test install uninstall clean
