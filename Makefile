# make            builds ./median
# make test       builds it and runs the tests; the last line is `N passed, N failed`
# make exercise   F=layernorm_backward: folder exercise/ with everything in it but that function's body
# make install    PREFIX=/usr/local DESTDIR=
# make uninstall, make clean
# Every flag here is about speed or comfort. `cc *.c -lm` builds the same program, and both compute the same bits.
# For GNU make, BSD make and others.

CC       = cc
CFLAGS   = -O3
# Named, for BSD make sends the compiler away from its headers where DESTDIR is given.
CPPFLAGS =
LDFLAGS  =
# The compiler is given those that it knows. For another machine than this one: make CC=aarch64-linux-gnu-gcc EXTRA=
EXTRA    = -march=native -fopenmp -fno-math-errno
PREFIX   = /usr/local
EXE      =

SOURCES = median.c tensor.c test_median.c
HEADERS = median.h tensor.h
PROGRAM = median$(EXE)

# Where there is no ./median.safetensors, the program takes the one that `make install` puts there.
BIN   = $(PREFIX)/bin
MAN   = $(PREFIX)/share/man/man1
SHARE = $(PREFIX)/share/median
BUILD = $(CC) $(CFLAGS) $(CPPFLAGS) -DMEDIAN_MODEL_INSTALLED='"$(SHARE)/median.safetensors"'

$(PROGRAM): $(SOURCES) $(HEADERS) Makefile .command
	@echo 'int main(void) { return 0; }' > .try.c; extra=; \
	for flag in $(EXTRA); do \
	    if $(CC) -Werror $$flag .try.c -o .try$(EXE) > /dev/null 2>&1; then extra="$$extra $$flag"; fi; \
	done; \
	rm -f .try .try.exe .try.c; set -x; \
	$(BUILD) $$extra $(SOURCES) $(LDFLAGS) -lm -o $@

# Holds the command of the last build: with another one, the program is built anew.
.command: FORCE
	@echo '$(BUILD) $(EXTRA) $(LDFLAGS)' > $@.new; \
	if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi
FORCE:

test: $(PROGRAM)
	./$(PROGRAM) test

# The suite that any sound implementation passes, whatever its bits.
math: $(PROGRAM)
	./$(PROGRAM) test math

# F="one two" empties several. The function then does nothing and returns 0; so do helpers of its name, as
# layernorm_backward_row. The comment above goes, which tells the answer, if there is another in the header.
EMPTY = \
    BEGIN { name = f "(_[a-z_]*)?\\(" } \
    !body && $$0 ~ "^[A-Za-z][^({]*[ *]" name { \
        head = ""; reading = 1; \
        if (!/^static|^TENSOR_INLINE/ || !index($$0, f "(")) comment = ""; \
    } \
    /^\/\*/ { held = 1 } \
    held { comment = comment $$0 "\n"; if (/\*\/ *$$/) held = 0; next } \
    { printf "%s", comment; comment = "" } \
    body { if (/^}/) body = 0; else next } \
    { print } \
    reading { \
        head = head " " $$0; \
        if (/[;}]$$/) reading = 0; \
        if (!/{$$/) next; \
        reading = 0; body = 1; \
        type = head; sub(name ".*", "", type); gsub(/static|inline|[A-Z][A-Z_]+ /, "", type); \
        gsub(/^ +| +$$/, "", type); \
        sub("^.*" name, "", head); sub(/\).*/, "", head); \
        print "    /* Yours: see the comment in the header, or above. */"; \
        n = split(head, part, ","); \
        for (i = 1; i <= n; i++) { \
            gsub(/\[.*/, "", part[i]); \
            if (match(part[i], /[A-Za-z_0-9]+ *$$/) && part[i] !~ /^ *void *$$/) \
                print "    (void)" substr(part[i], RSTART) ";"; \
        } \
        if (type != "void") print "    return (" type "){0};"; \
    }

exercise:
	@test -n "$(F)" || { echo "say which function: make exercise F=layernorm_backward"; exit 2; }
	@test ! -e $@ || { echo "$@ is there: move or remove it first"; exit 1; }
	@mkdir $@ && cp Makefile LICENSE median.safetensors $(SOURCES) $(HEADERS) $@ && \
	for f in $(F); do \
	    found=; \
	    for c in tensor.c median.c; do \
	        awk -v f=$$f '$(EMPTY)' $@/$$c > $@/new || exit 1; \
	        cmp -s $@/new $@/$$c || found=1; \
	        mv $@/new $@/$$c; \
	    done; \
	    test -n "$$found" || { rm -r $@; echo "there is no function $$f"; exit 1; }; \
	done; \
	echo "in $@/, look for Yours. It is done when this passes: make -C $@ math"

# The manual page is what the program says about itself, so it takes one that runs on this machine.
PAGE = sed 's/\\/\\\\/g; s/-/\\-/g; s/^[.]/\\\&./'

median.1: $(PROGRAM)
	@rm -f $@; \
	if ./$(PROGRAM) --help > .help 2> /dev/null; then { \
	    printf '.TH MEDIAN 1\n.SH NAME\nmedian \\- a small transformer that finds the median of a list\n'; \
	    printf '.SH SYNOPSIS\n.nf\n'; $(PAGE) .help; printf '.fi\n'; \
	    for c in `sed -n 's/^  \([a-z][a-z]*\) .*/\1/p' .help`; do \
	        printf '.SH %s\n.nf\n' $$c; ./$(PROGRAM) $$c --help | $(PAGE); printf '.fi\n'; \
	    done; \
	    printf '.SH EXAMPLES\n.nf\nmedian predict 41 46 16 47 30 12 27\nmedian data \\-\\-size 5 | median predict\n'; \
	    printf 'median tour | less \\-R\nmedian train \\-\\-seed 2 \\-\\-out two.safetensors\n'; \
	    printf 'median certify \\-\\-model two.safetensors\n.fi\n.SH FILES\n.nf\n'; \
	    printf './median.safetensors\n%s/median.safetensors\n.fi\n' '$(SHARE)'; } > $@; \
	else echo "./$(PROGRAM) does not run on this machine: there will be no manual page"; fi; \
	rm -f .help

# umask and chmod: everybody may use what is installed, whatever the mask of who installs it.
install: $(PROGRAM) median.1
	umask 022 && mkdir -p "$(DESTDIR)$(BIN)" "$(DESTDIR)$(MAN)" "$(DESTDIR)$(SHARE)"
	cp $(PROGRAM) "$(DESTDIR)$(BIN)/$(PROGRAM)" && chmod 755 "$(DESTDIR)$(BIN)/$(PROGRAM)"
	cp median.safetensors "$(DESTDIR)$(SHARE)/" && chmod 644 "$(DESTDIR)$(SHARE)/median.safetensors"
	if test -f median.1; then cp median.1 "$(DESTDIR)$(MAN)/" && chmod 644 "$(DESTDIR)$(MAN)/median.1"; fi

uninstall:
	rm -f "$(DESTDIR)$(BIN)/$(PROGRAM)" "$(DESTDIR)$(MAN)/median.1" "$(DESTDIR)$(SHARE)/median.safetensors"
	-rmdir "$(DESTDIR)$(SHARE)"

clean:
	rm -f median median.exe median.1 a.out .command

.PHONY: test math exercise install uninstall clean
