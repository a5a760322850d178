#include "cri/toml.h"

#include <limits.h>
#include <string.h>

#include "base/buf.h"
#include "base/limits.h"

struct parser {
    const char *p, *end;
    int line;
    struct toml_doc *doc;
    size_t n_keys;  /* in the whole document */
    size_t n_items; /* array items in the whole document */
    struct err *err;
};

static int fail(struct parser *ps, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int fail(struct parser *ps, const char *fmt, ...)
{
    va_list ap;
    char text[512];

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return err_set(ps->err, ERR_INVALID, "line %d: %s", ps->line, text);
}

static int peek(const struct parser *ps)
{
    return ps->p < ps->end ? (unsigned char)*ps->p : -1;
}

static int peek_at(const struct parser *ps, size_t i)
{
    return (size_t)(ps->end - ps->p) > i ? (unsigned char)ps->p[i] : -1;
}

/* Control characters other than tab may appear nowhere but as line ends. */
static bool is_control(int c)
{
    return (c >= 0 && c < 0x20 && c != '\t') || c == 0x7f;
}

static bool is_bare(int c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
}

static void skip_blanks(struct parser *ps)
{
    while (peek(ps) == ' ' || peek(ps) == '\t')
        ps->p++;
}

static bool at_newline(const struct parser *ps)
{
    return peek(ps) == '\n' || (peek(ps) == '\r' && peek_at(ps, 1) == '\n');
}

static void eat_newline(struct parser *ps)
{
    ps->p += peek(ps) == '\r' ? 2 : 1;
    ps->line++;
}

static int skip_comment(struct parser *ps)
{
    if (peek(ps) != '#')
        return 0;
    while (ps->p < ps->end && !at_newline(ps)) {
        if (is_control(peek(ps)))
            return fail(ps, "control character 0x%02x in a comment", (unsigned)peek(ps));
        ps->p++;
    }
    return 0;
}

/* Blanks and a comment up to the end of the line, which must follow. */
static int end_of_line(struct parser *ps)
{
    skip_blanks(ps);
    if (skip_comment(ps) < 0)
        return -1;
    if (ps->p == ps->end)
        return 0;
    if (!at_newline(ps))
        return fail(ps, "unexpected text at the end of the line");
    eat_newline(ps);
    return 0;
}

/* Blanks, comments and line ends, as between the items of an array. */
static int skip_space(struct parser *ps)
{
    for (;;) {
        skip_blanks(ps);
        if (skip_comment(ps) < 0)
            return -1;
        if (ps->p == ps->end || !at_newline(ps))
            return 0;
        eat_newline(ps);
    }
}

static int put_utf8(struct buf *out, uint32_t cp)
{
    char b[4];
    size_t n;

    if (cp < 0x80) {
        b[0] = (char)cp;
        n = 1;
    } else if (cp < 0x800) {
        b[0] = (char)(0xc0 | (cp >> 6));
        b[1] = (char)(0x80 | (cp & 0x3f));
        n = 2;
    } else if (cp < 0x10000) {
        b[0] = (char)(0xe0 | (cp >> 12));
        b[1] = (char)(0x80 | ((cp >> 6) & 0x3f));
        b[2] = (char)(0x80 | (cp & 0x3f));
        n = 3;
    } else {
        b[0] = (char)(0xf0 | (cp >> 18));
        b[1] = (char)(0x80 | ((cp >> 12) & 0x3f));
        b[2] = (char)(0x80 | ((cp >> 6) & 0x3f));
        b[3] = (char)(0x80 | (cp & 0x3f));
        n = 4;
    }
    return buf_append(out, b, n);
}

/* \uXXXX (4 digits) or \UXXXXXXXX (8); the letter is already eaten. */
static int parse_unicode(struct parser *ps, int digits, struct buf *out)
{
    uint32_t cp = 0;

    for (int i = 0; i < digits; i++) {
        int d = str_hex_digit(peek(ps));

        if (d < 0)
            return fail(ps, "bad unicode escape: %d hex digits expected", digits);
        cp = cp << 4 | (uint32_t)d;
        ps->p++;
    }
    if (cp == 0 || cp > 0x10ffff || (cp >= 0xd800 && cp <= 0xdfff))
        return fail(ps, "unicode escape of something that is not a usable character");
    return put_utf8(out, cp);
}

static int parse_escape(struct parser *ps, struct buf *out)
{
    int c = peek(ps);

    if (c < 0)
        return fail(ps, "unterminated string");
    ps->p++;
    switch (c) {
    case 'b':
        return buf_putc(out, '\b');
    case 't':
        return buf_putc(out, '\t');
    case 'n':
        return buf_putc(out, '\n');
    case 'f':
        return buf_putc(out, '\f');
    case 'r':
        return buf_putc(out, '\r');
    case '"':
    case '\\':
        return buf_putc(out, (char)c);
    case 'u':
        return parse_unicode(ps, 4, out);
    case 'U':
        return parse_unicode(ps, 8, out);
    default:
        return fail(ps, "unknown escape in a string");
    }
}

static int parse_string(struct parser *ps, char **out)
{
    auto_buf struct buf text = BUF_INIT(LIMIT_TOML);
    int quote = peek(ps);

    if (peek_at(ps, 1) == quote && peek_at(ps, 2) == quote)
        return fail(ps, "multi-line strings are not supported");
    ps->p++;
    for (;;) {
        int c = peek(ps);

        if (c < 0 || c == '\n' || c == '\r')
            return fail(ps, "unterminated string");
        if (is_control(c))
            return fail(ps, "control character 0x%02x in a string", (unsigned)c);
        ps->p++;
        if (c == quote)
            break;
        if (c == '\\' && quote == '"') {
            if (parse_escape(ps, &text) < 0)
                return -1;
        } else {
            (void)buf_putc(&text, (char)c);
        }
    }
    if (!buf_ok(&text))
        return fail(ps, "string too long");
    *out = xstrndup(buf_str(&text), text.len);
    return 0;
}

/* A dotted name: its parts are appended to *path. */
static int parse_name(struct parser *ps, struct strv *path)
{
    for (;;) {
        auto_free char *part = NULL;

        skip_blanks(ps);
        if (peek(ps) == '"' || peek(ps) == '\'') {
            if (parse_string(ps, &part) < 0)
                return -1;
        } else {
            const char *from = ps->p;

            while (is_bare(peek(ps)))
                ps->p++;
            if (ps->p == from)
                return fail(ps, "name expected");
            part = xstrndup(from, (size_t)(ps->p - from));
        }
        if (path->n >= LIMIT_TOML_DEPTH)
            return fail(ps, "name with more than %d parts", LIMIT_TOML_DEPTH);
        strv_add(path, part);
        skip_blanks(ps);
        if (peek(ps) != '.')
            return 0;
        ps->p++;
    }
}

static void value_clear(struct toml_value *v)
{
    for (size_t i = 0; i < v->n_items; i++)
        value_clear(&v->items[i]);
    free(v->items);
    free(v->str);
    *v = (struct toml_value){0};
}

static int parse_value(struct parser *ps, struct toml_value *v, int depth);

static int parse_array(struct parser *ps, struct toml_value *v, int depth)
{
    v->type = TOML_ARRAY;
    if (depth >= LIMIT_TOML_DEPTH)
        return fail(ps, "arrays nested deeper than %d", LIMIT_TOML_DEPTH);
    ps->p++;
    for (;;) {
        struct toml_value *item;

        if (skip_space(ps) < 0)
            return -1;
        if (peek(ps) == ']')
            break;
        if (peek(ps) < 0)
            return fail(ps, "unterminated array");
        if (++ps->n_items > LIMIT_TOML_KEYS)
            return fail(ps, "more than %d array items", LIMIT_TOML_KEYS);
        if ((v->n_items & (v->n_items - 1)) == 0)
            v->items = xrealloc(v->items, v->n_items ? v->n_items * 2 : 1, sizeof(*v->items));
        item = &v->items[v->n_items++];
        *item = (struct toml_value){0};
        if (parse_value(ps, item, depth + 1) < 0)
            return -1;
        if (item->type != v->items[0].type)
            return fail(ps, "array items must all have one type");
        if (skip_space(ps) < 0)
            return -1;
        if (peek(ps) == ',')
            ps->p++;
        else if (peek(ps) != ']')
            return fail(ps, "',' or ']' expected in an array");
    }
    ps->p++;
    return 0;
}

/* The digits of `base`, with single underscores between them, until something else. */
static int parse_digits(struct parser *ps, unsigned base, uint64_t *out)
{
    bool last_digit = false;
    uint64_t n = 0;

    for (;; ps->p++) {
        int c = peek(ps);
        int d = str_hex_digit(c);

        if (c == '_' && last_digit) {
            last_digit = false;
            continue;
        }
        if (d < 0 || (unsigned)d >= base)
            break;
        if (__builtin_mul_overflow(n, (uint64_t)base, &n) ||
            __builtin_add_overflow(n, (uint64_t)d, &n))
            return fail(ps, "integer out of range");
        last_digit = true;
    }
    if (!last_digit)
        return fail(ps, "malformed number");
    *out = n;
    return 0;
}

static int parse_integer(struct parser *ps, struct toml_value *v)
{
    bool negative = false, sign = false;
    unsigned base = 10;
    uint64_t n = 0;
    int c = peek(ps);

    v->type = TOML_INTEGER;
    if (c == '+' || c == '-') {
        sign = true;
        negative = c == '-';
        ps->p++;
    }
    if (peek(ps) == '0') {
        c = peek_at(ps, 1);
        if (c == 'x' || c == 'o' || c == 'b') {
            base = c == 'x' ? 16 : c == 'o' ? 8 : 2;
            if (sign)
                return fail(ps, "malformed number: no sign goes before 0%c", c);
            ps->p += 2;
        } else if ((c >= '0' && c <= '9') || c == '_') {
            return fail(ps, "malformed number: leading zero");
        }
    }
    if (parse_digits(ps, base, &n) < 0)
        return -1;
    c = peek(ps);
    if (base == 10 && (c == '.' || c == 'e' || c == 'E'))
        return fail(ps, "floating-point numbers are not supported");
    if (base == 10 && (c == '-' || c == ':'))
        return fail(ps, "dates and times are not supported");
    if (is_bare(c))
        return fail(ps, "malformed number");
    if (n > (uint64_t)INT64_MAX + (negative ? 1 : 0))
        return fail(ps, "integer out of range");
    if (!negative)
        v->num = (int64_t)n;
    else
        v->num = n == 0 ? 0 : -(int64_t)(n - 1) - 1;
    return 0;
}

static bool eat_word(struct parser *ps, const char *word)
{
    size_t n = strlen(word);

    if ((size_t)(ps->end - ps->p) < n || memcmp(ps->p, word, n) != 0 || is_bare(peek_at(ps, n)))
        return false;
    ps->p += n;
    return true;
}

static int parse_value(struct parser *ps, struct toml_value *v, int depth)
{
    int c = peek(ps);

    v->line = ps->line;
    if (c == '"' || c == '\'') {
        v->type = TOML_STRING;
        return parse_string(ps, &v->str);
    }
    if (c == '[')
        return parse_array(ps, v, depth);
    if (c == '{')
        return fail(ps, "inline tables are not supported; use [a.b]");
    if (eat_word(ps, "true") || eat_word(ps, "false")) {
        v->type = TOML_BOOL;
        v->num = ps->p[-2] == 'u';
        return 0;
    }
    if (eat_word(ps, "inf") || eat_word(ps, "nan"))
        return fail(ps, "floating-point numbers are not supported");
    if ((c >= '0' && c <= '9') || c == '+' || c == '-')
        return parse_integer(ps, v);
    return fail(ps, "value expected");
}

static bool path_equal(const struct strv *a, const char *const *b, size_t n)
{
    if (a->n != n)
        return false;
    for (size_t i = 0; i < n; i++)
        if (strcmp(a->v[i], b[i]) != 0)
            return false;
    return true;
}

static struct toml_table *find_table(struct toml_doc *doc, const struct strv *path)
{
    for (size_t i = 0; i < doc->n_tables; i++)
        if (path_equal(&doc->tables[i].path, (const char *const *)path->v, path->n))
            return &doc->tables[i];
    return NULL;
}

/* Moves *path in. */
static struct toml_table *add_table(struct parser *ps, struct strv *path)
{
    struct toml_doc *doc = ps->doc;
    struct toml_table *t;

    if (doc->n_tables >= LIMIT_TOML_TABLES) {
        (void)fail(ps, "more than %d tables", LIMIT_TOML_TABLES);
        return NULL;
    }
    if ((doc->n_tables & (doc->n_tables - 1)) == 0)
        doc->tables =
            xrealloc(doc->tables, doc->n_tables ? doc->n_tables * 2 : 1, sizeof(*doc->tables));
    t = &doc->tables[doc->n_tables++];
    *t = (struct toml_table){.path = *path, .line = ps->line};
    *path = (struct strv){0};
    return t;
}

/* A name cannot be a value and a table: refuses a path one of whose prefixes is a key, and a key
 * that is a prefix of a table. */
static int check_path_free(struct parser *ps, const struct strv *path)
{
    for (size_t i = 0; i < ps->doc->n_tables; i++) {
        const struct toml_table *t = &ps->doc->tables[i];

        if (t->path.n >= path->n || !path_equal(&t->path, (const char *const *)path->v, t->path.n))
            continue;
        if (toml_get(t, path->v[t->path.n]) != NULL)
            return fail(ps, "\"%.64s\" is already a value, not a table", path->v[t->path.n]);
    }
    return 0;
}

static int check_key_free(struct parser *ps, const struct toml_table *t, const char *name)
{
    if (toml_get(t, name) != NULL)
        return fail(ps, "key \"%.64s\" is given twice", name);
    for (size_t i = 0; i < ps->doc->n_tables; i++) {
        const struct strv *p = &ps->doc->tables[i].path;

        if (p->n > t->path.n && strcmp(p->v[t->path.n], name) == 0 &&
            path_equal(&t->path, (const char *const *)p->v, t->path.n))
            return fail(ps, "\"%.64s\" is already a table, not a value", name);
    }
    return 0;
}

static int parse_header(struct parser *ps, size_t *current)
{
    auto_strv struct strv path = {0};
    struct toml_table *t;

    ps->p++;
    if (peek(ps) == '[')
        return fail(ps, "arrays of tables ([[...]]) are not supported");
    if (parse_name(ps, &path) < 0)
        return -1;
    if (peek(ps) != ']')
        return fail(ps, "']' expected after the name of a table");
    ps->p++;
    t = find_table(ps->doc, &path);
    if (t != NULL)
        return fail(ps, "table [%.64s%s] is already defined in line %d", path.v[0],
                    path.n > 1 ? "..." : "", t->line);
    if (check_path_free(ps, &path) < 0)
        return -1;
    t = add_table(ps, &path);
    if (t == NULL)
        return -1;
    t->has_header = true;
    *current = (size_t)(t - ps->doc->tables);
    return end_of_line(ps);
}

/* The table that a dotted key belongs to: `base` plus all parts of *name but the last. */
static struct toml_table *key_table(struct parser *ps, size_t base, const struct strv *name)
{
    auto_strv struct strv path = {0};
    struct toml_table *t;

    if (name->n == 1)
        return &ps->doc->tables[base];
    for (size_t i = 0; i < ps->doc->tables[base].path.n; i++)
        strv_add(&path, ps->doc->tables[base].path.v[i]);
    for (size_t i = 0; i + 1 < name->n; i++)
        strv_add(&path, name->v[i]);
    t = find_table(ps->doc, &path);
    if (t != NULL && t->has_header) {
        (void)fail(ps, "table \"%.64s\" has a header in line %d; a dotted key cannot add to it",
                   name->v[0], t->line);
        return NULL;
    }
    if (t != NULL)
        return t;
    if (check_path_free(ps, &path) < 0)
        return NULL;
    return add_table(ps, &path);
}

static int parse_pair(struct parser *ps, size_t current)
{
    auto_strv struct strv name = {0};
    struct toml_table *t;
    struct toml_key *k;

    if (parse_name(ps, &name) < 0)
        return -1;
    if (peek(ps) != '=')
        return fail(ps, "'=' expected after a key");
    ps->p++;
    skip_blanks(ps);
    if (++ps->n_keys > LIMIT_TOML_KEYS)
        return fail(ps, "more than %d keys", LIMIT_TOML_KEYS);
    t = key_table(ps, current, &name);
    if (t == NULL || check_key_free(ps, t, name.v[name.n - 1]) < 0)
        return -1;
    if ((t->n_keys & (t->n_keys - 1)) == 0)
        t->keys = xrealloc(t->keys, t->n_keys ? t->n_keys * 2 : 1, sizeof(*t->keys));
    k = &t->keys[t->n_keys++];
    *k = (struct toml_key){.name = xstrdup(name.v[name.n - 1]), .line = ps->line};
    if (parse_value(ps, &k->value, 0) < 0)
        return -1;
    return end_of_line(ps);
}

static int parse_lines(struct parser *ps)
{
    struct strv root = {0};
    size_t current = 0;

    if (add_table(ps, &root) == NULL)
        return -1;
    while (ps->p < ps->end) {
        int c;

        skip_blanks(ps);
        c = peek(ps);
        if (c == '[') {
            if (parse_header(ps, &current) < 0)
                return -1;
        } else if (c < 0 || c == '#' || at_newline(ps)) {
            if (end_of_line(ps) < 0)
                return -1;
        } else if (parse_pair(ps, current) < 0) {
            return -1;
        }
    }
    return 0;
}

int toml_parse(const char *text, size_t len, struct toml_doc **doc, struct err *err)
{
    auto_toml struct toml_doc *d = NULL;
    struct parser ps = {.p = text, .end = text + len, .line = 1, .err = err};

    if (len > LIMIT_TOML)
        return err_set(err, ERR_INVALID, "longer than %zu bytes", LIMIT_TOML);
    if (!str_is_utf8(text, len))
        return err_set(err, ERR_INVALID, "not valid UTF-8 text");
    if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
        ps.p += 3;
    d = xcalloc(1, sizeof(*d));
    ps.doc = d;
    if (parse_lines(&ps) < 0)
        return -1;
    *doc = take(d);
    return 0;
}

void toml_free(struct toml_doc *doc)
{
    if (doc == NULL)
        return;
    for (size_t i = 0; i < doc->n_tables; i++) {
        struct toml_table *t = &doc->tables[i];

        for (size_t k = 0; k < t->n_keys; k++) {
            free(t->keys[k].name);
            value_clear(&t->keys[k].value);
        }
        free(t->keys);
        strv_clear(&t->path);
    }
    free(doc->tables);
    free(doc);
}

const struct toml_table *toml_find(const struct toml_doc *doc, const char *const *path, size_t n)
{
    for (size_t i = 0; i < doc->n_tables; i++)
        if (path_equal(&doc->tables[i].path, path, n))
            return &doc->tables[i];
    return NULL;
}

const struct toml_table *toml_section(const struct toml_doc *doc, const char *name)
{
    return toml_find(doc, &name, name != NULL ? 1 : 0);
}

const struct toml_value *toml_get(const struct toml_table *table, const char *key)
{
    for (size_t i = 0; table != NULL && i < table->n_keys; i++)
        if (strcmp(table->keys[i].name, key) == 0)
            return &table->keys[i].value;
    return NULL;
}

const char *toml_type_name(enum toml_type type)
{
    switch (type) {
    case TOML_STRING:
        return "a string";
    case TOML_INTEGER:
        return "an integer";
    case TOML_BOOL:
        return "true or false";
    case TOML_ARRAY:
        return "an array";
    }
    return "a value";
}

/* 1 with *v, 0 when absent, -1 when it has another type. */
static int get_typed(const struct toml_table *table, const char *key, enum toml_type type,
                     const struct toml_value **v, struct err *err)
{
    *v = toml_get(table, key);
    if (*v == NULL)
        return 0;
    if ((*v)->type != type)
        return err_set(err, ERR_INVALID, "line %d: key \"%s\" must be %s, not %s", (*v)->line, key,
                       toml_type_name(type), toml_type_name((*v)->type));
    return 1;
}

int toml_get_string(const struct toml_table *table, const char *key, const char **out,
                    struct err *err)
{
    const struct toml_value *v;
    int r = get_typed(table, key, TOML_STRING, &v, err);

    if (r > 0)
        *out = v->str;
    return r;
}

int toml_get_int(const struct toml_table *table, const char *key, int64_t *out, struct err *err)
{
    const struct toml_value *v;
    int r = get_typed(table, key, TOML_INTEGER, &v, err);

    if (r > 0)
        *out = v->num;
    return r;
}

int toml_get_bool(const struct toml_table *table, const char *key, bool *out, struct err *err)
{
    const struct toml_value *v;
    int r = get_typed(table, key, TOML_BOOL, &v, err);

    if (r > 0)
        *out = v->num != 0;
    return r;
}

int toml_get_strings(const struct toml_table *table, const char *key, struct strv *out,
                     struct err *err)
{
    const struct toml_value *v;
    int r = get_typed(table, key, TOML_ARRAY, &v, err);

    if (r <= 0)
        return r;
    if (v->n_items > 0 && v->items[0].type != TOML_STRING)
        return err_set(err, ERR_INVALID, "line %d: key \"%s\" must be an array of strings", v->line,
                       key);
    for (size_t i = 0; i < v->n_items; i++)
        strv_add(out, v->items[i].str);
    return 1;
}
