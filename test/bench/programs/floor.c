/*
 * What this machine can do at most: processes started by posix_spawn, and nothing else.
 *
 *     floor run DIR COUNT SLOTS INPUT PROGRAM    SLOTS at a time; prints {"seconds", "cpu_seconds"}
 *     floor publish DIR COUNT SLOTS INPUT PROGRAM
 *                                                the same by SLOTS processes, each of which makes what it ran durable
 *                                                before it goes on, as a store of results must
 *     floor start DIR COUNT INPUT PROGRAM        one after the other; PROGRAM prints CLOCK_REALTIME in nanoseconds as
 *                                                its main begins; prints the microseconds from the call to that
 *
 * Each process has INPUT as stdin, and files for stdout and stderr in a directory of its own, DIR/0 DIR/1 ...
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EX_USAGE 64
#define EX_OSERR 71
#define PAUSE_NS 5000000
#define SHARDS 256
#define DOCUMENT_BYTES 512

static char *const ENVIRONMENT[] = {"PATH=/usr/bin:/bin", "LANG=C", NULL};

static void fail(const char *what) {
  fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
  exit(EX_OSERR);
}

static int usage(void) {
  fputs("usage: floor run DIR COUNT SLOTS INPUT PROGRAM\n"
        "       floor publish DIR COUNT SLOTS INPUT PROGRAM\n"
        "       floor start DIR COUNT INPUT PROGRAM\n"
        "COUNT and SLOTS are whole numbers, at least 1\n",
        stderr);
  return EX_USAGE;
}

/* 0: it is no whole number of 1 to INT_MAX */
static int parse_count(const char *text) {
  char *end;
  errno = 0;
  long value = strtol(text, &end, 10);
  return errno == 0 && *text != '\0' && *end == '\0' && value >= 1 && value <= INT_MAX ? (int)value : 0;
}

static long long now_ns(clockid_t clock) {
  struct timespec at;
  clock_gettime(clock, &at);
  return (long long)at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int open_new(const char *dir, const char *name) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) fail(path);
  return fd;
}

/* `called_at` is the time right before posix_spawn. */
static pid_t start(const char *base, int number, const char *input, char *program, long long *called_at) {
  char dir[PATH_MAX];
  snprintf(dir, sizeof dir, "%s/%d", base, number);
  if (mkdir(dir, 0755) != 0) fail(dir);
  int in = open(input, O_RDONLY | O_CLOEXEC);
  if (in < 0) fail(input);
  int out = open_new(dir, "stdout.log");
  int err = open_new(dir, "stderr.log");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in, 0);
  posix_spawn_file_actions_adddup2(&actions, out, 1);
  posix_spawn_file_actions_adddup2(&actions, err, 2);
  char *const argv[] = {program, NULL};
  pid_t pid;
  *called_at = now_ns(CLOCK_REALTIME);
  errno = posix_spawn(&pid, program, &actions, NULL, argv, ENVIRONMENT);
  if (errno != 0) fail(program);
  posix_spawn_file_actions_destroy(&actions);
  close(in);
  close(out);
  close(err);
  return pid;
}

static void await_one(const char *program) {
  int status;
  if (waitpid(-1, &status, 0) < 0) fail("waitpid");
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
  fprintf(stderr, "floor: %s ended with status %#x\n", program, status);
  exit(EX_OSERR);
}

static double cpu_seconds(int who) {
  struct rusage usage;
  getrusage(who, &usage);
  return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void run(const char *base, int count, int slots, const char *input, char *program) {
  long long began = now_ns(CLOCK_MONOTONIC);
  long long called_at;
  int started = 0;
  for (int ended = 0; ended < count; ended++) {
    while (started < count && started - ended < slots) start(base, started++, input, program, &called_at);
    await_one(program);
  }
  double seconds = (now_ns(CLOCK_MONOTONIC) - began) / 1e9;
  printf("{\"seconds\": %.6f, \"cpu_seconds\": %.6f}\n", seconds, cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN));
}

static void sync_directory(const char *path) {
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0 || fsync(fd) != 0) fail(path);
  close(fd);
}

static void write_document(const char *dir, const char *name) {
  char text[DOCUMENT_BYTES];
  memset(text, 'x', sizeof text);
  int fd = open_new(dir, name);
  if (write(fd, text, sizeof text) != sizeof text || fdatasync(fd) != 0) fail(name);
  close(fd);
}

/* Two documents beside the streams, then one name for all, in one of SHARDS directories. */
static void publish(const char *base, int number) {
  char dir[PATH_MAX], shard[PATH_MAX], target[PATH_MAX + 32];
  snprintf(dir, sizeof dir, "%s/%d", base, number);
  snprintf(shard, sizeof shard, "%s/s%d", base, number % SHARDS);
  snprintf(target, sizeof target, "%s/%d", shard, number);
  write_document(dir, "status.json");
  write_document(dir, "result.json");
  sync_directory(dir);
  if (rename(dir, target) != 0) fail(target);
  sync_directory(shard);
}

static void run_published(const char *base, int count, int slots, const char *input, char *program) {
  for (int i = 0; i < SHARDS; i++) {
    char shard[PATH_MAX];
    snprintf(shard, sizeof shard, "%s/s%d", base, i);
    if (mkdir(shard, 0755) != 0) fail(shard);
  }
  long long began = now_ns(CLOCK_MONOTONIC);
  for (int slot = 0; slot < slots; slot++) {
    pid_t pid = fork();
    if (pid < 0) fail("fork");
    if (pid > 0) continue;
    for (int number = slot; number < count; number += slots) {
      long long called_at;
      start(base, number, input, program, &called_at);
      await_one(program);
      publish(base, number);
    }
    _exit(0);
  }
  for (int slot = 0; slot < slots; slot++) await_one("a slot");
  double seconds = (now_ns(CLOCK_MONOTONIC) - began) / 1e9;
  printf("{\"seconds\": %.6f, \"cpu_seconds\": %.6f}\n", seconds, cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN));
}

static void time_starts(const char *base, int count, const char *input, char *program) {
  const struct timespec pause = {0, PAUSE_NS};
  printf("[");
  for (int i = 0; i < count; i++) {
    long long called_at;
    start(base, i, input, program, &called_at);
    await_one(program);
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%d/stdout.log", base, i);
    FILE *file = fopen(path, "r");
    long long began;
    if (file == NULL || fscanf(file, "%lld", &began) != 1) fail(path);
    fclose(file);
    printf("%s%.3f", i == 0 ? "" : ", ", (began - called_at) / 1e3);
    /* As after a job: what runs next finds an idle machine. */
    nanosleep(&pause, NULL);
  }
  printf("]\n");
}

int main(int argc, char **argv) {
  if (argc == 7 && strcmp(argv[1], "run") == 0 && parse_count(argv[3]) && parse_count(argv[4])) {
    run(argv[2], parse_count(argv[3]), parse_count(argv[4]), argv[5], argv[6]);
    return 0;
  }
  if (argc == 7 && strcmp(argv[1], "publish") == 0 && parse_count(argv[3]) && parse_count(argv[4])) {
    run_published(argv[2], parse_count(argv[3]), parse_count(argv[4]), argv[5], argv[6]);
    return 0;
  }
  if (argc == 6 && strcmp(argv[1], "start") == 0 && parse_count(argv[3])) {
    time_starts(argv[2], parse_count(argv[3]), argv[4], argv[5]);
    return 0;
  }
  return usage();
}
