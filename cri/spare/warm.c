#include "cri/spare/warm.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/failpoint.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/image/erofs_format.h"
#include "cri/image/erofs_write.h"
#include "cri/image/image.h"
#include "cri/spec.h"
#include "warm_program.h"

#define CONTAINER "aspis-warm"
#define SERIAL "aspis-warm"
#define MEMORY_LIMIT MiB(64)
#define SHM_BYTES MiB(64)
#define DATA_BYTES KiB(512)

/* --- what the agent says --- */

int warm_watch_init(struct warm_watch *w, struct err *err)
{
    *w = (struct warm_watch){.changed_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    (void)pthread_mutex_init(&w->lock, NULL);
    return w->changed_fd < 0 ? err_sys(err, errno, "make eventfd") : 0;
}

void warm_watch_destroy(struct warm_watch *w)
{
    cleanup_closep(&w->changed_fd);
    (void)pthread_mutex_destroy(&w->lock);
}

void warm_event(struct warm_watch *w, const Aspis__Agent__V1__Event *event)
{
    (void)pthread_mutex_lock(&w->lock);
    w->last_seq = event->seq;
    if (event->what_case == ASPIS__AGENT__V1__EVENT__WHAT_EXIT)
        w->exits++;
    (void)pthread_mutex_unlock(&w->lock);
    (void)eventfd_write(w->changed_fd, 1);
}

static int wait_exits(struct warm_watch *w, unsigned n, struct cancel *cancel, struct err *err)
{
    for (;;) {
        eventfd_t ignored;
        (void)eventfd_read(w->changed_fd, &ignored);
        (void)pthread_mutex_lock(&w->lock);
        bool done = w->exits >= n;
        (void)pthread_mutex_unlock(&w->lock);
        if (done)
            return 0;
        if (cancel_poll(cancel, w->changed_fd, POLLIN, -1, err) < 0)
            return err_wrap(err, "wait for a process's end");
    }
}

/* --- the image --- */

static int add_file(struct tree *t, struct erofs_out *out, const char *name, const void *data,
                    size_t size, struct err *err)
{
    struct tree_inode *in = tree_inode_new(t, S_IFREG | 0755, err);
    if (in == NULL)
        return -1;
    in->file.block = erofs_data_begin(out);
    in->file.size = size;
    if (erofs_data_write(out, data, size, err) < 0 || erofs_data_end(out, err) < 0)
        return -1;
    return tree_put(t, tree_root(t), name, strlen(name), in, err);
}

/* For the program to read: more than the guest's kernel reads ahead at once. */
static int add_data(struct tree *t, struct erofs_out *out, struct err *err)
{
    auto_free uint8_t *data = xcalloc(DATA_BYTES, 1);
    return add_file(t, out, "data", data, DATA_BYTES, err);
}

static int write_image(int fd, uint64_t *size, struct err *err)
{
    static const char *const dirs[] = {"dev", "etc", "proc", "sys"};
    auto_tree struct tree *t = tree_new(MiB(1), err);
    auto_erofs_out struct erofs_out out = {0};
    if (t == NULL || erofs_out_init(&out, fd, MiB(1), err) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(dirs); i++) {
        if (tree_mkdir(t, tree_root(t), dirs[i], strlen(dirs[i]), S_IFDIR | 0755, err) == NULL)
            return -1;
    }
    static const uint64_t none[1];
    if (add_file(t, &out, "warm", warm_program, sizeof(warm_program), err) < 0 ||
        add_data(t, &out, err) < 0)
        return -1;
    return erofs_finish(&out, t, none, 0, size, err);
}

int warm_image(struct disk_part *part, struct err *err)
{
    auto_close int fd = memfd_create("aspis-warm", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    uint64_t size = 0;
    if (fd < 0)
        return err_sys(err, errno, "make the warm-up image");
    if (write_image(fd, &size, err) < 0)
        return err_wrap(err, "make the warm-up image");
    size = (size + EROFS_BLOCK - 1) / EROFS_BLOCK * EROFS_BLOCK;
    if (ftruncate(fd, (off_t)size) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
        return err_sys(err, errno, "seal the warm-up image");
    *part = (struct disk_part){.fd = take_fd(&fd), .size = size};
    return 0;
}

/* --- calls --- */

static const ProtobufCMessage *call(struct machine *m, const char *method,
                                    const ProtobufCMessage *req,
                                    const ProtobufCMessageDescriptor *reply, struct arena *a,
                                    struct cancel *cancel, struct err *err)
{
    const ProtobufCMessage *r = link_call(machine_link(m), method, req, reply, a, cancel, err);
    if (r == NULL)
        (void)err_wrap(err, "%s", method);
    return r;
}

static int call_empty(struct machine *m, const char *method, const ProtobufCMessage *req,
                      struct cancel *cancel, struct err *err)
{
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    if (a == NULL)
        return err_sys(err, ENOMEM, "%s", method);
    return call(m, method, req, &aspis__agent__v1__empty__descriptor, a, cancel, err) == NULL ? -1
                                                                                              : 0;
}

/* With a network like a pod's, or, with n 0, none but the NIC as its template had it. The addresses
 * are of ranges that are nobody's (RFC 5737, RFC 3849), and the NIC leads nowhere yet. */
static int configure(struct machine *m, const char *id, const char *mac, const char *guest_mac,
                     size_t n, struct cancel *cancel, struct err *err)
{
    char *addresses[] = {(char[]){"192.0.2.2/24"}, (char[]){"2001:db8::2/64"}};
    char *dst[] = {(char[]){"0.0.0.0/0"}, (char[]){"::/0"}};
    char *gateways[] = {(char[]){"192.0.2.1"}, (char[]){"2001:db8::1"}};
    static char name[] = "eth0";
    static char hostname[] = "spare";
    static uint8_t file[] = "127.0.0.1\tlocalhost\n";
    auto_free char *own_id = xstrdup(id);
    auto_free char *own_mac = xstrdup(mac);
    auto_free char *own_guest_mac = xstrdup(guest_mac);
    auto_free char *scratch = xstrdup(machine_scratch_serial(m));
    Aspis__Agent__V1__Interface nic;
    Aspis__Agent__V1__Interface *nics[] = {&nic};
    Aspis__Agent__V1__Route route[ARRAY_LEN(dst)];
    Aspis__Agent__V1__Route *routes[] = {&route[0], &route[1]};
    Aspis__Agent__V1__ConfigurePodRequest req;
    uint8_t seed[64];
    uint8_t machine_id[16];
    aspis__agent__v1__configure_pod_request__init(&req);
    aspis__agent__v1__interface__init(&nic);
    nic.name = name;
    nic.mac = own_mac;
    nic.guest_mac = own_guest_mac;
    nic.mtu = 1500;
    nic.addresses = addresses;
    nic.n_addresses = n;
    for (size_t i = 0; i < n; i++) {
        aspis__agent__v1__route__init(&route[i]);
        route[i].dst = dst[i];
        route[i].gateway = gateways[i];
        route[i].dev = name;
    }
    if (getrandom(seed, sizeof(seed), 0) != (ssize_t)sizeof(seed) ||
        getrandom(machine_id, sizeof(machine_id), 0) != (ssize_t)sizeof(machine_id))
        return err_sys(err, errno, "entropy for the guest");
    req.sandbox_id = own_id;
    req.hostname = hostname;
    req.entropy = (ProtobufCBinaryData){sizeof(seed), seed};
    req.machine_id = (ProtobufCBinaryData){sizeof(machine_id), machine_id};
    req.resolv_conf = req.hosts = (ProtobufCBinaryData){sizeof(file) - 1, file};
    req.shm_bytes = SHM_BYTES;
    req.scratch_disk = scratch;
    req.interfaces = nics;
    req.n_interfaces = 1;
    req.routes = routes;
    req.n_routes = n;
    req.wall_clock_ns = (uint64_t)wall_ns();
    int rc = call_empty(m, "ConfigurePod", &req.base, cancel, err);
    explicit_bzero(seed, sizeof(seed));
    return rc;
}

/* --- streams --- */

/* Reads an output stream and throws away what comes. */
struct drain {
    pthread_mutex_t lock; /* guards the rest */
    struct stream *stream;
    uint64_t seen;
};

static void on_data(void *arg, uint64_t offset, const void *data, size_t len)
{
    struct drain *d = arg;
    (void)data;
    (void)pthread_mutex_lock(&d->lock);
    d->seen = offset + len;
    if (d->stream != NULL)
        stream_ack(d->stream, d->seen);
    (void)pthread_mutex_unlock(&d->lock);
}

static void on_eof(void *arg, uint64_t offset)
{
    (void)arg;
    (void)offset;
}

static void on_reset(void *arg, const char *reason)
{
    (void)arg;
    (void)reason;
}

struct drains {
    struct drain d[2];
};

static int drains_open(struct drains *x, struct machine *m, const Aspis__Agent__V1__Streams *s,
                       struct err *err)
{
    uint32_t ids[2] = {s != NULL ? s->stdout_id : 0, s != NULL ? s->stderr_id : 0};
    for (size_t i = 0; i < ARRAY_LEN(ids); i++)
        (void)pthread_mutex_init(&x->d[i].lock, NULL);
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        struct stream_callbacks cb = {
            .on_data = on_data, .on_eof = on_eof, .on_reset = on_reset, .arg = &x->d[i]};
        struct stream *stream =
            ids[i] != 0 ? stream_open_output(machine_link(m), ids[i], 0, &cb, err) : NULL;
        if (ids[i] != 0 && stream == NULL)
            return -1;
        (void)pthread_mutex_lock(&x->d[i].lock);
        x->d[i].stream = stream;
        if (stream != NULL && x->d[i].seen > 0)
            stream_ack(stream, x->d[i].seen);
        (void)pthread_mutex_unlock(&x->d[i].lock);
    }
    return 0;
}

static void drains_close(struct drains *x)
{
    for (size_t i = 0; i < ARRAY_LEN(x->d); i++) {
        if (x->d[i].stream != NULL)
            stream_close(x->d[i].stream);
        (void)pthread_mutex_destroy(&x->d[i].lock);
    }
}

/* --- a container's life --- */

/* As kubelet would have it: with limits, so that the guest has been through setting them too. */
static char *make_spec(struct err *err)
{
    static char command[] = "/warm";
    char *args[] = {command};
    Runtime__V1__PodSandboxConfig pod;
    Runtime__V1__ContainerConfig c;
    Runtime__V1__LinuxContainerConfig l;
    Runtime__V1__LinuxContainerResources r;
    struct image_config image = {.working_dir = NULL};
    runtime__v1__pod_sandbox_config__init(&pod);
    runtime__v1__container_config__init(&c);
    runtime__v1__linux_container_config__init(&l);
    runtime__v1__linux_container_resources__init(&r);
    r.cpu_shares = 100;
    r.cpu_quota = 100000;
    r.cpu_period = 100000;
    r.memory_limit_in_bytes = MEMORY_LIMIT;
    l.resources = &r;
    c.linux = &l;
    c.command = args;
    c.n_command = ARRAY_LEN(args);
    return spec_make(&c, &pod, &image, NULL, err);
}

static int create(struct machine *m, struct drains *out, struct cancel *cancel, struct err *err)
{
    static char container[] = CONTAINER;
    static char serial[] = SERIAL;
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    auto_free char *spec = make_spec(err);
    if (spec == NULL)
        return -1;
    Aspis__Agent__V1__User user;
    aspis__agent__v1__user__init(&user);
    Aspis__Agent__V1__CreateContainerRequest req;
    aspis__agent__v1__create_container_request__init(&req);
    req.container_id = container;
    req.oci_spec = (ProtobufCBinaryData){strlen(spec), (uint8_t *)spec};
    req.image_disk = serial;
    req.user = &user;
    const Aspis__Agent__V1__CreateContainerResponse *r =
        a == NULL ? NULL
                  : (const Aspis__Agent__V1__CreateContainerResponse *)call(
                        m, "CreateContainer", &req.base,
                        &aspis__agent__v1__create_container_response__descriptor, a, cancel, err);
    if (r == NULL)
        return -1;
    if (!str_empty(r->start_error))
        return err_set(err, ERR_INTERNAL, "CreateContainer: %s", r->start_error);
    return drains_open(out, m, r->streams, err);
}

static int start(struct machine *m, struct cancel *cancel, struct err *err)
{
    static char container[] = CONTAINER;
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    Aspis__Agent__V1__StartContainerRequest req;
    aspis__agent__v1__start_container_request__init(&req);
    req.container_id = container;
    return a != NULL && call(m, "StartContainer", &req.base,
                             &aspis__agent__v1__start_container_response__descriptor, a, cancel,
                             err) != NULL
               ? 0
               : -1;
}

static int execute(struct machine *m, struct warm_watch *w, struct cancel *cancel, struct err *err)
{
    static char container[] = CONTAINER;
    static char exec_id[] = "exec";
    static char command[] = "/warm";
    static char argument[] = "x";
    char *args[] = {command, argument};
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    struct drains out = {.d = {{.seen = 0}, {.seen = 0}}};
    Aspis__Agent__V1__ExecRequest req;
    Aspis__Agent__V1__RemoveProcessRequest remove;
    aspis__agent__v1__exec_request__init(&req);
    aspis__agent__v1__remove_process_request__init(&remove);
    req.container_id = remove.container_id = container;
    req.exec_id = remove.exec_id = exec_id;
    req.args = args;
    req.n_args = ARRAY_LEN(args);
    const Aspis__Agent__V1__ExecResponse *r =
        a == NULL ? NULL
                  : (const Aspis__Agent__V1__ExecResponse *)call(
                        m, "Exec", &req.base, &aspis__agent__v1__exec_response__descriptor, a,
                        cancel, err);
    if (r == NULL)
        return -1;
    int rc = drains_open(&out, m, r->streams, err);
    if (rc == 0)
        rc = wait_exits(w, 1, cancel, err);
    drains_close(&out);
    return rc < 0 ? -1 : call_empty(m, "RemoveProcess", &remove.base, cancel, err);
}

static int end(struct machine *m, struct warm_watch *w, struct cancel *cancel, struct err *err)
{
    static char container[] = CONTAINER;
    Aspis__Agent__V1__SignalContainerRequest sig;
    Aspis__Agent__V1__RemoveContainerRequest remove;
    aspis__agent__v1__signal_container_request__init(&sig);
    aspis__agent__v1__remove_container_request__init(&remove);
    sig.container_id = remove.container_id = container;
    sig.signal = SIGTERM;
    if (call_empty(m, "SignalContainer", &sig.base, cancel, err) < 0 ||
        wait_exits(w, 2, cancel, err) < 0)
        return -1;
    return call_empty(m, "RemoveContainer", &remove.base, cancel, err);
}

static int live_once(struct machine *m, struct warm_watch *w, struct cancel *cancel,
                     struct err *err)
{
    struct drains out = {.d = {{.seen = 0}, {.seen = 0}}};
    (void)pthread_mutex_lock(&w->lock);
    w->exits = 0;
    (void)pthread_mutex_unlock(&w->lock);
    int rc = create(m, &out, cancel, err);
    if (rc == 0)
        rc = start(m, cancel, err);
    if (rc == 0)
        rc = execute(m, w, cancel, err);
    if (rc == 0)
        rc = end(m, w, cancel, err);
    drains_close(&out);
    return rc;
}

int warm_up(struct machine *m, const char *id, const struct disk_part *image, struct warm_watch *w,
            struct cancel *cancel, struct err *err)
{
    static const char other_mac[] = "02:a5:15:00:00:02";
    const char *mac = machine_guest_mac(m);
    if (FAILPOINT("spare.warm", err) < 0 || configure(m, id, other_mac, mac, 2, cancel, err) < 0 ||
        machine_attach_image(m, SERIAL, image, 1, cancel, err) < 0 ||
        live_once(m, w, cancel, err) < 0 || machine_detach_image(m, SERIAL, cancel, err) < 0 ||
        configure(m, id, mac, other_mac, 0, cancel, err) < 0)
        return err_wrap(err, "warm up");
    (void)pthread_mutex_lock(&w->lock);
    uint64_t seq = w->last_seq;
    (void)pthread_mutex_unlock(&w->lock);
    link_ack_events(machine_link(m), seq);
    return 0;
}
