/*
 * log - structured log lines to stderr or the journal.
 *
 * A line is a message plus key=value fields: log_info("sandbox started", LOG_STR("sandbox", id),
 * LOG_INT("ms", ms)). On stderr: RFC 3339 time, level, message, then fields, values quoted where
 * needed; control characters and invalid UTF-8 are escaped, since values may come from a guest.
 * In the journal each field becomes ASPIS_<KEY>=. Library folders return errors and do not log;
 * `cri`, `agent` and long-lived background work log.
 *
 * Threads: any; one line is one write(2).
 */
#ifndef ASPIS_BASE_LOG_H
#define ASPIS_BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR };

struct log_field {
    const char *key;
    const char *str; /* NULL: the number counts */
    int64_t num;
};

#define LOG_STR(k, v) ((struct log_field){.key = (k), .str = (v) ? (v) : ""})
#define LOG_INT(k, v) ((struct log_field){.key = (k), .num = (int64_t)(v)})

/* Where lines go; the default is stderr at INFO. journal: native journal socket when it exists
 * (else stderr stays in use and false is returned). ident names the program in the journal. */
bool log_init(const char *ident, enum log_level level, bool journal);
void log_set_level(enum log_level level);
bool log_enabled(enum log_level level);
/* Returns -1 when the name is not one of debug, info, warn, error. */
int log_level_parse(const char *name, enum log_level *level);

/* fields ends with a field whose key is NULL. */
void log_write(enum log_level level, const char *msg, const struct log_field *fields);

/* The first element only stands before the comma, which goes away when there is no field. */
#define log_at_(level, msg, ...)                                                                   \
    do {                                                                                           \
        if (log_enabled(level))                                                                    \
            log_write((level), (msg),                                                              \
                      (const struct log_field[]){{.key = ""}, ##__VA_ARGS__, {.key = 0}} + 1);     \
    } while (0)
#define log_debug(msg, ...) log_at_(LOG_LEVEL_DEBUG, msg, ##__VA_ARGS__)
#define log_info(msg, ...) log_at_(LOG_LEVEL_INFO, msg, ##__VA_ARGS__)
#define log_warn(msg, ...) log_at_(LOG_LEVEL_WARN, msg, ##__VA_ARGS__)
#define log_error(msg, ...) log_at_(LOG_LEVEL_ERROR, msg, ##__VA_ARGS__)

#endif
