/* Holds each sync of a server while the file exists that A3S_EVENT_TEST_SLOW_SYNC names. */
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void hold(void) {
    const char *path = getenv("A3S_EVENT_TEST_SLOW_SYNC");
    while (path && access(path, F_OK) == 0) {
        usleep(1000);
    }
}

int fdatasync(int file) {
    hold();
    return syscall(SYS_fdatasync, file);
}

int fsync(int file) {
    hold();
    return syscall(SYS_fsync, file);
}
