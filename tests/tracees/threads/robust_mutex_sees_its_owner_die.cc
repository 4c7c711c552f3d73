// The owner of a robust mutex ends after the move: the kernel walks its robust list, others get
// EOWNERDEAD.
#include "tracee.h"
using namespace tracee;

int main() {
  constexpr int mutexes_count = 3;
  auto* mutexes = reinterpret_cast<pthread_mutex_t*>(
      map(page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS));
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  for (int i = 0; i < mutexes_count; ++i)
    need(pthread_mutex_init(&mutexes[i], &attributes) == 0, "pthread_mutex_init");
  std::atomic<bool> locked{false}, die{false}, waiting{false};
  std::thread owner([&] {
    for (int i = 0; i < mutexes_count; ++i) need(pthread_mutex_lock(&mutexes[i]) == 0, "lock");
    locked = true;
    while (!die) usleep(1000);
    syscall(SYS_exit, 0);  // At once: neither glibc nor C++ cleans up.
  });
  need(eventually([&] { return locked.load(); }), "owner");
  std::atomic<int> waiters_result{-1};
  std::thread waiter([&] {
    waiting = true;
    waiters_result = pthread_mutex_lock(&mutexes[2]);
  });
  need(eventually([&] { return waiting.load(); }), "waiter");
  ready();
  wait_moved();
  same("trylock while the owner lives", EBUSY, pthread_mutex_trylock(&mutexes[0]));
  die = true;
  owner.join();
  same("lock of the dead owner's mutex", EOWNERDEAD, pthread_mutex_lock(&mutexes[0]));
  same("lock of the second", EOWNERDEAD, pthread_mutex_lock(&mutexes[1]));
  check(eventually([&] { return waiters_result != -1; }), "the waiter wasn't woken");
  same("result of the waiter", EOWNERDEAD, waiters_result.load());
  if (waiters_result != -1)
    waiter.join();
  else
    _exit(1);
  return ok();
}
