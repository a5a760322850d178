#include "cri/records.h"

#include <inttypes.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/str.h"

struct records {
    sqlite3 *db;
    pthread_mutex_t lock;  /* one statement at a time; guards forgotten */
    struct strv forgotten; /* ids of sandboxes whose records wait for room to be deleted */
};

#define SCHEMA_VERSION 1

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS sandboxes("
    " id TEXT PRIMARY KEY, phase INTEGER NOT NULL, config BLOB NOT NULL, handler TEXT NOT NULL,"
    " created_at INTEGER NOT NULL, boot_id TEXT NOT NULL, netns TEXT NOT NULL, net TEXT NOT NULL,"
    " machine TEXT NOT NULL, net_up INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS containers("
    " id TEXT PRIMARY KEY, sandbox_id TEXT NOT NULL, phase INTEGER NOT NULL, config BLOB NOT NULL,"
    " image_id TEXT NOT NULL, image_ref TEXT NOT NULL, stop_signal TEXT NOT NULL,"
    " created_at INTEGER NOT NULL, started_at INTEGER NOT NULL, finished_at INTEGER NOT NULL,"
    " exit_code INTEGER NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL,"
    " log_path TEXT NOT NULL, stdin_id INTEGER NOT NULL, stdout_id INTEGER NOT NULL,"
    " stderr_id INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,"
    " groups TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS containers_of ON containers(sandbox_id);";

static int db_error(struct records *r, const char *step, struct err *err)
{
    int rc = sqlite3_extended_errcode(r->db);
    enum err_code code = (rc & 0xff) == SQLITE_FULL ? ERR_EXHAUSTED
                         : (rc & 0xff) == SQLITE_CORRUPT || (rc & 0xff) == SQLITE_NOTADB
                             ? ERR_DATA_LOSS
                             : ERR_INTERNAL;
    return err_set(err, code, "records: %s: %s", step, sqlite3_errmsg(r->db));
}

static int one_number(sqlite3 *db, const char *sql, int64_t *out)
{
    sqlite3_stmt *st = NULL;
    int rc = sqlite3_prepare_v2(db, sql, -1, &st, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(st);
    if (rc == SQLITE_ROW)
        *out = sqlite3_column_int64(st, 0);
    (void)sqlite3_finalize(st);
    return rc == SQLITE_ROW ? 0 : -1;
}

/* Both checks answer one row with "ok". */
static bool check(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *st = NULL;
    bool ok = sqlite3_prepare_v2(db, sql, -1, &st, NULL) == SQLITE_OK &&
              sqlite3_step(st) == SQLITE_ROW &&
              strcmp((const char *)sqlite3_column_text(st, 0), "ok") == 0;
    (void)sqlite3_finalize(st);
    return ok;
}

/* An index that does not fit its table, which only shows when a row is written, is made anew. */
static bool sound(sqlite3 *db)
{
    static const char whole[] = "PRAGMA integrity_check(1)";
    return check(db, whole) ||
           (check(db, "PRAGMA quick_check(1)") &&
            sqlite3_exec(db, "REINDEX", NULL, NULL, NULL) == SQLITE_OK && check(db, whole));
}

static int try_open(struct records *r, const char *path, struct err *err)
{
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX;
    if (sqlite3_open_v2(path, &r->db, flags, NULL) != SQLITE_OK)
        return db_error(r, "open", err);
    (void)sqlite3_busy_timeout(r->db, 5000);
    /* Exclusive: nobody else uses it, and there is no shared memory file to be made on a disk that
     * may be full. */
    if (sqlite3_exec(r->db,
                     "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL;"
                     "PRAGMA synchronous=NORMAL;",
                     NULL, NULL, NULL) != SQLITE_OK)
        return db_error(r, "set up", err);
    if (!sound(r->db))
        return err_set(err, ERR_DATA_LOSS, "records: %s is damaged", path);
    int64_t version = 0;
    if (one_number(r->db, "PRAGMA user_version", &version) < 0)
        return db_error(r, "read version", err);
    if (version > SCHEMA_VERSION)
        return err_set(err, ERR_PRECONDITION,
                       "records: %s was written by a newer aspisd (schema %" PRId64 ")", path,
                       version);
    if (version == SCHEMA_VERSION) /* nothing is written to a disk that may be full */
        return 0;
    if (sqlite3_exec(r->db, schema, NULL, NULL, NULL) != SQLITE_OK ||
        sqlite3_exec(r->db, "PRAGMA user_version=1", NULL, NULL, NULL) != SQLITE_OK)
        return db_error(r, "create tables", err);
    return 0;
}

static int move_aside(const char *path, char **moved, struct err *err)
{
    char *to = fs_format("%s.damaged-%" PRId64, path, wall_ns() / 1000000000);
    if (to == NULL)
        abort();
    if (rename(path, to) < 0) {
        (void)err_sys(err, errno, "move damaged %s aside", path);
        free(to);
        return -1;
    }
    static const char *const tails[] = {"-wal", "-shm"};
    for (size_t i = 0; i < ARRAY_LEN(tails); i++) {
        auto_free char *from = fs_format("%s%s", path, tails[i]);
        auto_free char *dest = fs_format("%s%s", to, tails[i]);
        if (from != NULL && dest != NULL)
            (void)rename(from, dest);
    }
    *moved = to;
    return 0;
}

static bool run_with(struct records *r, const char *sql, const char *id)
{
    sqlite3_stmt *st = NULL;
    bool done = sqlite3_prepare_v2(r->db, sql, -1, &st, NULL) == SQLITE_OK &&
                sqlite3_bind_text(st, 1, id, -1, SQLITE_STATIC) == SQLITE_OK &&
                sqlite3_step(st) == SQLITE_DONE;
    (void)sqlite3_finalize(st);
    return done;
}

/* Under the lock, or when nobody else is there. */
static void drop_forgotten(struct records *r)
{
    bool all = true;
    for (size_t i = 0; i < r->forgotten.n && all; i++)
        all = run_with(r, "DELETE FROM containers WHERE sandbox_id=?", r->forgotten.v[i]) &&
              run_with(r, "DELETE FROM sandboxes WHERE id=?", r->forgotten.v[i]);
    if (all)
        strv_clear(&r->forgotten);
}

struct records *records_open(const char *path, char **moved_aside, struct err *err)
{
    struct records *r = xcalloc(1, sizeof(*r));
    (void)pthread_mutex_init(&r->lock, NULL);
    *moved_aside = NULL;
    auto_err struct err first = ERR_INIT;
    int rc = try_open(r, path, &first);
    if (rc < 0 && first.code == ERR_DATA_LOSS) {
        (void)sqlite3_close(r->db);
        r->db = NULL;
        rc = move_aside(path, moved_aside, err);
        if (rc == 0)
            rc = try_open(r, path, err);
    } else if (rc < 0) {
        (void)err_move(err, &first);
    }
    if (rc < 0) {
        records_close(r);
        return NULL;
    }
    return r;
}

void records_close(struct records *r)
{
    if (r == NULL)
        return;
    drop_forgotten(r);
    (void)sqlite3_close(r->db);
    strv_clear(&r->forgotten);
    (void)pthread_mutex_destroy(&r->lock);
    free(r);
}

/* --- statements: bind in order, by small typed helpers --- */

struct stmt {
    struct records *r;
    sqlite3_stmt *st;
    int at;
    int rc;
};

static struct stmt prepare(struct records *r, const char *sql)
{
    struct stmt s = {.r = r};
    (void)pthread_mutex_lock(&r->lock);
    s.rc = sqlite3_prepare_v2(r->db, sql, -1, &s.st, NULL);
    return s;
}

static void bind_text(struct stmt *s, const char *v)
{
    if (s->rc == SQLITE_OK)
        s->rc = sqlite3_bind_text(s->st, ++s->at, v != NULL ? v : "", -1, SQLITE_STATIC);
}

static void bind_int(struct stmt *s, int64_t v)
{
    if (s->rc == SQLITE_OK)
        s->rc = sqlite3_bind_int64(s->st, ++s->at, v);
}

static void bind_blob(struct stmt *s, const void *v, size_t len)
{
    /* a NULL pointer would bind NULL, which NOT NULL refuses */
    if (s->rc == SQLITE_OK)
        s->rc = sqlite3_bind_blob64(s->st, ++s->at, len > 0 ? v : "", len, SQLITE_STATIC);
}

static int finish(struct stmt *s, const char *step, struct err *err)
{
    int ret = 0;
    if (s->rc == SQLITE_OK)
        s->rc = sqlite3_step(s->st);
    if (s->rc != SQLITE_DONE)
        ret = db_error(s->r, step, err);
    (void)sqlite3_finalize(s->st);
    if (ret == 0 && s->r->forgotten.n > 0) /* there is room again */
        drop_forgotten(s->r);
    (void)pthread_mutex_unlock(&s->r->lock);
    return ret;
}

int records_put_sandbox(struct records *r, const struct sandbox_record *x, struct err *err)
{
    struct stmt s = prepare(r, "INSERT OR REPLACE INTO sandboxes VALUES(?,?,?,?,?,?,?,?,?,?,?)");
    bind_text(&s, x->id);
    bind_int(&s, x->phase);
    bind_blob(&s, x->config, x->config_len);
    bind_text(&s, x->handler);
    bind_int(&s, x->created_at);
    bind_text(&s, x->boot_id);
    bind_text(&s, x->netns);
    bind_text(&s, x->net);
    bind_text(&s, x->machine);
    bind_int(&s, x->net_up);
    bind_text(&s, x->reason);
    return finish(&s, "write sandbox", err);
}

int records_put_container(struct records *r, const struct container_record *x, struct err *err)
{
    struct stmt s = prepare(
        r, "INSERT OR REPLACE INTO containers VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)");
    bind_text(&s, x->id);
    bind_text(&s, x->sandbox_id);
    bind_int(&s, x->phase);
    bind_blob(&s, x->config, x->config_len);
    bind_text(&s, x->image_id);
    bind_text(&s, x->image_ref);
    bind_text(&s, x->stop_signal);
    bind_int(&s, x->created_at);
    bind_int(&s, x->started_at);
    bind_int(&s, x->finished_at);
    bind_int(&s, x->exit_code);
    bind_text(&s, x->reason);
    bind_text(&s, x->message);
    bind_text(&s, x->log_path);
    bind_int(&s, x->stdin_id);
    bind_int(&s, x->stdout_id);
    bind_int(&s, x->stderr_id);
    bind_int(&s, x->uid);
    bind_int(&s, x->gid);
    bind_text(&s, x->groups);
    return finish(&s, "write container", err);
}

static int delete_by(struct records *r, const char *sql, const char *id, struct err *err)
{
    struct stmt s = prepare(r, sql);
    bind_text(&s, id);
    return finish(&s, "delete", err);
}

int records_delete_sandbox(struct records *r, const char *id, struct err *err)
{
    if (delete_by(r, "DELETE FROM containers WHERE sandbox_id=?", id, err) < 0)
        return -1;
    return delete_by(r, "DELETE FROM sandboxes WHERE id=?", id, err);
}

void records_forget_sandbox(struct records *r, const char *id)
{
    (void)pthread_mutex_lock(&r->lock);
    strv_add(&r->forgotten, id);
    drop_forgotten(r);
    (void)pthread_mutex_unlock(&r->lock);
}

int records_delete_container(struct records *r, const char *id, struct err *err)
{
    return delete_by(r, "DELETE FROM containers WHERE id=?", id, err);
}

/* --- reading: columns in order --- */

static char *next_text(struct stmt *s)
{
    const char *v = (const char *)sqlite3_column_text(s->st, s->at++);
    return xstrdup(v != NULL ? v : "");
}

static int64_t next_int(struct stmt *s)
{
    return sqlite3_column_int64(s->st, s->at++);
}

static void *next_blob(struct stmt *s, size_t *len)
{
    const void *v = sqlite3_column_blob(s->st, s->at);
    *len = (size_t)sqlite3_column_bytes(s->st, s->at++);
    void *copy = xcalloc(1, *len);
    if (*len > 0)
        memcpy(copy, v, *len);
    return copy;
}

static void read_sandbox(struct stmt *s, struct sandbox_record *x)
{
    x->id = next_text(s);
    x->phase = (enum sandbox_phase)next_int(s);
    x->config = next_blob(s, &x->config_len);
    x->handler = next_text(s);
    x->created_at = next_int(s);
    x->boot_id = next_text(s);
    x->netns = next_text(s);
    x->net = next_text(s);
    x->machine = next_text(s);
    x->net_up = next_int(s) != 0;
    x->reason = next_text(s);
}

static void read_container(struct stmt *s, struct container_record *x)
{
    x->id = next_text(s);
    x->sandbox_id = next_text(s);
    x->phase = (enum container_phase)next_int(s);
    x->config = next_blob(s, &x->config_len);
    x->image_id = next_text(s);
    x->image_ref = next_text(s);
    x->stop_signal = next_text(s);
    x->created_at = next_int(s);
    x->started_at = next_int(s);
    x->finished_at = next_int(s);
    x->exit_code = (uint32_t)next_int(s);
    x->reason = next_text(s);
    x->message = next_text(s);
    x->log_path = next_text(s);
    x->stdin_id = (uint32_t)next_int(s);
    x->stdout_id = (uint32_t)next_int(s);
    x->stderr_id = (uint32_t)next_int(s);
    x->uid = (uint32_t)next_int(s);
    x->gid = (uint32_t)next_int(s);
    x->groups = next_text(s);
}

/* The next row of a SELECT; false at its end and on an error. */
static bool next_row(struct stmt *s)
{
    if (s->rc == SQLITE_OK || s->rc == SQLITE_ROW)
        s->rc = sqlite3_step(s->st);
    s->at = 0;
    return s->rc == SQLITE_ROW;
}

int records_load_sandboxes(struct records *r, struct sandbox_record **out, size_t *n,
                           struct err *err)
{
    struct stmt s = prepare(r, "SELECT * FROM sandboxes ORDER BY created_at, id");
    *out = NULL;
    *n = 0;
    while (next_row(&s)) {
        *out = xrealloc(*out, *n + 1, sizeof(**out));
        read_sandbox(&s, &(*out)[(*n)++]);
    }
    return finish(&s, "read sandboxes", err);
}

int records_load_containers(struct records *r, struct container_record **out, size_t *n,
                            struct err *err)
{
    struct stmt s = prepare(r, "SELECT * FROM containers ORDER BY created_at, id");
    *out = NULL;
    *n = 0;
    while (next_row(&s)) {
        *out = xrealloc(*out, *n + 1, sizeof(**out));
        read_container(&s, &(*out)[(*n)++]);
    }
    return finish(&s, "read containers", err);
}

void sandbox_record_clear(struct sandbox_record *s)
{
    free(s->id);
    free(s->config);
    free(s->handler);
    free(s->boot_id);
    free(s->netns);
    free(s->net);
    free(s->machine);
    free(s->reason);
    *s = (struct sandbox_record){0};
}

void container_record_clear(struct container_record *c)
{
    free(c->id);
    free(c->sandbox_id);
    free(c->config);
    free(c->image_id);
    free(c->image_ref);
    free(c->stop_signal);
    free(c->reason);
    free(c->message);
    free(c->log_path);
    free(c->groups);
    *c = (struct container_record){0};
}
