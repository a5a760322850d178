/*
 * Disks of a running QEMU: hot-plugged virtio-blk on the bridge. Image disks are read-only, and
 * their contents are several files one after the other; a block device of the host is one as it is.
 *
 * One file is a `raw` node. More are a VMDK of flat extents: a text file in a sealed memfd that
 * names the parts by their descriptor sets, so that an image of forty layers is one device in one
 * slot. QEMU's VMDK parser takes "RW" extents only (the node is read-only all the same) and
 * misreads a list that follows an empty line.
 *
 * Names: device "disk<slot>-<serial>", node "disk<slot>", descriptor sets (slot << 8) + n. The
 * first images get disks that are there already and have other names (qemu_slot.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "sandbox/lock.h"
#include "sandbox/qemu_slot.h"
#include "sandbox/qemu_vm.h"

#define SECTOR 512
#define MAX_PARTS                                                                                  \
    200 /* sets of one slot; an image has at most LIMIT_IMAGE_LAYERS and its erofs                 \
         */
#define DESCRIPTOR_SET 255
#define UNDO_NS INT64_C(5000000000)

/* What becomes a disk: the parts, or without any the device. */
struct source {
    const struct disk_part *parts;
    size_t n;
    int device;
    bool writable;
    bool fixed; /* a disk that is there already will do */
};

#define NODE_SIZE 32 /* QEMU's limit, too */

static void node_name(int slot, const char *serial, char out[NODE_SIZE])
{
    if (qemu_slot_is_fixed(slot))
        (void)snprintf(out, NODE_SIZE, "disk%d-%s", slot, serial);
    else
        (void)snprintf(out, NODE_SIZE, "disk%d", slot);
}

static int set_id(int slot, size_t n)
{
    return (slot << 8) + (int)n;
}

static int find_slot(const struct hv *hv, const char *serial)
{
    for (int i = 1; i <= QEMU_SLOTS; i++) {
        if (hv->slots[i] != NULL && strcmp(hv->slots[i], serial) == 0)
            return i;
    }
    return 0;
}

static int free_slot(const struct hv *hv)
{
    for (int i = 1; i <= QEMU_PLUG_SLOTS; i++) {
        if (hv->slots[i] == NULL)
            return i;
    }
    return 0;
}

/* Letters, digits and '-', as machine.h says: it is part of ids. */
static int check_serial(const char *serial, struct err *err)
{
    size_t n = strlen(serial);
    if (n == 0 || n > 20 || strspn(serial, "abcdefghijklmnopqrstuvwxyz0123456789-") != n)
        return err_set(err, ERR_INVALID, "disk serial \"%s\" is malformed", serial);
    return 0;
}

/* QEMU's descriptor sets match by access mode, so a part must be open for reading only. */
static int read_only_fd(int fd, struct err *err)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int ro = open(path, O_RDONLY | O_CLOEXEC);
    if (ro < 0)
        (void)err_sys(err, errno, "open a disk part read-only");
    return ro;
}

static int add_fd(struct hv *hv, int set, int fd, struct cancel *cancel, struct err *err)
{
    return qmp_run(hv->qmp, "add-fd", json_pack("{s:i}", "fdset-id", set), fd, cancel, err);
}

/* Which sets a slot has is QEMU's to say: an earlier daemon may have made them. */
static void remove_fds(struct hv *hv, int slot, struct cancel *cancel)
{
    json_auto_t *sets = qmp_call(hv->qmp, "query-fdsets", NULL, -1, cancel, NULL);
    size_t i;
    json_t *set;
    json_array_foreach(sets, i, set)
    {
        json_int_t id = json_integer_value(json_object_get(set, "fdset-id"));
        if (id >> 8 == slot)
            (void)qmp_run(hv->qmp, "remove-fd", json_pack("{s:I}", "fdset-id", id), -1, cancel,
                          NULL);
    }
}

static int make_descriptor(int slot, const struct disk_part *parts, size_t n, struct err *err)
{
    auto_buf struct buf text = BUF_INIT(KiB(64));
    (void)buf_puts(&text, "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\n"
                          "createType=\"monolithicFlat\"\n");
    for (size_t i = 0; i < n; i++)
        (void)buf_printf(&text, "RW %" PRIu64 " FLAT \"/dev/fdset/%d\" 0\n", parts[i].size / SECTOR,
                         set_id(slot, i));
    if (!buf_ok(&text))
        return err_set(err, ERR_EXHAUSTED, "disk has too many parts");
    auto_close int fd = memfd_create("aspis-disk", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return err_sys(err, errno, "make disk descriptor");
    if (fs_write_fd(fd, text.data, text.len, err) < 0)
        return -1;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
        return err_sys(err, errno, "seal disk descriptor");
    return read_only_fd(fd, err);
}

static json_t *file_node(int set)
{
    char path[32];
    (void)snprintf(path, sizeof(path), "/dev/fdset/%d", set);
    return json_pack("{s:s,s:s,s:b}", "driver", "file", "filename", path, "read-only", 1);
}

static int hand_over(struct hv *hv, int slot, const struct source *s, struct cancel *cancel,
                     struct err *err)
{
    const struct disk_part *parts = s->parts;
    size_t n = s->n;
    if (n == 0)
        return add_fd(hv, set_id(slot, 0), s->device, cancel, err);
    for (size_t i = 0; i < n; i++) {
        struct stat st;
        if (fstat(parts[i].fd, &st) < 0 || !S_ISREG(st.st_mode) ||
            (uint64_t)st.st_size < parts[i].size || parts[i].size == 0 ||
            parts[i].size % SECTOR != 0)
            return err_set(err, ERR_INVALID, "disk part %zu is not a file of its size", i);
        auto_close int fd = read_only_fd(parts[i].fd, err);
        if (fd < 0 || add_fd(hv, set_id(slot, i), fd, cancel, err) < 0)
            return -1;
    }
    if (n == 1)
        return 0;
    auto_close int fd = make_descriptor(slot, parts, n, err);
    return fd < 0 ? -1 : add_fd(hv, set_id(slot, DESCRIPTOR_SET), fd, cancel, err);
}

/* Several pods may have the device, as with any runtime: no locks. Writes go through the host's
 * page cache, and the guest's flushes reach the device. */
static int add_device_node(struct hv *hv, int slot, bool writable, struct cancel *cancel,
                           struct err *err)
{
    char node[32];
    char path[32];
    (void)snprintf(node, sizeof(node), "disk%d", slot);
    (void)snprintf(path, sizeof(path), "/dev/fdset/%d", set_id(slot, 0));
    return qmp_run(hv->qmp, "blockdev-add",
                   json_pack("{s:s,s:s,s:b,s:s,s:{s:s,s:s,s:b,s:s,s:s}}", "driver", "raw",
                             "node-name", node, "read-only", !writable, "discard", "unmap", "file",
                             "driver", "host_device", "filename", path, "read-only", !writable,
                             "locking", "off", "discard", "unmap"),
                   -1, cancel, err);
}

static int add_node(struct hv *hv, int slot, const char *serial, const struct source *s,
                    struct cancel *cancel, struct err *err)
{
    const struct disk_part *parts = s->parts;
    size_t n = s->n;
    char node[NODE_SIZE];
    if (n == 0)
        return add_device_node(hv, slot, s->writable, cancel, err);
    node_name(slot, serial, node);
    json_t *args =
        n == 1 ? json_pack("{s:s,s:s,s:b,s:I,s:o}", "driver", "raw", "node-name", node, "read-only",
                           1, "size", (json_int_t)parts[0].size, "file", file_node(set_id(slot, 0)))
               : json_pack("{s:s,s:s,s:b,s:o}", "driver", "vmdk", "node-name", node, "read-only", 1,
                           "file", file_node(set_id(slot, DESCRIPTOR_SET)));
    return qmp_run(hv->qmp, "blockdev-add", args, -1, cancel, err);
}

static int del_node(struct hv *hv, int slot, const char *serial, struct cancel *cancel,
                    struct err *err)
{
    char node[NODE_SIZE];
    node_name(slot, serial, node);
    return qmp_run(hv->qmp, "blockdev-del", json_pack("{s:s}", "node-name", node), -1, cancel, err);
}

static int add_device(struct hv *hv, int slot, const char *serial, struct cancel *cancel,
                      struct err *err)
{
    char id[64];
    char node[NODE_SIZE];
    char addr[8];
    node_name(slot, serial, node);
    if (qemu_slot_is_fixed(slot))
        return qemu_slot_fill(hv, slot, node, cancel, err);
    (void)snprintf(id, sizeof(id), "disk%d-%s", slot, serial);
    (void)snprintf(addr, sizeof(addr), "0x%x", slot);
    return qmp_run(hv->qmp, "device_add",
                   json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:s}", "driver", "virtio-blk-pci", "id", id,
                             "bus", QEMU_PLUG_BUS, "addr", addr, "drive", node, "serial", serial,
                             "romfile", ""),
                   -1, cancel, err);
}

/* Takes back what a failed or cancelled plug() may have done; the caller's token is no measure for
 * that. */
static void undo(struct hv *hv, int slot, const char *serial)
{
    auto_cancel struct cancel *c = cancel_new(mono_ns() + UNDO_NS, NULL);
    if (c == NULL)
        return; /* no descriptors left: without a bound this could wait for ever */
    if (qemu_slot_is_fixed(slot))
        (void)qemu_slot_empty(hv, slot, c, NULL);
    (void)del_node(hv, slot, serial, c, NULL);
    remove_fds(hv, slot, c);
}

/* Where a new disk goes; 0: nowhere. */
static int place(const struct hv *hv, const struct source *s)
{
    int slot = s->fixed ? qemu_slot_free(hv, s->parts, s->n) : 0;
    return slot != 0 ? slot : free_slot(hv);
}

static int plug(struct hv *hv, int slot, const char *serial, const struct source *s,
                struct cancel *cancel, struct err *err)
{
    if (slot == 0)
        return err_set(err, ERR_EXHAUSTED, "all %d disk slots are taken", QEMU_PLUG_SLOTS);
    int ret = FAILPOINT("machine.attach.fds", err);
    if (ret == 0)
        ret = hand_over(hv, slot, s, cancel, err);
    if (ret == 0 && (ret = FAILPOINT("machine.attach.node", err)) == 0)
        ret = add_node(hv, slot, serial, s, cancel, err);
    if (ret < 0) {
        undo(hv, slot, serial);
        return -1;
    }
    ret = FAILPOINT("machine.attach.device", err);
    if (ret == 0)
        ret = add_device(hv, slot, serial, cancel, err);
    /* A cancelled device_add may still happen: the slot then stays ours, and detaching the serial
     * empties it. */
    bool unsure = ret < 0 && (err->code == ERR_CANCELLED || err->code == ERR_DEADLINE);
    if (ret == 0 || unsure) {
        hv->slots[slot] = xstrdup(serial);
        return ret;
    }
    undo(hv, slot, serial);
    return -1;
}

static int add(struct hv *hv, const char *serial, const struct source *s, int *slot,
               struct cancel *cancel, struct err *err)
{
    auto_err struct err local = ERR_INIT; /* plug() looks at the code */
    if (check_serial(serial, err) < 0)
        return -1;
    if (lock_within(&hv->disks, cancel, "another disk of this vm", err) < 0)
        return -1;
    int ret = find_slot(hv, serial) != 0 ? 0 : plug(hv, place(hv, s), serial, s, cancel, &local);
    *slot = find_slot(hv, serial);
    (void)pthread_mutex_unlock(&hv->disks);
    if (ret < 0) {
        (void)err_wrap(&local, "attach disk %s", serial);
        return err_move(err, &local);
    }
    return 0;
}

int qemu_add_disk(struct hv *hv, const char *serial, const struct disk_part *parts, size_t n_parts,
                  char guest_serial[HV_SERIAL_SIZE], struct cancel *cancel, struct err *err)
{
    struct source s = {.parts = parts, .n = n_parts, .device = -1, .fixed = guest_serial != NULL};
    int slot = 0;
    if (n_parts == 0 || n_parts > MAX_PARTS)
        return err_set(err, ERR_INVALID, "disk %s: %zu parts", serial, n_parts);
    if (add(hv, serial, &s, &slot, cancel, err) < 0)
        return -1;
    if (guest_serial != NULL && qemu_slot_is_fixed(slot))
        qemu_slot_name(slot, guest_serial);
    else if (guest_serial != NULL)
        (void)snprintf(guest_serial, HV_SERIAL_SIZE, "%s", serial);
    return 0;
}

int qemu_add_disk_at(struct hv *hv, unsigned slot, const char *serial,
                     const struct disk_part *parts, size_t n_parts, struct cancel *cancel,
                     struct err *err)
{
    struct source s = {.parts = parts, .n = n_parts, .device = -1};
    bool there = slot >= 1 && slot <= QEMU_PLUG_SLOTS;
    if (slot >= QEMU_FIXED_FIRST && slot <= QEMU_SLOTS)
        there = hv->fixed[slot - QEMU_FIXED_FIRST];
    if (n_parts == 0 || n_parts > MAX_PARTS || !there)
        return err_set(err, ERR_INVALID, "disk %s: %zu parts in slot %u", serial, n_parts, slot);
    if (check_serial(serial, err) < 0 ||
        lock_within(&hv->disks, cancel, "another disk of this vm", err) < 0)
        return -1;
    int ret = hv->slots[slot] != NULL || find_slot(hv, serial) != 0
                  ? err_set(err, ERR_INVALID, "two disks in slot %u", slot)
                  : plug(hv, (int)slot, serial, &s, cancel, err);
    (void)pthread_mutex_unlock(&hv->disks);
    return ret < 0 ? err_wrap(err, "attach disk %s", serial) : 0;
}

int qemu_add_device(struct hv *hv, const char *serial, int fd, bool writable, struct cancel *cancel,
                    struct err *err)
{
    struct source s = {.device = fd, .writable = writable};
    int slot = 0;
    return add(hv, serial, &s, &slot, cancel, err);
}

/* Takes the device away. */
static int del_device(struct hv *hv, int slot, struct cancel *cancel, struct err *err)
{
    char id[64];
    (void)snprintf(id, sizeof(id), "disk%d-%s", slot, hv->slots[slot]);
    auto_qmp_expect struct qmp_expect *gone =
        qmp_expect(hv->qmp, "DEVICE_DELETED", "device", id, err);
    if (gone == NULL)
        return -1;
    auto_err struct err e = ERR_INIT;
    int ret = qmp_run(hv->qmp, "device_del", json_pack("{s:s}", "id", id), -1, cancel, &e);
    /* NOT_FOUND: gone already. An earlier try that was given up may still be in progress: wait on.
     */
    bool pending = ret < 0 && strstr(err_msg(&e), "in the process of unplug") != NULL;
    if (ret < 0 && e.code != ERR_NOT_FOUND && !pending)
        return err_move(err, &e);
    return ret == 0 || pending ? qmp_expect_wait(gone, cancel, err) : 0;
}

static int unplug(struct hv *hv, int slot, struct cancel *cancel, struct err *err)
{
    auto_err struct err e = ERR_INIT;
    int ret = qemu_slot_is_fixed(slot) ? qemu_slot_empty(hv, slot, cancel, err)
                                       : del_device(hv, slot, cancel, err);
    if (ret < 0)
        return -1;
    if (del_node(hv, slot, hv->slots[slot], cancel, &e) < 0 && strstr(err_msg(&e), "find") == NULL)
        return err_move(err, &e);
    remove_fds(hv, slot, cancel);
    free(take(hv->slots[slot]));
    return 0;
}

int qemu_remove_disk(struct hv *hv, const char *serial, struct cancel *cancel, struct err *err)
{
    if (lock_within(&hv->disks, cancel, "another disk of this vm", err) < 0)
        return -1;
    int slot = find_slot(hv, serial);
    int ret = slot == 0 ? 0 : unplug(hv, slot, cancel, err);
    (void)pthread_mutex_unlock(&hv->disks);
    return ret < 0 ? err_wrap(err, "detach disk %s", serial) : 0;
}

/* What a daemon that died while it plugged a disk left in free slots: a node would be in the next
 * disk's way, and a descriptor set would give it the old disk's file. */
static int clear_leftovers(struct hv *hv, struct cancel *cancel, struct err *err)
{
    json_auto_t *nodes = qmp_call(hv->qmp, "query-named-block-nodes", json_pack("{s:b}", "flat", 1),
                                  -1, cancel, err);
    json_auto_t *sets =
        nodes != NULL ? qmp_call(hv->qmp, "query-fdsets", NULL, -1, cancel, err) : NULL;
    if (sets == NULL)
        return -1;
    bool used[QEMU_SLOTS + 1] = {false};
    size_t i;
    json_t *item;
    json_array_foreach(nodes, i, item)
    {
        const char *name = json_string_value(json_object_get(item, "node-name"));
        int slot = 0;
        int end = 0;
        if (name == NULL || sscanf(name, "disk%d%n", &slot, &end) != 1 || slot < 1 ||
            slot > QEMU_SLOTS || name[end] != (qemu_slot_is_fixed(slot) ? '-' : '\0'))
            continue;
        used[slot] = true;
        if (qemu_slot_is_fixed(slot) && hv->slots[slot] == NULL)
            undo(hv, slot, name + end + 1);
    }
    json_array_foreach(sets, i, item)
    {
        json_int_t slot = json_integer_value(json_object_get(item, "fdset-id")) >> 8;
        if (slot >= 1 && slot <= QEMU_SLOTS)
            used[slot] = true;
    }
    for (int slot = 1; slot <= QEMU_SLOTS; slot++) {
        if (used[slot] && hv->slots[slot] == NULL)
            undo(hv, slot, "");
    }
    return 0;
}

/* --- while the VM is copied --- */

static void parked_name(int slot, const char *serial, char out[NODE_SIZE])
{
    if (qemu_slot_is_fixed(slot)) /* the serial is learnt from it, as from node_name() */
        (void)snprintf(out, NODE_SIZE, QEMU_PARKED "%d-%s", slot, serial);
    else
        (void)snprintf(out, NODE_SIZE, QEMU_PARKED "%d", slot);
}

/* The node of this name among those of query-named-block-nodes. */
static const json_t *find_node(const json_t *nodes, const char *want)
{
    size_t i;
    json_t *item;
    json_array_foreach(nodes, i, item)
    {
        const char *name = json_string_value(json_object_get(item, "node-name"));
        if (name != NULL && strcmp(name, want) == 0)
            return item;
    }
    return NULL;
}

static int set_drive(struct hv *hv, int slot, const char *node, struct cancel *cancel,
                     struct err *err)
{
    char device[64];
    if (qemu_slot_is_fixed(slot))
        qemu_slot_name(slot, device);
    else
        (void)snprintf(device, sizeof(device), "disk%d-%s", slot, hv->slots[slot]);
    return qemu_drive_set(hv, device, node, cancel, err);
}

static int park_one(struct hv *hv, int slot, const json_t *node, struct cancel *cancel,
                    struct err *err)
{
    char name[NODE_SIZE];
    json_int_t size =
        json_integer_value(json_object_get(json_object_get(node, "image"), "virtual-size"));
    parked_name(slot, hv->slots[slot], name);
    if (qmp_run(hv->qmp, "blockdev-add",
                json_pack("{s:s,s:s,s:b,s:I}", "driver", "null-co", "node-name", name, "read-only",
                          1, "size", size),
                -1, cancel, err) < 0 ||
        set_drive(hv, slot, name, cancel, err) < 0)
        return -1;
    return del_node(hv, slot, hv->slots[slot], cancel, err);
}

int qemu_park_disks(struct hv *hv, struct cancel *cancel, struct err *err)
{
    json_auto_t *nodes = qmp_call(hv->qmp, "query-named-block-nodes", NULL, -1, cancel, err);
    if (nodes == NULL)
        return -1;
    for (int slot = 1; slot <= QEMU_SLOTS; slot++) {
        char name[NODE_SIZE];
        if (hv->slots[slot] == NULL)
            continue;
        node_name(slot, hv->slots[slot], name);
        const json_t *node = find_node(nodes, name);
        const char *driver = json_string_value(json_object_get(node, "drv"));
        if (driver != NULL && strcmp(driver, "vmdk") == 0 &&
            park_one(hv, slot, node, cancel, err) < 0)
            return err_wrap(err, "put disk %s aside", hv->slots[slot]);
    }
    return 0;
}

int qemu_unpark_disks(struct hv *hv, struct cancel *cancel, struct err *err)
{
    static const struct disk_part parts[2];
    static const struct source several = {.parts = parts, .n = ARRAY_LEN(parts), .device = -1};
    json_auto_t *nodes = qmp_call(hv->qmp, "query-named-block-nodes", NULL, -1, cancel, err);
    if (nodes == NULL)
        return -1;
    for (int slot = 1; slot <= QEMU_SLOTS; slot++) {
        const char *serial = hv->slots[slot];
        char parked[NODE_SIZE];
        char name[NODE_SIZE];
        if (serial == NULL)
            continue;
        parked_name(slot, serial, parked);
        node_name(slot, serial, name);
        if (find_node(nodes, parked) == NULL)
            continue;
        /* QEMU has kept the descriptor sets */
        if ((find_node(nodes, name) == NULL &&
             add_node(hv, slot, serial, &several, cancel, err) < 0) ||
            set_drive(hv, slot, name, cancel, err) < 0 ||
            qmp_run(hv->qmp, "blockdev-del", json_pack("{s:s}", "node-name", parked), -1, cancel,
                    err) < 0)
            return err_wrap(err, "put disk %s back", serial);
    }
    return 0;
}

/* --- an adopted VM --- */

static void learn_fixed(struct hv *hv, int slot, const char *node)
{
    const char *serial = strchr(node, '-');
    if (serial != NULL && check_serial(serial + 1, NULL) == 0 && hv->slots[slot] == NULL)
        hv->slots[slot] = xstrdup(serial + 1);
}

int qemu_list_disks(struct hv *hv, struct cancel *cancel, struct err *err)
{
    json_auto_t *list = qmp_call(
        hv->qmp, "qom-list", json_pack("{s:s}", "path", "/machine/peripheral"), -1, cancel, err);
    if (list == NULL)
        return -1;
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item)
    {
        const char *name = json_string_value(json_object_get(item, "name"));
        int slot = 0;
        int used = 0;
        if (name != NULL && sscanf(name, "disk%d-%n", &slot, &used) == 1 && used > 0 && slot >= 1 &&
            slot <= QEMU_PLUG_SLOTS && check_serial(name + used, NULL) == 0 &&
            hv->slots[slot] == NULL)
            hv->slots[slot] = xstrdup(name + used);
    }
    if (qemu_slot_list(hv, learn_fixed, cancel, err) < 0)
        return -1;
    return clear_leftovers(hv, cancel, err);
}
