/* fuzz.c - libFuzzer harnesses: see .ci/fuzz. The name under which the program is started chooses the target.
 *
 * median.c is compiled in, so that what is static can be reached; files, standard input and memory are replaced. */
#include <stdio.h>
#include <stdlib.h>

static FILE *open_input(const char *path, const char *mode);
static void *limited_calloc(size_t n, size_t size);
static void *limited_realloc(void *memory, size_t size);
static int no_rename(const char *from, const char *to);
static FILE *input;

#undef stdin
#define stdin input
#define fopen open_input
#define calloc limited_calloc
#define realloc limited_realloc
#define rename no_rename
#define main median_main
#include "../median.c"
#undef main
#undef fopen
#undef calloc
#undef realloc
#undef rename

int run_tests(size_t count, const char *const *names) { return (int)count * !names; }
const char *check_golden(void (*tell)(void *, const char *, const char *, const char *), void *context) { return tell && context ? NULL : ""; }

/* ---- What is replaced ---- */

static const unsigned char *file_bytes;
static size_t file_size;
static FILE *saved; /* where trainer_save writes to, once */

static FILE *open_input(const char *path, const char *mode) {
    if (*mode != 'r') { /* nothing that is read may make the program write to another file than it was told to */
        FILE *f = saved;
        if (!saved || strcmp(path, "output.tmp") != 0) abort();
        saved = NULL;
        return f;
    }
    return fmemopen((void *)file_bytes, file_size, "rb");
}

static int no_rename(const char *from, const char *to) { return !(strcmp(from, "output.tmp") == 0 && strcmp(to, "output") == 0); }

#define MEMORY_LIMIT ((size_t)1 << 21)
static void *limited_calloc(size_t n, size_t size) { return n * size > MEMORY_LIMIT ? NULL : calloc(n, size); }
static void *limited_realloc(void *memory, size_t size) { return size > MEMORY_LIMIT ? NULL : realloc(memory, size); }

/* ---- The targets ---- */

#define MUST(what) ((what) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what), abort()))

static void must_be_one_line(const Error *error) {
    MUST(error->text[0] && memchr(error->text, 0, sizeof error->text));
    for (const char *at = error->text; *at; at++) MUST((unsigned char)*at >= 32 && *at != 127);
}

/* A file around the input: a header of the right length, as many bytes as its tensors need, the input's over and over. */
static void make_file(Text *file, const unsigned char *data, size_t size) {
    const unsigned char *zero = (const unsigned char *)memchr(data, 0, size);
    const size_t header = zero ? (size_t)(zero - data) : size, rest = zero ? size - header - 1 : 0;
    size_t bytes = rest;
    Checkpoint read;
    memset(&read, 0, sizeof read);
    text_bytes(&read.header, data, header);
    if (header && read_header(&read) && read.data_size <= 100000) bytes = read.data_size;
    text_free(&read.header);
    free(read.tensors);
    add_word(file, (uint32_t)header);
    add_word(file, 0);
    if (header) text_bytes(file, data, header);
    for (size_t i = 0; i < bytes; i++) text_bytes(file, rest ? &zero[1 + i % rest] : (const void *)"", 1);
}

static void use_file(const Text *file) { file_bytes = (const unsigned char *)file->data, file_size = file->size; }

/* What was read can be written and read again. */
static void load_and_save(void) {
    Model model, again;
    Error error = {0};
    Text file = {0};
    if (!model_load(&model, "input", NORMALIZATION_FROM_FILE, &error)) {
        must_be_one_line(&error);
        return;
    }
    checkpoint_text(&file, &model);
    MUST(!file.failed);
    use_file(&file);
    MUST(model_load(&again, "input", model.config.normalization, &error));
    MUST(again.n_params == model.n_params && hash_model(&again) == hash_model(&model) && again.n_notes == model.n_notes);
    model_free(&model);
    model_free(&again);
    text_free(&file);
}

static void load_state(void) {
    Trainer t, again;
    Error error = {0};
    char *bytes = NULL;
    size_t size = 0;
    if (!trainer_resume(&t, "input", &error)) {
        must_be_one_line(&error);
        return;
    }
    if (t.step < t.total_steps) trainer_step(&t);
    saved = open_memstream(&bytes, &size);
    if (trainer_save(&t, "output", &error)) { /* the step may have diverged, and memory is limited */
        file_bytes = (const unsigned char *)bytes, file_size = size;
        MUST(trainer_resume(&again, "input", &error));
        MUST(again.step == t.step && again.total_steps == t.total_steps && hash_model(&again.v) == hash_model(&t.v));
        MUST(again.data.next == t.data.next && again.order_mt.next == t.order_mt.next);
        trainer_free(&again);
    } else must_be_one_line(&error);
    if (saved) fclose(saved);
    saved = NULL;
    free(bytes);
    trainer_free(&t);
}

static int run(const char *line) {
    char copy[200], *argv[20];
    int argc = 0;
    Text out = {0};
    Error error = {0};
    snprintf(copy, sizeof copy, "median %s", line);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    const Streams streams = {input, NULL, NULL};
    const int done = median_command(argc, argv, &streams, &out, &error);
    if (!done) must_be_one_line(&error);
    text_free(&out);
    return done;
}

static void look_at_model(unsigned char choice) {
    static const char *const lines[] = {
        "info", "eval --size 20", "predict --logits 0 1 0", "predict 1 0 1", "attention --size 5", "attention --size 5 --color 1 1 0",
        "circuits qk", "circuits ov", "circuits qk --raw --csv", "circuits ov --key-pos 0", "circuits qk --query-pos 2 --key-pos 1", "weights",
        "weights --csv", "ablate --size 10", "ablate --size 5 --kind resample --csv --layer 0", "ablate --size 5 --kind zero --head 0.0 --positions 0,1",
        "attribute", "attribute --csv", "patch", "patch --csv", "explain --size 20", "explain --size 10 --csv", "tour --size 10", "activations 1 0 1",
        "activations --csv"};
    run(lines[choice % (sizeof lines / sizeof *lines)]);
}

static void read_lists(const unsigned char *data, size_t size) {
    static Text model_file;
    if (!model_file.size) {
        const Config c = {300, 5, 4, 2, 1, 1, 0, 1};
        Model model;
        Mt19937 mt;
        Error error;
        MUST(model_create(&model, &c, &error));
        mt_seed(&mt, 1);
        model_init(&model, &mt);
        checkpoint_text(&model_file, &model);
        model_free(&model);
    }
    use_file(&model_file);
    input = size ? fmemopen((void *)data, size, "rb") : fopen("/dev/null", "rb");
    run("predict");
    fclose(input);
}

/* As median_command does, but for running it. */
static void parse_arguments(const unsigned char *data, size_t size) {
    char *text = (char *)malloc(size + 8), *argv[64] = {text};
    int argc = 1;
    Error error = {0};
    Session s;
    Report out;
    memset(&s, 0, sizeof s), memset(&out, 0, sizeof out);
    s.error = &error;
    MUST(text);
    strcpy(text, "median");
    memcpy(text + 7, data, size);
    text[7 + size] = 0;
    for (char *at = text + 7; argc < 64; at++) {
        argv[argc++] = at;
        at = strchr(at, '\n');
        if (!at) break;
        *at = 0;
    }
    const Command *command = find_command(argc > 1 && strncmp(argv[1], "--", 2) != 0 ? argv[1] : "", &error);
    if (!command || !parse_options(&s, command, argc, argv)) MUST(error.usage && error.text[0]);
    else {
        command_help(command, &out);
        for (size_t i = 0; i < n_settings; i++) { /* each setting can be printed and read again */
            char value[40], again[40];
            Settings copy = s.opt.settings;
            setting_print(&settings[i], &s.opt.settings, value, sizeof value);
            MUST(setting_parse(&settings[i], &copy, value, &error));
            setting_print(&settings[i], &copy, again, sizeof again);
            MUST(strcmp(value, again) == 0);
        }
    }
    text_free(&out.text);
    free(text);
}

static enum {
    CHECKPOINT, /* the input is a file, loaded as a model */
    HEADER,     /* the input is a header, up to a zero byte, and data: length and size are made to fit */
    STATE,      /* the same, as the state of a training, which then goes on for a step */
    COMMANDS,   /* the first byte chooses a command that looks at the model, the rest is as in HEADER */
    LISTS,      /* the input is what `predict` reads from standard input */
    ARGUMENTS   /* the input is a command line, an argument a line */
} target;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const char *slash = strrchr((*argv)[0], '/');
    target = choice_index("checkpoint|header|state|commands|lists|arguments", slash ? slash + 1 : (*argv)[0]);
    MUST(*argc > 0 && target <= ARGUMENTS);
    return 0;
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    Text file = {0};
    unsigned char choice = 0;
    if (target == COMMANDS && size) choice = *data++, size--;
    if (target == LISTS) return read_lists(data, size), 0;
    if (target == ARGUMENTS) return parse_arguments(data, size), 0;
    if (target == CHECKPOINT) text_bytes(&file, data, size);
    else make_file(&file, data, size);
    use_file(&file);
    if (file.size == 0 || file.failed) return text_free(&file), 0;
    if (target == STATE) load_state();
    else if (target == COMMANDS) look_at_model(choice);
    else load_and_save();
    text_free(&file);
    return 0;
}
