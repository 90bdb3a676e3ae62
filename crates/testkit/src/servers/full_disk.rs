//! A disk that is full while a file exists, for one process: what would make a file of a database longer fails with `ENOSPC`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes and allocations that make a file below `base/` longer. What is there already can be written again, as on a real disk.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
static int full(int file, off_t end) {
  const char *flag = getenv("STVOR_DISK_FULL_WHILE");
  char link[64], path[4096];
  struct stat found;
  if (!flag || access(flag, F_OK) != 0) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return strstr(path, "/base/") && fstat(file, &found) == 0 && end > found.st_size;
}
ssize_t pwrite64(int file, const void *bytes, size_t count, off_t at) {
  if (full(file, at + count)) { errno = ENOSPC; return -1; }
  return syscall(SYS_pwrite64, file, bytes, count, at);
}
ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) { return pwrite64(file, bytes, count, at); }
ssize_t pwritev64(int file, const struct iovec *parts, int count, off_t at) {
  off_t end = at;
  for (int i = 0; i < count; i++) end += parts[i].iov_len;
  if (full(file, end)) { errno = ENOSPC; return -1; }
  return syscall(SYS_pwritev, file, parts, (long)count, (long)at, 0L);
}
ssize_t pwritev(int file, const struct iovec *parts, int count, off_t at) { return pwritev64(file, parts, count, at); }
int posix_fallocate64(int file, off_t at, off_t length) {
  if (full(file, at + length)) return ENOSPC;
  return syscall(SYS_fallocate, file, 0, at, length) == 0 ? 0 : errno;
}
int posix_fallocate(int file, off_t at, off_t length) { return posix_fallocate64(file, at, length); }
"#;

/// The library, and the file while which the disk is full.
pub(super) struct FullDisk {
    pub(super) library: PathBuf,
    pub(super) flag: PathBuf,
}

impl FullDisk {
    /// Compiles the library; `None` where nothing compiles it.
    pub(super) fn in_folder(folder: &Path) -> io::Result<Option<Self>> {
        let (source, library) = (folder.join("full_disk.c"), folder.join("full_disk.so"));
        std::fs::write(&source, SHIM)?;
        let compiled =
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).output();
        if !compiled.is_ok_and(|compiled| compiled.status.success()) {
            super::missing("a C compiler", "gcc libc6-dev");
            return Ok(None);
        }
        Ok(Some(Self { library, flag: folder.join("full") }))
    }
}
