/* An algorithm that tells when its main began: CLOCK_REALTIME in nanoseconds. */

#include <stdio.h>
#include <time.h>

int main(int argc, char **argv) {
  struct timespec at;
  clock_gettime(CLOCK_REALTIME, &at);
  if (argc != 1) {
    fprintf(stderr, "usage: %s\n", argv[0]);
    return 64;
  }
  printf("%lld\n", (long long)at.tv_sec * 1000000000LL + at.tv_nsec);
  return 0;
}
