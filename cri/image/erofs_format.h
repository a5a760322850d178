/*
 * erofs_format - the on-disk structures of EROFS, as far as our files use them.
 *
 * What we write: 4 KiB blocks, uncompressed, extended inodes only, data either in whole blocks
 * (files, always) or with its last partial block behind the inode (directories, symlinks), and
 * xattrs within the inode. Everything is little-endian. (Linux Documentation/filesystems/erofs.rst;
 * read by Linux 5.4 and later, by erofs-utils 1.0 and later.)
 */
#ifndef ASPIS_CRI_IMAGE_EROFS_FORMAT_H
#define ASPIS_CRI_IMAGE_EROFS_FORMAT_H

#include <stdint.h>

#define EROFS_BLOCK 4096U
#define EROFS_BLOCK_BITS 12
#define EROFS_SB_OFFSET 1024U
#define EROFS_SB_MAGIC 0xE0F5E1E2U
#define EROFS_SLOT 32U /* an inode's number counts these from the metadata's first block */
#define EROFS_NAME_MAX 255U

#define EROFS_COMPAT_CHECKSUM 1U
#define EROFS_COMPAT_MTIME 2U

struct erofs_super {
    uint32_t magic;
    uint32_t checksum; /* CRC-32C of [1024, 4096) with this field 0, seed ~0, not inverted */
    uint32_t feature_compat;
    uint8_t block_bits;
    uint8_t sb_extslots;
    uint16_t root_nid;
    uint64_t inodes;
    uint64_t build_time;
    uint32_t build_time_ns;
    uint32_t blocks; /* of the whole device */
    uint32_t meta_block;
    uint32_t xattr_block;
    uint8_t uuid[16];
    uint8_t volume_name[16];
    uint32_t feature_incompat;
    uint16_t compression;
    uint16_t extra_devices;
    uint16_t device_slot;
    uint8_t reserved[38];
};
_Static_assert(sizeof(struct erofs_super) == 128, "erofs superblock");

/* i_format: bit 0 is 1 for an extended inode, bits 1..3 are the layout. */
#define EROFS_PLAIN 0U  /* data in blocks from `block` on */
#define EROFS_INLINE 2U /* the same, the last partial block right behind the xattrs */
#define EROFS_FORMAT(layout) (1U | ((layout) << 1))

struct erofs_inode {
    uint16_t format;
    uint16_t xattr_count; /* 0: none; else the area is 12 + 4 * (count - 1) bytes */
    uint16_t mode;
    uint16_t reserved;
    uint64_t size;
    uint32_t block; /* or the device number, as Linux's new_encode_dev() */
    uint32_t ino;
    uint32_t uid;
    uint32_t gid;
    uint64_t mtime;
    uint32_t mtime_ns;
    uint32_t nlink;
    uint8_t reserved2[16];
};
_Static_assert(sizeof(struct erofs_inode) == 64, "erofs extended inode");

/* A directory is a run of blocks; each holds its entries, sorted, and then their names. */
struct erofs_dirent {
    uint64_t nid;
    uint16_t name_offset; /* in this block; the first one's also tells how many entries there are */
    uint8_t type;
    uint8_t reserved;
} __attribute__((packed));
_Static_assert(sizeof(struct erofs_dirent) == 12, "erofs directory entry");

enum erofs_type {
    EROFS_TYPE_UNKNOWN,
    EROFS_TYPE_FILE,
    EROFS_TYPE_DIR,
    EROFS_TYPE_CHR,
    EROFS_TYPE_BLK,
    EROFS_TYPE_FIFO,
    EROFS_TYPE_SOCK,
    EROFS_TYPE_LINK,
};

struct erofs_xattr_header {
    uint32_t name_filter;
    uint8_t shared_count;
    uint8_t reserved[7];
};
_Static_assert(sizeof(struct erofs_xattr_header) == 12, "erofs xattr header");

/* Followed by the name without its prefix, the value, and padding to 4 bytes. */
struct erofs_xattr {
    uint8_t name_len;
    uint8_t prefix;
    uint16_t value_len;
};

enum erofs_xattr_prefix {
    EROFS_XATTR_USER = 1,
    EROFS_XATTR_ACL_ACCESS = 2,  /* the whole name; nothing follows */
    EROFS_XATTR_ACL_DEFAULT = 3, /* likewise */
    EROFS_XATTR_TRUSTED = 4,
    EROFS_XATTR_SECURITY = 6,
};

/* Our own marks in layer files; images cannot set them, and the merge takes them out. */
#define LAYER_XATTR_IMPLIED "aspis.implied" /* trusted.: a directory that the tar does not list */
#define LAYER_XATTR_LINK "aspis.link" /* trusted.: a hard link to this path of a lower layer */
#define OVERLAY_XATTR_OPAQUE "overlay.opaque"

uint32_t erofs_crc32c(const void *data, uint64_t len);

#endif
