/* A wall clock that is CLOCK_OFF seconds off: what reads it is told so, what waits until an instant of it is not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long off(void) { const char *text = getenv("CLOCK_OFF"); return text ? atol(text) : 0; }
static int wall(clockid_t id) { return id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE; }
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int clock_gettime(clockid_t id, struct timespec *t) {
    int code = REAL(clock_gettime)(id, t);
    if (!code && wall(id)) t->tv_sec += off();
    return code;
}
int gettimeofday(struct timeval *t, void *zone) {
    int code = REAL(gettimeofday)(t, zone);
    if (!code) t->tv_sec += off();
    return code;
}
time_t time(time_t *t) {
    time_t now = REAL(time)(NULL) + off();
    if (t) *t = now;
    return now;
}
static struct timespec before(const struct timespec *until) {
    return (struct timespec){until->tv_sec - off(), until->tv_nsec};
}
int sem_timedwait(sem_t *s, const struct timespec *until) {
    struct timespec t = before(until);
    return REAL(sem_timedwait)(s, &t);
}
int pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *until) {
    static int (*wait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!wait) wait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    struct timespec now, real;
    REAL(clock_gettime)(CLOCK_MONOTONIC, &now);
    REAL(clock_gettime)(CLOCK_REALTIME, &real);
    /* which clock the condition has is not asked: an instant nearer to the faked wall clock is one of it */
    real.tv_sec += off();
    long to_wall = labs(until->tv_sec - real.tv_sec), to_monotonic = labs(until->tv_sec - now.tv_sec);
    struct timespec t = to_wall < to_monotonic ? before(until) : *until;
    return wait(c, m, &t);
}
long syscall(long number, ...) {
    va_list list;
    long a[6];
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    struct timespec t;
    if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME) && a[3]) {
        t = before((struct timespec *)a[3]);
        a[3] = (long)&t;
    }
    return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
