// A PI mutex with an owner and waiters: the kernel's state behind it is rebuilt.
#include "tracee.h"
using namespace tracee;

int main() {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
  pthread_mutex_t mutex;
  need(pthread_mutex_init(&mutex, &attributes) == 0, "pthread_mutex_init");
  need(pthread_mutex_lock(&mutex) == 0, "pthread_mutex_lock");
  std::atomic<int> entered{0}, begun{0};
  auto enter = [&] {
    ++begun;
    if (!check(pthread_mutex_lock(&mutex) == 0, "pthread_mutex_lock")) return;
    ++entered;
    check(pthread_mutex_unlock(&mutex) == 0, "pthread_mutex_unlock");
  };
  std::thread a(enter), b(enter), c(enter);
  need(eventually([&] { return begun == 3; }), "waiters");
  usleep(20'000);
  ready();
  wait_moved();
  same("waiters that came in", 0, entered.load());
  same("trylock", EBUSY, pthread_mutex_trylock(&mutex));
  check(pthread_mutex_unlock(&mutex) == 0, "pthread_mutex_unlock");
  a.join();
  b.join();
  c.join();
  same("waiters that came in after the unlock", 3, entered.load());
  return ok();
}
