#include "cri/image/catalog.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

#define SCHEMA_VERSION 1

struct catalog {
    sqlite3 *db;
};

static const char schema[] =
    "CREATE TABLE images (id TEXT PRIMARY KEY, size INTEGER NOT NULL, pinned INTEGER NOT NULL)"
    " WITHOUT ROWID;"
    "CREATE TABLE image_layers (image TEXT NOT NULL REFERENCES images ON DELETE CASCADE,"
    " position INTEGER NOT NULL, diff_id TEXT NOT NULL, PRIMARY KEY (image, position))"
    " WITHOUT ROWID;"
    "CREATE TABLE image_blobs (image TEXT NOT NULL REFERENCES images ON DELETE CASCADE,"
    " digest TEXT NOT NULL, PRIMARY KEY (image, digest)) WITHOUT ROWID;"
    "CREATE TABLE names (name TEXT PRIMARY KEY, tag INTEGER NOT NULL,"
    " image TEXT NOT NULL REFERENCES images ON DELETE CASCADE) WITHOUT ROWID;"
    "CREATE INDEX names_image ON names (image);"
    "CREATE TABLE layers (diff_id TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;"
    "PRAGMA user_version = 1;";

static void finalizep(sqlite3_stmt **st)
{
    (void)sqlite3_finalize(*st);
}
#define auto_stmt __attribute__((cleanup(finalizep)))

static int fail(sqlite3 *db, const char *what, struct err *err)
{
    int rc = sqlite3_errcode(db);
    enum err_code code = ERR_INTERNAL;

    if (rc == SQLITE_CORRUPT || rc == SQLITE_NOTADB)
        code = ERR_DATA_LOSS;
    else if (rc == SQLITE_FULL || rc == SQLITE_NOMEM)
        code = ERR_EXHAUSTED;
    return err_set(err, code, "image records: %s: %s", what, sqlite3_errmsg(db));
}

static int run(struct catalog *c, const char *sql, struct err *err)
{
    if (sqlite3_exec(c->db, sql, NULL, NULL, NULL) != SQLITE_OK)
        return fail(c->db, "change", err);
    return 0;
}

static sqlite3_stmt *prepare(sqlite3 *db, const char *sql, struct err *err)
{
    sqlite3_stmt *st = NULL;

    if (sqlite3_prepare_v2(db, sql, -1, &st, NULL) != SQLITE_OK)
        (void)fail(db, "prepare", err);
    return st;
}

/* Runs a statement without result; each argument is bound as text where str is set, else as number.
 */
struct bind {
    const char *str;
    int64_t num;
};

static int execute(struct catalog *c, const char *sql, const struct bind *args, int n,
                   struct err *err)
{
    auto_stmt sqlite3_stmt *st = prepare(c->db, sql, err);

    if (st == NULL)
        return -1;
    for (int i = 0; i < n; i++)
        if ((args[i].str != NULL ? sqlite3_bind_text(st, i + 1, args[i].str, -1, SQLITE_STATIC)
                                 : sqlite3_bind_int64(st, i + 1, args[i].num)) != SQLITE_OK)
            return fail(c->db, "bind", err);
    if (sqlite3_step(st) != SQLITE_DONE)
        return fail(c->db, "write", err);
    return 0;
}

static int query_number(sqlite3 *db, const char *sql, int64_t *out, struct err *err)
{
    auto_stmt sqlite3_stmt *st = prepare(db, sql, err);

    if (st == NULL)
        return -1;
    if (sqlite3_step(st) != SQLITE_ROW)
        return fail(db, "read", err);
    *out = sqlite3_column_int64(st, 0);
    return 0;
}

static int check_sound(sqlite3 *db, struct err *err)
{
    auto_stmt sqlite3_stmt *st = prepare(db, "PRAGMA quick_check(1)", err);
    const char *answer;

    if (st == NULL)
        return -1;
    if (sqlite3_step(st) != SQLITE_ROW)
        return fail(db, "check", err);
    answer = (const char *)sqlite3_column_text(st, 0);
    if (answer == NULL || strcmp(answer, "ok") != 0)
        return err_set(err, ERR_DATA_LOSS, "image records are damaged: %s",
                       answer != NULL ? answer : "?");
    return 0;
}

static int set_up(struct catalog *c, struct err *err)
{
    int64_t version = 0;

    (void)sqlite3_busy_timeout(c->db, 5000);
    (void)sqlite3_extended_result_codes(c->db, 0);
    /* The store's lock makes us the only user; without sharing, WAL needs no -shm file, so that the
     * records can be read, and images removed, when the disk is full. */
    if (run(c,
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; "
            "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;",
            err) < 0 ||
        check_sound(c->db, err) < 0 ||
        query_number(c->db, "PRAGMA user_version", &version, err) < 0)
        return -1;
    if (version == SCHEMA_VERSION)
        return 0;
    if (version != 0)
        return err_set(err, ERR_DATA_LOSS, "image records have the unknown version %lld",
                       (long long)version);
    if (run(c, "BEGIN IMMEDIATE", err) < 0)
        return -1;
    if (run(c, schema, err) < 0 || run(c, "COMMIT", err) < 0) {
        (void)run(c, "ROLLBACK", NULL);
        return -1;
    }
    return 0;
}

int catalog_open(const char *path, struct catalog **out, struct err *err)
{
    struct catalog *c = xcalloc(1, sizeof(*c));

    if (sqlite3_open_v2(path, &c->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL) !=
        SQLITE_OK) {
        (void)err_set(err, ERR_INTERNAL, "image records: open %s: %s", path,
                      c->db != NULL ? sqlite3_errmsg(c->db) : "out of memory");
        catalog_close(c);
        return -1;
    }
    if (set_up(c, err) < 0) {
        catalog_close(c);
        return err_wrap(err, "%s", path);
    }
    *out = c;
    return 0;
}

void catalog_close(struct catalog *c)
{
    if (c == NULL)
        return;
    (void)sqlite3_close_v2(c->db);
    free(c);
}

void catalog_image_clear(struct catalog_image *i)
{
    free(i->id);
    strv_clear(&i->layers);
    strv_clear(&i->blobs);
    strv_clear(&i->tags);
    strv_clear(&i->digests);
    *i = (struct catalog_image){0};
}

static const char *column(sqlite3_stmt *st, int i)
{
    const char *s = (const char *)sqlite3_column_text(st, i);

    return s != NULL ? s : "";
}

/* Appends the first column of each row of sql (one parameter: the image) to a list; with a second
 * column, to `other` where that is 0. */
static int read_list(struct catalog *c, const char *sql, const char *id, struct strv *list,
                     struct strv *other, struct err *err)
{
    auto_stmt sqlite3_stmt *st = prepare(c->db, sql, err);
    int rc;

    if (st == NULL)
        return -1;
    if (sqlite3_bind_text(st, 1, id, -1, SQLITE_STATIC) != SQLITE_OK)
        return fail(c->db, "bind", err);
    while ((rc = sqlite3_step(st)) == SQLITE_ROW)
        strv_add(other != NULL && sqlite3_column_int(st, 1) == 0 ? other : list, column(st, 0));
    return rc == SQLITE_DONE ? 0 : fail(c->db, "read", err);
}

int catalog_images(struct catalog *c, int (*fn)(void *arg, struct catalog_image *i), void *arg,
                   struct err *err)
{
    auto_stmt sqlite3_stmt *st = prepare(c->db, "SELECT id, size, pinned FROM images", err);
    int rc;

    if (st == NULL)
        return -1;
    while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
        struct catalog_image i = {
            .id = xstrdup(column(st, 0)),
            .size = (uint64_t)sqlite3_column_int64(st, 1),
            .pinned = sqlite3_column_int(st, 2) != 0,
        };

        if (read_list(c, "SELECT diff_id FROM image_layers WHERE image = ? ORDER BY position", i.id,
                      &i.layers, NULL, err) < 0 ||
            read_list(c, "SELECT digest FROM image_blobs WHERE image = ?", i.id, &i.blobs, NULL,
                      err) < 0 ||
            read_list(c, "SELECT name, tag FROM names WHERE image = ? ORDER BY name", i.id, &i.tags,
                      &i.digests, err) < 0) {
            catalog_image_clear(&i);
            return -1;
        }
        if (fn(arg, &i) < 0)
            return -1;
    }
    return rc == SQLITE_DONE ? 0 : fail(c->db, "read", err);
}

int catalog_layers(struct catalog *c, void (*fn)(void *arg, const char *diff_id, uint64_t bytes),
                   void *arg, struct err *err)
{
    auto_stmt sqlite3_stmt *st = prepare(c->db, "SELECT diff_id, bytes FROM layers", err);
    int rc;

    if (st == NULL)
        return -1;
    while ((rc = sqlite3_step(st)) == SQLITE_ROW)
        fn(arg, column(st, 0), (uint64_t)sqlite3_column_int64(st, 1));
    return rc == SQLITE_DONE ? 0 : fail(c->db, "read", err);
}

static int put_names(struct catalog *c, const char *id, const struct strv *names, bool tag,
                     struct err *err)
{
    for (size_t k = 0; k < names->n; k++)
        if (execute(c, "INSERT OR REPLACE INTO names (name, tag, image) VALUES (?, ?, ?)",
                    (const struct bind[]){{.str = names->v[k]}, {.num = tag}, {.str = id}}, 3,
                    err) < 0)
            return -1;
    return 0;
}

static int put_image(struct catalog *c, const struct catalog_image *i, struct err *err)
{
    if (execute(c, "DELETE FROM images WHERE id = ?", (const struct bind[]){{.str = i->id}}, 1,
                err) < 0 ||
        execute(
            c, "INSERT INTO images (id, size, pinned) VALUES (?, ?, ?)",
            (const struct bind[]){{.str = i->id}, {.num = (int64_t)i->size}, {.num = i->pinned}}, 3,
            err) < 0)
        return -1;
    for (size_t k = 0; k < i->layers.n; k++)
        if (execute(
                c, "INSERT INTO image_layers (image, position, diff_id) VALUES (?, ?, ?)",
                (const struct bind[]){{.str = i->id}, {.num = (int64_t)k}, {.str = i->layers.v[k]}},
                3, err) < 0)
            return -1;
    for (size_t k = 0; k < i->blobs.n; k++)
        if (execute(c, "INSERT OR IGNORE INTO image_blobs (image, digest) VALUES (?, ?)",
                    (const struct bind[]){{.str = i->id}, {.str = i->blobs.v[k]}}, 2, err) < 0)
            return -1;
    if (put_names(c, i->id, &i->tags, true, err) < 0 ||
        put_names(c, i->id, &i->digests, false, err) < 0)
        return -1;
    return 0;
}

int catalog_put_image(struct catalog *c, const struct catalog_image *i, struct err *err)
{
    if (run(c, "BEGIN IMMEDIATE", err) < 0)
        return -1;
    if (put_image(c, i, err) < 0 || run(c, "COMMIT", err) < 0) {
        (void)run(c, "ROLLBACK", NULL);
        return -1;
    }
    return 0;
}

int catalog_delete_image(struct catalog *c, const char *id, struct err *err)
{
    return execute(c, "DELETE FROM images WHERE id = ?", (const struct bind[]){{.str = id}}, 1,
                   err);
}

int catalog_put_layer(struct catalog *c, const char *diff_id, uint64_t bytes, struct err *err)
{
    return execute(c, "INSERT OR REPLACE INTO layers (diff_id, bytes) VALUES (?, ?)",
                   (const struct bind[]){{.str = diff_id}, {.num = (int64_t)bytes}}, 2, err);
}

int catalog_delete_layer(struct catalog *c, const char *diff_id, struct err *err)
{
    return execute(c, "DELETE FROM layers WHERE diff_id = ?",
                   (const struct bind[]){{.str = diff_id}}, 1, err);
}

void catalog_salvage_names(const char *path,
                           void (*fn)(void *arg, const char *name, bool tag, const char *id),
                           void *arg)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *st = NULL;

    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL) == SQLITE_OK &&
        sqlite3_prepare_v2(db, "SELECT name, tag, image FROM names", -1, &st, NULL) == SQLITE_OK)
        while (sqlite3_step(st) == SQLITE_ROW)
            fn(arg, column(st, 0), sqlite3_column_int(st, 1) != 0, column(st, 2));
    (void)sqlite3_finalize(st);
    (void)sqlite3_close_v2(db);
}
